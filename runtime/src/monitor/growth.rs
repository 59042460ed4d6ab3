//! How a virtual machine grows while it runs.
//!
//! ```text
//!   update, or a further container ──order──▶ what all containers may use together ──▶ VMM: there is more
//!                                                                                       agent: use it
//! ```
//!
//! It never shrinks: what a container may use no longer, it has to give back by itself.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::Duration;

use cloister_vmm_api::{ChannelError, Event, MEM_PLATFORM_ID, Request};
use tokio::task::{JoinError, spawn_blocking};
use tokio::time::{sleep, timeout};

use super::life::Life;
use super::machine;
use super::size::{self, Allowance, MIB};
use super::vmm::Vmm;
use crate::agent::{Agent, AgentError};
use crate::cgroup::CgroupError;
use crate::control::ControlAnswer;
use crate::launch::Launch;
use crate::state::{self, VmSize};
use crate::text::{chain, printable};

/// How long a guest may take to take memory that it has got, before what it has taken counts.
const TAKING_LIMIT: Duration = Duration::from_secs(10);
/// How often it is looked at meanwhile.
const POLL: Duration = Duration::from_millis(10);
/// The longest text of the VMM that is shown, in bytes.
const TEXT_MAX: usize = 4096;

/// Why there is not more of something.
#[derive(Debug, thiserror::Error)]
enum GrowthError {
    #[error("the VMM refuses: {0}")]
    Refused(String),
    #[error("the VMM does not answer")]
    Silent,
    #[error("the VMM gives an answer that was not asked for")]
    Confused,
    #[error("cannot speak to the VMM")]
    Channel(#[from] ChannelError),
    #[error("the guest")]
    Agent(#[from] AgentError),
    #[error("this machine would not let it be used")]
    Room(#[from] CgroupError),
    #[error("the thread that sets limits on this machine was lost")]
    Thread(#[from] JoinError),
}

/// What decides the size of a virtual machine.
#[derive(Debug)]
pub(crate) struct Growth {
    /// As large as it can become.
    max: VmSize,
    /// What each container in it may use.
    allowances: RefCell<BTreeMap<String, Allowance>>,
}

impl Growth {
    /// That of a machine for one container.
    pub(crate) fn new(launch: &Launch, max: VmSize) -> Self {
        let own = launch.container.resources.as_ref();
        let own = own.map(Allowance::of).unwrap_or_default();
        Self {
            max,
            allowances: RefCell::new(BTreeMap::from([(launch.id.clone(), own)])),
        }
    }

    /// What the machine should be, being `size`, once the container `id` may use `allowance`. Those that
    /// are not in the machine any more count for nothing.
    fn wanted(
        &self,
        size: VmSize,
        id: &str,
        allowance: Allowance,
        is_there: impl Fn(&str) -> bool,
    ) -> VmSize {
        let mut allowances = self.allowances.borrow_mut();
        allowances.retain(|id, _| is_there(id));
        let own = allowances.entry(id.to_owned()).or_default();
        *own = own.changed_by(allowance);
        let all = allowances.values();
        let all = all.fold(Allowance::default(), |sum, one| sum.and(*one));
        size::grown(size, self.max, all)
    }

    /// What a container may use of the memory, in bytes; 0 if that has no limit of its own.
    fn memory(&self, id: &str) -> u64 {
        let allowances = self.allowances.borrow();
        allowances.get(id).and_then(|own| own.memory).unwrap_or(0)
    }
}

impl Life<'_> {
    /// Makes the machine as large as a container in it, which may use `allowance`, needs it with all
    /// others, as far as that is possible.
    pub(super) async fn grow(&self, id: &str, allowance: Allowance) -> ControlAnswer {
        let size = self.state.borrow().vm;
        let (Some(growth), Some(vmm), Some(agent), Some(mut size)) =
            (&self.growth, &self.vmm, self.agent_now(), size)
        else {
            let message = "the virtual machine is not ready to grow".to_owned();
            return ControlAnswer::Failed { message };
        };
        let is_there = |id: &str| id == self.launch.id || self.paths.members().join(id).exists();
        let wanted = growth.wanted(size, id, allowance, is_there);
        if wanted == size {
            return ControlAnswer::Size { size };
        }
        if wanted.vcpus > size.vcpus {
            match add_vcpus(vmm, &agent, wanted.vcpus).await {
                Ok(vcpus) => size.vcpus = vcpus.max(size.vcpus),
                Err(e) => log::warn!(
                    "the virtual machine keeps its {} processors: {}",
                    size.vcpus,
                    chain(&e)
                ),
            }
        }
        if wanted.memory_mib > size.memory_mib {
            let own = growth.memory(&self.launch.id);
            let grown = async {
                self.make_room(wanted.memory_mib, own).await?;
                add_memory(vmm, &agent, wanted.memory_mib).await
            };
            let kept = size.memory_mib;
            match grown.await {
                // The guest's word, by way of the VMM.
                Ok(grown) => size.memory_mib = grown.clamp(kept, growth.max.memory_mib),
                Err(e) => log::warn!("the virtual machine keeps its {kept} MiB: {}", chain(&e)),
            }
        }
        log::info!(
            "the virtual machine has {} MiB and {} processors",
            size.memory_mib,
            size.vcpus
        );
        let mut state = self.state.borrow_mut();
        state.vm = Some(size);
        // Whoever asked is told; others find the size that it had.
        if let Err(e) = state::write(self.paths, &state) {
            log::error!("{}", chain(&e));
        }
        ControlAnswer::Size { size }
    }

    /// Lets the sandbox use as much memory of this machine as the guest is about to have. The limit of its
    /// own container, `own` bytes, is there already; those of the others hold in the guest alone.
    async fn make_room(&self, memory_mib: u32, own: u64) -> Result<(), GrowthError> {
        let Some(mut cgroup) = self.state.borrow().cgroup.clone() else {
            return Ok(());
        };
        let bytes = machine::beyond_workload(u64::from(memory_mib) * MIB, own);
        // systemd may take its time.
        let raised = spawn_blocking(move || cgroup.make_room(bytes).map(|()| cgroup));
        self.state.borrow_mut().cgroup = Some(raised.await??);
        Ok(())
    }
}

/// Has the VMM do something.
async fn ask(vmm: &Vmm, request: &Request) -> Result<Event, GrowthError> {
    match vmm.ask(request, &[]).await? {
        Some(Event::GrowthRefused { message }) => {
            Err(GrowthError::Refused(printable(&message, TEXT_MAX)))
        }
        Some(event) => Ok(event),
        None => Err(GrowthError::Silent),
    }
}

/// Has the guest use so much memory, and tells how much it does.
async fn add_memory(vmm: &Vmm, agent: &Agent, memory_mib: u32) -> Result<u32, GrowthError> {
    ask(vmm, &Request::AddMemory { memory_mib }).await?;
    agent.add_memory(MEM_PLATFORM_ID.into()).await?;
    // It takes one section after the other, each with a word to the VMM.
    let taken = async {
        loop {
            let used = match ask(vmm, &Request::Memory).await? {
                Event::Memory { plugged_mib, .. } => plugged_mib,
                _ => return Err(GrowthError::Confused),
            };
            if used >= memory_mib {
                return Ok(used);
            }
            sleep(POLL).await;
        }
    };
    match timeout(TAKING_LIMIT, taken).await {
        Ok(used) => used,
        Err(_) => match ask(vmm, &Request::Memory).await? {
            Event::Memory { plugged_mib, .. } => {
                log::warn!("of {memory_mib} MiB the guest has taken {plugged_mib}");
                Ok(plugged_mib)
            }
            _ => Err(GrowthError::Confused),
        },
    }
}

/// Has as many processors, and tells how many run.
async fn add_vcpus(vmm: &Vmm, agent: &Agent, vcpus: u8) -> Result<u8, GrowthError> {
    ask(vmm, &Request::AddVcpus { vcpus }).await?;
    let running = agent.add_processors(vcpus.into()).await?;
    if running < vcpus.into() {
        log::warn!("of {vcpus} processors the guest has started {running}");
    }
    // The guest's word: at most what there is.
    Ok(u8::try_from(running).unwrap_or(vcpus).min(vcpus))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_containers_may_use_together_decides() {
        let growth = Growth {
            max: VmSize {
                memory_mib: 4096,
                vcpus: 4,
            },
            allowances: RefCell::default(),
        };
        let size = VmSize {
            memory_mib: 128,
            vcpus: 1,
        };
        let allowance = |memory: u64, processors: u64| Allowance {
            memory: (memory > 0).then_some(memory * MIB),
            processors: (processors > 0).then_some(processors),
        };
        let vcpus = |id: &str, allowance| growth.wanted(size, id, allowance, |_| true).vcpus;
        assert_eq!(vcpus("a", allowance(0, 500)), 1);
        assert_eq!(vcpus("b", allowance(0, 600)), 2);
        // What is not told again stays.
        assert_eq!(vcpus("b", allowance(50, 0)), 2);
        assert_eq!(vcpus("b", allowance(0, 9000)), 4);
        // With what the guest needs for itself, and no less than there is.
        let memory = |id: &str, mib| {
            growth
                .wanted(size, id, allowance(mib, 0), |_| true)
                .memory_mib
        };
        assert_eq!(memory("a", 10), 128);
        assert_eq!(memory("a", 150), 264);
        assert_eq!(memory("a", 8000), 4096);
        // One that has gone.
        let wanted = growth.wanted(size, "a", allowance(0, 1000), |id| id != "b");
        assert_eq!((wanted.vcpus, wanted.memory_mib), (1, 4096));
    }
}
