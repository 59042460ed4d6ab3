//! The monitor: the process on the host that is a container.
//!
//! It owns the container's virtual machine, relays its streams and signals, holds its network
//! namespace, and ends as the workload ended: with the same exit code, or by the same signal. When
//! the machine ends by itself the monitor exits with [`EXIT_LOST`]; a container that never stood
//! is [`EXIT_FAILED`].
//!
//! What it must be able to rely on, it has: the machine's processes end when it does, since their
//! control sockets close; nothing outside the state directory is made but the pid file.
//!
//! One thread runs everything but the relays of the streams (`stdio`) and hooks, which are threads
//! of their own because they may block. It is not the first thread: that one holds what others find
//! of the container at `/proc/PID` (`holder`).

mod attach;
mod channel;
mod ending;
mod exec;
mod failure;
mod growth;
mod guest;
mod holder;
mod hooks;
mod idmap;
mod life;
mod machine;
mod network;
mod orders;
mod place;
mod resolver;
mod signals;
mod size;
mod stdio;
mod streams;
mod terminal;
mod timeline;
mod vmm;

use std::cell::{Cell, RefCell};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::time::Duration;

use cloister_vmm_api::Channel;
use log::LevelFilter;
use tokio::sync::mpsc;

pub use exec::exec_in_foreground;
pub use guest::clean_up_guest;
pub use machine::vm_config;
pub use size::{Allowance, beyond};

use self::channel::AsyncChannel;
use self::ending::{Outcome, end_as};
use self::exec::ExecParts;
use self::failure::Failure;
use self::growth::Growth;
use self::guest::Guest;
use self::holder::Holder;
use self::hooks::HookRunner;
use self::life::{End, Life, Progress};
use self::machine::{ControlSlot, Machine};
use self::network::Network;
use self::place::{Place, has_network};
use self::streams::Inherited;
use self::timeline::Timeline;
use self::vmm::Vmm;
use crate::agent_log;
use crate::cgroup::{self, Driver, Plan as CgroupPlan, SandboxCgroup};
use crate::control;
use crate::launch::{self, ExecLaunch, Job, Launch, LaunchError, Received, Report};
use crate::logger;
use crate::network as host_network;
use crate::paths::ContainerPaths;
use crate::process::{self, ProcessId};
use crate::state::{self, NetworkPlace, Phase, STATE_VERSION, State};
use crate::sys::{self, SignalFd};
use crate::text::chain;
use crate::time::rfc3339_nano_now;

/// The exit code for a container that never stood.
pub const EXIT_FAILED: u8 = 1;
/// The exit code for a container whose machine ended under its workload.
pub const EXIT_LOST: u8 = 255;

/// How long to rest when a connection cannot be taken: the process is out of descriptors.
const REST: Duration = Duration::from_millis(100);
/// How long the agent's last log lines may take to be written.
const LOG_LIMIT: Duration = Duration::from_millis(300);

/// Why a monitor did not even begin.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Something that every process has was not there.
    #[error("the monitor cannot start")]
    System(#[from] io::Error),
    /// Nobody told it what to do.
    #[error(transparent)]
    Launch(#[from] LaunchError),
}

/// Runs the monitor whose launch comes over the inherited descriptor `control`, to its end.
/// Returns the exit code, unless the process ends by the workload's signal.
///
/// # Errors
/// If it cannot even begin; nothing was done then.
///
/// # Safety
/// Nothing in the process may own a descriptor above 2: to be called first thing in `main`.
#[expect(unsafe_code, reason = "takes over inherited descriptors")]
pub unsafe fn run(control: RawFd) -> Result<u8, StartError> {
    let main_ns = crate::time::monotonic_ns();
    // The kernel named the process after the link through which it was executed.
    rustix::thread::set_name(c"cloister").map_err(io::Error::from)?;
    // SAFETY: handed on to the caller.
    let control = unsafe { sys::take_inherited(control) }?;
    // Its number may be the one that children need.
    let control = {
        let inherited = control;
        rustix::io::fcntl_dupfd_cloexec(&inherited, 10).map_err(io::Error::from)?
    };
    let control = Channel::new(control);
    let slot = ControlSlot::reserve(File::open("/dev/null")?)?;
    let signals = SignalFd::block_all()?;
    // A session of its own: the caller's terminal sends its signals to the caller alone.
    rustix::process::setsid().map_err(io::Error::from)?;
    // It outlives its caller, and must not keep the caller's directory from being unmounted.
    std::env::set_current_dir("/")?;
    let received = launch::receive(&control)?;
    // Last of what can fail: until here an error is printed where the caller sees it.
    let mut inherited = Inherited::take()?;

    let Received {
        job,
        spec,
        console_socket,
        log,
        preserved,
    } = received;
    inherited.preserved = preserved;
    let level = job.config().log_level.parse().unwrap_or(LevelFilter::Info);
    // Without a log file the caller's standard error is what is left to complain to.
    let has_log = log.is_some();
    let log = match log {
        Some(log) => log,
        None => File::from(inherited.stderr.try_clone()?),
    };
    logger::start(Some(log), job.log_format(), level);

    let launch = match job {
        Job::Container(launch) => *launch,
        Job::Exec(launch) => {
            let parts = ExecParts {
                process: spec,
                signals,
                inherited,
                console_socket,
                control: None,
                leaves_log: !has_log,
            };
            return Ok(run_exec(&launch, parts, control));
        }
    };
    let mut timeline = Timeline::default();
    timeline.at("exec", launch.exec_ns);
    timeline.at("monitor_main", main_ns);
    let monitor = Monitor {
        paths: ContainerPaths::new(&launch.root, &launch.id),
        machine_paths: ContainerPaths::new(
            &launch.root,
            launch.container.sandbox.as_ref().unwrap_or(&launch.id),
        ),
        timeline: RefCell::new(timeline),
        leaves_log: launch.detached && !has_log,
        launch,
    };
    let code = Holder::serve(move |holder| {
        monitor.run(
            holder,
            control,
            signals,
            slot,
            spec,
            inherited,
            console_socket,
        )
    })?;
    Ok(code)
}

/// Stands for a further process of a container.
fn run_exec(launch: &ExecLaunch, mut parts: ExecParts, control: Channel) -> u8 {
    let report = match rustix::io::fcntl_dupfd_cloexec(&control, 10) {
        Ok(orders) => {
            parts.control = Some(Channel::new(orders));
            exec::exec_detached(launch, parts)
        }
        Err(errno) => Report::Failed {
            message: chain(&Failure::Own(errno.into())),
        },
    };
    let heard = control.send(&report, &[]).is_ok();
    if let (Report::Failed { message }, false) = (&report, heard) {
        log::error!("container {}: {message}", launch.id);
    }
    logger::stop();
    end_as(&report)
}

/// Why a limit of this machine does not hold for a container in the virtual machine of another.
#[must_use]
pub fn in_another(sandbox: &str) -> String {
    format!(
        "limits this machine's processes alone, and those of its virtual machine are in the cgroup of \
         container {sandbox}"
    )
}

/// Says of a lost container what its guest cannot know: that this machine had no memory left for it.
#[must_use]
pub fn lost(message: String, cgroup: Option<&SandboxCgroup>) -> String {
    // What cannot be read is not what it was lost by.
    match cgroup.map(SandboxCgroup::oom_kills) {
        Some(Ok(kills)) if kills > 0 => {
            format!("this machine's OOM killer ended a process of the virtual machine: {message}")
        }
        _ => message,
    }
}

struct Monitor {
    launch: Launch,
    /// Whether the log goes to the caller's standard error, and must not when the caller is gone:
    /// whoever reads that to its end waits for the workload, not for the monitor.
    leaves_log: bool,
    paths: ContainerPaths,
    /// The files of the container whose virtual machine this one is in.
    machine_paths: ContainerPaths,
    timeline: RefCell<Timeline>,
}

/// What was made for a container, whatever has come of it.
#[derive(Default)]
struct Remains {
    machine: Option<Machine>,
    guest: Option<Guest>,
    state: Option<State>,
    hooks: Option<HookRunner>,
    cgroup: Option<SandboxCgroup>,
    place: Option<Place>,
}

impl Monitor {
    #[expect(clippy::too_many_arguments, reason = "handed on to `live` in `Parts`")]
    fn run(
        &self,
        holder: Holder,
        control: Channel,
        signals: SignalFd,
        slot: ControlSlot,
        spec: Vec<u8>,
        inherited: Inherited,
        console_socket: Option<OwnedFd>,
    ) -> u8 {
        // Reports go out over one descriptor while orders are awaited on the other.
        let orders = rustix::io::fcntl_dupfd_cloexec(&control, 10);
        let mut remains = Remains::default();
        let result = orders
            .map_err(|e| Failure::Own(e.into()))
            .and_then(|orders| {
                let parts = Parts {
                    holder,
                    orders: Channel::new(orders),
                    signals,
                    slot,
                    spec,
                    inherited,
                    console_socket,
                };
                self.live(parts, &mut remains)
            });
        let end = result.unwrap_or_else(|failure| End {
            result: Err(failure),
            was_created: false,
        });
        self.finish(Outcome {
            end,
            remains,
            control,
        })
    }

    /// Starts the machine, or goes into another's, and lives the container's life. What was made is
    /// left in `remains`, whatever happens.
    fn live(&self, parts: Parts, remains: &mut Remains) -> Result<End, Failure> {
        let Parts {
            holder,
            orders,
            signals,
            mut slot,
            spec,
            inherited,
            console_socket,
        } = parts;
        let Launch {
            config, container, ..
        } = &self.launch;
        let dir = self.open_dir(&self.paths)?;
        // Everything that is started from here on is in it.
        remains.cgroup = self.make_cgroup()?;
        let mut channels = (None, None);
        let mut quota = None;
        if container.sandbox.is_none() {
            if let Some(cgroup) = &remains.cgroup {
                quota = cgroup.lift_quota()?;
            }
            let machine = Machine::start(config, container, &self.paths, &dir, &mut slot)?;
            let machine = remains.machine.insert(machine);
            self.timeline.borrow_mut().reached("machine_started");
            channels = (machine.vmm.take_channel(), machine.fs.take_channel());
        }

        // The guest boots; the rest is done meanwhile.
        let state = remains
            .state
            .insert(self.first_state(&remains.machine, remains.cgroup.clone())?);
        state::write(&self.paths, state)?;
        state::keep_spec(&self.paths, &spec)?;
        state::prepare_notes(&self.paths)?;
        if let Some(hooks) = &container.hooks {
            let rootfs = container.rootfs.clone();
            remains.hooks = Some(HookRunner::new(hooks.clone(), state.for_hooks(), rootfs));
        }
        holder.enter_namespaces(&self.launch.root, container)?;
        remains.place = Place::of(&self.launch)?;
        if let Some(place) = &remains.place {
            host_network::move_in(&place.namespace, &container.net_devices)?;
        }
        if container.sandbox.is_some() {
            let guest = Guest::join(&self.launch, &self.machine_paths, state.monitor)?;
            remains.guest = Some(guest);
        }
        let machine_dir = self.open_dir(&self.machine_paths)?;
        if container.sandbox.is_some() {
            self.ask_for_room(&machine_dir);
        }
        let (pty, plan) = streams::plan(self.launch.terminal, console_socket, inherited)?;
        let log_file = match container.sandbox {
            None => Some(self.agent_log()?),
            Some(_) => None,
        };

        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .build()
            .map_err(Failure::Own)?;
        let end = runtime.block_on(async {
            // A network goes with a machine, whose size the state has.
            let vcpus = state.vm.map_or(1, |vm| vm.vcpus);
            let network = remains.place.as_ref();
            let network = network
                .map(|place| Network::new(place, &self.launch, dir.as_fd(), vcpus))
                .transpose();
            let listener = match container.sandbox {
                None => Some(control::listen_in(&dir).and_then(sys::watch)),
                Some(_) => None,
            };
            let growth = remains.machine.as_ref();
            let growth = growth.map(|machine| Growth::new(&self.launch, machine.max));
            let life = Life {
                launch: &self.launch,
                paths: &self.paths,
                dir: &machine_dir,
                names: remains.guest.as_ref().map_or("", Guest::prefix),
                control: AsyncChannel::new(orders).map_err(Failure::Own)?,
                signals: sys::watch(signals).map_err(Failure::Own)?,
                vmm: (channels.0.map(Vmm::new).transpose()).map_err(Failure::Own)?,
                fs: (channels.1.map(AsyncChannel::new).transpose()).map_err(Failure::Own)?,
                machine: RefCell::new(remains.machine.as_mut()),
                hooks: remains.hooks.as_ref(),
                network: network.map_err(Failure::Control)?,
                orders: listener.transpose().map_err(Failure::Control)?,
                growth,
                holder: &holder,
                leaves_log: self.leaves_log,
                quota: Cell::new(quota),
                pty: pty.as_ref(),
                timeline: &self.timeline,
                state: RefCell::new(state),
                progress: Progress::new(self.launch.terminal),
            };
            let (log_sender, log_receiver) = mpsc::channel(1);
            let log_task =
                log_file.map(|file| tokio::spawn(agent_log::collect(log_receiver, file)));
            let end = life.run(spec, plan, log_sender).await;
            if end.result.is_err()
                && let Some(log_task) = log_task
            {
                // What the agent said last may be the reason.
                let _ = tokio::time::timeout(LOG_LIMIT, log_task).await;
            }
            Ok(end)
        });
        // Tasks that wait for the guest need not be waited for.
        runtime.shutdown_background();
        end
    }

    /// Has the virtual machine of another grow by what this container may use.
    fn ask_for_room(&self, machine: &OwnedFd) {
        let Launch {
            id,
            container,
            config,
            ..
        } = &self.launch;
        let allowance = container.resources.as_ref().map(Allowance::of);
        let Some(allowance) = allowance.filter(|allowance| !allowance.is_empty()) else {
            return;
        };
        // Its limits hold all the same.
        if let Err(e) = control::grow(machine, id, allowance, config.request_timeout) {
            log::warn!("the virtual machine stays as it is: {}", chain(&e));
        }
    }

    /// Makes the cgroup that the caller asks for, by its path or by limits, and moves this process
    /// into it. Without either it stays where the caller is. It is written down before it is made.
    fn make_cgroup(&self) -> Result<Option<SandboxCgroup>, Failure> {
        let Launch {
            container,
            cgroup_driver,
            id,
            ..
        } = &self.launch;
        let resources = container.resources.clone().unwrap_or_default();
        let why = match (cgroup_driver, &container.sandbox) {
            (_, Some(sandbox)) => Some(in_another(sandbox)),
            (None, None) => Some(cgroup::NO_CGROUP.to_owned()),
            (Some(_), None) => None,
        };
        if let Some(why) = why {
            for field in cgroup::of_this_machine(&resources)? {
                log::warn!("container {id}: {field}: {why}");
            }
        }
        let Some(cgroup_driver) = cgroup_driver else {
            return Ok(None);
        };
        let is_wanted = !container.cgroups_path.is_empty()
            || *cgroup_driver == Driver::Systemd
            || machine::has_limits(&resources);
        if !is_wanted {
            return Ok(None);
        }
        let plan = CgroupPlan::new(*cgroup_driver, &container.cgroups_path, id)?
            .with_annotations(&container.annotations)?;
        let overhead = machine::overhead(&self.launch.config, container)?;
        let prepared =
            cgroup::Prepared::new(&plan, &resources, overhead, Some(std::process::id()))?;
        // Whoever finds that this process was killed on the way removes what there is of it.
        let planned = prepared.cgroup().clone();
        let state = self.first_state(&None, Some(planned.clone()))?;
        state::write(&self.paths, &state)?;
        let cgroup = prepared.make()?;
        if cgroup != planned {
            let state = self.first_state(&None, Some(cgroup.clone()))?;
            state::write(&self.paths, &state)?;
        }
        self.timeline.borrow_mut().reached("cgroup_made");
        Ok(Some(cgroup))
    }

    fn open_dir(&self, paths: &ContainerPaths) -> Result<OwnedFd, Failure> {
        use rustix::fs::{Mode, OFlags};
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::open(paths.dir(), flags, Mode::empty())
            .map_err(|e| state::StateError::Access(paths.dir().to_owned(), e.into()).into())
    }

    fn agent_log(&self) -> Result<File, Failure> {
        let path = self.paths.agent_log();
        OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(|e| state::StateError::Access(path, e).into())
    }

    fn first_state(
        &self,
        machine: &Option<Machine>,
        cgroup: Option<SandboxCgroup>,
    ) -> Result<State, Failure> {
        let machine = machine.as_ref();
        let Launch {
            id,
            bundle,
            container,
            ..
        } = &self.launch;
        Ok(State {
            version: STATE_VERSION,
            id: id.clone(),
            oci_version: container.oci_version.clone(),
            bundle: bundle.clone(),
            rootfs: container.rootfs.clone(),
            created: rfc3339_nano_now(),
            annotations: container.annotations.clone(),
            boot_id: process::boot_id().map_err(Failure::Own)?,
            monitor: ProcessId::current().map_err(Failure::Own)?,
            sandbox: container.sandbox.clone(),
            vmm: machine.map(|machine| machine.vmm.id),
            fs: machine.map(|machine| machine.fs.id),
            vm: machine.map(|machine| machine.size),
            cgroup,
            hooks: container.hooks.clone(),
            network: has_network(container).then(|| NetworkPlace {
                path: container.network.clone(),
            }),
            phase: Phase::Creating,
        })
    }
}

/// What a life needs and a failure does not.
struct Parts {
    holder: Holder,
    orders: Channel,
    signals: SignalFd,
    slot: ControlSlot,
    spec: Vec<u8>,
    inherited: Inherited,
    console_socket: Option<OwnedFd>,
}
