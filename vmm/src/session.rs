//! The life of a VMM process, from the boot request to the exit event.
//!
//! ```text
//!   Boot ──▶ assemble ──▶ load ──▶ jail ──▶ Booted ──▶ event loop ──▶ Exited
//! ```
//!
//! The main thread becomes the event thread; each vCPU has a thread of its own. They meet in the
//! [`Gate`] and in the devices' locks. While a VM is paused the event thread listens to nothing
//! but the control socket, so no device moves.

use std::cell::RefCell;
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cloister_virtio::device::GuestRam;
use cloister_virtio::fs::Fs;
use cloister_vmm_api::{Channel, ChannelError, Event, ExitReason, Request, Timeline};
use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::clock;
use crate::connector::OwnerConnector;
use crate::jail::{self, Confinement};
use crate::machine::{self, Backends, DEVICE_IOCTLS, DEVICE_SYSCALLS, Machine};
use crate::memory;
use crate::nets::Nets;
use crate::parts::{self, Parts};
use crate::ram::Ram;
use crate::vcpu::gate::{self, Gate};
use crate::vcpu::{Ending, Outside, Runner};
use crate::vcpus::{self, Start, Vcpus};

/// How long an owner may leave its socket full before the VMM gives up telling it something.
const PATIENCE: Timespec = Timespec {
    tv_sec: 5,
    tv_nsec: 0,
};

/// Why a VM could not be run to its end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The control socket failed.
    #[error("control socket")]
    Control(#[from] ChannelError),
    /// The control socket cannot be made non-blocking.
    #[error("control socket: {0}")]
    Socket(#[source] Errno),
    /// A request came that does not fit here.
    #[error("request {0} is out of order")]
    Order(&'static str),
    /// The boot request cannot be followed.
    #[error("boot request")]
    Parts(#[from] parts::Error),
    /// The machine cannot be assembled or loaded.
    #[error(transparent)]
    Machine(#[from] machine::Error),
    /// The process cannot be confined.
    #[error(transparent)]
    Jail(#[from] jail::Error),
    /// The vCPUs cannot be started.
    #[error(transparent)]
    Vcpus(#[from] vcpus::Refusal),
    /// The kick signal cannot be handled.
    #[error("cannot handle the kick signal")]
    Signal(#[source] io::Error),
    /// An event descriptor cannot be made.
    #[error("cannot make an event descriptor")]
    Event(#[source] io::Error),
    /// The event loop failed.
    #[error("event loop")]
    Events(#[from] event_manager::Error),
    /// A vCPU failed.
    #[error(transparent)]
    Vcpu(#[from] crate::vcpu::Failure),
}

/// How a session has ended.
enum End {
    /// The VM has: tell the owner.
    Vm(ExitReason),
    /// The owner has gone: there is nobody to tell.
    OwnerGone,
}

/// Reads the boot request from `channel`, runs the VM, and reports on it until it has ended.
/// `entered` is when the process was, in nanoseconds of the monotonic clock.
///
/// # Errors
/// What kept the VM from running to its end; the owner has been told.
pub fn run(channel: Channel, entered: u64) -> Result<(), Error> {
    let timeline = Timeline {
        main: entered,
        ..Timeline::default()
    };
    let mut session = Session {
        channel: Arc::new(channel),
        timeline,
        notice: Arc::new(Notice::new().map_err(Error::Event)?),
    };
    let (reason, outcome) = match session.run() {
        Ok(End::OwnerGone) => return Ok(()),
        Ok(End::Vm(reason)) => (reason, Ok(())),
        Err(error) => {
            let message = crate::chain(&error);
            (ExitReason::HostError { message }, Err(error))
        }
    };
    session.timeline.init = session.notice.init.load(Ordering::Relaxed);
    let exited = Event::Exited {
        reason,
        timeline: session.timeline,
    };
    // The owner may be gone by now; that it could not be told is no worse than that.
    if let Err(error) = tell(&session.channel, &exited) {
        log::warn!("cannot report the exit: {}", crate::chain(&error));
    }
    outcome
}

struct Session {
    channel: Arc<Channel>,
    timeline: Timeline,
    notice: Arc<Notice>,
}

impl Session {
    fn run(&mut self) -> Result<End, Error> {
        let Some((request, fds)) = self.channel.recv::<Request>()? else {
            return Ok(End::OwnerGone);
        };
        let Request::Boot { config, fds: roles } = request else {
            return Err(Error::Order(name(&request)));
        };
        self.timeline.configured = clock::now();
        rustix::io::ioctl_fionbio(&self.channel, true).map_err(Error::Socket)?;

        let Parts {
            kvm,
            kernel,
            initramfs,
            console,
            vsock_listener,
            fs_backend,
        } = Parts::sort(&config, &roles, fds)?;
        let backends = Backends {
            console,
            vsock_listener,
            vsock_connector: Box::new(OwnerConnector::new(self.channel.clone())),
            fs: fs_backend,
            added_memory: None,
            nets: Vec::new(),
        };
        let machine = Machine::assemble(&config, &kvm, backends)?;
        drop(kvm);
        self.timeline.created = clock::now();
        let initramfs_pages = machine.load(&kernel, &initramfs)?;
        drop((kernel, initramfs));
        self.timeline.loaded = clock::now();

        // The identity before the vCPU threads, which inherit it. The filter lets further threads start
        // for vCPUs that come later, and nothing else.
        jail::enter(&config.jail)?;
        let gate = Arc::new(Gate::default());
        let start = self.start_vcpus(&machine, &gate)?;
        let (mut manager, end) = self.event_loop(&machine, gate.clone(), start, initramfs_pages)?;
        Confinement::new(DEVICE_SYSCALLS, DEVICE_IOCTLS)?.confine()?;
        self.timeline.entered = clock::now();
        tell(
            &self.channel,
            &Event::Booted {
                timeline: self.timeline,
            },
        )?;
        gate.open();
        let end = loop {
            if let Some(end) = end.borrow_mut().take() {
                break end?;
            }
            manager.run()?;
        };
        machine.bus.finish_console();
        // What follows is the end of the process: to take the VM apart here would only cost time.
        std::mem::forget((manager, machine));
        Ok(end)
    }

    /// Starts the threads of the vCPUs that there are. Returns what starts those of further ones.
    fn start_vcpus(&self, machine: &Machine, gate: &Arc<Gate>) -> Result<Start, Error> {
        gate::install_handler().map_err(Error::Signal)?;
        let (bus, gate, notice) = (machine.bus.clone(), gate.clone(), self.notice.clone());
        let waiting = gate.clone();
        let start: Start = Box::new(move |id, vcpu| {
            let runner = Runner {
                id,
                vcpu,
                bus: bus.clone(),
                gate: gate.clone(),
                outside: notice.clone(),
            };
            std::thread::Builder::new()
                .name(format!("vcpu{id}"))
                .spawn(move || runner.run())?;
            // Whoever closes the gate from here on stops this one too.
            gate.wait_enrolled(usize::from(id) + 1);
            Ok(())
        });
        let mut vcpus = (machine.vcpus.lock()).unwrap_or_else(PoisonError::into_inner);
        vcpus.start(&start)?;
        waiting.assemble(vcpus.made().len());
        Ok(start)
    }

    fn event_loop(
        &self,
        machine: &Machine,
        gate: Arc<Gate>,
        start: Start,
        initramfs: Range<u64>,
    ) -> Result<(EventLoop, Finale), Error> {
        let end = Rc::default();
        let mut manager = EventLoop::new_with_capacity(EVENTS_AT_ONCE)?;
        for device in machine.devices() {
            manager.add_subscriber(Box::new(device));
        }
        manager.add_subscriber(Box::new(Control {
            channel: self.channel.clone(),
            notice: self.notice.clone(),
            gate,
            fs: machine.fs.clone(),
            nets: machine.nets.clone(),
            ram: machine.ram.clone(),
            vcpus: machine.vcpus.clone(),
            start,
            memory: machine.memory.clone(),
            initramfs: Some(initramfs),
            end: Rc::clone(&end),
        }));
        Ok((manager, end))
    }
}

type EventLoop = EventManager<Box<dyn MutEventSubscriber>>;

/// How the session ended, once it has.
type Finale = Rc<RefCell<Option<Result<End, Error>>>>;
const EVENTS_AT_ONCE: usize = 32;

/// The name of a request on the wire.
fn name(request: &Request) -> &'static str {
    match request {
        Request::Boot { .. } => "boot",
        Request::Pause => "pause",
        Request::Resume => "resume",
        Request::Stop => "stop",
        Request::AttachNet { .. } => "attach_net",
        Request::DetachNet { .. } => "detach_net",
        Request::SetLink { .. } => "set_link",
        Request::NetCounters => "net_counters",
        Request::AddVcpus { .. } => "add_vcpus",
        Request::AddMemory { .. } => "add_memory",
        Request::Memory => "memory",
    }
}

/// Sends `event`; waits, but not for ever, if the owner does not read.
fn tell(channel: &Channel, event: &Event) -> Result<(), ChannelError> {
    loop {
        match channel.send(event, &[]) {
            Err(ChannelError::Send(Errno::AGAIN)) => {
                let mut fds = [PollFd::new(channel, PollFlags::OUT)];
                match poll(&mut fds, Some(&PATIENCE)) {
                    Ok(0) => return Err(ChannelError::Send(Errno::TIMEDOUT)),
                    Ok(_) | Err(Errno::INTR) => {}
                    Err(errno) => return Err(ChannelError::Send(errno)),
                }
            }
            result => return result,
        }
    }
}

/// What vCPU threads tell the event thread.
struct Notice {
    ending: Mutex<Option<Ending>>,
    event: EventFd,
    /// When the guest's init ran.
    init: AtomicU64,
}

impl Notice {
    fn new() -> io::Result<Self> {
        Ok(Self {
            ending: Mutex::new(None),
            event: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
            init: AtomicU64::new(0),
        })
    }

    fn signal(&self) {
        if let Err(error) = self.event.write(1) {
            log::error!("cannot signal the event thread: {error}");
        }
    }

    /// What the first vCPU that came to its end has said.
    fn take(&self) -> Option<Ending> {
        // Nothing to read means that it was read before.
        let _ = self.event.read();
        let mut ending = self.ending.lock().unwrap_or_else(PoisonError::into_inner);
        ending.take()
    }
}

impl Outside for Arc<Notice> {
    fn init(&self) {
        // Only the first time counts, whatever the guest says later.
        let now = clock::now();
        let first = (self.init).compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed);
        if first.is_ok() {
            self.signal();
        }
    }

    fn ended(&self, ending: Ending) {
        {
            let mut first = self.ending.lock().unwrap_or_else(PoisonError::into_inner);
            first.get_or_insert(ending);
        }
        self.signal();
    }
}

/// The part of the event loop that ends it: the owner's requests and the vCPUs' endings. And the
/// devices that those requests bring, since only a subscriber can watch anything.
struct Control {
    channel: Arc<Channel>,
    notice: Arc<Notice>,
    gate: Arc<Gate>,
    /// The device whose server works beside the vCPUs.
    fs: Option<Arc<Mutex<Fs>>>,
    /// The devices that come and go at the owner's request. Their events are watched as this
    /// subscriber's.
    nets: Arc<Mutex<Nets>>,
    ram: Arc<Mutex<Ram>>,
    vcpus: Arc<Mutex<Vcpus>>,
    /// Starts the thread of a vCPU.
    start: Start,
    memory: GuestRam,
    /// The pages of the initramfs, until the guest's init runs.
    initramfs: Option<Range<u64>>,
    end: Finale,
}

impl Control {
    /// Follows every request that has come; `Some` if one of them ends the session.
    fn requests(&self, ops: &mut EventOps) -> Result<Option<End>, Error> {
        loop {
            let Some(request) = self.next_request(ops)? else {
                return Ok(None);
            };
            match request {
                Received::Request(Request::Pause) => {
                    if let Some(end) = self.pause(ops)? {
                        return Ok(Some(end));
                    }
                }
                Received::Request(Request::Stop) => {
                    return Ok(Some(End::Vm(ExitReason::Stopped)));
                }
                Received::Request(request) => return Err(Error::Order(name(&request))),
                Received::Hangup => return Ok(Some(End::OwnerGone)),
            }
        }
    }

    /// The next request, if there is one that is about the life of the VM. The others, for what comes
    /// and goes, are followed here, whether the VM runs or not.
    fn next_request(&self, ops: &mut EventOps) -> Result<Option<Received>, Error> {
        loop {
            match self.channel.recv::<Request>() {
                // Descriptors that no request wants are closed.
                Ok(Some((request, fds))) => match self.follow(request, fds, ops) {
                    Ok(answer) => tell(&self.channel, &answer)?,
                    Err(request) => return Ok(Some(Received::Request(*request))),
                },
                Ok(None) => return Ok(Some(Received::Hangup)),
                Err(ChannelError::Receive(Errno::AGAIN)) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The answer to a request for a part of the machine; any other is given back.
    fn follow(
        &self,
        request: Request,
        fds: Vec<OwnedFd>,
        ops: &mut EventOps,
    ) -> Result<Event, Box<Request>> {
        let request = match self.nets().follow(request, fds, ops) {
            Err(request) => *request,
            answer => return answer,
        };
        let request = match self.ram().follow(request, &mut self.nets(), ops) {
            Err(request) => *request,
            answer => return answer,
        };
        let mut vcpus = self.vcpus.lock().unwrap_or_else(PoisonError::into_inner);
        vcpus.follow(request, &self.start)
    }

    /// Stands still until the owner says otherwise.
    fn pause(&self, ops: &mut EventOps) -> Result<Option<End>, Error> {
        self.gate.close();
        // A server that does not stop is out of service, and the guest is told when it runs again.
        if let Some(Err(error)) = self.fs().map(|mut fs| fs.pause()) {
            log::error!("fs: {error}");
        }
        self.nets().pause();
        tell(&self.channel, &Event::Paused)?;
        loop {
            let mut fds = [PollFd::new(&*self.channel, PollFlags::IN)];
            match poll(&mut fds, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(Error::Socket(errno)),
            }
            match self.next_request(ops)? {
                None => {}
                Some(Received::Request(Request::Resume)) => {
                    if let Some(Err(error)) = self.fs().map(|mut fs| fs.resume()) {
                        log::error!("fs: {error}");
                    }
                    self.nets().resume();
                    self.gate.open();
                    tell(&self.channel, &Event::Resumed)?;
                    return Ok(None);
                }
                Some(Received::Request(Request::Stop)) => {
                    return Ok(Some(End::Vm(ExitReason::Stopped)));
                }
                Some(Received::Request(request)) => return Err(Error::Order(name(&request))),
                Some(Received::Hangup) => return Ok(Some(End::OwnerGone)),
            }
        }
    }

    fn fs(&self) -> Option<MutexGuard<'_, Fs>> {
        let fs = self.fs.as_ref()?;
        Some(fs.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn nets(&self) -> MutexGuard<'_, Nets> {
        self.nets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ram(&self) -> MutexGuard<'_, Ram> {
        self.ram.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the pages of the initramfs back once the guest has unpacked it.
    fn release_initramfs(&mut self) {
        if self.notice.init.load(Ordering::Relaxed) != 0
            && let Some(pages) = self.initramfs.take()
            && let Err(error) = memory::release_file(&self.memory, &pages)
        {
            log::warn!("cannot release the initramfs: {error}");
        }
    }

    /// What the vCPUs' endings mean.
    fn ending(&self) -> Result<Option<End>, Error> {
        let reason = match self.notice.take() {
            None => return Ok(None),
            Some(Ending::Shutdown) => ExitReason::Shutdown,
            Some(Ending::Reset) => ExitReason::GuestPanic,
            Some(Ending::TripleFault) => ExitReason::TripleFault,
            Some(Ending::Failure(failure)) => return Err(failure.into()),
        };
        Ok(Some(End::Vm(reason)))
    }
}

enum Received {
    Request(Request),
    Hangup,
}

impl MutEventSubscriber for Control {
    fn init(&mut self, ops: &mut EventOps) {
        let sources = [
            Events::new(&self.notice.event, EventSet::IN),
            Events::new_raw(raw(&self.channel), EventSet::IN),
        ];
        for source in sources {
            if let Err(error) = ops.add(source) {
                self.end.replace(Some(Err(error.into())));
            }
        }
        self.nets().init(ops);
        self.ram().init(ops);
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        let outcome = if events.fd() == self.notice.event.as_raw_fd() {
            self.release_initramfs();
            self.ending()
        } else if events.fd() == raw(&self.channel) {
            self.requests(ops)
        } else {
            if !self.ram().process(events, ops) {
                self.nets().process(events, ops);
            }
            return;
        };
        if let Some(end) = outcome.transpose() {
            self.end.borrow_mut().get_or_insert(end);
        }
    }
}

fn raw(channel: &Channel) -> std::os::fd::RawFd {
    use std::os::fd::AsFd;
    channel.as_fd().as_raw_fd()
}
