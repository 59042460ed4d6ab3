//! What a runtime could leave behind on a machine, before and after.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

/// Everything on the machine that a container could have left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Residue {
    items: BTreeSet<String>,
}

impl Residue {
    /// Takes stock.
    pub(crate) fn now() -> Self {
        let mut items = BTreeSet::new();
        processes(&mut items);
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
        for line in mounts.lines() {
            // Mount ids are not reused at once, and a remount changes nothing that matters here.
            let place = line.split(' ').nth(4).unwrap_or(line);
            items.insert(format!("mount {place}"));
        }
        let sockets = fs::read_to_string("/proc/net/unix").expect("unix sockets");
        for path in sockets
            .lines()
            .filter_map(|line| line.split_whitespace().nth(7))
        {
            items.insert(format!("socket {path}"));
        }
        for file in behind_loop_devices() {
            items.insert(format!("loop device of {file}"));
        }
        entries("/sys/class/net", "network interface", 0, &mut items);
        entries("/sys/fs/cgroup", "cgroup", 6, &mut items);
        entries("/run", "file", 3, &mut items);
        entries("/dev/shm", "file", 3, &mut items);
        entries("/tmp", "file", 1, &mut items);
        Self { items }
    }

    /// Asserts that, soon, nothing is there that was not there before.
    pub(crate) fn assert_nothing_new(&self) {
        self.assert_nothing_new_but(|| ());
    }

    /// The same; each time before it looks, `tidy` removes what others than the runtime may leave.
    pub(crate) fn assert_nothing_new_but(&self, mut tidy: impl FnMut()) {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            tidy();
            let now = Self::now();
            let new: Vec<_> = now.items.difference(&self.items).collect();
            if new.is_empty() {
                return;
            }
            assert!(Instant::now() < deadline, "left behind: {new:#?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// The files behind loop devices. A device that has none is nobody's.
pub(crate) fn behind_loop_devices() -> Vec<String> {
    let blocks = fs::read_dir("/sys/block").expect("/sys/block").flatten();
    let files = blocks.map(|block| block.path().join("loop/backing_file"));
    files
        .filter_map(|file| fs::read_to_string(file).ok())
        .map(|text| text.trim().to_owned())
        .collect()
}

/// Every process with its command line; kernel threads come and go as they like.
fn processes(items: &mut BTreeSet<String>) {
    for entry in fs::read_dir("/proc").expect("/proc").flatten() {
        let name = entry.file_name();
        let Some(pid) = name
            .to_str()
            .filter(|n| n.bytes().all(|b| b.is_ascii_digit()))
        else {
            continue;
        };
        let Ok(command) = fs::read(entry.path().join("cmdline")) else {
            continue;
        };
        let comm = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        if comm.starts_with("cloister") {
            // Also one that is dead and not reaped, whose command line is empty.
            items.insert(format!("process {pid} {}", comm.trim()));
        } else if !command.is_empty() {
            let text = String::from_utf8_lossy(&command).replace('\0', " ");
            items.insert(format!("process {pid} {text}"));
        }
    }
}

fn entries(dir: &str, what: &str, depth: u32, items: &mut BTreeSet<String>) {
    let device = fs::metadata(dir).map(|meta| meta.dev()).ok();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
        // What is mounted below is listed as a mount; its contents are not this machine's (the
        // bed shows its host there).
        if is_dir && fs::metadata(&path).map(|meta| meta.dev()).ok() != device {
            continue;
        }
        // Network cards come and go as tests lend them; no runtime makes any.
        let is_card = what == "network interface" && path.join("device").exists();
        if (what != "cgroup" || is_dir) && !is_card {
            items.insert(format!("{what} {}", path.display()));
        }
        if is_dir && depth > 0 {
            entries(&path.to_string_lossy(), what, depth - 1, items);
        }
    }
}
