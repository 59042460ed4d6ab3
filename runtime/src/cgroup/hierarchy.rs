//! Which cgroup hierarchies there are, and where this process is in them.
//!
//! ```text
//!   unified    cgroup2 on /sys/fs/cgroup                              one path, controller ""
//!   legacy     a cgroup file system per controller, or for several    a path per controller
//!   hybrid     legacy, and a cgroup2 without controllers beside it    as legacy, and ""
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::CgroupError;

/// Where everybody mounts cgroups.
const ROOT: &str = "/sys/fs/cgroup";
const MOUNTS: &str = "/proc/self/mountinfo";

/// The controllers of cgroup v1 that a sandbox is put under, in the order in which they are dealt
/// with: the processors and nodes of a cpuset must be there before a process can join.
const CONTROLLERS: [&str; 15] = [
    "cpuset",
    "devices",
    "memory",
    "cpu",
    "cpuacct",
    "pids",
    "blkio",
    "hugetlb",
    "net_cls",
    "net_prio",
    "perf_event",
    "freezer",
    "rdma",
    "misc",
    "name=systemd",
];

/// The generation of cgroups that resources are limited with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Version {
    /// A hierarchy for each controller.
    V1,
    /// One hierarchy for all.
    V2,
}

/// A mounted hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mount {
    point: PathBuf,
    /// Which of its cgroups is at the mount point.
    root: PathBuf,
}

impl Mount {
    /// Where a cgroup is that `/proc/<pid>/cgroup` names.
    fn locate(&self, cgroup: &Path) -> PathBuf {
        // One outside of what is mounted cannot be reached: the next best is the top.
        let inner = cgroup.strip_prefix(&self.root).unwrap_or(Path::new(""));
        below(&self.point, inner)
    }
}

/// The mounted hierarchies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchies {
    version: Version,
    /// By controller; [`UNIFIED`](Self::UNIFIED) for cgroup v2.
    mounts: BTreeMap<String, Mount>,
}

impl Hierarchies {
    /// What the hierarchy of cgroup v2 goes by where others go by their controller.
    pub const UNIFIED: &str = "";

    /// Looks which there are.
    ///
    /// # Errors
    /// If there are none.
    pub fn detect() -> Result<Self, CgroupError> {
        let text = fs::read_to_string(MOUNTS).map_err(|e| CgroupError::Read(MOUNTS.into(), e))?;
        Self::parse(&text, Path::new(ROOT))
    }

    /// Takes them from the text of a `mountinfo` (proc_pid_mountinfo(5)).
    pub(super) fn parse(text: &str, root: &Path) -> Result<Self, CgroupError> {
        let mut at_root = None;
        let mut unified = None;
        let mut mounts = BTreeMap::new();
        for line in text.lines() {
            let Some(entry) = Entry::parse(line) else {
                continue;
            };
            if entry.mount.point == root {
                at_root = Some(entry.kind);
            }
            match entry.kind {
                "cgroup2" => {
                    unified.get_or_insert(entry.mount);
                }
                "cgroup" => {
                    for option in entry.options.split(',') {
                        if CONTROLLERS.contains(&option) {
                            let mount = entry.mount.clone();
                            mounts.entry(option.to_owned()).or_insert(mount);
                        }
                    }
                }
                _ => {}
            }
        }
        let version = match (at_root, &unified) {
            // The uppermost mount counts, so the last. Legacy hierarchies elsewhere do not.
            (Some("cgroup2"), Some(_)) => Version::V2,
            (_, Some(_)) if mounts.is_empty() => Version::V2,
            _ if mounts.is_empty() => return Err(CgroupError::NoHierarchy),
            _ => Version::V1,
        };
        if version == Version::V2 {
            mounts.clear();
        }
        if let Some(mount) = unified {
            mounts.insert(Self::UNIFIED.to_owned(), mount);
        }
        Ok(Self { version, mounts })
    }

    /// Which generation limits resources.
    #[must_use]
    pub fn version(&self) -> Version {
        self.version
    }

    /// The controllers, in the order in which they are to be dealt with.
    pub(super) fn controllers(&self) -> impl Iterator<Item = &'static str> {
        let all = CONTROLLERS.into_iter().chain([Self::UNIFIED]);
        all.filter(|name| self.mounts.contains_key(*name))
    }

    /// The mount point of a controller's hierarchy.
    pub(super) fn mount_point(&self, controller: &str) -> Option<&Path> {
        self.mounts.get(controller).map(|mount| &*mount.point)
    }

    /// Where a process is, by controller.
    pub(super) fn places(&self, pid: u32) -> Result<BTreeMap<String, PathBuf>, CgroupError> {
        let path = PathBuf::from(format!("/proc/{pid}/cgroup"));
        let text = fs::read_to_string(&path).map_err(|e| CgroupError::Read(path, e))?;
        Ok(self.parse_places(&text))
    }

    /// The same from the text of a `/proc/<pid>/cgroup` (cgroups(7)).
    pub(super) fn parse_places(&self, text: &str) -> BTreeMap<String, PathBuf> {
        let mut places = BTreeMap::new();
        for line in text.lines() {
            let mut fields = line.splitn(3, ':');
            let (Some(_), Some(names), Some(cgroup)) =
                (fields.next(), fields.next(), fields.next())
            else {
                continue;
            };
            for name in names.split(',') {
                if let Some(mount) = self.mounts.get(name) {
                    places.insert(name.to_owned(), mount.locate(Path::new(cgroup)));
                }
            }
        }
        places
    }
}

/// `inner` below `point`, whether it is absolute or not.
pub(super) fn below(point: &Path, inner: &Path) -> PathBuf {
    let inner = inner.strip_prefix("/").unwrap_or(inner);
    if inner.as_os_str().is_empty() {
        // Joined, it would leave a slash behind.
        return point.to_owned();
    }
    point.join(inner)
}

/// A line of a `mountinfo`.
struct Entry<'a> {
    mount: Mount,
    kind: &'a str,
    options: &'a str,
}

impl<'a> Entry<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let (mount, system) = line.split_once(" - ")?;
        let mut fields = mount.split(' ').skip(3);
        let root = unescape(fields.next()?);
        let point = unescape(fields.next()?);
        let mut fields = system.split(' ');
        let kind = fields.next()?;
        let options = fields.nth(1)?;
        Some(Self {
            mount: Mount { point, root },
            kind,
            options,
        })
    }
}

/// Blanks and backslashes are three octal digits after a backslash.
fn unescape(text: &str) -> PathBuf {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('\\') {
        plain.push_str(before);
        let code = after.get(..3).and_then(|c| u8::from_str_radix(c, 8).ok());
        match (code, after.get(3..)) {
            (Some(code), Some(tail)) => {
                plain.push(char::from(code));
                rest = tail;
            }
            _ => {
                plain.push('\\');
                rest = after;
            }
        }
    }
    plain.push_str(rest);
    plain.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const V1: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
37 31 0:33 /box /elsewhere/me\\040mory rw,relatime - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
";
    const UNIFIED: &str =
        "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw,nsdelegate\n";
    const V2: &str = "31 23 0:28 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup rw,nsdelegate\n";

    fn parse(text: &str) -> Hierarchies {
        Hierarchies::parse(text, Path::new(ROOT)).unwrap()
    }

    fn controllers(all: &Hierarchies) -> Vec<&str> {
        all.controllers().collect()
    }

    #[test]
    fn legacy_hierarchies_are_found_by_controller() {
        let all = parse(V1);
        assert_eq!(all.version(), Version::V1);
        assert_eq!(
            controllers(&all),
            ["memory", "cpu", "cpuacct", "name=systemd"]
        );
        let cpu = Some(Path::new("/sys/fs/cgroup/cpu,cpuacct"));
        assert_eq!(all.mount_point("cpu"), cpu);
        assert_eq!(all.mount_point("cpuacct"), cpu);
        let memory = Some(Path::new("/sys/fs/cgroup/memory"));
        assert_eq!(all.mount_point("memory"), memory, "the first counts");
        assert_eq!(all.mount_point("pids"), None);
    }

    #[test]
    fn a_hybrid_is_legacy_with_one_more() {
        let all = parse(&format!("{V1}{UNIFIED}"));
        assert_eq!(all.version(), Version::V1);
        assert_eq!(controllers(&all).last(), Some(&Hierarchies::UNIFIED));
    }

    #[test]
    fn what_is_mounted_at_the_root_decides() {
        let all = parse(V2);
        assert_eq!(all.version(), Version::V2);
        assert_eq!(controllers(&all), [Hierarchies::UNIFIED]);
        let net_cls = "50 23 0:50 / /mnt/net_cls rw - cgroup cgroup rw,net_cls\n";
        let all = parse(&format!("{V2}{net_cls}"));
        assert_eq!(all.version(), Version::V2);
        assert_eq!(controllers(&all), [Hierarchies::UNIFIED]);
        let all = parse(&format!("{V2}{V1}"));
        assert_eq!(all.version(), Version::V1, "a tmpfs covers it");
        assert_eq!(parse(UNIFIED).version(), Version::V2);
        let error = Hierarchies::parse("x\n1 2 0:1 / / rw - ext4 /dev/vda rw\n", Path::new(ROOT));
        assert_eq!(
            error.unwrap_err().to_string(),
            "no cgroup hierarchy is mounted"
        );
    }

    #[test]
    fn places_are_below_the_mount_points() {
        let all = parse(&format!("{V1}{UNIFIED}"));
        let text =
            "9:name=systemd:/user.slice\n4:memory:/a:b/c\n2:cpu,cpuacct:/\n7:pids:/x\n0::/u\n";
        let places = all.parse_places(text);
        let at = |name: &str| places.get(name).map(|path| path.to_str().unwrap());
        assert_eq!(at("memory"), Some("/sys/fs/cgroup/memory/a:b/c"));
        assert_eq!(at("cpu"), Some("/sys/fs/cgroup/cpu,cpuacct"));
        assert_eq!(at(""), Some("/sys/fs/cgroup/unified/u"));
        assert_eq!(at("pids"), None);
    }

    #[test]
    fn a_hierarchy_that_is_mounted_in_part_is_known_in_part() {
        let line = "37 31 0:33 /box /me\\040mory rw - cgroup cgroup rw,memory\n";
        let all = parse(line);
        let at = |text| all.parse_places(text).remove("memory").unwrap();
        assert_eq!(at("4:memory:/box/a"), Path::new("/me mory/a"));
        assert_eq!(at("4:memory:/box"), Path::new("/me mory"));
        assert_eq!(at("4:memory:/other/a"), Path::new("/me mory"));
    }

    #[test]
    fn this_machine_has_cgroups() {
        let all = Hierarchies::detect().unwrap();
        let places = all.places(std::process::id()).unwrap();
        assert!(!places.is_empty());
        for (controller, place) in places {
            assert!(place.is_dir(), "{controller}: {}", place.display());
        }
    }
}
