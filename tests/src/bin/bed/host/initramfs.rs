//! The bed's first root: this executable as `/init`, and the modules it must load before it sees the machine's files.

use super::kernel::Kernel;
use anyhow::{Context as _, Result, bail};
use std::collections::hash_map::DefaultHasher;
use std::env;
use std::fs::{self, File};
use std::hash::{Hash as _, Hasher as _};
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What the bed cannot find out that it needs: the rest is loaded when something asks for it.
const MODULES: &[&str] = &[
    "virtio_pci",
    "virtio_console",
    "9pnet_virtio",
    "9p",
    "overlay",
    "kvm-amd",
    "fuse",
    "loop",
    "tun",
];

/// The archive for this executable and kernel; packed again when either is newer.
pub(super) fn pack(kernel: &Kernel) -> Result<PathBuf> {
    let executable = env::current_exe().context("find this executable")?;
    let mut hasher = DefaultHasher::new();
    executable.hash(&mut hasher);
    let archive = kernel
        .root()
        .join(format!("initramfs-{:016x}.cpio", hasher.finish()));
    if is_newer(&archive, &[&executable, &kernel.image()])? {
        return Ok(archive);
    }

    let staging = tempfile::Builder::new()
        .prefix("initramfs-")
        .tempdir_in(kernel.root())
        .with_context(|| format!("create a directory in {}", kernel.root().display()))?;
    let root = staging.path().join("root");
    fs::create_dir_all(root.join("modules")).context("create the initramfs's directories")?;
    fs::copy(&executable, root.join("init"))
        .with_context(|| format!("copy {}", executable.display()))?;
    fs::write(
        root.join("modules/directory"),
        kernel.modules().as_os_str().as_bytes(),
    )
    .context("write modules/directory")?;
    let mut files = vec![
        "init".to_owned(),
        "modules".to_owned(),
        "modules/directory".to_owned(),
    ];
    let mut order = String::new();
    for module in kernel.load_order(MODULES)? {
        let name = unpack_module(&module, &root.join("modules"))?;
        order += &format!("{name}\n");
        files.push(format!("modules/{name}"));
    }
    fs::write(root.join("modules/order"), order).context("write modules/order")?;
    files.push("modules/order".to_owned());

    let fresh = staging.path().join("initramfs.cpio");
    write_archive(&root, &files, &fresh)?;
    fs::rename(&fresh, &archive).with_context(|| format!("create {}", archive.display()))?;
    Ok(archive)
}

fn is_newer(file: &Path, than: &[&Path]) -> Result<bool> {
    let modified = |path: &Path| path.metadata().and_then(|metadata| metadata.modified());
    let Ok(own) = modified(file) else {
        return Ok(false);
    };
    for other in than {
        let theirs = modified(other).with_context(|| format!("look at {}", other.display()))?;
        if theirs >= own {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Puts a module into `directory`, uncompressed and without its signature: the bed trusts what it is given, and checking
/// a signature on an emulated CPU takes longer than loading the module.
fn unpack_module(module: &Path, directory: &Path) -> Result<String> {
    let name = module
        .file_name()
        .and_then(|name| name.to_str())
        .context("a module has no name")?;
    let (plain, bytes) = match name.rsplit_once('.') {
        Some((plain, "xz")) => (plain, decompress("xz", module)?),
        Some((plain, "zst")) => (plain, decompress("zstd", module)?),
        _ => (
            name,
            fs::read(module).with_context(|| format!("read {}", module.display()))?,
        ),
    };
    let target = directory.join(plain);
    fs::write(&target, unsigned(&bytes)).with_context(|| format!("write {}", target.display()))?;
    Ok(plain.to_owned())
}

fn decompress(tool: &str, file: &Path) -> Result<Vec<u8>> {
    let output = Command::new(tool)
        .arg("-dc")
        .arg(file)
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| {
            format!("run {tool}: install it with `apt-get install {tool}`, or run tests/setup")
        })?;
    if !output.status.success() {
        bail!("{tool} {}: {}", file.display(), output.status);
    }
    Ok(output.stdout)
}

/// A module without the signature appended to it: after the signature come a structure of 12 bytes that ends with the
/// signature's length, and a marker (Linux, include/linux/module_signature.h).
fn unsigned(module: &[u8]) -> &[u8] {
    const MARKER: &[u8] = b"~Module signature appended~\n";
    let stripped = || {
        let rest = module.strip_suffix(MARKER)?;
        let (rest, length) = rest.split_last_chunk::<4>()?;
        let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
        rest.get(..rest.len().checked_sub(8)?.checked_sub(length)?)
    };
    stripped().unwrap_or(module)
}

fn write_archive(root: &Path, files: &[String], archive: &Path) -> Result<()> {
    let output = File::create(archive).with_context(|| format!("create {}", archive.display()))?;
    let mut cpio = Command::new("cpio")
        .args(["--create", "--format=newc", "--owner=0:0", "--quiet"])
        .current_dir(root)
        .stdin(Stdio::piped())
        .stdout(output)
        .spawn()
        .context("run cpio: install it with `apt-get install cpio`, or run tests/setup")?;
    let mut names = cpio.stdin.take().context("cpio's input")?;
    names
        .write_all(files.join("\n").as_bytes())
        .context("name the files to cpio")?;
    drop(names);
    let status = cpio.wait().context("wait for cpio")?;
    if !status.success() {
        bail!("cpio: {status}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_is_cut_off_and_everything_else_is_kept() {
        let mut signed = b"module".to_vec();
        signed.extend_from_slice(b"signature");
        signed.extend_from_slice(&[0, 0, 2, 0, 0, 0, 0, 0]);
        signed.extend_from_slice(&9u32.to_be_bytes());
        signed.extend_from_slice(b"~Module signature appended~\n");
        assert_eq!(unsigned(&signed), b"module");
        assert_eq!(unsigned(b"module"), b"module");
        assert_eq!(
            unsigned(b"~Module signature appended~\n"),
            b"~Module signature appended~\n"
        );
    }
}
