//! The thread that plays a world, set apart from its machine: clocks and chance come to it from the world.
//!
//! Libraries read both by themselves: h2 keeps a stream that was reset for a second, hyper dates its answers, tokio seeds its choice
//! among branches that are ready, `std` seeds its hash maps. All of them ask libc, and the linker takes these functions for libc's.
//!
//! # Promises
//!
//! Between [`begin`] and the end of what it gives, on that thread: every clock shows the world's time, random bytes follow from the
//! seed, and threads that are begun are counted. To any other thread the machine speaks.
//!
//! # Does not know
//!
//! Who asks the kernel without libc (rustix does): nobody in the simulated world. What a process counts, whoever does it: tokio's tasks
//! (see `sockets`), and its runtimes, whose number has a part in how each chooses among branches.

use std::cell::RefCell;
use std::ffi::{c_int, c_uint, c_void};
use std::sync::OnceLock;
use std::time::Duration;

use nix::libc;

use super::plan::{Machine, Options};
use crate::world::rng::Rng;

/// What clocks show when a world begins: later than anything that is subtracted from it.
const BEGIN: Duration = Duration::from_secs(1_000_000_000);
/// So far a starved process's clock leaps, at most, from one reading to the next.
const LEAP_MOST: Duration = Duration::from_secs(3);
/// When a machine that stalls does so, by the world's time (moments that its steps meet), and for how long: for more than the second
/// after which h2 forgets.
const STALLS: [Duration; 2] = [Duration::from_secs(10), Duration::from_secs(11)];
const STALL: Duration = Duration::from_millis(1_100);

/// What this thread is told.
struct Told {
    /// The world's time, and its chance; `None`: the machine's.
    world: Option<(Duration, Rng)>,
    /// How far the machine's clock has leapt, and what draws how far it does.
    leaps: Option<(Duration, Rng)>,
    threads: u64,
}

thread_local! {
    // Nothing in it is dropped: so it is there for whoever reads a clock when the thread begins and when it ends.
    static TOLD: RefCell<Told> = const { RefCell::new(Told { world: None, leaps: None, threads: 0 }) };
}

/// While this is there, the thread that made it is apart.
pub struct Apart(Machine);

/// This thread plays that world from now on.
pub fn begin(options: &Options) -> Apart {
    tell(|told| {
        (told.world, told.leaps) = match options.machine {
            Machine::Silent | Machine::Stalls => (Some((Duration::ZERO, Rng::new(options.seed))), None),
            Machine::Heard(leaps) => (None, Some((Duration::ZERO, Rng::new(leaps)))),
        };
        told.threads = 0;
    });
    Apart(options.machine)
}

impl Apart {
    /// It is that time in the world.
    pub fn set(&self, now: Duration) {
        tell(|told| {
            if let Some((time, _)) = &mut told.world {
                *time = now;
            }
        });
        if self.0 == Machine::Stalls && STALLS.contains(&now) {
            std::thread::sleep(STALL);
        }
    }

    /// So many threads were begun from this one.
    pub fn threads(&self) -> u64 {
        tell(|told| told.threads).unwrap_or_default()
    }
}

impl Drop for Apart {
    fn drop(&mut self) {
        tell(|told| (told.world, told.leaps) = (None, None));
    }
}

fn tell<R>(what: impl FnOnce(&mut Told) -> R) -> Option<R> {
    TOLD.try_with(|told| told.try_borrow_mut().ok().map(|mut told| what(&mut told))).ok().flatten()
}

/// libc's, for whoever is linked with this module.
///
/// # Safety
///
/// As libc's: `to` is valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn clock_gettime(clock: libc::clockid_t, to: *mut libc::timespec) -> c_int {
    let counts = !matches!(clock, libc::CLOCK_PROCESS_CPUTIME_ID | libc::CLOCK_THREAD_CPUTIME_ID);
    let world = tell(|told| told.world.as_ref().map(|(now, _)| BEGIN + *now)).flatten().filter(|_| counts);
    if let Some(now) = world {
        // SAFETY: valid by this function's own condition.
        unsafe { to.write(timespec(now)) };
        return 0;
    }
    // SAFETY: the kernel checks what it is given.
    let result = unsafe { libc::syscall(libc::SYS_clock_gettime, clock, to) } as c_int;
    let leapt = tell(|told| {
        told.leaps.as_mut().map(|(leapt, rng)| {
            *leapt += rng.between(Duration::ZERO, LEAP_MOST);
            *leapt
        })
    });
    if let (0, true, Some(leapt)) = (result, counts, leapt.flatten()) {
        // SAFETY: valid by this function's own condition, and the kernel has written a time.
        unsafe {
            let read = to.read();
            to.write(timespec(Duration::new(read.tv_sec as u64, read.tv_nsec as u32) + leapt));
        }
    }
    result
}

fn timespec(time: Duration) -> libc::timespec {
    libc::timespec { tv_sec: time.as_secs() as libc::time_t, tv_nsec: time.subsec_nanos().into() }
}

/// libc's, for whoever is linked with this module.
///
/// # Safety
///
/// As libc's: `to` is valid for `len` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getrandom(to: *mut c_void, len: libc::size_t, flags: c_uint) -> libc::ssize_t {
    let drawn = tell(|told| {
        let (_, rng) = told.world.as_mut()?;
        for n in 0..len {
            // SAFETY: within the `len` bytes of this function's own condition.
            unsafe { to.cast::<u8>().add(n).write(rng.draw() as u8) };
        }
        Some(len as libc::ssize_t)
    });
    // SAFETY: the kernel checks what it is given.
    drawn.flatten().unwrap_or_else(|| unsafe { libc::syscall(libc::SYS_getrandom, to, len, flags) as libc::ssize_t })
}

type Begun = extern "C" fn(*mut c_void) -> *mut c_void;
type Create = unsafe extern "C" fn(*mut libc::pthread_t, *const libc::pthread_attr_t, Begun, *mut c_void) -> c_int;

/// libc's, for whoever is linked with this module.
///
/// # Safety
///
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pthread_create(
    thread: *mut libc::pthread_t,
    how: *const libc::pthread_attr_t,
    begun: Begun,
    with: *mut c_void,
) -> c_int {
    static NEXT: OnceLock<usize> = OnceLock::new();
    tell(|told| told.threads += 1);
    // SAFETY: the name ends with a zero.
    let next = *NEXT.get_or_init(|| unsafe { libc::dlsym(libc::RTLD_NEXT, c"pthread_create".as_ptr()) } as usize);
    assert_ne!(next, 0, "libc has threads");
    // SAFETY: it is libc's function of that name, which has this type; the arguments are those that it asks for.
    unsafe { std::mem::transmute::<usize, Create>(next)(thread, how, begun, with) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::disallowed_methods, reason = "what the machine's clock would say is what is asked here")]

    use std::collections::hash_map::RandomState;
    use std::hash::BuildHasher;
    use std::time::{Instant, SystemTime, UNIX_EPOCH};

    use treelease_proto::id::TreeId;

    use super::*;

    /// On a thread of its own, as each run is.
    fn alone<R: Send>(machine: Machine, seed: u64, what: impl FnOnce(&Apart) -> R + Send) -> R {
        let options = Options { machine, ..Options::of(seed) };
        std::thread::scope(|scope| scope.spawn(|| what(&begin(&options))).join()).unwrap()
    }

    #[test]
    fn clocks_show_the_worlds_time_and_no_other_while_it_lasts() {
        let begun = SystemTime::now();
        alone(Machine::Silent, 1, |apart| {
            let first = Instant::now();
            assert_eq!(SystemTime::now(), UNIX_EPOCH + BEGIN);
            std::thread::sleep(Duration::from_millis(2));
            assert_eq!(first.elapsed(), Duration::ZERO);
            apart.set(Duration::from_secs(7));
            assert_eq!(first.elapsed(), Duration::from_secs(7));
        });
        assert!(SystemTime::now() >= begun && begun > UNIX_EPOCH + BEGIN, "this thread's are the machine's");
    }

    #[test]
    fn chance_follows_from_the_seed_and_is_the_machines_where_that_is_heard() {
        let draw = |_: &Apart| (TreeId::random(), RandomState::new().hash_one(1));
        assert_eq!(alone(Machine::Silent, 1, draw), alone(Machine::Silent, 1, draw));
        assert_ne!(alone(Machine::Silent, 1, draw), alone(Machine::Silent, 2, draw));
        assert_ne!(alone(Machine::Heard(1), 1, draw), alone(Machine::Heard(1), 1, draw));
    }

    #[test]
    fn a_machine_that_is_heard_leaps() {
        alone(Machine::Heard(1), 1, |_| {
            let first = Instant::now();
            let leapt = (0..10).map(|_| first.elapsed()).max().unwrap();
            assert!(leapt > Duration::from_secs(5), "{leapt:?}");
        });
    }

    #[test]
    fn a_thread_that_is_begun_is_counted() {
        let threads = alone(Machine::Silent, 1, |apart| {
            assert_eq!(apart.threads(), 0);
            std::thread::spawn(|| ()).join().unwrap();
            apart.threads()
        });
        assert_eq!(threads, 1);
    }
}
