//! No honest session is taken for that of two machines: there are no copied machines in this world. A nonce that was given twice,
//! by two leaderships that cannot be told apart, would look like one.

use treelease_proto::command::{Event, EventKind};

use super::Broken;

/// Something happened.
pub fn check(event: &Event) -> Result<(), Broken> {
    match event.kind {
        EventKind::Copied => Err(format!("{:?} was taken for two machines", event.side)),
        _ => Ok(()),
    }
}
