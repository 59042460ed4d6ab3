//! Programs of this machine in root file systems.

use std::fs;
use std::path::Path;

use super::Cmd;

/// Puts a program into a root file system at `place`, with the libraries that it needs.
pub(crate) fn add_program(rootfs: &Path, program: &Path, place: &str) {
    let copy = |file: &Path, place: &str| {
        let place = rootfs.join(place.trim_start_matches('/'));
        fs::create_dir_all(place.parent().expect("a directory")).expect("a directory");
        // Never through a link, to what is another program.
        fs::remove_file(&place).ok();
        fs::copy(file, place).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    };
    copy(program, place);
    // Each line has the path of a library or of the dynamic linker, or none.
    let listed = Cmd::new("ldd").args([program]).run();
    for library in listed.out().split_whitespace() {
        if library.starts_with('/') {
            copy(Path::new(library), library);
        }
    }
}
