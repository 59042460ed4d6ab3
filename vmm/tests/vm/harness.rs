//! Starts VMM processes and talks to them.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use cloister_vmm_api::{
    API_VERSION, CONTROL_FD, Channel, Event, ExitReason, FdRole, JailConfig, Request, Timeline,
    VmConfig, VsockConfig,
};

/// The longest a guest may take for anything here; the bed emulates its processors.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Whether this run has a KVM that runs guests. Without one every test here fails, unless
/// CLOISTER_TEST_KVM=0 says that none is expected.
pub(crate) fn kvm_expected(test: &str) -> bool {
    if std::env::var_os("CLOISTER_TEST_KVM").is_some_and(|value| value == "0") {
        eprintln!("{test}: skipped, CLOISTER_TEST_KVM=0");
        return false;
    }
    true
}

/// The guest kernel: `CLOISTER_TEST_KERNEL`.
pub(crate) fn kernel() -> PathBuf {
    let path = std::env::var_os("CLOISTER_TEST_KERNEL")
        .expect("CLOISTER_TEST_KERNEL must name a guest kernel (vmlinux)");
    PathBuf::from(path)
}

/// The program: as built with the tests, or `CLOISTER_TEST_VMM`.
pub(crate) fn program() -> PathBuf {
    let other = std::env::var_os("CLOISTER_TEST_VMM");
    other.map_or_else(|| env!("CARGO_BIN_EXE_cloister-vmm").into(), PathBuf::from)
}

/// The guest's init, built once for each version of its source.
pub(crate) fn guest_init() -> &'static [u8] {
    static INIT: OnceLock<Vec<u8>> = OnceLock::new();
    INIT.get_or_init(build_guest_init)
}

fn build_guest_init() -> Vec<u8> {
    const SOURCE: &str = include_str!("guest/init.rs");
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let hash = SOURCE
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
    let program = directory.join(format!("guest-init-{hash:016x}"));
    if !program.exists() {
        // Another test process may be at it as well.
        let partial = directory.join(format!("guest-init-{}.partial", std::process::id()));
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vm/guest/init.rs");
        let status = Command::new("rustc")
            .args(["--edition=2024", "--crate-type=bin", "-O", "-Cpanic=abort"])
            .args(["-Crelocation-model=static", "-Cstrip=symbols"])
            .args(["-Clink-arg=-nostartfiles", "-Clink-arg=-nostdlib"])
            .args(["-Clink-arg=-static", "-Clink-arg=-no-pie", "-o"])
            .args([&partial, &source])
            .status()
            .expect("rustc");
        assert!(status.success(), "the guest's init does not build");
        std::fs::rename(&partial, &program).unwrap();
    }
    std::fs::read(program).unwrap()
}

/// A newc archive: Documentation/driver-api/early-userspace/buffer-format.rst.
#[derive(Default)]
pub(crate) struct Cpio {
    bytes: Vec<u8>,
    inode: u32,
}

impl Cpio {
    pub(crate) fn add(&mut self, name: &str, mode: u32, device: (u32, u32), content: &[u8]) {
        self.inode += 1;
        let size = u32::try_from(content.len()).unwrap();
        let name_size = u32::try_from(name.len()).unwrap() + 1;
        let (major, minor) = device;
        let fields = [
            self.inode, mode, 0, 0, 1, 0, size, 0, 0, major, minor, name_size, 0,
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            write!(self.bytes, "{field:08x}").unwrap();
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.add("TRAILER!!!", 0, (0, 0), &[]);
        self.bytes
    }
}

/// The initramfs of the test guests.
pub(crate) fn initramfs() -> Vec<u8> {
    let mut cpio = Cpio::default();
    for directory in ["dev", "proc", "sys"] {
        cpio.add(directory, 0o040_755, (0, 0), &[]);
    }
    cpio.add("dev/console", 0o020_600, (5, 1), &[]);
    cpio.add("init", 0o100_755, (0, 0), guest_init());
    cpio.finish()
}

/// A file that holds `bytes` and goes away with its descriptor.
pub(crate) fn file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file
}

/// What a VM is started with; a test changes what it is about.
pub(crate) struct Plan {
    pub(crate) config: VmConfig,
    pub(crate) fds: Vec<(FdRole, OwnedFd)>,
    pub(crate) console: File,
    /// Keeps the listening socket's place in the file system.
    pub(crate) directory: tempfile::TempDir,
}

impl Plan {
    /// A VM whose init does `actions`.
    pub(crate) fn new(actions: &str) -> Self {
        Self::with_kernel(File::open(kernel()).unwrap(), actions)
    }

    pub(crate) fn with_kernel(kernel: File, actions: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("vsock")).unwrap();
        let console = tempfile::tempfile().unwrap();
        let kvm = File::options()
            .read(true)
            .write(true)
            .open("/dev/kvm")
            .unwrap();
        let fds = vec![
            (FdRole::Kvm, kvm.into()),
            (FdRole::Kernel, kernel.into()),
            (FdRole::Initramfs, file(&initramfs()).into()),
            (FdRole::Console, console.try_clone().unwrap().into()),
            (FdRole::VsockListener, listener.into()),
        ];
        Self {
            config: VmConfig {
                api_version: API_VERSION,
                vcpus: 1,
                max_vcpus: 1,
                memory_mib: 128,
                max_memory_mib: 128,
                cmdline: format!("-- {actions}"),
                vsock: VsockConfig {
                    guest_cid: 3,
                    host_ports: Vec::new(),
                },
                fs: None,
                jail: JailConfig {
                    uid: 65533,
                    gid: 65533,
                },
            },
            fds,
            console,
            directory,
        }
    }

    /// Puts `words` before the actions on the command line.
    pub(crate) fn cmdline(mut self, words: &str) -> Self {
        self.config.cmdline = format!("{words} {}", self.config.cmdline);
        self
    }

    pub(crate) fn replace(mut self, role: FdRole, file: File) -> Self {
        let (_, fd) = (self.fds.iter_mut())
            .find(|(known, _)| *known == role)
            .unwrap();
        *fd = file.into();
        self
    }

    /// Starts the process and sends it the boot request.
    pub(crate) fn start(self) -> Vm {
        let (vm, boot, descriptors) = self.spawn();
        let borrowed: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
        vm.owner.as_ref().unwrap().send(&boot, &borrowed).unwrap();
        vm
    }

    /// Starts the process; returns what it is to be sent.
    pub(crate) fn spawn(self) -> (Vm, Request, Vec<OwnedFd>) {
        let (owner, control) = Channel::pair().unwrap();
        let mut command = Command::new(program());
        let control = OwnedFd::from(control);
        let number = control.as_raw_fd();
        let place = move || {
            // SAFETY: plain numbers; may be called between fork and exec.
            if unsafe { libc::dup2(number, CONTROL_FD) } < 0 {
                return Err(std::io::Error::last_os_error());
            }
            if number == CONTROL_FD {
                // SAFETY: as above.
                unsafe { libc::fcntl(CONTROL_FD, libc::F_SETFD, 0) };
            }
            Ok(())
        };
        // SAFETY: it only calls what may be called between fork and exec.
        unsafe { command.pre_exec(place) };
        let child = command.spawn().unwrap();
        drop(control);
        let (fds, descriptors): (Vec<_>, Vec<_>) = self.fds.into_iter().unzip();
        let boot = Request::Boot {
            config: self.config,
            fds,
        };
        let vm = Vm {
            child,
            owner: Some(owner),
            console: self.console,
            _directory: self.directory,
        };
        (vm, boot, descriptors)
    }
}

/// A running VMM process; killed when dropped.
pub(crate) struct Vm {
    pub(crate) child: Child,
    pub(crate) owner: Option<Channel>,
    console: File,
    _directory: tempfile::TempDir,
}

impl Vm {
    pub(crate) fn send(&self, request: &Request) {
        self.send_with(request, &[]);
    }

    /// Sends `request` with descriptors beside it.
    pub(crate) fn send_with(&self, request: &Request, fds: &[BorrowedFd<'_>]) {
        self.owner.as_ref().unwrap().send(request, fds).unwrap();
    }

    /// Has the VM stand still.
    pub(crate) fn pause(&self) {
        self.send(&Request::Pause);
        assert_eq!(self.event(), Some(Event::Paused));
    }

    /// Has it go on.
    pub(crate) fn resume(&self) {
        self.send(&Request::Resume);
        assert_eq!(self.event(), Some(Event::Resumed));
    }

    /// The next event; `None` when the process has gone.
    pub(crate) fn event(&self) -> Option<Event> {
        let owner = self.owner.as_ref().unwrap();
        let mut fds = [rustix::event::PollFd::new(
            owner,
            rustix::event::PollFlags::IN,
        )];
        let patience = rustix::event::Timespec {
            tv_sec: i64::try_from(PATIENCE.as_secs()).unwrap(),
            tv_nsec: 0,
        };
        let ready = rustix::event::poll(&mut fds, Some(&patience)).unwrap();
        assert!(ready > 0, "no event; console:\n{}", self.console());
        owner.recv::<Event>().unwrap().map(|(event, _)| event)
    }

    pub(crate) fn booted(&self) -> Timeline {
        match self.event() {
            Some(Event::Booted { timeline }) => timeline,
            other => panic!("{other:?}; console:\n{}", self.console()),
        }
    }

    pub(crate) fn exit_event(&self) -> (ExitReason, Timeline) {
        match self.event() {
            Some(Event::Exited { reason, timeline }) => (reason, timeline),
            other => panic!("{other:?}; console:\n{}", self.console()),
        }
    }

    /// Waits for the exit event, then for the process.
    pub(crate) fn exited(&mut self) -> (ExitReason, Timeline) {
        let exit = self.exit_event();
        assert!(self.event().is_none(), "an event after the last");
        self.gone();
        exit
    }

    /// Waits until the process has ended by itself.
    pub(crate) fn gone(&mut self) -> std::process::ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(start.elapsed() < PATIENCE, "the process does not end");
            std::thread::sleep(Duration::from_micros(100));
        }
    }

    pub(crate) fn console(&self) -> String {
        let length = self.console.metadata().unwrap().len();
        let mut bytes = vec![0; usize::try_from(length).unwrap()];
        self.console.read_exact_at(&mut bytes, 0).unwrap();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Waits until the console says `text`.
    pub(crate) fn says(&self, text: &str) {
        let start = Instant::now();
        while !self.console().contains(text) {
            assert!(
                start.elapsed() < PATIENCE,
                "{text:?} is not on the console:\n{}",
                self.console()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
