//! The terminal of a container whose caller asked for one over a console socket.
//!
//! The caller gets the master side of a new pseudoterminal and sees what it would see of a
//! process on this machine. The slave side is the monitor's controlling terminal, raw: bytes go
//! to and from the guest, whose own terminal does the line discipline, and a change of the window
//! size arrives as `SIGWINCH`.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::process::ioctl_tiocsctty;
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{OptionalActions, tcgetattr, tcgetwinsize, tcsetattr};

use crate::sys::send_fd;

/// The slave side of a pseudoterminal.
#[derive(Debug)]
pub(crate) struct Pty {
    slave: OwnedFd,
}

impl Pty {
    /// Opens a pseudoterminal, makes it the controlling terminal of this session and sends its
    /// master side over `socket`.
    pub(crate) fn open(socket: impl AsFd) -> io::Result<Self> {
        let (this, master) = Self::pair()?;
        ioctl_tiocsctty(&this.slave)?;
        send_fd(socket, &master, b"/dev/ptmx")?;
        Ok(this)
    }

    /// A pseudoterminal and its master side.
    fn pair() -> io::Result<(Self, OwnedFd)> {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = openpt(flags)?;
        unlockpt(&master)?;
        let slave = ioctl_tiocgptpeer(&master, flags)?;
        let mut termios = tcgetattr(&slave)?;
        termios.make_raw();
        tcsetattr(&slave, OptionalActions::Now, &termios)?;
        Ok((Self { slave }, master))
    }

    /// The size of its window: columns and rows.
    pub(crate) fn size(&self) -> io::Result<(u16, u16)> {
        let size = tcgetwinsize(&self.slave)?;
        Ok((size.ws_col, size.ws_row))
    }

    /// Another descriptor of it.
    pub(crate) fn try_clone(&self) -> io::Result<OwnedFd> {
        self.slave.try_clone()
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{IoSliceMut, Read, Write};
    use std::mem::MaybeUninit;
    use std::os::unix::net::UnixStream;

    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
    use rustix::termios::{LocalModes, Winsize, tcsetwinsize};

    use super::*;

    #[test]
    fn the_master_arrives_and_is_the_other_side_of_a_raw_terminal() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (pty, master) = Pty::pair().unwrap();
        send_fd(&theirs, &master, b"/dev/ptmx").unwrap();
        drop(master);
        let mut name = [0; 64];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = recvmsg(
            &ours,
            &mut [IoSliceMut::new(&mut name)],
            &mut control,
            RecvFlags::empty(),
        )
        .unwrap();
        assert_eq!(&name[..received.bytes], b"/dev/ptmx");
        let master = control
            .drain()
            .find_map(|m| match m {
                RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
                _ => None,
            })
            .unwrap();

        let size = Winsize {
            ws_col: 101,
            ws_row: 37,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&master, size).unwrap();
        assert_eq!(pty.size().unwrap(), (101, 37));

        let modes = tcgetattr(&pty.slave).unwrap().local_modes;
        assert!(!modes.intersects(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG));
        let mut master = File::from(master);
        let mut slave = File::from(pty.try_clone().unwrap());
        master.write_all(b"\x03a\r").unwrap();
        let mut bytes = [0; 3];
        slave.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"\x03a\r", "neither a signal nor a newline");
        slave.write_all(b"b\n").unwrap();
        master.read_exact(&mut bytes[..2]).unwrap();
        assert_eq!(&bytes[..2], b"b\n", "and no carriage return");
    }
}
