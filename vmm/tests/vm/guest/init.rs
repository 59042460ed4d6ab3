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
const NANOSLEEP: usize = 35;
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
    count.max(0) as usize
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
        b"shutdown" => out(CONTROL_PORT, 2),
        b"cpus" => {
            mount(b"sysfs\0", b"/sys\0");
            let count = read(b"/sys/devices/system/cpu/online\0", &mut buffer);
            print(b"cpus ");
            print(&buffer[..count]);
        }
        b"memory" => {
            let mut info = [0_u64; 14];
            call(SYSINFO, [info.as_mut_ptr() as usize, 0, 0, 0, 0, 0]);
            // totalram is the fifth word; the unit is bytes on 64 bits.
            print(b"memory ");
            print_number(info[4] >> 20);
            print(b" MiB\n");
        }
        b"touch" => touch(),
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

/// Writes to 4096 fresh pages. The kernel itself is at the start of memory and takes new pages from
/// its end, so in a guest with memory on both sides of a hole this uses both.
fn touch() {
    const SIZE: usize = 16 << 20;
    const MMAP: usize = 9;
    // MAP_PRIVATE, MAP_ANONYMOUS.
    let address = call(MMAP, [0, SIZE, 3, 0x22, usize::MAX, 0]);
    let mut failed = address < 0;
    let mut at = 0;
    while !failed && at < SIZE {
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
