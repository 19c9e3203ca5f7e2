//! Which machine this is, and which of its boots: by that a fenced side shows that it has been restarted (DESIGN 3, Fences).
//!
//! A machine is known by `machine-id(5)`, of which the servers get a digest, since that file is not to be told. In a container there is
//! none: what lies there came with the image, and is the same on every machine that runs it. Who makes machines from one image
//! without giving each an id of its own breaks what `machine-id(5)` says.

use sha2::{Digest, Sha256};
use treelease_client::error::Failure;
use treelease_client::place;

/// Machine and boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Machine {
    /// Empty if it is not known.
    pub machine: String,
    pub boot: String,
}

impl Machine {
    /// This one. Debug builds let a test say which (`TREELEASE_TEST_MACHINE=MACHINE/BOOT`): nothing here can be restarted.
    pub fn this(container: bool) -> Result<Self, Failure> {
        let said = std::env::var("TREELEASE_TEST_MACHINE").ok().filter(|_| cfg!(debug_assertions));
        if let Some((machine, boot)) = said.as_deref().and_then(|said| said.split_once('/')) {
            return Ok(Self { machine: machine.into(), boot: boot.into() });
        }
        let boot = place::boot_id().map_err(|e| Failure::io("cannot read the kernel's boot id", &e))?;
        let written = std::fs::read_to_string("/etc/machine-id").ok().filter(|_| !container && is_outermost());
        Ok(Self { machine: written.as_deref().and_then(digest).unwrap_or_default(), boot })
    }
}

/// Whether this process is in the machine's first pid namespace. In every other one it is in a container of whatever kind (LXC,
/// systemd-nspawn), which may be started on another machine with the same `machine-id`.
fn is_outermost() -> bool {
    /// `PROC_PID_INIT_INO` of the kernel's `include/linux/proc_ns.h`.
    const FIRST: &str = "pid:[4026531836]";
    std::fs::read_link("/proc/self/ns/pid").is_ok_and(|namespace| namespace.as_os_str() == FIRST)
}

/// Of what the file says, if that is an id: not empty, and not `uninitialized`.
fn digest(written: &str) -> Option<String> {
    let id = written.trim();
    let is_id = id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit());
    let digest = Sha256::digest(format!("treelease machine {id}"));
    is_id.then(|| digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_is_known_by_a_digest_of_its_id_and_not_in_a_container() {
        let one = digest("3d1219c7c4c5404aaa1f6d2a48adfda4\n").unwrap();
        assert_eq!((one.len(), digest("3d1219c7c4c5404aaa1f6d2a48adfda4").as_ref()), (32, Some(&one)));
        assert_ne!(digest("3d1219c7c4c5404aaa1f6d2a48adfda5"), Some(one));
        for none in ["", "\n", "uninitialized\n", "3d1219c7c4c5404aaa1f6d2a48adfda", "zd1219c7c4c5404aaa1f6d2a48adfda4"] {
            assert_eq!(digest(none), None, "{none:?}");
        }
        assert_eq!(Machine::this(true).unwrap().machine, "");
    }
}
