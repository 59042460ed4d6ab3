//! A QEMU process.

use super::cli::Shape;
use super::emulator::{self, QEMU};
use super::initramfs;
use super::kernel::Kernel;
use super::sys;
use super::tail::Tail;
use anyhow::{Context as _, Result};
use std::ffi::OsString;
use std::fmt::Write as _;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// Everything TCG can do, SVM with nested paging among it, but for the hints that string instructions are fast: the
/// emulator takes one step a byte, and memory is copied and cleared several times faster without them.
const CPU: &str = "max,-erms,-fsrm";

/// Two network cards of different kinds, on one wire. Whoever wants them loads their drivers (`e1000`, `virtio_net`); until
/// then they are nothing but devices of the PCI bus.
const CARDS: &str = " -netdev hubport,id=card1,hubid=0 -device e1000,netdev=card1,mac=52:54:00:be:d0:01,romfile= \
    -netdev hubport,id=card2,hubid=0 -device virtio-net-pci,netdev=card2,mac=52:54:00:be:d0:02,romfile=";

/// A bed that belongs to this process and dies with it. It leaves no files: its streams are socket pairs.
#[derive(Debug)]
pub(super) struct Machine {
    qemu: Child,
    port: UnixStream,
    tail: Tail,
}

impl Machine {
    /// Starts QEMU; the bed is up once it answers on its port.
    ///
    /// To be called on the main thread: the machine ends with the thread that started it.
    pub(super) fn boot(shape: Shape) -> Result<Self> {
        let (port, port_inside) = UnixStream::pair().context("create a socket pair")?;
        let (console, console_inside) = UnixStream::pair().context("create a socket pair")?;
        let mut command = command(shape, 1)?;
        command
            .arg("-chardev")
            .arg(format!(
                "socket,id=console,fd={}",
                console_inside.as_raw_fd()
            ))
            .arg("-chardev")
            .arg(format!("socket,id=port1,fd={}", port_inside.as_raw_fd()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .process_group(0);
        sys::die_with_parent(&mut command);
        sys::inherit(
            &mut command,
            vec![OwnedFd::from(port_inside), OwnedFd::from(console_inside)],
        );
        let mut qemu = spawn(&mut command)?;
        // With it go our copies of QEMU's ends, so that its death shows as the end of the streams.
        drop(command);

        let mut tail = Tail::default();
        tail.follow(console).context("follow the console")?;
        if let Some(complaints) = qemu.stderr.take() {
            tail.follow(complaints)
                .context("follow QEMU's complaints")?;
        }
        Ok(Self { qemu, port, tail })
    }

    /// The machine's only port.
    pub(super) fn port(&self) -> Result<UnixStream> {
        self.port.try_clone().context("duplicate the port's socket")
    }

    /// Ends the machine and gives the end of its console.
    pub(super) fn stop(mut self) -> String {
        let ended = self.qemu.kill().and_then(|()| self.qemu.wait());
        match ended {
            Ok(_) => self.tail.finish(),
            Err(error) => format!("(cannot stop QEMU: {error})\n"),
        }
    }
}

/// QEMU with everything but the chardevs `console` and `port1` to `port<ports>`, which the caller defines.
pub(super) fn command(shape: Shape, ports: usize) -> Result<Command> {
    let kernel = Kernel::find(shape.cgroup)?;
    let initramfs = initramfs::pack(&kernel).context("pack the bed's initramfs")?;
    let mut command = emulator::command()?;
    command.args(arguments(shape, ports, &kernel.image(), &initramfs));
    Ok(command)
}

pub(super) fn spawn(command: &mut Command) -> Result<Child> {
    command.spawn().with_context(|| {
        format!("run {QEMU}: install it with `apt-get install --no-install-recommends qemu-system-x86`, or run `tests/setup --bed`")
    })
}

fn arguments(shape: Shape, ports: usize, kernel: &Path, initramfs: &Path) -> Vec<OsString> {
    // no_timer_check: on a busy machine the IO-APIC's timer check misses its ticks and the kernel panics.
    // tsc=reliable: the emulated counter is the same on every CPU, and reading it is the cheapest clock.
    // lpj: a second CPU measures its delay loop for seconds on a busy machine; this fits a counter of 5 GHz, and a slower
    // one makes short delays longer, which hurts nothing.
    // maxcpus=1: the bed brings up the others itself (guest/smp.rs); noreplace-smp: without rewriting the kernel for it.
    // panic=-1 with -no-reboot: a panic ends QEMU.
    let append = format!(
        "console=ttyS0 quiet no_timer_check mitigations=off tsc=reliable lpj=20000000 \
         cryptomgr.notests maxcpus=1 noreplace-smp panic=-1 bed.ports={ports} bed.cgroup={}",
        shape.cgroup
    );
    let (accelerator, clock) = if shape.icount {
        ("tcg,thread=single,tb-size=512", "base=utc,clock=vm")
    } else {
        ("tcg,thread=multi,tb-size=512", "base=utc")
    };
    let mut options = String::new();
    // Writing to a String cannot fail.
    _ = write!(
        options,
        "-name bed -nodefaults -no-user-config -display none -no-reboot -machine q35 -cpu {CPU}"
    );
    _ = write!(
        options,
        " -accel {accelerator} -rtc {clock} -m {}M -smp {}",
        shape.memory, shape.cpus
    );
    if shape.icount {
        options += " -icount shift=0,sleep=off";
    }
    options += " -serial chardev:console -device virtio-serial-pci,max_ports=31";
    for port in 1..=ports {
        _ = write!(
            options,
            " -device virtserialport,chardev=port{port},nr={port},name=bed.{port}"
        );
    }
    options += CARDS;
    options +=
        " -virtfs local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap";

    let mut arguments: Vec<OsString> = options.split_whitespace().map(OsString::from).collect();
    for (option, value) in [
        ("-kernel", kernel.as_os_str()),
        ("-initrd", initramfs.as_os_str()),
        ("-append", append.as_ref()),
    ] {
        arguments.push(option.into());
        arguments.push(value.into());
    }
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::cli::Cgroup;

    fn line(icount: bool) -> String {
        let shape = Shape {
            icount,
            cgroup: Cgroup::V1,
            memory: 512,
            cpus: 1,
        };
        let words = arguments(shape, 2, Path::new("/k with space"), Path::new("/i"));
        words.join(std::ffi::OsStr::new("|")).into_string().unwrap()
    }

    #[test]
    fn instruction_counting_is_single_threaded_and_never_sleeps() {
        let counted = line(true);
        assert!(
            counted.contains("|-icount|shift=0,sleep=off|") && counted.contains("thread=single"),
            "{counted}"
        );
        let free = line(false);
        assert!(
            !free.contains("icount") && free.contains("thread=multi"),
            "{free}"
        );
    }

    #[test]
    fn the_kernel_learns_what_it_cannot_see() {
        let line = line(false);
        assert!(line.contains("|-kernel|/k with space|"), "{line}");
        assert!(line.contains("bed.ports=2 bed.cgroup=v1"), "{line}");
        assert_eq!(line.matches("virtserialport").count(), 2);
    }
}
