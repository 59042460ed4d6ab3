//! The `/init` of the test guests: a freestanding program, a few kilobytes in the initramfs.
//!
//! Built by the tests with rustc alone. Its arguments are what stands after `--` on the kernel
//! command line, each a thing to do, in order.
#![no_std]
#![no_main]

use core::arch::{asm, global_asm};

const READ: usize = 0;
const WRITE: usize = 1;
const OPEN: usize = 2;
const CLOSE: usize = 3;
const IOCTL: usize = 16;
const NANOSLEEP: usize = 35;
const SOCKET: usize = 41;
const SENDTO: usize = 44;
const RECVFROM: usize = 45;
const BIND: usize = 49;
const EXIT: usize = 60;
const SYSINFO: usize = 99;
const MOUNT: usize = 165;
const IOPERM: usize = 173;

const CONTROL_PORT: u16 = 0x5e0;

global_asm!(
    ".globl _start",
    "_start:",
    "xor ebp, ebp",
    "mov rdi, rsp",
    "and rsp, -16",
    "call start",
    "ud2"
);

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    call(EXIT, [99, 0, 0, 0, 0, 0]);
    loop {}
}

fn call(number: usize, a: [usize; 6]) -> isize {
    let result: isize;
    unsafe {
        asm!("syscall", inlateout("rax") number as isize => result,
            in("rdi") a[0], in("rsi") a[1], in("rdx") a[2], in("r10") a[3], in("r8") a[4], in("r9") a[5],
            out("rcx") _, out("r11") _);
    }
    result
}

fn out(port: u16, value: u8) {
    unsafe { asm!("out dx, al", in("dx") port, in("al") value) };
}

fn print(bytes: &[u8]) {
    call(WRITE, [1, bytes.as_ptr() as usize, bytes.len(), 0, 0, 0]);
}

/// Waits until the serial port has sent what was printed: the kernel sends it by interrupts, which another CPU may take.
fn drain() {
    // tcdrain(3), as the C library asks for it.
    const TCSBRK: usize = 0x5409;
    call(IOCTL, [1, TCSBRK, 1, 0, 0, 0]);
}

fn print_number(mut value: u64) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (value % 10) as u8;
        value /= 10;
        if value == 0 {
            break;
        }
    }
    print(&digits[at..]);
}

/// Reads up to 256 bytes of a file; `path` ends in a zero byte.
fn read(path: &[u8], buffer: &mut [u8; 256]) -> usize {
    let fd = call(OPEN, [path.as_ptr() as usize, 0, 0, 0, 0, 0]);
    if fd < 0 {
        print(b"cannot open ");
        print(&path[..path.len() - 1]);
        print(b"\n");
        return 0;
    }
    let count = call(READ, [fd as usize, buffer.as_mut_ptr() as usize, 256, 0, 0, 0]);
    call(CLOSE, [fd as usize, 0, 0, 0, 0, 0]);
    count.max(0) as usize
}

fn exists(path: &[u8]) -> bool {
    let fd = call(OPEN, [path.as_ptr() as usize, 0, 0, 0, 0, 0]);
    if fd >= 0 {
        call(CLOSE, [fd as usize, 0, 0, 0, 0, 0]);
    }
    fd >= 0
}

/// Writes to a file that exists; `path` ends in a zero byte.
fn write(path: &[u8], bytes: &[u8]) -> bool {
    let fd = call(OPEN, [path.as_ptr() as usize, 1, 0, 0, 0, 0]);
    if fd < 0 {
        return false;
    }
    let written = call(WRITE, [fd as usize, bytes.as_ptr() as usize, bytes.len(), 0, 0, 0]);
    call(CLOSE, [fd as usize, 0, 0, 0, 0, 0]);
    written == bytes.len() as isize
}

fn sleep(milliseconds: usize) {
    let time = [milliseconds / 1000, milliseconds % 1000 * 1_000_000];
    call(NANOSLEEP, [time.as_ptr() as usize, 0, 0, 0, 0, 0]);
}

fn mount(fstype: &[u8], target: &[u8]) {
    let (fstype, target) = (fstype.as_ptr() as usize, target.as_ptr() as usize);
    call(MOUNT, [fstype, target, fstype, 0, 0, 0]);
}

fn act(what: &[u8]) {
    let mut buffer = [0; 256];
    match what {
        b"hello" => print(b"hello from init\n"),
        b"init" => out(CONTROL_PORT, 1),
        b"shutdown" => {
            drain();
            out(CONTROL_PORT, 2);
        }
        b"cpus" => {
            mount(b"sysfs\0", b"/sys\0");
            let count = read(b"/sys/devices/system/cpu/online\0", &mut buffer);
            print(b"cpus ");
            print(&buffer[..count]);
        }
        // A CPU that the kernel was told not to start.
        [b'o', b'n', b'l', b'i', b'n', b'e', cpu] => {
            mount(b"sysfs\0", b"/sys\0");
            let mut path = *b"/sys/devices/system/cpu/cpu0/online\0";
            path[27] = *cpu;
            while !write(&path, b"1") {
                sleep(10);
            }
        }
        b"memory" => {
            let mut info = [0_u64; 14];
            call(SYSINFO, [info.as_mut_ptr() as usize, 0, 0, 0, 0, 0]);
            // totalram is the fifth word; the unit is bytes on 64 bits.
            print(b"memory ");
            print_number(info[4] >> 20);
            print(b" MiB\n");
        }
        b"touch" => touch(16),
        // So many MiB.
        [b't', b'o', b'u', b'c', b'h', number @ ..] => touch(parse(number)),
        // Until the kernel has so many MiB.
        [b'm', b'i', b'b', number @ ..] => {
            let mut info = [0_u64; 14];
            while (info[4] >> 20) < parse(number) as u64 {
                sleep(10);
                call(SYSINFO, [info.as_mut_ptr() as usize, 0, 0, 0, 0, 0]);
            }
            print(b"there are ");
            print(number);
            print(b" MiB\n");
        }
        b"clock" => {
            mount(b"sysfs\0", b"/sys\0");
            let path = b"/sys/devices/system/clocksource/clocksource0/current_clocksource\0";
            let count = read(path, &mut buffer);
            print(b"clocksource ");
            print(&buffer[..count]);
        }
        b"interrupts" => {
            mount(b"proc\0", b"/proc\0");
            let path = b"/proc/interrupts\0";
            let fd = call(OPEN, [path.as_ptr() as usize, 0, 0, 0, 0, 0]);
            loop {
                let count = call(READ, [fd as usize, buffer.as_mut_ptr() as usize, 256, 0, 0, 0]);
                if count <= 0 {
                    break;
                }
                print(&buffer[..count as usize]);
            }
        }
        b"log" => {
            mount(b"devtmpfs\0", b"/dev\0");
            let path = b"/dev/kmsg\0";
            let nonblocking = 0x800;
            let fd = call(OPEN, [path.as_ptr() as usize, nonblocking, 0, 0, 0, 0]);
            let mut record = [0; 1024];
            loop {
                let count = call(READ, [fd as usize, record.as_mut_ptr() as usize, 1024, 0, 0, 0]);
                if count <= 0 {
                    break;
                }
                print(&record[..count as usize]);
            }
        }
        b"rng" => {
            mount(b"devtmpfs\0", b"/dev\0");
            let count = read(b"/dev/hwrng\0", &mut buffer);
            print(b"rng ");
            print_number(count as u64);
            print(b" bytes\n");
        }
        // The driver finds no device until the host has put one there, which may have been before
        // the kernel looked for it.
        [b'b', b'i', b'n', b'd', slot] => {
            mount(b"sysfs\0", b"/sys\0");
            let mut name = *b"virtio-mmio.0";
            name[12] = *slot;
            let mut link = *b"/sys/bus/platform/drivers/virtio-mmio/virtio-mmio.0\0";
            link[50] = *slot;
            while !exists(&link) {
                write(b"/sys/bus/platform/drivers/virtio-mmio/bind\0", &name);
                sleep(10);
            }
            print(b"bound ");
            print(&name);
            print(b"\n");
        }
        [b'u', b'n', b'b', b'i', b'n', b'd', slot] => {
            let mut name = *b"virtio-mmio.0";
            name[12] = *slot;
            write(b"/sys/bus/platform/drivers/virtio-mmio/unbind\0", &name);
            print(b"unbound ");
            print(&name);
            print(b"\n");
        }
        b"frames" => frames(&mut buffer),
        // The link is up when the interface is, and then goes and comes back.
        b"link" => {
            for state in [b'0', b'1'] {
                buffer[0] = 0;
                while buffer[0] != state {
                    sleep(10);
                    read(b"/sys/class/net/eth0/carrier\0", &mut buffer);
                }
                print(b"carrier ");
                print(&[state, b'\n']);
            }
        }
        b"ticks" => {
            for n in 0.. {
                print(b"tick ");
                print_number(n);
                print(b"\n");
                sleep(20);
            }
        }
        b"wait" => loop {
            sleep(1000);
        },
        b"exit" => {
            call(EXIT, [0, 0, 0, 0, 0, 0]);
        }
        other => {
            print(b"unknown argument ");
            print(other);
            print(b"\n");
        }
    }
}

/// Brings the first network interface up, sends a frame, and shows the first one that is for it.
fn frames(buffer: &mut [u8; 256]) {
    // IEEE 802 local experimental EtherType 1.
    const KIND: [u8; 2] = [0x88, 0xb5];
    const AF_PACKET: usize = 17;
    const SOCK_RAW: usize = 3;
    const SIOCGIFINDEX: usize = 0x8933;
    const SIOCSIFFLAGS: usize = 0x8914;
    const IFF_UP: u8 = 1;

    let protocol = u16::from_ne_bytes(KIND) as usize;
    let socket = call(SOCKET, [AF_PACKET, SOCK_RAW, protocol, 0, 0, 0]) as usize;
    let mut request = [0_u8; 40];
    request[..4].copy_from_slice(b"eth0");
    request[16] = IFF_UP;
    let up = call(IOCTL, [socket, SIOCSIFFLAGS, request.as_mut_ptr() as usize, 0, 0, 0]);
    call(IOCTL, [socket, SIOCGIFINDEX, request.as_mut_ptr() as usize, 0, 0, 0]);
    // struct sockaddr_ll
    let mut address = [0_u8; 20];
    address[0] = AF_PACKET as u8;
    address[2..4].copy_from_slice(&KIND);
    address[4..8].copy_from_slice(&request[16..20]);
    let bound = call(BIND, [socket, address.as_ptr() as usize, address.len(), 0, 0, 0]);
    if up < 0 || bound < 0 {
        print(b"no interface\n");
        return;
    }
    let mut frame = *b"\xff\xff\xff\xff\xff\xff\x02\0\0\0\0\x01\x88\xb5frame from the guest                                  ";
    frame[12..14].copy_from_slice(&KIND);
    call(SENDTO, [socket, frame.as_ptr() as usize, frame.len(), 0, 0, 0]);
    let count = call(RECVFROM, [socket, buffer.as_mut_ptr() as usize, 256, 0, 0, 0]).max(0) as usize;
    print(b"received ");
    print(&buffer[14.min(count)..count]);
    print(b"\n");
    call(CLOSE, [socket, 0, 0, 0, 0, 0]);
}

fn parse(digits: &[u8]) -> usize {
    digits.iter().fold(0, |number, digit| number * 10 + usize::from(digit - b'0'))
}

/// Writes to the fresh pages of so many MiB. The kernel itself is at the start of memory and takes new pages from
/// its end, so in a guest with memory on both sides of a hole this uses both.
fn touch(mib: usize) {
    const MMAP: usize = 9;
    let size = mib << 20;
    // MAP_PRIVATE, MAP_ANONYMOUS.
    let address = call(MMAP, [0, size, 3, 0x22, usize::MAX, 0]);
    let mut failed = address < 0;
    let mut at = 0;
    while !failed && at < size {
        let word = (address as usize + at) as *mut usize;
        unsafe {
            word.write_volatile(at);
            failed = word.read_volatile() != at;
        }
        at += 4096;
    }
    print(if failed {
        b"touch failed\n"
    } else {
        b"touch passed\n"
    });
}

/// The core library was compiled to unwind and names this.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}

#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, value: i32, count: usize) -> *mut u8 {
    for i in 0..count {
        unsafe { to.add(i).write_volatile(value as u8) };
    }
    to
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, count: usize) -> *mut u8 {
    for i in 0..count {
        unsafe { to.add(i).write_volatile(from.add(i).read_volatile()) };
    }
    to
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(a: *const u8, b: *const u8, count: usize) -> i32 {
    for i in 0..count {
        let (x, y) = unsafe { (a.add(i).read_volatile(), b.add(i).read_volatile()) };
        if x != y {
            return i32::from(x) - i32::from(y);
        }
    }
    0
}

#[unsafe(no_mangle)]
extern "C" fn start(stack: *const usize) -> ! {
    call(IOPERM, [CONTROL_PORT as usize, 1, 1, 0, 0, 0]);
    let count = unsafe { *stack };
    for index in 1..count {
        let argument = unsafe { *stack.add(1 + index) as *const u8 };
        let mut length = 0;
        while unsafe { argument.add(length).read_volatile() } != 0 {
            length += 1;
        }
        act(unsafe { core::slice::from_raw_parts(argument, length) });
    }
    call(EXIT, [0, 0, 0, 0, 0, 0]);
    loop {}
}
