//! What can fail, in the client library, the daemon and the commands: one type, made to be shown to a person.
//!
//! The message says what is, one line, the thing and what is wrong with it; the hints say what to type. The code decides the
//! exit status and the `code` in JSON. It does not know how it is printed.

use std::fmt;

use crate::exit::Exit;
use crate::rpc::CallError;
use crate::words::id::BadId;
use crate::words::policy::BadPolicy;
use crate::words::refusal::{Code, Refusal};
use crate::words::tree::Holder;

/// Something did not work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Which kind: decides exit code and JSON.
    pub code: Code,
    /// What is wrong, one sentence or a few.
    pub message: String,
    /// What to type or do next; each becomes a `hint:` line. Commands stand in backticks.
    pub hints: Vec<String>,
    /// Who holds the tree, where that is why.
    pub holder: Option<Holder>,
}

impl Failure {
    /// A failure without hints.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), hints: Vec::new(), holder: None }
    }

    /// The same, with one more thing to do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }

    /// The same, naming the holder.
    #[must_use]
    pub fn held_by(mut self, holder: Holder) -> Self {
        self.holder = Some(holder);
        self
    }

    /// The exit of a command that ends with this.
    pub fn exit(&self) -> Exit {
        self.code.into()
    }

    /// From an error of the operating system: what was done (`cannot read /x`), and the code that suits its kind.
    pub fn io(what: impl fmt::Display, e: &std::io::Error) -> Self {
        use std::io::ErrorKind as K;
        let code = match e.kind() {
            K::NotFound => Code::NotFound,
            K::PermissionDenied => Code::Denied,
            K::AlreadyExists | K::AddrInUse | K::DirectoryNotEmpty => Code::CannotCreate,
            _ => Code::Storage,
        };
        Self::new(code, format!("{what}: {}", plain(e)))
    }
}

/// The words of an error of the operating system, without Rust's `(os error 2)`.
pub fn plain(e: &std::io::Error) -> String {
    let text = e.to_string();
    match text.find(" (os error") {
        Some(at) => text[..at].to_string(),
        None => text,
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

impl From<Refusal> for Failure {
    fn from(r: Refusal) -> Self {
        Self { code: r.code, message: r.message, hints: Vec::new(), holder: r.holder }
    }
}

impl From<Failure> for Refusal {
    fn from(f: Failure) -> Self {
        Self { code: f.code, message: f.message, holder: f.holder }
    }
}

impl From<BadId> for Failure {
    fn from(e: BadId) -> Self {
        Self::new(Code::Usage, e.to_string())
    }
}

impl From<BadPolicy> for Failure {
    fn from(e: BadPolicy) -> Self {
        Self::new(Code::Usage, e.to_string())
    }
}

impl From<CallError> for Failure {
    fn from(e: CallError) -> Self {
        match e {
            CallError::Refused(refusal) => refusal.into(),
            CallError::Unreachable { .. } => Self::new(Code::Unreachable, e.to_string())
                .hint("see whether the server runs; `treelease status` shows what this side last knew"),
            CallError::Unknown { .. } => Self::new(Code::OutcomeUnknown, e.to_string())
                .hint("it may have happened or not: look with `treelease status`, then type it again if needed"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_of_the_system_is_told_without_its_number() {
        let e = std::fs::read("/nonexistent/x").unwrap_err();
        let f = Failure::io("cannot read /nonexistent/x", &e);
        assert_eq!(f.message, "cannot read /nonexistent/x: No such file or directory");
        assert_eq!(f.exit(), Exit::NotFound);
    }

    #[test]
    fn an_unknown_outcome_and_an_unreachable_server_are_69() {
        let unknown = Failure::from(CallError::Unknown { waited: std::time::Duration::from_secs(5), last: "x".into() });
        let away = Failure::from(CallError::Unreachable { tried: vec![], waited: std::time::Duration::ZERO, last: "x".into() });
        assert_eq!((unknown.exit().code(), away.exit().code()), (69, 69));
        assert_ne!(unknown.code, away.code);
    }
}
