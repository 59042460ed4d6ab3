//! Descriptors of the caller that a process in the guest is given (`--preserve-fds`).
//!
//! A descriptor means something to one kernel. What can be had in the guest is what is made of bytes
//! alone: the end of a pipe, a connected stream socket, and devices that the guest has too. The bytes
//! of the first two are relayed, each over a stream of its own; anything else is refused by name.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use cloister_protocol::DESCRIPTORS_MAX;
use rustix::fs::{FileType, OFlags, fcntl_getfl, fstat, major, minor};
use rustix::net::{AddressFamily, SocketType, getpeername, sockopt};

use crate::sys;

/// The number of the first descriptor.
pub const FIRST: i32 = 3;

/// How a descriptor gets into the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The guest's device of this name below `/dev`.
    Device(&'static str),
    /// The end of a pipe that is read from.
    Read,
    /// The end of a pipe that is written to.
    Write,
    /// A connected stream socket.
    Socket,
}

/// Why descriptors cannot be passed on.
#[derive(Debug, thiserror::Error)]
pub enum DescriptorError {
    /// More than the agent takes.
    #[error("--preserve-fds {0}: at most {DESCRIPTORS_MAX} descriptors can be passed on")]
    TooMany(u32),
    /// There is no such descriptor.
    #[error("--preserve-fds: descriptor {0} is not open")]
    Closed(i32),
    /// It is none that a guest can have.
    #[error(
        "--preserve-fds: descriptor {number} is {what}, which has no meaning in a virtual machine: \
         pipes, connected stream sockets and devices like /dev/null can be passed on"
    )]
    Refused {
        /// Its number.
        number: i32,
        /// What it is.
        what: String,
    },
    /// It cannot be looked at.
    #[error("--preserve-fds: cannot look at descriptor {number}")]
    System {
        /// Its number.
        number: i32,
        /// Why.
        #[source]
        error: io::Error,
    },
}

/// Takes over as many descriptors as a caller passes on, which no child then inherits.
///
/// # Errors
/// The first that cannot be passed on. Nothing was taken over if there are too many.
///
/// # Safety
/// Nothing else in the process may own a descriptor from [`FIRST`] on: to be called before anything is
/// opened.
#[expect(unsafe_code, reason = "takes over inherited descriptors")]
pub unsafe fn take(count: u32) -> Result<Vec<OwnedFd>, DescriptorError> {
    let wanted = usize::try_from(count).unwrap_or(usize::MAX);
    if wanted > DESCRIPTORS_MAX {
        return Err(DescriptorError::TooMany(count));
    }
    let numbers = (FIRST..).take(wanted);
    let taken = numbers.map(|number| {
        // SAFETY: as the caller says.
        let fd = unsafe { sys::take_open(number) };
        let fd = fd.map_err(|_| DescriptorError::Closed(number))?;
        kind(number, &fd)?;
        Ok(fd)
    });
    taken.collect()
}

/// Tells how descriptor `number`, which `fd` is or is a copy of, gets into the guest.
///
/// # Errors
/// If it does not.
pub fn kind(number: i32, fd: impl AsFd) -> Result<Kind, DescriptorError> {
    let fd = fd.as_fd();
    let system = |errno: rustix::io::Errno| DescriptorError::System {
        number,
        error: errno.into(),
    };
    let refused = |what: &str| {
        let what = what.to_owned();
        Err(DescriptorError::Refused { number, what })
    };
    let stat = fstat(fd).map_err(system)?;
    let flags = fcntl_getfl(fd).map_err(system)?;
    if flags.contains(OFlags::PATH) {
        return refused("a path (O_PATH)");
    }
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Fifo => match flags & OFlags::RWMODE {
            OFlags::RDONLY => Ok(Kind::Read),
            OFlags::WRONLY => Ok(Kind::Write),
            _ => refused("a FIFO that is open in both directions"),
        },
        FileType::Socket => match socket(fd).map_err(system)? {
            None => Ok(Kind::Socket),
            Some(what) => refused(what),
        },
        // Documentation/admin-guide/devices.txt.
        FileType::CharacterDevice => match (major(stat.st_rdev), minor(stat.st_rdev)) {
            (1, 3) => Ok(Kind::Device("null")),
            (1, 5) => Ok(Kind::Device("zero")),
            (1, 7) => Ok(Kind::Device("full")),
            (1, 8) => Ok(Kind::Device("random")),
            (1, 9) => Ok(Kind::Device("urandom")),
            _ if rustix::termios::isatty(fd) => refused("a terminal"),
            _ => refused("a character device"),
        },
        FileType::RegularFile => refused("a file"),
        FileType::Directory => refused("a directory"),
        FileType::BlockDevice => refused("a block device"),
        FileType::Symlink | FileType::Unknown => {
            // Of no type: procfs calls it anon_inode:[eventpoll] and the like.
            let link = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()));
            let name = link.map_or_else(|_| "of no type".into(), |name| name.display().to_string());
            refused(&name)
        }
    }
}

/// What a socket is that cannot be passed on; `None` for a connected stream.
fn socket(fd: std::os::fd::BorrowedFd<'_>) -> Result<Option<&'static str>, rustix::io::Errno> {
    let domain = sockopt::socket_domain(fd)?;
    let is_known = [
        AddressFamily::UNIX,
        AddressFamily::INET,
        AddressFamily::INET6,
    ]
    .contains(&domain);
    Ok(match sockopt::socket_type(fd)? {
        SocketType::STREAM if !is_known => Some("a socket of another kind than UNIX and TCP"),
        SocketType::STREAM if sockopt::socket_acceptconn(fd)? => Some("a listening socket"),
        SocketType::STREAM => match getpeername(fd) {
            Ok(_) => None,
            Err(_) => Some("a socket that is not connected"),
        },
        SocketType::DGRAM => Some("a datagram socket"),
        SocketType::SEQPACKET => Some("a socket of packets"),
        _ => Some("a socket that is no stream"),
    })
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};

    use super::*;

    fn refusal(fd: impl AsFd) -> String {
        kind(7, fd).unwrap_err().to_string()
    }

    #[test]
    fn what_is_made_of_bytes_is_passed_on() {
        let (read, write) = std::io::pipe().unwrap();
        assert_eq!(kind(3, &read).unwrap(), Kind::Read);
        assert_eq!(kind(3, &write).unwrap(), Kind::Write);
        let (one, _other) = UnixStream::pair().unwrap();
        assert_eq!(kind(3, &one).unwrap(), Kind::Socket);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        assert_eq!(kind(3, &stream).unwrap(), Kind::Socket);
        for name in cloister_protocol::DEVICES {
            let device = File::open(format!("/dev/{name}")).unwrap();
            assert_eq!(kind(3, &device).unwrap(), Kind::Device(name));
        }
    }

    #[test]
    fn what_belongs_to_this_kernel_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let file = File::create(path("file")).unwrap();
        let both = path("fifo");
        rustix::fs::mkfifoat(rustix::fs::CWD, &both, rustix::fs::Mode::RWXU).unwrap();
        let both = File::options().read(true).write(true).open(both).unwrap();
        let epoll = rustix::event::epoll::create(rustix::event::epoll::CreateFlags::CLOEXEC);
        let place = rustix::fs::open("/", OFlags::PATH, rustix::fs::Mode::empty()).unwrap();
        let alone = rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
        let packets = rustix::net::socket(AddressFamily::UNIX, SocketType::SEQPACKET, None);
        for (text, what) in [
            (refusal(&file), "a file"),
            (refusal(File::open("/").unwrap()), "a directory"),
            (refusal(&place), "a path (O_PATH)"),
            (refusal(&both), "a FIFO that is open in both directions"),
            (refusal(epoll.unwrap()), "anon_inode:[eventpoll]"),
            (refusal(&alone), "a socket that is not connected"),
            (refusal(packets.unwrap()), "a socket of packets"),
            (
                refusal(UnixListener::bind(path("s")).unwrap()),
                "a listening socket",
            ),
            (
                refusal(UnixDatagram::unbound().unwrap()),
                "a datagram socket",
            ),
            (
                refusal(UdpSocket::bind("127.0.0.1:0").unwrap()),
                "a datagram socket",
            ),
        ] {
            let expected = format!("--preserve-fds: descriptor 7 is {what}, which has no meaning");
            assert!(text.starts_with(&expected), "{text}");
        }
    }
}
