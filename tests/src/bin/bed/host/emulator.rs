//! The emulator: this machine's QEMU, without a fault of it that hurts the bed's guests.
//!
//! When KVM injects an interrupt, QEMU's `helper_vmrun` delivers it at once, but leaves its vector in `exception_index`. If the
//! loop that executes the guest is interrupted before the guest's next exit, it takes that for an exception, and delivers the
//! interrupt a second time, also where the guest has turned interrupts off: guests have been found that wait for a lock
//! that what was interrupted holds. 7.2 and newer ones do so. Where the compiled form of that place is known, the bed's
//! QEMU is a copy in the user's cache which does not store the vector. Nobody reads it there but by mistake: whatever is
//! to be delivered later is stored by the other cases of injection, which are left as they are.

use anyhow::{Context as _, Result};
use std::env;
use std::fs;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::kernel::cache_directory;

/// Another number makes another copy, where the repair has changed.
const REPAIR: u32 = 1;

/// What it is called.
pub(super) const QEMU: &str = "qemu-system-x86_64";

/// The instruction that stores the vector, and as much as six bytes of nothing.
const STORE_LEN: usize = 6;
const NOP: [u8; STORE_LEN] = [0x66, 0x0f, 0x1f, 0x44, 0, 0];

/// Runs the emulator: the repaired one, or the machine's own if that place of it is not known.
pub(super) fn command() -> Result<Command> {
    let Some(own) = find() else {
        // Whoever spawns it says that it is not there.
        return Ok(Command::new(QEMU));
    };
    Ok(Command::new(repaired(&own)?.unwrap_or(own)))
}

/// The program that the shell would take.
fn find() -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    let mut programs = env::split_paths(&path).map(|dir| dir.join(QEMU));
    programs.find_map(|program| program.canonicalize().ok())
}

/// A copy without the fault, made when there is none of this program; `None` if the place is not known.
fn repaired(own: &Path) -> Result<Option<PathBuf>> {
    let metadata = own.metadata().context("look at QEMU")?;
    let mut hasher = DefaultHasher::new();
    (REPAIR, own, metadata.len(), metadata.modified().ok()).hash(&mut hasher);
    let cache = cache_directory()?;
    let place = cache.join(format!("qemu-{:016x}", hasher.finish()));
    let program = Path::new("bin").join(QEMU);
    let is_whole = |copy: PathBuf| {
        copy.metadata()
            .is_ok_and(|copy| copy.len() == metadata.len())
    };
    if is_whole(place.join(&program)) {
        return Ok(Some(place.join(program)));
    }
    let mut bytes = fs::read(own).with_context(|| format!("read {}", own.display()))?;
    let (Some(at), Some(prefix)) = (store(&bytes), own.parent().and_then(Path::parent)) else {
        eprintln!(
            "bed: {} may deliver an interrupt to a guest twice (docs/test-bed.md): how it is to be repaired is not known",
            own.display()
        );
        return Ok(None);
    };
    bytes[at..at + STORE_LEN].copy_from_slice(&NOP);
    let fresh = tempfile::Builder::new()
        .prefix("qemu-new-")
        .tempdir_in(&cache)
        .with_context(|| format!("create a directory in {}", cache.display()))?;
    let write = || {
        fs::create_dir(fresh.path().join("bin"))?;
        fs::write(fresh.path().join(&program), &bytes)?;
        fs::set_permissions(fresh.path().join(&program), metadata.permissions())?;
        // It looks for its modules and firmware where they are from its own directory.
        for dir in ["lib", "share"] {
            symlink(prefix.join(dir), fresh.path().join(dir))?;
        }
        io::Result::Ok(())
    };
    write().context("write a QEMU without its fault")?;
    match fs::rename(fresh.path(), &place) {
        // Another bed was faster.
        Err(_) if place.join(&program).exists() => {}
        result => {
            result.with_context(|| format!("create {}", place.display()))?;
            remove_others(&cache, &place);
        }
    }
    Ok(Some(place.join(program)))
}

/// Removes the copies of other QEMUs. A bed that runs one has it in memory.
fn remove_others(cache: &Path, place: &Path) {
    for other in fs::read_dir(cache).into_iter().flatten().flatten() {
        let name = other.file_name();
        let name = name.to_string_lossy();
        if name.starts_with("qemu-") && !name.starts_with("qemu-new-") && other.path() != place {
            // It is in nobody's way.
            let _ = fs::remove_dir_all(other.path());
        }
    }
}

/// Where the vector of an injected interrupt is stored, if that is at one place:
///
/// ```text
///   mov   %r13d, error_code(%rbx)
///   mov   %esi, exception_index(%rbx)         <- this
///   movl  $0, exception_is_int(%rbx)          behind error_code
///   movq  $-1, exception_next_eip(%rbx)       behind that
///   testb $2, qemu_loglevel(%rip)
///   jne   …
///   mov   $1, %edx
///   mov   %rbx, %rdi
///   call  do_interrupt_x86_hardirq
/// ```
fn store(program: &[u8]) -> Option<usize> {
    const LEN: usize = 56;
    let number = |code: &[u8], at: usize| {
        let bytes = code.get(at..at + 4)?.try_into().ok()?;
        Some(i32::from_le_bytes(bytes))
    };
    // A register, and memory at a distance of 32 bits from %rbx.
    let is_field = |modrm: u8| modrm & 0xc7 == 0x83;
    let is_it = |code: &[u8]| {
        let error_code = number(code, 3);
        code.starts_with(&[0x44, 0x89])
            && is_field(code[2])
            && code[7] == 0x89
            && is_field(code[8])
            && code[13..].starts_with(&[0xc7, 0x83])
            && number(code, 15) == error_code.map(|at| at + 4)
            && number(code, 19) == Some(0)
            && code[23..].starts_with(&[0x48, 0xc7, 0x83])
            && number(code, 26) == error_code.map(|at| at + 8)
            && number(code, 30) == Some(-1)
            && code[34..].starts_with(&[0xf6, 0x05])
            && code[41..].starts_with(&[0x0f, 0x85])
            && code[47..].starts_with(&[0xba, 1, 0, 0, 0, 0x48, 0x89, 0xdf, 0xe8])
    };
    let mut places = program
        .windows(LEN)
        .enumerate()
        .filter(|(_, code)| is_it(code))
        .map(|(at, _)| at + 7);
    let place = places.next();
    place.filter(|_| places.next().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As in Debian's 7.2.
    const CODE: [u8; 56] = [
        0x44, 0x89, 0xab, 0x80, 0x33, 0, 0, // mov %r13d, 0x3380(%rbx)
        0x89, 0xb3, 0x54, 0xef, 0xff, 0xff, // mov %esi, -0x10ac(%rbx)
        0xc7, 0x83, 0x84, 0x33, 0, 0, 0, 0, 0, 0, // movl $0, 0x3384(%rbx)
        0x48, 0xc7, 0x83, 0x88, 0x33, 0, 0, 0xff, 0xff, 0xff, 0xff, // movq $-1, 0x3388(%rbx)
        0xf6, 0x05, 0xba, 0x45, 0xb6, 0, 2, // testb $2, …(%rip)
        0x0f, 0x85, 0x6c, 1, 0, 0, // jne …
        0xba, 1, 0, 0, 0, // mov $1, %edx
        0x48, 0x89, 0xdf, // mov %rbx, %rdi
        0xe8, // call …
    ];

    #[test]
    fn the_place_is_found_where_it_is_known_and_alone() {
        let before = [0x41, 0x0f, 0xb6, 0xf4];
        let program = [&before[..], &CODE, &[0; 8]].concat();
        assert_eq!(store(&program), Some(before.len() + 7));
        assert_eq!(store(&[&program[..], &program].concat()), None);
        // Fields that are not neighbours.
        let mut other = CODE;
        other[15] = 0x90;
        assert_eq!(store(&other), None);
        assert_eq!(store(b"#!/bin/sh\n"), None);
    }

    #[test]
    fn a_program_without_that_place_is_run_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join(QEMU);
        fs::write(&program, "#!/bin/sh\n").unwrap();
        assert_eq!(repaired(&program).unwrap(), None);
    }
}
