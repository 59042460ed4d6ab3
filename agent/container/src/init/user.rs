//! Who the program runs as, and with what: user, groups, capabilities, resource limits, environment
//! (config.md#process).

use std::ffi::CString;
use std::io::Read;
use std::os::fd::AsFd;

use cloister_spec::{CAPABILITIES, RLIMITS};
use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit as Limit};
use rustix::thread::{CapabilitySet, CapabilitySets, Gid, Uid};

use crate::config::{Capabilities, Process, Rlimit};
use crate::error::{Context, Failure};

/// A password file of a sane size.
const MAX_PASSWD: u64 = 1 << 20;

/// The environment of the program: the last of several settings of a name counts, HOME is taken
/// from the container's `/etc/passwd` if it is missing (as runc does).
pub(crate) fn environment(process: &Process) -> Result<Vec<CString>, Failure> {
    let mut env: Vec<(&str, &str)> = Vec::with_capacity(process.env.len() + 1);
    for entry in &process.env {
        let (name, value) = entry.split_once('=').unwrap_or((entry, ""));
        match env.iter_mut().find(|(known, _)| *known == name) {
            Some(known) => known.1 = value,
            None => env.push((name, value)),
        }
    }
    let home;
    if !env
        .iter()
        .any(|(name, value)| *name == "HOME" && !value.is_empty())
    {
        env.retain(|(name, _)| *name != "HOME");
        home = home_directory(process.user.uid).doing(|| "read /etc/passwd")?;
        env.push(("HOME", &home));
    }
    env.into_iter()
        .map(|(name, value)| c_string("process.env", &format!("{name}={value}")))
        .collect()
}

pub(crate) fn c_string(field: &str, text: &str) -> Result<CString, Failure> {
    CString::new(text).map_err(|_| Failure::invalid(format!("{field}: contains a NUL character")))
}

/// The home directory of a user, `/` if the container has none for it.
fn home_directory(uid: u32) -> std::io::Result<String> {
    // The file is the image's: it may be a FIFO that nobody writes to.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = match rustix::fs::openat(CWD, "/etc/passwd", flags, Mode::empty()) {
        Ok(file) => file,
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok("/".into()),
        Err(error) => return Err(error.into()),
    };
    let mut text = Vec::new();
    if FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode).is_file() {
        std::fs::File::from(file)
            .take(MAX_PASSWD)
            .read_to_end(&mut text)?;
    }
    let text = String::from_utf8_lossy(&text);
    Ok(find_home(&text, uid).unwrap_or("/").to_owned())
}

/// passwd(5): name:password:uid:gid:comment:home:shell
fn find_home(passwd: &str, uid: u32) -> Option<&str> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':').skip(2);
        let matches = fields.next()?.trim().parse() == Ok(uid);
        let home = fields.nth(2)?;
        (matches && !home.is_empty()).then_some(home)
    })
}

/// Gives the standard streams to the user, so that `/dev/stdout` can be opened again.
pub(crate) fn own_stdio(uid: u32) -> Result<(), Failure> {
    let null = rustix::fs::makedev(1, 3);
    let streams = [
        rustix::stdio::stdin(),
        rustix::stdio::stdout(),
        rustix::stdio::stderr(),
    ];
    for stream in streams {
        let stat = rustix::fs::fstat(stream).doing(|| "standard streams")?;
        let is_null =
            FileType::from_raw_mode(stat.st_mode).is_char_device() && stat.st_rdev == null;
        if is_null || stat.st_uid == uid {
            continue;
        }
        match rustix::fs::fchown(stream.as_fd(), Some(Uid::from_raw(uid)), None) {
            // A read-only file system, a file of another user namespace, a socket: it stays as it is.
            Ok(()) | Err(Errno::INVAL | Errno::PERM | Errno::ROFS | Errno::NOSYS) => {}
            Err(error) => return Err(Failure::system("standard streams: change the owner", error)),
        }
    }
    Ok(())
}

/// `process.rlimits`.
pub(crate) fn set_limits(limits: &[Rlimit]) -> Result<(), Failure> {
    for (index, limit) in limits.iter().enumerate() {
        let number = RLIMITS
            .supported
            .iter()
            .position(|name| *name == limit.kind);
        let resource = number
            .and_then(|number| RESOURCES.get(number))
            .ok_or_else(|| {
                Failure::invalid(format!(
                    "process.rlimits[{index}].type: unknown {:?}",
                    limit.kind
                ))
            })?;
        // RLIM_INFINITY
        let bound = |value: u64| (value != u64::MAX).then_some(value);
        let new = Limit {
            current: bound(limit.soft),
            maximum: bound(limit.hard),
        };
        rustix::process::setrlimit(*resource, new)
            .doing(|| format!("process.rlimits[{index}]: set {}", limit.kind))?;
    }
    Ok(())
}

/// In the order of [`RLIMITS`].
const RESOURCES: [Resource; 16] = [
    Resource::Cpu,
    Resource::Fsize,
    Resource::Data,
    Resource::Stack,
    Resource::Core,
    Resource::Rss,
    Resource::Nproc,
    Resource::Nofile,
    Resource::Memlock,
    Resource::As,
    Resource::Locks,
    Resource::Sigpending,
    Resource::Msgqueue,
    Resource::Nice,
    Resource::Rtprio,
    Resource::Rttime,
];

fn set_of(names: &[String]) -> CapabilitySet {
    let bits = names
        .iter()
        .filter_map(|name| {
            CAPABILITIES
                .supported
                .iter()
                .position(|known| known == name)
        })
        .fold(0, |bits, number| bits | 1_u64 << number);
    CapabilitySet::from_bits_retain(bits)
}

/// Lowers the bounding set, becomes the user, enters the working directory and takes on the
/// capabilities (capabilities(7) for the order).
pub(crate) fn become_user(process: &Process, warnings: &mut Vec<String>) -> Result<(), Failure> {
    let user = &process.user;
    let capabilities = &process.capabilities;
    // The kernel may know fewer than the table.
    let known = drop_bounding(set_of(&capabilities.bounding))?;
    // As root first: the user may not be allowed to see the directory's parents. But a directory
    // that only the user may enter (a network file system) is tried again as the user.
    let entered = enter(&process.cwd);
    rustix::thread::set_keep_capabilities(true).doing(|| "keep capabilities")?;
    let groups: Vec<Gid> = user
        .additional_gids
        .iter()
        .map(|&gid| Gid::from_raw(gid))
        .collect();
    rustix::thread::set_thread_groups(&groups)
        .doing(|| {
            format!(
                "process.user.additionalGids: set to {:?}",
                user.additional_gids
            )
        })
        .map_err(Failure::blamed_on_spec)?;
    let gid = Gid::from_raw(user.gid);
    rustix::thread::set_thread_res_gid(gid, gid, gid)
        .doing(|| format!("process.user.gid: become group {}", user.gid))
        .map_err(Failure::blamed_on_spec)?;
    let uid = Uid::from_raw(user.uid);
    rustix::thread::set_thread_res_uid(uid, uid, uid)
        .doing(|| format!("process.user.uid: become user {}", user.uid))
        .map_err(Failure::blamed_on_spec)?;
    match entered {
        Err(Errno::ACCESS | Errno::PERM) => enter(&process.cwd),
        entered => entered,
    }
    .doing(|| format!("chdir to cwd ({:?}) set in config.json failed", process.cwd))
    .map_err(Failure::blamed_on_spec)?;
    rustix::thread::set_keep_capabilities(false).doing(|| "keep capabilities")?;
    set_capabilities(capabilities, known, warnings)
}

fn enter(cwd: &str) -> Result<(), Errno> {
    rustix::process::chdir(cwd)?;
    // CVE-2024-21626: a working directory outside of the root shows as "(unreachable)".
    let inside = rustix::process::getcwd(Vec::new())?
        .to_bytes()
        .starts_with(b"/");
    if inside { Ok(()) } else { Err(Errno::NOENT) }
}

/// Drops what is not in `keep` from the bounding set, and gives all capabilities the kernel knows.
fn drop_bounding(keep: CapabilitySet) -> Result<CapabilitySet, Failure> {
    let mut known = CapabilitySet::empty();
    for number in 0..64 {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        let result = if keep.contains(capability) {
            rustix::thread::capability_is_in_bounding_set(capability).map(drop)
        } else {
            rustix::thread::remove_capability_from_bounding_set(capability)
        };
        match result {
            Ok(()) => known |= capability,
            // One more than there are.
            Err(Errno::INVAL) => break,
            Err(error) => {
                let what = format!("process.capabilities.bounding: drop capability {number}");
                return Err(Failure::system(what, error));
            }
        }
    }
    Ok(known)
}

fn set_capabilities(
    capabilities: &Capabilities,
    known: CapabilitySet,
    warnings: &mut Vec<String>,
) -> Result<(), Failure> {
    let sets = CapabilitySets {
        effective: set_of(&capabilities.effective) & known,
        permitted: set_of(&capabilities.permitted) & known,
        inheritable: set_of(&capabilities.inheritable) & known,
    };
    // Ambient ones are raised first of all lowered: a set-user-id program may have left some.
    rustix::thread::clear_ambient_capability_set().doing(|| "clear the ambient set")?;
    rustix::thread::set_capabilities(None, sets)
        .doing(|| "process.capabilities: set")
        .map_err(Failure::blamed_on_spec)?;
    for (index, name) in capabilities.ambient.iter().enumerate() {
        let capability = set_of(std::slice::from_ref(name));
        match rustix::thread::configure_capability_in_ambient_set(capability, true) {
            Ok(()) => {}
            // "cannot be granted": a warning (config.md#linux-process).
            Err(Errno::PERM | Errno::INVAL) => warnings.push(format!(
                "process.capabilities.ambient[{index}]: {name} is not granted: it is not both permitted and inheritable"
            )),
            Err(error) => {
                return Err(Failure::system(format!("process.capabilities.ambient[{index}]: {name}"), error));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_home_directory_is_the_sixth_field_of_the_users_line() {
        let passwd =
            "root:x:0:0:root:/root:/bin/sh\n# comment\nuser:x:1000:1000::/home/user:\nodd:x:7\n";
        assert_eq!(find_home(passwd, 0), Some("/root"));
        assert_eq!(find_home(passwd, 1000), Some("/home/user"));
        assert_eq!(find_home(passwd, 7), None);
        assert_eq!(find_home(passwd, 5), None);
    }

    #[test]
    fn the_last_setting_of_a_variable_counts() {
        let process: Process = serde_json::from_value(serde_json::json!({
            "args": ["x"], "cwd": "/", "env": ["A=1", "HOME=/h", "B=2", "A=3=4"],
        }))
        .unwrap();
        let env = environment(&process).unwrap();
        assert_eq!(
            env,
            [
                c"A=3=4".to_owned(),
                c"HOME=/h".to_owned(),
                c"B=2".to_owned()
            ]
        );
    }

    #[test]
    fn capability_numbers_are_positions_in_the_table() {
        let set = set_of(&[
            "CAP_CHOWN".into(),
            "CAP_CHECKPOINT_RESTORE".into(),
            "CAP_SYS_ADMIN".into(),
        ]);
        assert_eq!(
            set,
            CapabilitySet::CHOWN | CapabilitySet::CHECKPOINT_RESTORE | CapabilitySet::SYS_ADMIN
        );
    }
}
