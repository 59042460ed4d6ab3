//! A connection to systemd's manager: over the system bus, or straight to it.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::SystemdError;
use super::wire::{self, ERROR, Message, Method, PREFIX, RETURN, SIGNAL, Writer};

/// How long systemd may take for anything, as with runc.
const LIMIT: Duration = Duration::from_secs(30);
/// The longest line while both sides introduce themselves.
const LINE_MAX: usize = 512;

const BUS: Method<'static> = Method {
    destination: Some("org.freedesktop.DBus"),
    path: "/org/freedesktop/DBus",
    interface: "org.freedesktop.DBus",
    member: "",
    signature: "",
};
const MANAGER: &str = "org.freedesktop.systemd1";
const MANAGER_PATH: &str = "/org/freedesktop/systemd1";
const MANAGER_INTERFACE: &str = "org.freedesktop.systemd1.Manager";

/// A socket behind which systemd can be reached.
#[derive(Debug, Clone)]
pub(super) struct Socket {
    pub(super) path: PathBuf,
    /// Whether others are there, too.
    pub(super) is_bus: bool,
}

impl Socket {
    /// Where systemd is: the bus is the documented way, the private socket works without one.
    pub(super) fn all() -> [Self; 2] {
        [
            Self {
                path: "/run/dbus/system_bus_socket".into(),
                is_bus: true,
            },
            Self {
                path: "/run/systemd/private".into(),
                is_bus: false,
            },
        ]
    }
}

/// A job of systemd that has ended.
#[derive(Debug)]
struct Job {
    path: String,
    result: String,
}

/// A connection to systemd's manager.
#[derive(Debug)]
pub(super) struct Connection {
    stream: UnixStream,
    is_bus: bool,
    serial: u32,
    /// Jobs that have ended since somebody asked.
    jobs: Vec<Job>,
}

impl Connection {
    /// Connects to the first socket at which somebody is.
    pub(super) fn open(sockets: &[Socket]) -> Result<Self, SystemdError> {
        let mut nobody = SystemdError::Protocol("there is no socket");
        for socket in sockets {
            match Self::connect(&socket.path, socket.is_bus) {
                // The documented one is the one to tell of.
                Err(e @ SystemdError::Connect(..)) => {
                    if let SystemdError::Protocol(_) = nobody {
                        nobody = e;
                    }
                }
                result => return result,
            }
        }
        Err(nobody)
    }

    fn connect(path: &Path, is_bus: bool) -> Result<Self, SystemdError> {
        let stream = UnixStream::connect(path)
            .map_err(|error| SystemdError::Connect(path.to_owned(), error))?;
        let mut this = Self {
            stream,
            is_bus,
            serial: 0,
            jobs: Vec::new(),
        };
        let deadline = Instant::now() + LIMIT;
        this.authenticate(deadline)?;
        if is_bus {
            let bus = |member| Method { member, ..BUS };
            this.call_any(bus("Hello"), Writer::default(), deadline)?;
            let mut rule = Writer::default();
            rule.text(&format!(
                "type='signal',sender='{MANAGER}',interface='{MANAGER_INTERFACE}',\
                 member='JobRemoved'"
            ));
            let add = Method {
                signature: "s",
                ..bus("AddMatch")
            };
            this.call_any(add, rule, deadline)?;
        }
        // Those who have not subscribed are told of their own jobs alone, and not by every version.
        match this.call("Subscribe", "", Writer::default()) {
            Ok(_) | Err(SystemdError::Refused { .. }) => Ok(this),
            Err(e) => Err(e),
        }
    }

    /// D-Bus specification, "Authentication Protocol": the peer asks the kernel who this is.
    fn authenticate(&mut self, deadline: Instant) -> Result<(), SystemdError> {
        let uid = rustix::process::geteuid().as_raw().to_string();
        let uid: String = uid.bytes().map(|digit| format!("{digit:02x}")).collect();
        // In one go: a message that comes with BEGIN, or right after it, is forgotten by systemd's
        // private socket until the next one comes. So nothing follows before the answer.
        let greeting = format!("\0AUTH EXTERNAL {uid}\r\nBEGIN\r\n");
        self.send(greeting.as_bytes(), deadline)?;
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            let mut byte = [0];
            self.receive(&mut byte, deadline)?;
            line.extend(byte);
            if line.len() > LINE_MAX {
                return Err(SystemdError::Protocol("its greeting is too long"));
            }
        }
        if !line.starts_with(b"OK ") {
            let line = String::from_utf8_lossy(&line);
            return Err(SystemdError::Rejected(line.trim_end().to_owned()));
        }
        Ok(())
    }

    /// Calls a method of the manager.
    pub(super) fn call(
        &mut self,
        member: &str,
        signature: &str,
        body: Writer,
    ) -> Result<Message, SystemdError> {
        self.call_on(MANAGER_INTERFACE, member, signature, body)
    }

    /// Calls a method of another interface of the manager.
    pub(super) fn call_on(
        &mut self,
        interface: &str,
        member: &str,
        signature: &str,
        body: Writer,
    ) -> Result<Message, SystemdError> {
        let method = Method {
            destination: self.is_bus.then_some(MANAGER),
            path: MANAGER_PATH,
            interface,
            member,
            signature,
        };
        self.call_any(method, body, Instant::now() + LIMIT)
    }

    fn call_any(
        &mut self,
        method: Method<'_>,
        body: Writer,
        deadline: Instant,
    ) -> Result<Message, SystemdError> {
        self.serial += 1;
        let serial = self.serial;
        let message = wire::call(method, serial, body)?;
        self.send(&message, deadline)?;
        loop {
            let message = self.next(deadline)?;
            match message.kind {
                RETURN if message.reply_to == serial => return Ok(message),
                ERROR if message.reply_to == serial => {
                    let text = match message.signature.starts_with('s') {
                        true => message.body().text()?,
                        false => String::new(),
                    };
                    return Err(SystemdError::Refused {
                        name: message.error,
                        text,
                    });
                }
                _ => {}
            }
        }
    }

    /// Waits for the end of a job and tells its result, which is `done` if all is well.
    pub(super) fn wait(&mut self, job: &str) -> Result<String, SystemdError> {
        let deadline = Instant::now() + LIMIT;
        loop {
            if let Some(index) = self.jobs.iter().position(|ended| ended.path == job) {
                return Ok(self.jobs.swap_remove(index).result);
            }
            self.next(deadline)?;
        }
    }

    /// The next message. Jobs that it says have ended are noted: one may be over before the call
    /// that has started it returns.
    fn next(&mut self, deadline: Instant) -> Result<Message, SystemdError> {
        let mut prefix = [0; PREFIX];
        self.receive(&mut prefix, deadline)?;
        let mut bytes = vec![0; wire::length(&prefix)?];
        let (start, rest) = bytes.split_at_mut(PREFIX);
        start.copy_from_slice(&prefix);
        self.receive(rest, deadline)?;
        let message = Message::parse(&bytes)?;
        let is_job = message.kind == SIGNAL
            && message.member == "JobRemoved"
            && message.interface == MANAGER_INTERFACE;
        if is_job && message.signature == "uoss" {
            let mut body = message.body();
            body.u32()?;
            let path = body.text()?;
            let _unit = body.text()?;
            let result = body.text()?;
            self.jobs.push(Job { path, result });
        }
        Ok(message)
    }

    fn send(&mut self, bytes: &[u8], deadline: Instant) -> Result<(), SystemdError> {
        let left = left(deadline)?;
        let result = self.stream.set_write_timeout(Some(left));
        result
            .and_then(|()| self.stream.write_all(bytes))
            .map_err(lost)
    }

    fn receive(&mut self, mut buffer: &mut [u8], deadline: Instant) -> Result<(), SystemdError> {
        while !buffer.is_empty() {
            let left = left(deadline)?;
            self.stream.set_read_timeout(Some(left)).map_err(lost)?;
            match self.stream.read(buffer) {
                Ok(0) => return Err(lost(io::ErrorKind::UnexpectedEof.into())),
                Ok(len) => buffer = buffer.get_mut(len..).unwrap_or_default(),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(lost(e)),
            }
        }
        Ok(())
    }
}

fn left(deadline: Instant) -> Result<Duration, SystemdError> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(SystemdError::TimedOut);
    }
    Ok(left)
}

fn lost(error: io::Error) -> SystemdError {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => SystemdError::TimedOut,
        _ => SystemdError::Lost(error),
    }
}
