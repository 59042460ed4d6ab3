//! SHA-256 of files and bytes, as lower-case hexadecimal.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use sha2::{Digest, Sha256};

/// How much of a file is in memory at once.
const CHUNK: usize = 256 * 1024;

/// The digest of `bytes`.
pub fn of_bytes(bytes: &[u8]) -> String {
    format!("{:x}", Sha256::digest(bytes))
}

/// The digest of the contents of the file at `path`, and their length.
///
/// # Errors
///
/// The file cannot be opened or read.
pub fn of_file(path: &Path) -> io::Result<(String, u64)> {
    let mut file = File::open(path)?;
    let mut hasher = Sha256::new();
    let mut chunk = vec![0; CHUNK];
    let mut size = 0;
    loop {
        let (got, len) = match file.read(&mut chunk) {
            Ok(0) => return Ok((format!("{:x}", hasher.finalize()), size)),
            Ok(len) => (chunk.get(..len).unwrap_or_default(), len),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e),
        };
        hasher.update(got);
        size += len as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_and_its_bytes_have_the_same_digest() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let bytes = vec![0xa5; CHUNK * 2 + 17];
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(
            of_file(&path).unwrap(),
            (of_bytes(&bytes), bytes.len() as u64)
        );
    }

    #[test]
    fn the_digest_is_sha256() {
        // FIPS 180-2 appendix B.1.
        assert_eq!(
            of_bytes(b"abc"),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }
}
