//! Loop devices, as `linux/loop.h` has them: a file as a block device.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::PathBuf;

use rustix::io::Errno;

const CONTROL: &str = "/dev/loop-control";
const LOOP_CONFIGURE: libc::Ioctl = 0x4C0A;
const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4C82;
const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_AUTOCLEAR: u32 = 4;
const LO_FLAGS_DIRECT_IO: u32 = 16;
/// How often another process may take a device that was free.
const TRIES: usize = 100;

/// `struct loop_info64`.
#[repr(C)]
struct Info {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    sizelimit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config`.
#[repr(C)]
struct Config {
    fd: u32,
    block_size: u32,
    info: Info,
    reserved: [u64; 8],
}

/// A device that is there for as long as it is open or mounted.
#[derive(Debug)]
pub struct LoopDevice {
    /// The device.
    pub path: PathBuf,
    _open: File,
}

impl LoopDevice {
    /// Makes a file a device; `is_direct` passes its page cache over. It needs Linux 5.8.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn attach(file: BorrowedFd<'_>, is_read_only: bool, is_direct: bool) -> io::Result<Self> {
        let mut flags = LO_FLAGS_AUTOCLEAR;
        if is_read_only {
            flags |= LO_FLAGS_READ_ONLY;
        }
        if is_direct {
            flags |= LO_FLAGS_DIRECT_IO;
        }
        let control = OpenOptions::new().read(true).write(true).open(CONTROL)?;
        for _ in 0..TRIES {
            // SAFETY: the request has no argument; it answers with a number.
            let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
            if number < 0 {
                return Err(io::Error::last_os_error());
            }
            let path = PathBuf::from(format!("/dev/loop{number}"));
            let opened = OpenOptions::new()
                .read(true)
                .write(!is_read_only)
                .open(&path);
            let device = match opened {
                // Whoever had it before is about to give it up.
                Err(e) if e.raw_os_error() == Some(Errno::NXIO.raw_os_error()) => continue,
                opened => opened?,
            };
            match configure(&device, file, flags) {
                Err(e) if e.raw_os_error() == Some(Errno::BUSY.raw_os_error()) => {}
                Err(e) => return Err(e),
                Ok(()) => {
                    return Ok(Self {
                        path,
                        _open: device,
                    });
                }
            }
        }
        Err(Errno::BUSY.into())
    }
}

fn configure(device: &File, file: BorrowedFd<'_>, flags: u32) -> io::Result<()> {
    let config = Config {
        fd: file.as_raw_fd().cast_unsigned(),
        block_size: 0,
        info: Info {
            device: 0,
            inode: 0,
            rdevice: 0,
            offset: 0,
            sizelimit: 0,
            number: 0,
            encrypt_type: 0,
            encrypt_key_size: 0,
            flags,
            file_name: [0; 64],
            crypt_name: [0; 64],
            encrypt_key: [0; 32],
            init: [0; 2],
        },
        reserved: [0; 8],
    };
    // SAFETY: the kernel reads one loop_config, which is live and initialised.
    super::check(unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &raw const config) })
}
