//! Who may call: whoever shows the token, where one is asked for.
//!
//! Promises: without the right `authorization: Bearer TOKEN` no call reaches the service, and how long the refusal takes
//! tells nothing about the token (digests are compared, all of their bytes). It does not know which side calls: without TLS
//! a name is only claimed.

use sha2::{Digest, Sha256};
use tonic::service::Interceptor;
use tonic::{Request, Status};

use crate::config::Token;

/// Lets calls in, or not.
#[derive(Clone)]
pub struct Gatekeeper {
    expected: Option<[u8; 32]>,
}

impl Gatekeeper {
    /// Asks for this token; for none if there is none.
    pub fn new(token: Option<&Token>) -> Self {
        Self { expected: token.map(|t| digest(t.as_str().as_bytes())) }
    }

    fn check(&self, header: Option<&[u8]>) -> Result<(), Status> {
        let Some(expected) = self.expected else { return Ok(()) };
        let Some(given) = header else {
            return Err(Status::unauthenticated(
                "this server asks for a token: set token_file to the file that the server was started with (--token-file)",
            ));
        };
        let given = given.strip_prefix(b"Bearer ").unwrap_or_default();
        if same(&digest(given), &expected) {
            return Ok(());
        }
        Err(Status::unauthenticated(
            "the token is not this server's: set token_file to the file that the server was started with (--token-file)",
        ))
    }
}

impl Interceptor for Gatekeeper {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        self.check(request.metadata().get("authorization").map(|v| v.as_bytes()))?;
        Ok(request)
    }
}

fn digest(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

/// Looks at every byte whatever it finds.
fn same(a: &[u8; 32], b: &[u8; 32]) -> bool {
    a.iter().zip(b).fold(0, |different, (x, y)| different | (x ^ y)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_right_token_is_let_in() {
        let gate = Gatekeeper::new(Some(&Token::new("right")));
        gate.check(Some(b"Bearer right")).unwrap();
        for wrong in [None, Some(&b"Bearer wrong"[..]), Some(b"right"), Some(b"Bearer "), Some(b""), Some(b"bearer right")] {
            assert_eq!(gate.check(wrong).unwrap_err().code(), tonic::Code::Unauthenticated, "{wrong:?}");
        }
        Gatekeeper::new(None).check(None).unwrap();
    }
}
