//! Pages of a mapping that come when the lease is gone: refused, and on record, since the process that stored into them learns nothing
//! unless it asks.

use std::fs::{self, OpenOptions};
use std::path::Path;
use std::time::Duration;

use rustix::mm::{MapFlags, MsyncFlags, ProtFlags, mmap, msync, munmap};
use serde_json::Value;
use treelease_tests::hosts::{Side, World, quick, wait_for};

const LONG: Duration = Duration::from_secs(60);
const SIZE: usize = 4096;

/// A shared mapping of a file, that can be stored into.
struct Mapping(*mut u8);

impl Mapping {
    fn of(path: &Path) -> Mapping {
        let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
        // SAFETY: a new mapping, at an address of the kernel's choice.
        let at = unsafe { mmap(std::ptr::null_mut(), SIZE, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, &file, 0) };
        Mapping(at.unwrap().cast())
    }

    fn store(&self, byte: u8) {
        // SAFETY: within the mapping, which lives as long as `self`; nobody else has its address.
        unsafe { self.0.write_volatile(byte) }
    }

    /// Whether what was stored is on the storage.
    fn sync(&self) -> bool {
        // SAFETY: the mapping made above.
        unsafe { msync(self.0.cast(), SIZE, MsyncFlags::SYNC) }.is_ok()
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping made above, unmapped once.
        let _gone = unsafe { munmap(self.0.cast(), SIZE) };
    }
}

/// The events of that name in the tree's history, oldest first.
fn events(side: &Side, name: &str) -> Vec<Value> {
    let mut events = side.ok(&["history", "dev", "-o", "json"]).json()["entries"].as_array().expect("entries").clone();
    events.retain(|event| event["event"] == name);
    events.sort_by_key(|event| event["revision"].as_u64());
    events
}

/// A mapped page that is stored into after the lease has gone is refused; it is counted once, in the history and in `status`, with its
/// file's name.
#[test]
fn a_page_that_comes_after_the_release_is_on_record_with_its_file_and_counted_once() {
    let world = World::new();
    let (_server, a, b) = world.two_hosts(&quick(&["fence=none"]));
    a.ok(&["acquire", "dev"]);
    fs::write(a.at("dev").join("mapped"), [b'1'; SIZE]).unwrap();
    let map = Mapping::of(&a.at("dev").join("mapped"));
    map.store(b'2');
    assert!(map.sync());
    a.ok(&["release", "dev"]);
    map.store(b'3');
    assert!(!map.sync(), "who asks is told");
    assert_eq!(fs::read(world.lower("dev").join("mapped")).unwrap()[0], b'2');
    wait_for(LONG, "it is on record", || !events(&b, "late_write").is_empty());
    let late = events(&b, "late_write");
    let told: u64 = late.iter().map(|event| event["count"].as_u64().unwrap_or_default()).sum();
    assert!(told >= 1 && late[0]["reason"].as_str().unwrap_or_default().contains("mapped"), "{late:?}");
    wait_for(LONG, "and in the status", || a.tree_status("dev")["notes"].to_string().contains("refused after the lease"));
    a.ok(&["acquire", "dev"]);
    a.ok(&["release", "dev"]);
    let released = events(&b, "released");
    assert!(released.len() >= 2 && released.iter().all(|event| event["count"].as_u64().unwrap_or_default() == 0), "{released:?}");
}
