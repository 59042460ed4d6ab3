//! Where a sandbox's cgroup is to be: `linux.cgroupsPath` as runc understands it.

use std::collections::{BTreeMap, HashMap};
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::hierarchy::below;
use super::{CgroupError, Hierarchies, Version, systemd};

/// There if systemd is init: sd_booted(3).
const SYSTEMD_BOOTED: &str = "/run/systemd/system";
/// What a unit's name begins with if `cgroupsPath` does not say.
const DEFAULT_PREFIX: &str = "cloister";
const DEFAULT_SLICE: &str = "system.slice";

/// Who makes cgroups.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Driver {
    /// Cloister, in the file system.
    #[default]
    Cgroupfs,
    /// systemd, which is asked for a transient scope.
    Systemd,
}

/// A unit of systemd.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Unit {
    /// Its name, `<prefix>-<name>.scope` or `<name>.slice`.
    pub name: String,
    /// The slice around it.
    pub slice: String,
}

impl Unit {
    /// Whether it is a slice; otherwise it is a scope.
    pub(super) fn is_slice(&self) -> bool {
        self.name.ends_with(".slice")
    }
}

/// Where a sandbox's cgroup is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    pub(super) hierarchies: Hierarchies,
    /// By controller.
    pub(super) paths: BTreeMap<String, PathBuf>,
    pub(super) unit: Option<Unit>,
    /// What the unit is to be beyond what every one is.
    pub(super) properties: systemd::Properties,
}

impl Plan {
    /// Finds the place for the sandbox of container `id`. An empty or absent `cgroups_path` leaves
    /// it to the driver.
    ///
    /// # Errors
    /// If `cgroups_path` is not of the driver's form, or the machine has no cgroups or no systemd.
    pub fn new(driver: Driver, cgroups_path: &str, id: &str) -> Result<Self, CgroupError> {
        if driver == Driver::Systemd && !Path::new(SYSTEMD_BOOTED).is_dir() {
            return Err(CgroupError::NoSystemd);
        }
        let hierarchies = Hierarchies::detect()?;
        let own = hierarchies.places(std::process::id())?;
        Self::on(hierarchies, &own, driver, cgroups_path, id)
    }

    /// The same on given hierarchies, in which this process is at `own`.
    pub(super) fn on(
        hierarchies: Hierarchies,
        own: &BTreeMap<String, PathBuf>,
        driver: Driver,
        cgroups_path: &str,
        id: &str,
    ) -> Result<Self, CgroupError> {
        let (unit, inner) = match driver {
            Driver::Systemd => {
                let (unit, inner) = unit(cgroups_path, id)?;
                (Some(unit), inner)
            }
            Driver::Cgroupfs => (None, clean(cgroups_path, id)),
        };
        let mut paths = BTreeMap::new();
        for controller in hierarchies.controllers() {
            let Some(mount) = hierarchies.mount_point(controller) else {
                continue;
            };
            let base = if inner.is_absolute() {
                mount
            } else {
                match (hierarchies.version(), own.get(controller)) {
                    // A cgroup with processes in it can hand no controllers down, and this
                    // process is in its own.
                    (Version::V2, Some(own)) if own != mount => own.parent().unwrap_or(mount),
                    (Version::V1, Some(own)) if controller != Hierarchies::UNIFIED => own,
                    _ => mount,
                }
            };
            paths.insert(controller.to_owned(), below(base, &inner));
        }
        Ok(Self {
            hierarchies,
            paths,
            unit,
            properties: systemd::Properties::new(),
        })
    }

    /// Adds the properties that annotations ask for: `org.systemd.property.<name>`. Without systemd
    /// they mean nothing.
    ///
    /// # Errors
    /// If one is not understood.
    pub fn with_annotations(
        mut self,
        annotations: &HashMap<String, String>,
    ) -> Result<Self, CgroupError> {
        if self.unit.is_some() {
            let properties = systemd::from_annotations(annotations);
            self.properties = properties.map_err(CgroupError::Annotation)?;
        }
        Ok(self)
    }

    /// The cgroup by controller; by the empty name that of cgroup v2.
    #[must_use]
    pub fn paths(&self) -> &BTreeMap<String, PathBuf> {
        &self.paths
    }
}

/// A path without `.` and `..`, whose relative form leads nowhere but down; `id` if there is none.
fn clean(cgroups_path: &str, id: &str) -> PathBuf {
    let path = Path::new(cgroups_path);
    let mut clean = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => {
                clean.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    if path.is_absolute() {
        return Path::new("/").join(clean);
    }
    if clean.as_os_str().is_empty() {
        return id.into();
    }
    clean
}

/// The unit that `slice:prefix:name` means, and its cgroup below the mount point.
fn unit(cgroups_path: &str, id: &str) -> Result<(Unit, PathBuf), CgroupError> {
    let parts: Vec<_> = cgroups_path.split(':').collect();
    let (slice, prefix, name) = match *parts.as_slice() {
        [""] => ("", DEFAULT_PREFIX, id),
        [slice, prefix, name] => (slice, prefix, name),
        _ => return Err(CgroupError::PathForm(cgroups_path.to_owned())),
    };
    let slice = if slice.is_empty() {
        DEFAULT_SLICE
    } else {
        slice
    };
    let name = if name.ends_with(".slice") {
        name.to_owned()
    } else {
        format!("{prefix}-{name}.scope")
    };
    if name.contains('/') {
        return Err(CgroupError::Name { what: "unit", name });
    }
    let inner = expand(slice)?.join(&name);
    let slice = slice.to_owned();
    Ok((Unit { name, slice }, inner))
}

/// The cgroup of a slice: systemd.slice(5) has `a-b.slice` within `a.slice`.
fn expand(slice: &str) -> Result<PathBuf, CgroupError> {
    let invalid = || CgroupError::Name {
        what: "slice",
        name: slice.to_owned(),
    };
    let name = slice.strip_suffix(".slice").ok_or_else(invalid)?;
    let mut path = PathBuf::from("/");
    if name == "-" {
        return Ok(path);
    }
    if name.contains('/') {
        return Err(invalid());
    }
    let mut so_far = String::new();
    for part in name.split('-') {
        if part.is_empty() {
            return Err(invalid());
        }
        so_far.push_str(part);
        path.push(format!("{so_far}.slice"));
        so_far.push('-');
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    const V1: &str = "\
32 31 0:29 / /c/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /c/memory rw - cgroup cgroup rw,memory
41 31 0:38 / /c/unified rw - cgroup2 cgroup2 rw
";
    const V2: &str = "31 23 0:28 / /c rw - cgroup2 cgroup rw\n";

    fn plan(mounts: &str, own: &str, driver: Driver, path: &str) -> Result<Plan, CgroupError> {
        let hierarchies = Hierarchies::parse(mounts, Path::new("/c"))?;
        let own = hierarchies.parse_places(own);
        Plan::on(hierarchies, &own, driver, path, "id")
    }

    fn v1(path: &str) -> [String; 3] {
        let own = "3:memory:/m/own\n2:cpu,cpuacct:/\n0::/u\n";
        let plan = plan(V1, own, Driver::Cgroupfs, path).unwrap();
        assert_eq!(plan.paths["cpu"], plan.paths["cpuacct"]);
        ["memory", "cpu", ""].map(|name| plan.paths[name].display().to_string())
    }

    fn v2(own: &str, path: &str) -> String {
        let plan = plan(V2, own, Driver::Cgroupfs, path).unwrap();
        plan.paths[""].display().to_string()
    }

    #[test]
    fn an_absolute_path_begins_at_the_roots() {
        for path in ["/a/b", "//a/./x/../b/", "/../../a/b"] {
            assert_eq!(
                v1(path),
                ["/c/memory/a/b", "/c/cpu,cpuacct/a/b", "/c/unified/a/b"],
                "{path}"
            );
            assert_eq!(v2("0::/own/one\n", path), "/c/a/b");
        }
    }

    #[test]
    fn a_relative_path_begins_where_the_caller_is() {
        for path in ["a/b", "../../a/b", "./a/b"] {
            let [memory, cpu, unified] = v1(path);
            assert_eq!(memory, "/c/memory/m/own/a/b", "{path}");
            assert_eq!(cpu, "/c/cpu,cpuacct/a/b");
            assert_eq!(unified, "/c/unified/a/b", "as runc has it");
            assert_eq!(v2("0::/own/one\n", path), "/c/own/a/b");
        }
        assert_eq!(v2("0::/one\n", "a"), "/c/a");
        assert_eq!(v2("0::/\n", "a"), "/c/a");
    }

    #[test]
    fn no_path_is_the_id_where_the_caller_is() {
        assert_eq!(
            v1(""),
            ["/c/memory/m/own/id", "/c/cpu,cpuacct/id", "/c/unified/id"]
        );
        assert_eq!(v2("0::/own/one\n", ""), "/c/own/id");
        assert_eq!(v2("0::/\n", ""), "/c/id");
    }

    fn systemd(path: &str) -> Result<(String, String, String), String> {
        let plan = plan(V2, "0::/own\n", Driver::Systemd, path).map_err(|e| e.to_string())?;
        let unit = plan.unit.unwrap();
        let cgroup = plan.paths[""].display().to_string();
        Ok((unit.slice, unit.name, cgroup))
    }

    #[test]
    fn a_unit_has_a_slice_a_prefix_and_a_name() {
        for (path, slice, name, cgroup) in [
            ("", "system.slice", "cloister-id.scope", "system.slice"),
            (
                ":docker:1",
                "system.slice",
                "docker-1.scope",
                "system.slice",
            ),
            (
                "kubepods-burstable-pod1.slice:cri-containerd:2",
                "kubepods-burstable-pod1.slice",
                "cri-containerd-2.scope",
                "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice",
            ),
            ("a.slice::c", "a.slice", "-c.scope", "a.slice"),
            (
                "a-b.slice::a-b-c.slice",
                "a-b.slice",
                "a-b-c.slice",
                "a.slice/a-b.slice",
            ),
        ] {
            let expected = (slice.into(), name.into(), format!("/c/{cgroup}/{name}"));
            assert_eq!(systemd(path), Ok(expected), "{path}");
        }
        let (_, _, cgroup) = systemd("-.slice:a:b").unwrap();
        assert_eq!(cgroup, "/c/a-b.scope");
    }

    #[test]
    fn every_hierarchy_has_the_unit() {
        let plan = plan(V1, "0::/\n", Driver::Systemd, "a.slice:b:c").unwrap();
        assert_eq!(
            plan.paths["memory"],
            Path::new("/c/memory/a.slice/b-c.scope")
        );
        assert_eq!(plan.paths[""], Path::new("/c/unified/a.slice/b-c.scope"));
    }

    #[test]
    fn what_is_no_unit_is_refused() {
        assert_eq!(
            systemd("/docker/1").unwrap_err(),
            "linux.cgroupsPath: expected cgroupsPath to be of format \"slice:prefix:name\" \
             for systemd cgroups, got \"/docker/1\" instead"
        );
        for (path, what) in [
            ("a:b:c", "slice name: \"a\""),
            ("a--b.slice:b:c", "slice name: \"a--b.slice\""),
            ("-a.slice:b:c", "slice name: \"-a.slice\""),
            ("a/b.slice:b:c", "slice name: \"a/b.slice\""),
            (".slice:b:c", "slice name: \".slice\""),
            ("a.slice:../b:c", "unit name: \"../b-c.scope\""),
        ] {
            let expected = format!("linux.cgroupsPath: invalid {what}");
            assert_eq!(systemd(path).unwrap_err(), expected);
        }
    }
}
