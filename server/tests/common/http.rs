//! A caller of `--admin`, as simple as a probe.
#![allow(dead_code)] // each test file uses a part

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// Longest wait for any answer.
const LIMIT: Duration = Duration::from_secs(30);

/// Status and body of a GET.
pub fn get(at: SocketAddr, path: &str) -> (u16, String) {
    say(at, &format!("GET {path} HTTP/1.1\r\nHost: node\r\n\r\n"))
}

/// Status and body of what is answered to these bytes.
pub fn say(at: SocketAddr, request: &str) -> (u16, String) {
    let answer = raw(at, request);
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no head in {answer:?}"));
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or_else(|| panic!("no status in {head:?}"));
    (status, body.to_owned())
}

/// Everything that comes until the other end closes.
pub fn raw(at: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect_timeout(&at, LIMIT).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    // It may be refused in the middle.
    let _ = stream.write_all(request.as_bytes());
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8(answer).unwrap()
}

/// One number of a page of metrics.
pub fn number(page: &str, name: &str) -> f64 {
    let line = page.lines().find(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(' ')));
    let line = line.unwrap_or_else(|| panic!("no {name} in\n{page}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}
