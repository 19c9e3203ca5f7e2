//! Who may call: whoever shows the token, where one is asked for.
//!
//! Promises: without the right `authorization: Bearer TOKEN` no call reaches the service, and how long the refusal takes
//! tells nothing about the token (digests are compared, all of their bytes). A call that stays open remembers what was shown,
//! so that it can be looked at again ([`Keys::still_open_to`]). It does not know which side calls: without TLS a name is only
//! claimed.

use std::sync::{Arc, RwLock};

use sha2::{Digest, Sha256};
use tonic::service::Interceptor;
use tonic::{Request, Status};

use crate::config::Token;

/// The tokens that open the door; they can change while the node runs.
#[derive(Clone, Default)]
pub struct Keys(Arc<RwLock<Vec<[u8; 32]>>>);

impl Keys {
    /// Any of these; none: the door is open.
    pub fn new(tokens: &[Token]) -> Self {
        let keys = Self::default();
        keys.change(tokens);
        keys
    }

    /// From now on these, for connections that are there, too.
    pub fn change(&self, tokens: &[Token]) {
        let digests = tokens.iter().map(|token| digest(token.as_str().as_bytes())).collect();
        *self.0.write().expect("nothing panics while it holds the keys") = digests;
    }

    /// Whether what was shown at the begin of a call still opens the door.
    pub fn still_open_to(&self, shown: Shown) -> Result<(), Status> {
        let keys = self.0.read().expect("nothing panics while it holds the keys");
        if keys.is_empty() {
            return Ok(());
        }
        let Shown(Some(given)) = shown else {
            return Err(Status::unauthenticated(
                "this server asks for a token: set token_file to the file that the server was started with (--token-file)",
            ));
        };
        // All of them are looked at, whichever it is.
        if keys.iter().fold(false, |found, key| found | same(&given, key)) {
            return Ok(());
        }
        Err(Status::unauthenticated(
            "the token is not this server's: set token_file to the file that the server was started with (--token-file)",
        ))
    }
}

/// What a caller has shown, as a digest; with every call that was let in.
#[derive(Clone, Copy, Default)]
pub struct Shown(Option<[u8; 32]>);

impl Shown {
    fn of(header: Option<&[u8]>) -> Self {
        Self(header.map(|header| digest(header.strip_prefix(b"Bearer ").unwrap_or_default())))
    }
}

/// Lets calls in, or not.
#[derive(Clone)]
pub struct Gatekeeper(Keys);

impl Gatekeeper {
    /// With these keys.
    pub fn new(keys: &Keys) -> Self {
        Self(keys.clone())
    }
}

impl Interceptor for Gatekeeper {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let shown = Shown::of(request.metadata().get("authorization").map(|v| v.as_bytes()));
        self.0.still_open_to(shown)?;
        request.extensions_mut().insert(shown);
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
        let keys = Keys::new(&[Token::new("right"), Token::new("next")]);
        let check = |keys: &Keys, header: Option<&[u8]>| keys.still_open_to(Shown::of(header));
        check(&keys, Some(b"Bearer right")).unwrap();
        check(&keys, Some(b"Bearer next")).unwrap();
        for wrong in [None, Some(&b"Bearer wrong"[..]), Some(b"right"), Some(b"Bearer "), Some(b""), Some(b"bearer right")] {
            assert_eq!(check(&keys, wrong).unwrap_err().code(), tonic::Code::Unauthenticated, "{wrong:?}");
        }
        check(&Keys::new(&[]), None).unwrap();
    }

    #[test]
    fn a_token_that_was_taken_out_opens_no_door_that_was_there_before() {
        let keys = Keys::new(&[Token::new("old")]);
        let mut door = Gatekeeper::new(&keys);
        let call = |door: &mut Gatekeeper, token: &str| {
            let mut request = Request::new(());
            request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
            door.call(request).is_ok()
        };
        assert!(call(&mut door, "old") && !call(&mut door, "new"));
        keys.change(&[Token::new("new")]);
        assert!(!call(&mut door, "old") && call(&mut door, "new"));
    }
}
