//! The other CPUs, brought up once the kernel has stopped rewriting itself.
//!
//! Linux switches code paths by patching its own instructions, with a breakpoint in their place meanwhile. QEMU before
//! 8.0 can translate that breakpoint on one CPU while another already writes the final instruction, and then keeps the
//! stale translation: the kernel runs into a breakpoint that nobody has set, and panics. So the bed boots on one CPU, and
//! the switches that containers and VMs would turn on and off all the time are turned on before there is a second one,
//! and stay on: each counts its users, and one user stays.

use super::sys;
use anyhow::{Context as _, Result};
use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::Path;

/// The cgroup that uses every controller: `cpusets_enabled_key`, `__cfs_bandwidth_used`, `memcg_kmem_online_key`.
const GROUP: &str = "bed";

/// What must stay open for as long as there are several CPUs.
#[derive(Debug)]
pub(super) struct Switches {
    _virtual_machine: Vec<OwnedFd>,
}

/// Brings up the CPUs that the machine has, if it has more than one.
pub(super) fn bring_up() -> Result<Option<Switches>> {
    let present = read("/sys/devices/system/cpu/present")?;
    let Some((_, last)) = present.trim().split_once('-') else {
        return Ok(None);
    };
    let last: u32 = last
        .parse()
        .with_context(|| format!("CPUs present: {present}"))?;
    let switches = turn_switches_on()?;
    for cpu in 1..=last {
        write(
            Path::new(&format!("/sys/devices/system/cpu/cpu{cpu}/online")),
            "1",
        )?;
    }
    Ok(Some(switches))
}

fn turn_switches_on() -> Result<Switches> {
    let root = Path::new("/sys/fs/cgroup");
    if root.join("cgroup.controllers").exists() {
        let group = create_group(root)?;
        write(&group.join("cpu.max"), "100000 100000")?;
    } else {
        for hierarchy in fs::read_dir(root).context("list the cgroup hierarchies")? {
            let hierarchy = hierarchy.context("list the cgroup hierarchies")?;
            if hierarchy
                .file_type()
                .context("look at a cgroup hierarchy")?
                .is_dir()
            {
                create_group(&hierarchy.path())?;
            }
        }
        write(
            &root.join("cpu").join(GROUP).join("cpu.cfs_quota_us"),
            "100000",
        )?;
    }
    // A VM turns on `preempt_notifier_key`, and a virtual CPU whose APIC is off `apic_sw_disabled`.
    let kvm = File::options()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .context("open /dev/kvm")?;
    let virtual_machine = sys::idle_virtual_machine(&kvm).context("create an idle VM")?;
    Ok(Switches {
        _virtual_machine: virtual_machine,
    })
}

fn create_group(hierarchy: &Path) -> Result<std::path::PathBuf> {
    let group = hierarchy.join(GROUP);
    fs::create_dir(&group).with_context(|| format!("create {}", group.display()))?;
    Ok(group)
}

fn read(path: &str) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("read {path}"))
}

fn write(path: &Path, value: &str) -> Result<()> {
    fs::write(path, value).with_context(|| format!("write {value} to {}", path.display()))
}
