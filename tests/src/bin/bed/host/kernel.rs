//! The bed's kernel: a Debian package, unpacked by `tests/setup` into the user's cache.

use anyhow::{Context as _, Result};
use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::cli::Cgroup;

/// What the directory of an unpacked package starts with.
const PACKAGE: &str = "linux-image-";

/// Since this release the controllers of cgroup v1 are options, and Debian has some of them off.
const CGROUP_V1_OPTIONAL: [u64; 2] = [6, 11];

#[derive(Debug, thiserror::Error)]
enum Missing {
    #[error(
        "no kernel for the bed in {}: `tests/setup --bed` fetches and unpacks Debian's linux-image-6.12.*-amd64 there, and installs nothing of it",
        .0.display()
    )]
    Kernel(PathBuf),
    #[error("module {0} is not in the bed's kernel package")]
    Module(String),
}

/// An unpacked kernel package.
#[derive(Debug)]
pub(super) struct Kernel {
    root: PathBuf,
    release: String,
}

impl Kernel {
    /// The newest one in the cache. For cgroup v1 it is one that has all controllers of that, if there is one.
    pub(super) fn find(cgroup: Cgroup) -> Result<Self> {
        let cache = cache_directory()?;
        let entries = match fs::read_dir(&cache) {
            Ok(entries) => entries
                .collect::<io::Result<Vec<_>>>()
                .with_context(|| format!("list {}", cache.display()))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error).with_context(|| format!("list {}", cache.display())),
        };
        let newest = entries
            .into_iter()
            .filter_map(|entry| {
                entry
                    .file_name()
                    .to_str()?
                    .strip_prefix(PACKAGE)
                    .map(str::to_owned)
            })
            .map(|release| Self {
                root: cache.join(format!("{PACKAGE}{release}")),
                release,
            })
            .filter(|kernel| kernel.image().is_file())
            .max_by_key(|kernel| {
                let key = version_key(&kernel.release);
                (cgroup == Cgroup::V1 && key < CGROUP_V1_OPTIONAL.into(), key)
            });
        Ok(newest.ok_or(Missing::Kernel(cache))?)
    }

    /// The bootable image.
    pub(super) fn image(&self) -> PathBuf {
        self.root
            .join("boot")
            .join(format!("vmlinuz-{}", self.release))
    }

    /// The directory of all modules and their index.
    pub(super) fn modules(&self) -> PathBuf {
        self.root.join("lib/modules").join(&self.release)
    }

    /// Where things derived from this kernel can be kept.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// The files of these modules and of what they need, each after what it needs.
    pub(super) fn load_order(&self, names: &[&str]) -> Result<Vec<PathBuf>> {
        let modules = self.modules();
        let read = |name: &str| {
            let path = modules.join(name);
            fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
        };
        let order = load_order(&read("modules.dep")?, &read("modules.builtin")?, names)?;
        Ok(order.into_iter().map(|file| modules.join(file)).collect())
    }
}

/// The directory of what the bed is made of.
pub(super) fn cache_directory() -> Result<PathBuf> {
    let base = match env::var_os("XDG_CACHE_HOME").filter(|value| !value.is_empty()) {
        Some(base) => PathBuf::from(base),
        None => PathBuf::from(env::var_os("HOME").context("HOME is not set")?).join(".cache"),
    };
    Ok(base.join("cloister/bed"))
}

/// Orders releases as people do: 6.12.9 before 6.12.117.
fn version_key(release: &str) -> Vec<u64> {
    release
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|number| number.parse().ok())
        .collect()
}

/// `depmod`'s index lists for each module, after the colon, all that it needs, the first to be loaded last.
fn load_order(index: &str, builtin: &str, names: &[&str]) -> Result<Vec<String>, Missing> {
    let index: BTreeMap<String, (&str, &str)> = index
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(file, needs)| (module_name(file), (file, needs)))
        .collect();
    let builtin: Vec<String> = builtin.lines().map(module_name).collect();
    let mut order: Vec<String> = Vec::new();
    for name in names {
        let name = module_name(name);
        let Some((file, needs)) = index.get(&name) else {
            if builtin.contains(&name) {
                continue;
            }
            return Err(Missing::Module(name));
        };
        for needed in needs.split_whitespace().rev().chain([*file]) {
            if !order.iter().any(|file| file == needed) {
                order.push(needed.to_owned());
            }
        }
    }
    Ok(order)
}

/// `kernel/arch/x86/kvm/kvm-amd.ko.xz` is `kvm_amd`.
fn module_name(file: &str) -> String {
    let name = file.rsplit('/').next().unwrap_or(file);
    name.split(".ko").next().unwrap_or(name).replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    const INDEX: &str = "kernel/fs/9p/9p.ko.xz: kernel/net/9p/9pnet.ko.xz kernel/fs/netfs/netfs.ko.xz\n\
        kernel/net/9p/9pnet.ko.xz: kernel/fs/netfs/netfs.ko.xz\n\
        kernel/fs/netfs/netfs.ko.xz:\n\
        kernel/arch/x86/kvm/kvm-amd.ko.xz: kernel/arch/x86/kvm/kvm.ko.xz\n\
        kernel/arch/x86/kvm/kvm.ko.xz:\n";

    #[test]
    fn modules_follow_what_they_need_and_come_once() {
        let order = load_order(INDEX, "", &["9pnet", "9p", "kvm_amd"]).unwrap();
        let names: Vec<_> = order.iter().map(|file| module_name(file)).collect();
        assert_eq!(names, ["netfs", "9pnet", "9p", "kvm", "kvm_amd"]);
    }

    #[test]
    fn built_in_modules_need_no_file_and_unknown_ones_are_named() {
        assert_eq!(
            load_order(
                INDEX,
                "kernel/drivers/char/virtio_console.ko\n",
                &["virtio-console"]
            )
            .unwrap()
            .len(),
            0
        );
        let error = load_order(INDEX, "", &["overlay"]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "module overlay is not in the bed's kernel package"
        );
    }

    #[test]
    fn newer_releases_sort_after_older_ones() {
        assert!(version_key("6.12.9+deb13-amd64") < version_key("6.12.117+deb12-amd64"));
    }
}
