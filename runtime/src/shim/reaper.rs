//! The children of the shim, of which most are not its own: whoever `cloister` leaves behind becomes
//! its child, and how it ends is how a task ends.

use std::collections::HashMap;
use std::io;
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use rustix::process::{WaitOptions, wait};
use tokio::sync::oneshot;

/// How a process has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ended {
    /// Its exit code, or 128 and the number of the signal that ended it.
    pub(crate) code: u32,
    /// When that was noticed.
    pub(crate) at: SystemTime,
}

#[derive(Debug, Default)]
struct Inner {
    waiters: HashMap<i32, oneshot::Sender<Ended>>,
    /// How many are about to learn of a child that may have ended already.
    expecting: usize,
    /// The ends of children that nobody waits for, as long as somebody may still.
    unclaimed: HashMap<i32, Ended>,
}

/// Knows all children. Clones are of the same.
#[derive(Debug, Clone, Default)]
pub(crate) struct Reaper(Arc<Mutex<Inner>>);

/// Keeps the ends of children that are not known yet, until it is dropped.
#[derive(Debug)]
pub(crate) struct Expectation(Reaper);

impl Reaper {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Maps are whole between any two of their calls.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a program; the receiver gets its end.
    pub(crate) fn spawn(
        &self,
        command: &mut Command,
    ) -> io::Result<(i32, oneshot::Receiver<Ended>)> {
        // The lock keeps its end from being collected before it is known.
        let mut inner = self.lock();
        let pid = command.spawn()?.id().cast_signed();
        let (sender, receiver) = oneshot::channel();
        inner.waiters.insert(pid, sender);
        Ok((pid, receiver))
    }

    /// From now on the end of any child is kept, for its pid becomes known later.
    pub(crate) fn expect(&self) -> Expectation {
        self.lock().expecting += 1;
        Expectation(self.clone())
    }

    /// Collects every child that has ended: to be called at each `SIGCHLD`.
    pub(crate) fn collect(&self) {
        let mut inner = self.lock();
        // An error means that there are no children at all.
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            let code = match (status.exit_status(), status.terminating_signal()) {
                (Some(code), _) => code.unsigned_abs(),
                (None, Some(signal)) => 128 + signal.unsigned_abs(),
                (None, None) => continue,
            };
            let ended = Ended {
                code,
                at: SystemTime::now(),
            };
            let pid = pid.as_raw_pid();
            match inner.waiters.remove(&pid) {
                // Whoever waited may have given up.
                Some(waiter) => drop(waiter.send(ended)),
                None if inner.expecting > 0 => drop(inner.unclaimed.insert(pid, ended)),
                None => {}
            }
        }
    }
}

impl Expectation {
    /// The child that was meant: the receiver gets its end, also if it has come already.
    pub(crate) fn meet(self, pid: i32) -> oneshot::Receiver<Ended> {
        let (sender, receiver) = oneshot::channel();
        let mut inner = self.0.lock();
        match inner.unclaimed.remove(&pid) {
            Some(ended) => drop(sender.send(ended)),
            None => drop(inner.waiters.insert(pid, sender)),
        }
        drop(inner);
        receiver
    }
}

impl Drop for Expectation {
    fn drop(&mut self) {
        let mut inner = self.0.lock();
        inner.expecting -= 1;
        if inner.expecting == 0 {
            inner.unclaimed.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        command
    }

    /// The tests of this process each have children, which only one may collect.
    static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

    async fn end(reaper: &Reaper, mut receiver: oneshot::Receiver<Ended>) -> u32 {
        for _ in 0..1000 {
            reaper.collect();
            if let Ok(ended) = receiver.try_recv() {
                return ended.code;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("the child does not end");
    }

    #[tokio::test]
    async fn ends_come_to_whoever_waits() {
        let _alone = ALONE.lock().await;
        let reaper = Reaper::default();
        let (_, exits) = reaper.spawn(&mut shell("exit 7")).unwrap();
        let (_, dies) = reaper.spawn(&mut shell("kill -TERM $$")).unwrap();
        assert_eq!(end(&reaper, exits).await, 7);
        assert_eq!(end(&reaper, dies).await, 143);
    }

    #[tokio::test]
    async fn an_end_before_its_pid_is_known_is_kept() {
        let _alone = ALONE.lock().await;
        let reaper = Reaper::default();
        let expectation = reaper.expect();
        let other = reaper.expect();
        let pid = shell("exit 3").spawn().unwrap().id().cast_signed();
        for _ in 0..1000 {
            reaper.collect();
            if reaper.lock().unclaimed.contains_key(&pid) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(end(&reaper, expectation.meet(pid)).await, 3);
        drop(other);
        let inner = reaper.lock();
        assert_eq!((inner.expecting, inner.unclaimed.len()), (0, 0));
    }
}
