//! What a try that brought no answer means.
//!
//! Promises: [`Failed::NotSent`] only if there was no connection; whatever else is not a clear refusal may have been carried out.
//! It does not know what was asked.

use crate::words::refusal::{Code, Refusal};

/// What a failed try means.
pub(super) enum Failed {
    /// It was never sent.
    NotSent(String),
    /// It may have been carried out.
    Perhaps(String),
    /// The server does not want it.
    Refused(Refusal),
}

/// What a status means. A deadline comes back as `Cancelled` (STACK 3.3), so that counts as unknown, too.
///
/// Only the server's own word is a refusal. tonic also makes a status of what its connection says, with the cause as its source: a
/// connection that ends with HTTP/2's `ENHANCE_YOUR_CALM` looks like `ResourceExhausted`, one with `INADEQUATE_SECURITY` like
/// `PermissionDenied`; the call may have been carried out.
pub(super) fn classify(status: &tonic::Status) -> Failed {
    use tonic::Code as C;
    let text = match status.message() {
        "" => format!("{:?}", status.code()),
        message => message.to_string(),
    };
    let refused = |code| Failed::Refused(Refusal::new(code, text.clone()));
    match status.code() {
        _ if never_connected(status) => Failed::NotSent(text),
        _ if std::error::Error::source(status).is_some() => Failed::Perhaps(text),
        C::Unauthenticated | C::PermissionDenied => refused(Code::Denied),
        C::FailedPrecondition => refused(Code::Config),
        C::InvalidArgument | C::OutOfRange => refused(Code::Usage),
        C::NotFound => refused(Code::NotFound),
        C::ResourceExhausted => refused(Code::Limit),
        C::Unimplemented => Failed::Refused(Refusal::new(
            Code::Config,
            "the server does not know this call: it is of another version, or no lease server",
        )),
        _ => Failed::Perhaps(text),
    }
}

fn never_connected(status: &tonic::Status) -> bool {
    let mut source = std::error::Error::source(status);
    while let Some(e) = source {
        if e.downcast_ref::<tonic::ConnectError>().is_some() {
            return true;
        }
        source = e.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_that_breaks_refuses_nothing_whatever_code_its_end_looks_like() {
        for code in [tonic::Code::ResourceExhausted, tonic::Code::PermissionDenied, tonic::Code::OutOfRange] {
            let said = tonic::Status::new(code, "h2 protocol error");
            assert!(matches!(classify(&said), Failed::Refused(_)), "{code:?} as the server's own word");
            let mut broke = said;
            broke.set_source(std::sync::Arc::new(std::io::Error::other("http2 error")));
            assert!(matches!(classify(&broke), Failed::Perhaps(_)), "{code:?}");
        }
    }
}
