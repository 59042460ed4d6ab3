//! bpf(2), as far as a program of type `BPF_PROG_TYPE_SK_LOOKUP` needs it.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// linux/bpf.h: commands, types.
const MAP_CREATE: libc::c_int = 0;
const MAP_UPDATE_ELEM: libc::c_int = 2;
const PROG_LOAD: libc::c_int = 5;
const LINK_CREATE: libc::c_int = 28;
const MAP_TYPE_SOCKMAP: u32 = 15;
const PROG_TYPE_SK_LOOKUP: u32 = 30;
const ATTACH_SK_LOOKUP: u32 = 36;

/// None of what it calls is reserved to programs under the GPL.
const LICENSE: &CStr = c"Apache-2.0";

/// `struct bpf_insn`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    number: i32,
}

impl Instruction {
    /// An instruction with its two registers.
    #[must_use]
    pub fn new(code: u8, destination: u8, source: u8, offset: i16, number: i32) -> Self {
        Self {
            code,
            registers: destination & 0xf | source << 4,
            offset,
            number,
        }
    }
}

/// `BPF_MAP_CREATE`.
#[repr(C)]
struct MapCreate {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
}

/// `BPF_MAP_UPDATE_ELEM`.
#[repr(C)]
struct MapUpdate {
    map_fd: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// `BPF_PROG_LOAD`, up to the last field that is not zero.
#[repr(C)]
struct ProgLoad {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
    prog_ifindex: u32,
    expected_attach_type: u32,
}

/// `BPF_LINK_CREATE`.
#[repr(C)]
struct LinkCreate {
    prog_fd: u32,
    target_fd: u32,
    attach_type: u32,
    flags: u32,
}

fn number(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().unsigned_abs()
}

fn address<T: ?Sized>(value: *const T) -> u64 {
    value.addr() as u64
}

/// Makes a call whose result is a new descriptor, or 0.
fn call<T>(command: libc::c_int, attributes: &T) -> io::Result<libc::c_int> {
    // SAFETY: the attributes are live and of the size given, and so is everything that they have the
    // addresses of: each caller keeps it until this returns. The kernel writes to none of it.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_ref(attributes),
            size_of::<T>(),
        )
    };
    match libc::c_int::try_from(result) {
        Ok(result) if result >= 0 => Ok(result),
        _ => Err(io::Error::last_os_error()),
    }
}

fn new_descriptor<T>(command: libc::c_int, attributes: &T) -> io::Result<OwnedFd> {
    let fd = call(command, attributes)?;
    // SAFETY: the commands that this is used for return a new descriptor, close-on-exec.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A map for one socket.
///
/// # Errors
/// If the kernel refuses.
pub fn socket_map() -> io::Result<OwnedFd> {
    let attributes = MapCreate {
        map_type: MAP_TYPE_SOCKMAP,
        key_size: 4,
        value_size: 8,
        max_entries: 1,
        map_flags: 0,
    };
    new_descriptor(MAP_CREATE, &attributes)
}

/// Puts a socket into such a map.
///
/// # Errors
/// If the kernel refuses.
pub fn put_socket(map: &OwnedFd, socket: BorrowedFd<'_>) -> io::Result<()> {
    let key = 0_u32;
    let value = u64::from(number(socket));
    let attributes = MapUpdate {
        map_fd: number(map.as_fd()),
        pad: 0,
        key: address(&raw const key),
        value: address(&raw const value),
        flags: 0,
    };
    call(MAP_UPDATE_ELEM, &attributes).map(drop)
}

/// Loads a program that chooses the socket of a new connection.
///
/// # Errors
/// If the kernel refuses.
pub fn load_socket_lookup(program: &[Instruction]) -> io::Result<OwnedFd> {
    let attributes = ProgLoad {
        prog_type: PROG_TYPE_SK_LOOKUP,
        insn_cnt: u32::try_from(program.len()).unwrap_or(u32::MAX),
        insns: address(program.as_ptr()),
        license: address(LICENSE.as_ptr()),
        log_level: 0,
        log_size: 0,
        log_buf: 0,
        kern_version: 0,
        prog_flags: 0,
        prog_name: *b"cloister\0\0\0\0\0\0\0\0",
        prog_ifindex: 0,
        expected_attach_type: ATTACH_SK_LOOKUP,
    };
    new_descriptor(PROG_LOAD, &attributes)
}

/// Has such a program work in a network namespace for as long as the result is open.
///
/// # Errors
/// If the kernel refuses.
pub fn link_socket_lookup(program: &OwnedFd, namespace: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let attributes = LinkCreate {
        prog_fd: number(program.as_fd()),
        target_fd: number(namespace),
        attach_type: ATTACH_SK_LOOKUP,
        flags: 0,
    };
    new_descriptor(LINK_CREATE, &attributes)
}
