//! From the initramfs to a machine that looks like the one outside.
//!
//! PID 1 must do the `chroot` itself: the kernel's own helpers (`/sbin/modprobe` for a module that a mount or a socket
//! asks for) share its root.

use super::{MACHINE_ROOT, SERVER_NAME, smp, sys};
use anyhow::{Context as _, Result, anyhow, bail};
use rustix::fs::{FileType, Mode};
use rustix::mount::{MountFlags, mount, mount_bind, mount_move};
use rustix::process::{Pid, WaitOptions};
use std::ffi::{CStr, CString, OsStr};
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, lchown, symlink};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Modules to load at boot, one file name a line, in order.
const MODULE_LIST: &str = "/modules/order";

/// The module whose parameters matter, as the order names it.
const KVM: &str = "kvm.ko";

/// What it is told. The kernel measures its time stamp counter twice: roughly when it starts, and better some two seconds
/// later, after the modules are loaded. Where the first measurement is off by more than KVM tolerates, which is 250 millionths
/// and happens on a busy machine, KVM takes each guest's counter for one that has to be scaled, which this processor cannot do,
/// and then for one that stands at zero (arch/x86/kvm/x86.c: set_tsc_khz): a guest's timers come as much too late as the
/// machine is old. So it tolerates a tenth.
const KVM_PARAMETERS: &CStr = c"tsc_tolerance_ppm=100000";

/// File that names the directory of all modules, as the machine outside knows it.
const MODULE_DIRECTORY: &str = "/modules/directory";

/// Large requests: each costs a round trip through an emulated device.
const MACHINE_OPTIONS: &CStr = c"trans=virtio,version=9p2000.L,msize=512000,cache=loose";

/// How many files a process may hold open, as systemd sets it for services.
const OPEN_FILES: (u64, u64) = (1024, 524_288);

pub(super) fn boot() -> Result<()> {
    mount_new("proc", "/proc", c"", MountFlags::empty())?;
    mount_new("sysfs", "/sys", c"", MountFlags::empty())?;
    mount_new("devtmpfs", "/dev", c"mode=755", MountFlags::empty())?;
    make_static_nodes()?;
    load_modules()?;
    let cgroup = kernel_parameter("bed.cgroup")?;

    make_directory("/machine")?;
    mount(
        "host",
        "/machine",
        "9p",
        MountFlags::RDONLY,
        MACHINE_OPTIONS,
    )
    .context("mount the machine's root over 9p")?;
    mount_new("tmpfs", "/layer", c"mode=755,size=75%", MountFlags::empty())?;
    for directory in ["/layer/upper", "/layer/work", "/root"] {
        make_directory(directory)?;
    }
    let options = c"lowerdir=/machine,upperdir=/layer/upper,workdir=/layer/work,xino=off";
    mount("bed", "/root", "overlay", MountFlags::empty(), options)
        .context("mount the layer above the machine")?;

    for directory in ["proc", "sys", "dev", "run", "tmp"] {
        make_directory(Path::new("/root").join(directory))?;
    }
    for (from, to) in [
        ("/proc", "/root/proc"),
        ("/sys", "/root/sys"),
        ("/dev", "/root/dev"),
    ] {
        mount_move(from, to).with_context(|| format!("move {from}"))?;
    }
    let ordinary = MountFlags::NOSUID | MountFlags::NODEV;
    mount_new("tmpfs", "/root/run", c"mode=755", ordinary)?;
    mount_new("tmpfs", "/root/tmp", c"mode=1777", ordinary)?;
    mount_new(
        "devpts",
        "/root/dev/pts",
        c"gid=5,mode=620,ptmxmode=666",
        MountFlags::NOSUID | MountFlags::NOEXEC,
    )?;
    mount_new("tmpfs", "/root/dev/shm", c"mode=1777", ordinary)?;
    mount_new(
        "mqueue",
        "/root/dev/mqueue",
        c"",
        ordinary | MountFlags::NOEXEC,
    )?;
    for (name, target) in [
        ("fd", "/proc/self/fd"),
        ("stdin", "fd/0"),
        ("stdout", "fd/1"),
        ("stderr", "fd/2"),
    ] {
        symlink(target, Path::new("/root/dev").join(name))
            .with_context(|| format!("create /dev/{name}"))?;
    }
    keep_root_links()?;
    mount_cgroups(&cgroup, Path::new("/root/sys/fs/cgroup"))?;
    let machine = format!("/root{MACHINE_ROOT}");
    make_directory(&machine)?;
    mount_bind("/machine", machine.as_str()).with_context(|| format!("bind {MACHINE_ROOT}"))?;
    bind_modules()?;

    std::env::set_current_dir("/root").context("enter the new root")?;
    mount_move(".", "/").context("move the new root to /")?;
    rustix::process::chroot(".").context("change root")?;
    std::env::set_current_dir("/").context("enter /")?;

    rustix::system::sethostname(b"bed").context("set the host name")?;
    sys::loopback_up().context("bring the loopback interface up")?;
    let (soft, hard) = OPEN_FILES;
    let limit = rustix::process::Rlimit {
        current: Some(soft),
        maximum: Some(hard),
    };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, limit)
        .context("raise the limit of open files")?;
    Ok(())
}

/// Starts the server and reaps orphans until it ends.
pub(super) fn supervise() -> Result<()> {
    let _switches = smp::bring_up().context("bring up the other CPUs")?;
    // The running executable lies in the initramfs, which the new root hides.
    let server = Command::new("/proc/self/exe")
        .arg0(SERVER_NAME)
        .spawn()
        .context("start the server")?;
    let server = i32::try_from(server.id())
        .ok()
        .and_then(Pid::from_raw)
        .context("the server's pid")?;
    loop {
        match rustix::process::wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) if pid == server => bail!("the server ended: {status:?}"),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("wait for children"),
        }
    }
}

pub(super) fn power_off() {
    rustix::fs::sync();
    if let Err(error) = rustix::system::reboot(rustix::system::RebootCommand::PowerOff) {
        eprintln!("bed: power off: {error}");
    }
}

/// Copies `/lib` and its like up into the layer: where `/usr` is merged, most paths lead through them, and the machine's
/// file server is asked for a link's target each time.
fn keep_root_links() -> Result<()> {
    for entry in fs::read_dir("/root").context("list the root")? {
        let path = entry.context("list the root")?.path();
        let metadata = path
            .symlink_metadata()
            .with_context(|| format!("look at {}", path.display()))?;
        if metadata.is_symlink() {
            lchown(&path, Some(metadata.uid()), Some(metadata.gid()))
                .with_context(|| format!("copy {} up", path.display()))?;
        }
    }
    Ok(())
}

/// The value of `name=` on the kernel's command line.
pub(super) fn kernel_parameter(name: &str) -> Result<String> {
    let line = fs::read_to_string("/proc/cmdline").context("read /proc/cmdline")?;
    line.split_whitespace()
        .find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
        .map(str::to_owned)
        .ok_or_else(|| anyhow!("the kernel's command line has no {name}="))
}

fn load_modules() -> Result<()> {
    let order = fs::read_to_string(MODULE_LIST).with_context(|| format!("read {MODULE_LIST}"))?;
    for name in order.lines() {
        let path = Path::new("/modules").join(name);
        let file = File::open(&path).with_context(|| format!("open {}", path.display()))?;
        let parameters = if name.starts_with(KVM) {
            KVM_PARAMETERS
        } else {
            c""
        };
        match rustix::system::finit_module(&file, parameters, 0) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(error).with_context(|| format!("load {name}")),
        }
    }
    Ok(())
}

/// Makes the nodes of devices whose module the kernel loads when somebody opens them, as systemd does on any machine
/// (kmod-static-nodes.service): of those, the tests need one.
fn make_static_nodes() -> Result<()> {
    // include/linux/miscdevice.h: MISC_MAJOR, VHOST_NET_MINOR.
    let device = rustix::fs::makedev(10, 238);
    let (kind, mode) = (FileType::CharacterDevice, Mode::RUSR | Mode::WUSR);
    rustix::fs::mknodat(rustix::fs::CWD, "/dev/vhost-net", kind, mode, device)
        .context("create /dev/vhost-net")
}

/// Makes every other module of the kernel available to modprobe, and so to the kernel's own requests.
fn bind_modules() -> Result<()> {
    let directory =
        fs::read(MODULE_DIRECTORY).with_context(|| format!("read {MODULE_DIRECTORY}"))?;
    let directory = Path::new(OsStr::from_bytes(&directory));
    let below = directory
        .strip_prefix("/")
        .with_context(|| format!("{} is not absolute", directory.display()))?;
    let source = Path::new("/machine").join(below);
    let release = directory
        .file_name()
        .context("the module directory has no name")?;
    // Through the link on a merged /usr, which must not be followed to the initramfs.
    let library = match fs::read_link("/root/lib") {
        Ok(target) => Path::new("/root").join(target.strip_prefix("/").unwrap_or(&target)),
        Err(_) => PathBuf::from("/root/lib"),
    };
    let target = library.join("modules").join(release);
    make_directory(&target)?;
    mount_bind(&source, &target).with_context(|| format!("bind {}", source.display()))
}

fn mount_cgroups(version: &str, root: &Path) -> Result<()> {
    match version {
        "v2" => mount_cgroup2(root),
        "v1" => mount_cgroup1(root),
        other => bail!("bed.cgroup={other}: neither v1 nor v2"),
    }
}

fn mount_cgroup2(root: &Path) -> Result<()> {
    mount_new("cgroup2", root, c"nsdelegate", CGROUP_FLAGS)?;
    let controllers = root.join("cgroup.controllers");
    let enable: Vec<String> = fs::read_to_string(&controllers)
        .with_context(|| format!("read {}", controllers.display()))?
        .split_whitespace()
        .map(|name| format!("+{name}"))
        .collect();
    fs::write(root.join("cgroup.subtree_control"), enable.join(" "))
        .context("enable the cgroup controllers")
}

/// The hierarchies as systemd lays them out. The kernel may have been built without some controllers' v1 interface:
/// those are left out, as they would be on any machine that runs it.
fn mount_cgroup1(root: &Path) -> Result<()> {
    mount_new("tmpfs", root, c"mode=755", CGROUP_FLAGS)?;
    let shared = [
        ("cpu,cpuacct", ["cpu", "cpuacct"]),
        ("net_cls,net_prio", ["net_cls", "net_prio"]),
    ];
    let known = fs::read_to_string("/root/proc/cgroups").context("read /proc/cgroups")?;
    let single = known
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| !shared.iter().any(|(_, members)| members.contains(name)));
    for name in single.chain(shared.iter().map(|(name, _)| *name)) {
        let target = root.join(name);
        let options = CString::new(name).context("controller name")?;
        make_directory(&target)?;
        match mount(
            "cgroup",
            &target,
            "cgroup",
            CGROUP_FLAGS,
            options.as_c_str(),
        ) {
            Ok(()) => {}
            Err(rustix::io::Errno::INVAL) => {
                fs::remove_dir(&target).with_context(|| format!("remove {}", target.display()))?;
            }
            Err(error) => return Err(error).with_context(|| format!("mount the {name} hierarchy")),
        }
    }
    for (directory, members) in shared {
        for member in members {
            symlink(directory, root.join(member)).with_context(|| format!("link {member}"))?;
        }
    }
    mount_new(
        "cgroup",
        root.join("systemd"),
        c"none,name=systemd",
        CGROUP_FLAGS,
    )
}

const CGROUP_FLAGS: MountFlags = MountFlags::NOSUID
    .union(MountFlags::NODEV)
    .union(MountFlags::NOEXEC);

fn mount_new(
    kind: &str,
    target: impl AsRef<Path>,
    options: &CStr,
    flags: MountFlags,
) -> Result<()> {
    let target = target.as_ref();
    make_directory(target)?;
    mount(kind, target, kind, flags, options)
        .with_context(|| format!("mount {kind} on {}", target.display()))
}

fn make_directory(path: impl AsRef<Path>) -> Result<()> {
    let path = path.as_ref();
    if path.is_dir() {
        return Ok(());
    }
    let made: io::Result<()> = fs::create_dir_all(path)
        .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(0o755)));
    made.with_context(|| format!("create {}", path.display()))
}
