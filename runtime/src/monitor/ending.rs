//! The end of a container: what was made for it is taken away, how it ended is left for others to find
//! and told to the command line, and the monitor ends alike.

use cloister_vmm_api::Channel;

use super::life::End;
use super::{EXIT_FAILED, EXIT_LOST, Monitor, Remains, lost};
use crate::agent::Exit;
use crate::launch::Report;
use crate::logger;
use crate::signal::Signal;
use crate::state::{self, Phase, State};
use crate::sys;
use crate::text::chain;

/// What came of a container.
pub(super) struct Outcome {
    pub(super) end: End,
    pub(super) remains: Remains,
    pub(super) control: Channel,
}

impl Monitor {
    /// Tells how it ended and leaves nothing, in the order in which the caller cares.
    pub(super) fn finish(&self, outcome: Outcome) -> u8 {
        let Outcome {
            end,
            remains,
            control,
        } = outcome;
        let Remains {
            mut machine,
            guest,
            state,
            hooks,
            cgroup,
            place,
        } = remains;
        if let Ok(exit) = &end.result {
            self.tell_members(*exit, state.as_ref());
        }
        if let Some(machine) = &mut machine {
            machine.kill();
        }
        drop(place);
        let report = match &end.result {
            Ok(exit) => report_of(*exit),
            Err(failure) if end.was_created => Report::Lost {
                message: lost(failure.message(&self.machine_paths), cgroup.as_ref()),
            },
            Err(failure) => Report::Failed {
                message: failure.message(&self.machine_paths),
            },
        };
        if !matches!(report, Report::Exited { .. }) {
            // Its reason is known; before anybody is told, nothing of it is left.
            drop(machine.take());
        }
        drop(guest);
        if let Some(cgroup) = cgroup.filter(|_| self.is_removed(&report)) {
            // Workers must be gone before their cgroup can be.
            drop(machine.take());
            if let Err(e) = cgroup.abandon(std::process::id()) {
                log::error!("{}", chain(&e));
            }
        }
        let exit = end.result.as_ref().ok().copied();
        self.leave_state(&report, exit, state);
        if let Some(hooks) = hooks.filter(|_| self.is_removed(&report)) {
            // As with runc, also when it was the hooks before that failed.
            hooks.stopped();
        }
        self.timeline.borrow_mut().reached("cleaned_up");
        if let Some(path) = &self.launch.timeline
            && let Err(e) = self.timeline.borrow().write(path)
        {
            log::error!("cannot write the timeline {}: {e}", path.display());
        }
        let heard = control.send(&report, &[]).is_ok();
        match &report {
            Report::Lost { message } | Report::Failed { message } if !heard => {
                log::error!("container {}: {message}", self.launch.id);
            }
            _ => {}
        }
        logger::stop();
        // Reaped last: nobody has to wait for the kernel to take a virtual machine apart.
        drop(machine);
        end_as(&report)
    }

    /// Notes how the container has ended before the machine goes under those who share it: to them it
    /// is the difference between having been killed and being lost.
    fn tell_members(&self, exit: Exit, state: Option<&State>) {
        let Some(state) = state.filter(|_| self.paths.members().exists()) else {
            return;
        };
        let state = State {
            phase: phase_of(exit),
            ..state.clone()
        };
        if let Err(e) = state::write(&self.paths, &state) {
            log::error!("{}", chain(&e));
        }
    }

    /// Whether nothing stays of the container that ended so.
    fn is_removed(&self, report: &Report) -> bool {
        matches!(report, Report::Failed { .. }) || self.launch.remove
    }

    /// Removes the state directory, or leaves in it how the container ended.
    fn leave_state(&self, report: &Report, exit: Option<Exit>, state: Option<State>) {
        let failed = matches!(report, Report::Failed { .. });
        if failed && let Some(path) = &self.launch.pid_file {
            // Not written yet, as a rule.
            let _ = std::fs::remove_file(path);
        }
        if self.is_removed(report) {
            if let Err(e) = state::remove(&self.paths) {
                log::error!("{}", chain(&e));
            }
            return;
        }
        let Some(mut state) = state else {
            return;
        };
        state.phase = match (exit, report) {
            (Some(exit), _) => phase_of(exit),
            (None, Report::Lost { message }) => Phase::Exited {
                code: EXIT_LOST.into(),
                signal: 0,
                error: Some(message.clone()),
                // Of what was in its guest, nobody tells.
                oom_killed: false,
            },
            (None, _) => return,
        };
        // The socket leads nowhere any more.
        let _ = std::fs::remove_file(self.paths.vsock());
        let _ = std::fs::remove_file(self.paths.control());
        if let Err(e) = state::write(&self.paths, &state) {
            log::error!("{}", chain(&e));
        }
    }
}

/// What the caller is told of an end.
pub(super) fn report_of(exit: Exit) -> Report {
    Report::Exited {
        code: exit.code,
        signal: exit.signal,
    }
}

/// What is left of it for others to find.
fn phase_of(exit: Exit) -> Phase {
    Phase::Exited {
        code: exit.code,
        signal: exit.signal,
        error: None,
        oom_killed: exit.oom_killed,
    }
}

/// The exit code that tells what a report says, unless the process ends by the signal in it.
pub(super) fn end_as(report: &Report) -> u8 {
    match *report {
        Report::Exited { code, signal } => {
            if let Some(signal) = Signal::from_number(signal) {
                sys::die_by(signal);
                // A signal that ends no process did not end this one: as a shell would say.
                return u8::try_from(128 + signal.number()).unwrap_or(u8::MAX);
            }
            u8::try_from(code).unwrap_or(u8::MAX)
        }
        Report::Lost { .. } => EXIT_LOST,
        Report::Failed { .. } | Report::Created | Report::Started => EXIT_FAILED,
    }
}
