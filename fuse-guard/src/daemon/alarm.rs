//! The loop's alarm clock: wakes it when the next thing is due, and at once after a sleep of the machine in which that was.
//!
//! # Promises
//!
//! What is due by elapsed time is looked at when it is due, also when the machine was asleep by then. *Why:* it is a timer of the kernel's on
//! `CLOCK_BOOTTIME`, which goes on in suspend; tokio's own stand still. A deadline that a suspend brings forward, whatever its length,
//! is noticed with the next look ([`super::IDLE_TICK`] at the latest); the gate needs nobody to notice.
//!
//! # Does not know
//!
//! What is due.

use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// One timer, set anew for each sleep.
pub(super) struct Alarm(AsyncFd<OwnedFd>);

impl Alarm {
    /// Inside the runtime.
    pub fn new() -> std::io::Result<Self> {
        let timer = timerfd_create(TimerfdClockId::Boottime, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
        // SAFETY: it owns the descriptor, which nobody closes or replaces before it is dropped.
        Ok(Alarm(unsafe { AsyncFd::register_with_interest(timer, Interest::READABLE) }?))
    }

    /// Sleeps so long; now and then it is shorter. Dropped before, nothing comes of it.
    pub async fn sleep(&self, long: Duration) {
        // Nothing at all would be no alarm.
        let long = long.max(Duration::from_nanos(1));
        let of = |d: Duration| Timespec { tv_sec: d.as_secs() as _, tv_nsec: d.subsec_nanos().into() };
        let once = Itimerspec { it_interval: of(Duration::ZERO), it_value: of(long) };
        if timerfd_settime(&self.0, TimerfdTimerFlags::empty(), &once).is_err() {
            // It would never ring.
            return tokio::time::sleep(long).await;
        }
        match self.0.readable().await {
            Ok(mut rung) => rung.clear_ready(),
            Err(_) => tokio::time::sleep(long).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use treelease_client::words::clock::{Clock, SideClock};

    use super::*;

    #[test]
    fn it_rings_when_it_was_set_to_and_each_time_anew() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (alarm, clock) = (Alarm::new().unwrap(), SideClock::new());
            let short = Duration::from_millis(20);
            let start = clock.now();
            for _ in 0..3 {
                alarm.sleep(short).await;
            }
            assert!(clock.now().since(start) >= 3 * short);
            // One that was dropped is set anew: by what is asked for then, and not by what was asked for before.
            let dropped = tokio::time::timeout(short, alarm.sleep(Duration::from_secs(86_400))).await;
            assert!(dropped.is_err(), "it does not ring before");
            let rung = tokio::time::timeout(Duration::from_secs(60), alarm.sleep(Duration::ZERO)).await;
            assert!(rung.is_ok(), "it rings at once");
        });
    }

    #[test]
    fn where_it_cannot_be_set_it_rings_all_the_same() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            // No timer, though as quiet as one that was not set.
            let (none, _other_end) = std::io::pipe().unwrap();
            // SAFETY: as in `Alarm::new`.
            let alarm = Alarm(unsafe { AsyncFd::register_with_interest(OwnedFd::from(none), Interest::READABLE) }.unwrap());
            let rung = tokio::time::timeout(Duration::from_secs(60), alarm.sleep(Duration::from_millis(20))).await;
            assert!(rung.is_ok());
        });
    }
}
