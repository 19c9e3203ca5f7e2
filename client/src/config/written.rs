//! What stands in a side's file, and how it is checked: each fault names key, file and line.

use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::Spanned;

use super::MountConfig;
use crate::error::{Failure, plain};
use crate::rpc::Endpoint;
use crate::words::id::{SideName, TreeName};
use crate::words::refusal::Code;
use crate::words::time::{Ttl, format_duration, parse_duration};

/// A configuration larger than this is none (1 MiB; a real one has a few hundred bytes).
const FILE_MAX: u64 = 1 << 20;
/// The sentence for everything that needs TLS.
pub const NO_TLS: &str = "https needs TLS, which this version does not have yet; use http:// to a server started with --insecure";

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    side: Option<Spanned<String>>,
    #[serde(default)]
    endpoints: Vec<Spanned<String>>,
    ttl: Option<Spanned<String>>,
    token_file: Option<Spanned<PathBuf>>,
    tls: Option<Spanned<Tls>>,
    #[serde(default)]
    mount: Vec<Spanned<Mount>>,
}

/// Read so that a wrong key in it is found; used when TLS comes.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(dead_code)] // names of the contract; the values are refused as a whole in this version
struct Tls {
    ca: Option<PathBuf>,
    cert: Option<PathBuf>,
    key: Option<PathBuf>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Mount {
    tree: Spanned<String>,
    lower: Spanned<PathBuf>,
    at: Option<Spanned<PathBuf>>,
}

/// The same, checked; paths absolute.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Checked {
    pub side: Option<SideName>,
    pub endpoints: Vec<Endpoint>,
    pub ttl: Option<Ttl>,
    pub token_file: Option<PathBuf>,
    pub mounts: Vec<MountConfig>,
}

/// A file being checked: knows how to name a place in it.
struct Source<'a> {
    path: &'a Path,
    text: &'a str,
}

impl Source<'_> {
    fn fault(&self, span: Option<Range<usize>>, what: impl std::fmt::Display) -> Failure {
        let place = match span {
            Some(span) => {
                let upto = &self.text.as_bytes()[..span.start.min(self.text.len())];
                format!("{}:{}", self.path.display(), 1 + upto.iter().filter(|b| **b == b'\n').count())
            }
            None => self.path.display().to_string(),
        };
        Failure::new(Code::Config, format!("{place}: {what}"))
    }

    /// Relative to the file.
    fn path(&self, key: &str, written: &Spanned<PathBuf>) -> Result<PathBuf, Failure> {
        let path = written.get_ref();
        if path.as_os_str().is_empty() {
            return Err(self.fault(Some(written.span()), format_args!("`{key}` is empty")));
        }
        if path.starts_with("~") {
            let what = format_args!("`{key}`: `~` is not understood here; write the path out");
            return Err(self.fault(Some(written.span()), what));
        }
        Ok(normal(&self.path.parent().unwrap_or(Path::new("/")).join(path)))
    }
}

/// Without `.` and final slashes; `..` stays, since only the filesystem knows what it means.
fn normal(path: &Path) -> PathBuf {
    path.components().filter(|c| !matches!(c, std::path::Component::CurDir)).collect()
}

/// One server's address, with the sentence about TLS. `key` says where it stood.
pub(super) fn endpoint(text: &str, key: &str) -> Result<Endpoint, Failure> {
    if text.starts_with("https://") {
        return Err(Failure::new(Code::Config, format!("{key}: `{text}`: {NO_TLS}")));
    }
    text.parse().map_err(|why| Failure::new(Code::Config, format!("{key}: {why}")))
}

/// Reads and checks a file.
pub(super) fn read(path: &Path) -> Result<Checked, Failure> {
    let cannot = |e: std::io::Error| {
        Failure::new(Code::Config, format!("cannot read the configuration {}: {}", path.display(), plain(&e)))
    };
    let size = std::fs::metadata(path).map_err(cannot)?.len();
    if size > FILE_MAX {
        return Err(Failure::new(Code::Config, format!("{}: {size} bytes are no configuration", path.display())));
    }
    let text = std::fs::read_to_string(path).map_err(cannot)?;
    check(&Source { path, text: &text })
}

fn check(file: &Source<'_>) -> Result<Checked, Failure> {
    let written: Written = toml::from_str(file.text).map_err(|e| {
        // One wording for unknown keys, whoever found them.
        let message = e.message().replacen("unknown field", "unknown key", 1);
        file.fault(e.span(), message.trim_end())
    })?;
    if let Some(tls) = &written.tls {
        return Err(file.fault(Some(tls.span()), format_args!("[tls]: {NO_TLS}")));
    }
    let mut checked = Checked::default();
    if let Some(side) = &written.side {
        let name = side.get_ref().parse().map_err(|e| file.fault(Some(side.span()), format_args!("`side`: {e}")))?;
        checked.side = Some(name);
    }
    for text in &written.endpoints {
        let one = endpoint(text.get_ref(), "`endpoints`").map_err(|f| file.fault(Some(text.span()), f.message))?;
        checked.endpoints.push(one);
    }
    if let Some(ttl) = &written.ttl {
        let length = parse_duration(ttl.get_ref()).map_err(|e| file.fault(Some(ttl.span()), format_args!("`ttl`: {e}")))?;
        if !(Ttl::MIN.get()..=Ttl::MAX.get()).contains(&length) {
            let (min, max) = (format_duration(Ttl::MIN.get()), format_duration(Ttl::MAX.get()));
            let what = format_args!("`ttl`: {} is not between {min} and {max}", format_duration(length));
            return Err(file.fault(Some(ttl.span()), what));
        }
        checked.ttl = Some(Ttl::new(length));
    }
    if let Some(token) = &written.token_file {
        checked.token_file = Some(file.path("token_file", token)?);
    }
    for mount in &written.mount {
        let one = check_mount(file, mount, &checked.mounts)?;
        checked.mounts.push(one);
    }
    Ok(checked)
}

fn check_mount(file: &Source<'_>, written: &Spanned<Mount>, before: &[MountConfig]) -> Result<MountConfig, Failure> {
    let mount = written.get_ref();
    let tree: TreeName =
        mount.tree.get_ref().parse().map_err(|e| file.fault(Some(mount.tree.span()), format_args!("`mount.tree`: {e}")))?;
    let lower = file.path("mount.lower", &mount.lower)?;
    let at = match &mount.at {
        Some(at) => file.path("mount.at", at)?,
        None => lower.clone(),
    };
    let one = MountConfig { tree, lower, at };
    for other in before {
        if other.tree == one.tree {
            let what = format_args!("`mount.tree`: `{}` stands here twice", one.tree);
            return Err(file.fault(Some(mount.tree.span()), what));
        }
        if overlap(&other.lower, &one.lower) {
            let what = format_args!("`mount.lower`: {} and {} overlap", one.lower.display(), other.lower.display());
            return Err(file.fault(Some(mount.lower.span()), what));
        }
        if overlap(&other.at, &one.at) {
            let span = mount.at.as_ref().unwrap_or(&mount.lower).span();
            let what = format_args!("`mount.at`: {} and {} overlap", one.at.display(), other.at.display());
            return Err(file.fault(Some(span), what));
        }
    }
    Ok(one)
}

fn overlap(a: &Path, b: &Path) -> bool {
    a.starts_with(b) || b.starts_with(a)
}
