//! Places at which a test can stop the guard: between the gate's word and the system call, where a late write is born.
//!
//! Debug builds only. `TREELEASE_FAILPOINTS` names a directory; while a file with the place's name lies in it, whoever comes
//! to that place waits there.

use std::path::PathBuf;
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use treelease_client::words::clock::{Kernel, Raw, ThisKernel};

/// How often it is looked whether the file has gone.
const LOOK: Duration = Duration::from_millis(5);
/// A test that forgot its file must not keep a thread for ever.
const LIMIT: Duration = Duration::from_secs(60);

/// Waits while the test says so. Costs nothing in a release build.
pub fn here(place: &str) {
    if !cfg!(debug_assertions) {
        return;
    }
    static DIR: OnceLock<Option<PathBuf>> = OnceLock::new();
    let Some(dir) = DIR.get_or_init(|| std::env::var_os("TREELEASE_FAILPOINTS").map(PathBuf::from)) else { return };
    let (stop, reached) = (dir.join(place), dir.join(format!("{place}.reached")));
    let mut waited = Duration::ZERO;
    while stop.exists() && waited < LIMIT {
        let _told = std::fs::write(&reached, b"");
        std::thread::sleep(LOOK);
        waited += LOOK;
    }
}

/// The clock of a virtual machine that a test pauses: while a file `clock-paused` lies in the failpoints' directory no time
/// passes on it, and afterwards it goes on from there, as kvm-clock does. Nothing of the gap can be seen from inside.
#[derive(Debug)]
pub struct PausedKernel {
    dir: PathBuf,
    pauses: Mutex<Pauses>,
}

#[derive(Debug, Default)]
struct Pauses {
    /// What earlier pauses have taken away.
    lost: Duration,
    /// During a pause: when it began, on the true clock, and what each clock says as long as it lasts.
    since: Option<(Duration, [Duration; 3])>,
}

impl PausedKernel {
    /// With the directory of `TREELEASE_FAILPOINTS`.
    pub fn from_env() -> Self {
        let dir = std::env::var_os("TREELEASE_FAILPOINTS").map(PathBuf::from).unwrap_or_default();
        Self { dir, pauses: Mutex::default() }
    }
}

impl Kernel for PausedKernel {
    fn read(&self, clock: Raw) -> Duration {
        const CLOCKS: [Raw; 3] = [Raw::Monotonic, Raw::Boottime, Raw::MonotonicRaw];
        let mut pauses = self.pauses.lock().expect("nothing panics while it holds the pauses");
        let now = ThisKernel.read(Raw::MonotonicRaw);
        let lost = pauses.lost;
        let paused = self.dir.join("clock-paused").exists();
        match pauses.since {
            Some((began, _)) if !paused => {
                pauses.lost += now.saturating_sub(began);
                pauses.since = None;
            }
            None if paused => {
                pauses.since = Some((now, CLOCKS.map(|clock| ThisKernel.read(clock).saturating_sub(lost))));
                let _told = std::fs::write(self.dir.join("clock-paused.reached"), b"");
            }
            _ => {}
        }
        match pauses.since {
            Some((_, said)) => said[CLOCKS.iter().position(|c| *c == clock).expect("there are three")],
            None => ThisKernel.read(clock).saturating_sub(pauses.lost),
        }
    }
}
