//! How vCPU threads are started, paused and resumed.
//!
//! ```text
//!   Closed ──open──▶ Open ──close──▶ Closed …
//! ```
//!
//! A vCPU thread waits at the gate while it is closed and runs the guest while it is open. To close
//! it, the event thread sends each vCPU thread a signal. Its handler sets `immediate_exit` in the
//! thread's own `kvm_run`, so whether the signal arrives in the guest, before it or on the way, the
//! next `KVM_RUN` finishes what the last exit left undone and returns with EINTR; then the thread
//! comes to the gate. No kick is lost, and a vCPU that stands at the gate has nothing pending.

#![allow(unsafe_code)] // Signals, and a pointer that a signal handler may use.

use std::cell::Cell;
use std::io;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use kvm_ioctls::VcpuFd;

/// The gate of a VM's vCPU threads.
#[derive(Debug, Default)]
pub struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    open: bool,
    /// The vCPU threads that have ever come, to send them signals.
    threads: Vec<libc::pthread_t>,
    /// How many of them wait.
    waiting: usize,
}

impl Gate {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Called by a vCPU thread once, before it first passes.
    pub fn enrol(&self) {
        // SAFETY: has no preconditions.
        let thread = unsafe { libc::pthread_self() };
        self.lock().threads.push(thread);
        self.changed.notify_all();
    }

    /// Waits until `count` vCPU threads have come: from then on none of them is missed by [`Gate::close`].
    pub fn wait_enrolled(&self, count: usize) {
        let mut state = self.lock();
        while state.threads.len() < count {
            state = (self.changed.wait(state)).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Called by a vCPU thread: returns when the gate is open.
    pub fn pass(&self) {
        let mut state = self.lock();
        if state.open {
            return;
        }
        state.waiting += 1;
        self.changed.notify_all();
        while !state.open {
            state = (self.changed.wait(state)).unwrap_or_else(PoisonError::into_inner);
        }
        state.waiting -= 1;
    }

    /// Called by a vCPU thread that will not run again: counts as standing at the gate for ever.
    pub fn retire(&self) -> ! {
        let mut state = self.lock();
        state.waiting += 1;
        self.changed.notify_all();
        loop {
            state = (self.changed.wait(state)).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits until `count` vCPU threads stand at the closed gate.
    pub fn assemble(&self, count: usize) {
        let mut state = self.lock();
        while state.waiting < count {
            state = (self.changed.wait(state)).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Lets the vCPU threads run.
    pub fn open(&self) {
        self.lock().open = true;
        self.changed.notify_all();
    }

    /// Stops the vCPU threads and waits until each stands at the gate.
    pub fn close(&self) {
        let count = {
            let mut state = self.lock();
            state.open = false;
            for thread in &state.threads {
                kick(*thread);
            }
            state.threads.len()
        };
        self.assemble(count);
    }
}

thread_local! {
    /// `immediate_exit` of the `kvm_run` of this thread's vCPU.
    static IMMEDIATE_EXIT: Cell<*const AtomicU8> = const { Cell::new(std::ptr::null()) };
}

fn kick_signal() -> libc::c_int {
    libc::SIGRTMIN()
}

extern "C" fn on_kick(_signal: libc::c_int) {
    let flag = IMMEDIATE_EXIT.with(Cell::get);
    if !flag.is_null() {
        // SAFETY: `arm` was given a pointer that outlives the thread.
        let flag = unsafe { &*flag };
        flag.store(1, Ordering::SeqCst);
    }
}

/// Installs the handler of the kick signal, for the whole process.
///
/// # Errors
/// If the signal cannot be handled.
pub fn install_handler() -> io::Result<()> {
    // SAFETY: all zeroes is a valid sigaction: no flags, an empty mask, the default handler.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = on_kick as *const () as libc::sighandler_t;
    // SAFETY: the handler only stores to memory that stays valid; no SA_RESTART, so KVM_RUN ends.
    let result = unsafe { libc::sigaction(kick_signal(), &raw const action, std::ptr::null_mut()) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Makes the vCPU that `thread` runs leave the guest. The thread must not have been joined.
pub fn kick(thread: libc::pthread_t) {
    // SAFETY: the handle is valid until the thread is joined.
    unsafe { libc::pthread_kill(thread, kick_signal()) };
}

/// Tells the kick handler that this thread runs `vcpu`, until the thread ends.
pub fn arm_vcpu(vcpu: &mut VcpuFd) {
    let flag = &raw mut vcpu.get_kvm_run().immediate_exit;
    // SAFETY: KVM maps `kvm_run` for as long as the vCPU lives, and this thread runs it to its end.
    unsafe { arm(flag) };
}

/// Tells the handler where this thread's vCPU keeps `immediate_exit`.
///
/// # Safety
/// The byte must stay mapped until the thread ends.
unsafe fn arm(immediate_exit: *mut u8) {
    IMMEDIATE_EXIT.with(|cell| cell.set(immediate_exit.cast()));
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, AtomicU64};

    use super::*;

    #[test]
    fn a_closed_gate_holds_every_thread() {
        install_handler().unwrap();
        let gate = Arc::new(Gate::default());
        let steps = Arc::new(AtomicU64::new(0));
        let done = Arc::new(AtomicBool::new(false));
        let threads: Vec<_> = (0..3)
            .map(|_| {
                let (gate, steps, done) = (gate.clone(), steps.clone(), done.clone());
                std::thread::spawn(move || {
                    let flag = Box::leak(Box::new(0_u8));
                    // SAFETY: the byte is never freed.
                    unsafe { arm(flag) };
                    gate.enrol();
                    gate.pass();
                    while !done.load(Ordering::SeqCst) {
                        // SAFETY: the byte is never freed; only the handler writes to it.
                        if unsafe { (&raw const *flag).read_volatile() } != 0 {
                            // SAFETY: as above; this is the thread that the handler runs on.
                            unsafe { (&raw mut *flag).write_volatile(0) };
                            gate.pass();
                        }
                        steps.fetch_add(1, Ordering::SeqCst);
                    }
                })
            })
            .collect();
        gate.assemble(3);
        assert_eq!(steps.load(Ordering::SeqCst), 0);
        for _ in 0..50 {
            gate.open();
            gate.close();
            let before = steps.load(Ordering::SeqCst);
            std::thread::yield_now();
            assert_eq!(steps.load(Ordering::SeqCst), before);
        }
        done.store(true, Ordering::SeqCst);
        gate.open();
        for thread in threads {
            thread.join().unwrap();
        }
    }
}
