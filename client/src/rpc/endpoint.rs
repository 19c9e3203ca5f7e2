//! Where a server listens, as people write it.

use std::fmt;
use std::str::FromStr;

use tonic::codegen::http::Uri;

/// The port of a lease server when none is written.
pub const DEFAULT_PORT: u16 = 7420;

/// `http://HOST:PORT`, checked. `Display` gives that text.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Endpoint(String);

impl Endpoint {
    /// `http://HOST:PORT`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// From `HOST:PORT`, as a server's address file and its status have it.
    pub fn from_address(address: &str) -> Result<Self, String> {
        format!("http://{address}").parse()
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let short: String = text.chars().take(120).collect();
        let bad = |why: &str| format!("`{short}` is no server address: {why}; write it like http://HOST:{DEFAULT_PORT}");
        let Some(rest) = text.strip_prefix("http://") else {
            return Err(bad("it does not begin with http://"));
        };
        let uri: Uri = text.parse().map_err(|_| bad("it cannot be read"))?;
        let authority = uri.authority().ok_or_else(|| bad("it names no host"))?;
        if authority.as_str().contains('@') || !["", "/"].contains(&rest.strip_prefix(authority.as_str()).unwrap_or("?")) {
            return Err(bad("only host and port belong in it"));
        }
        let host = authority.host();
        if host.is_empty() {
            return Err(bad("it names no host"));
        }
        let port = match authority.as_str().strip_prefix(host).unwrap_or_default() {
            "" => DEFAULT_PORT,
            written => match written.strip_prefix(':').and_then(|p| p.parse::<u16>().ok()) {
                Some(port) if port != 0 => port,
                _ => return Err(bad("the port is no number from 1 to 65535")),
            },
        };
        Ok(Self(format!("http://{host}:{port}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_host_and_port_and_nothing_else() {
        let good = |text: &str| text.parse::<Endpoint>().unwrap().to_string();
        assert_eq!(good("http://127.0.0.1:7420"), "http://127.0.0.1:7420");
        assert_eq!(good("http://lease-0.example/"), "http://lease-0.example:7420");
        assert_eq!(good("http://[::1]:99"), "http://[::1]:99");
        for bad in [
            "",
            "localhost:7420",
            "ftp://x",
            "http://",
            "http://:1",
            "http://a:0",
            "http://a:99999",
            "http://a/b",
            "http://u@a",
            "http://a b",
        ] {
            let why = bad.parse::<Endpoint>().expect_err(bad);
            assert!(why.contains("http://HOST:7420"), "{why}");
        }
    }
}
