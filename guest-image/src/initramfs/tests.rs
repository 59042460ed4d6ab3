use super::*;
use crate::elf::tests::static_program;

/// An entry as read back.
#[derive(Debug, PartialEq, Eq)]
struct Read {
    name: String,
    ino: u32,
    mode: u32,
    nlink: u32,
    rdev: (u32, u32),
    contents: Vec<u8>,
}

fn bytes(archive: &Archive) -> Vec<u8> {
    let mut bytes = Vec::new();
    archive.write_to(&mut bytes).unwrap();
    bytes
}

/// Reads an archive by the letter of the format, independently of the writer.
fn read(archive: &[u8]) -> Vec<Read> {
    let mut at = 0;
    let mut entries = Vec::new();
    loop {
        let header = std::str::from_utf8(&archive[at..at + 110]).unwrap();
        assert_eq!(&header[..6], "070701");
        let field = |i: usize| u32::from_str_radix(&header[6 + i * 8..14 + i * 8], 16).unwrap();
        for zero in [2, 3, 5, 7, 8, 12] {
            assert_eq!(field(zero), 0, "field {zero} of the entry at {at}");
        }
        let (size, namesize) = (field(6) as usize, field(11) as usize);
        let name_at = at + 110;
        let name = &archive[name_at..name_at + namesize];
        assert_eq!(name.last(), Some(&0));
        let data_at = (name_at + namesize).next_multiple_of(4);
        assert!(archive[name_at + namesize..data_at].iter().all(|&b| b == 0));
        let end = (data_at + size).next_multiple_of(4);
        assert!(archive[data_at + size..end].iter().all(|&b| b == 0));
        let name = std::str::from_utf8(&name[..namesize - 1])
            .unwrap()
            .to_owned();
        if name == "TRAILER!!!" {
            assert_eq!(size, 0);
            assert_eq!(end, archive.len(), "something follows the trailer");
            return entries;
        }
        entries.push(Read {
            name,
            ino: field(0),
            mode: field(1),
            nlink: field(4),
            rdev: (field(9), field(10)),
            contents: archive[data_at..data_at + size].to_vec(),
        });
        at = end;
    }
}

#[test]
fn twice_the_same_is_the_same_bytes() {
    let build = || bytes(&Archive::guest(static_program()).unwrap());
    assert_eq!(build(), build());

    // The order of additions does not show.
    let mut a = Archive::new();
    a.file("b", 0o644, b"b".to_vec()).unwrap();
    a.directory("a", 0o755).unwrap();
    let mut b = Archive::new();
    b.directory("a", 0o755).unwrap();
    b.file("b", 0o644, b"b".to_vec()).unwrap();
    assert_eq!(bytes(&a), bytes(&b));
    b.file("a/c", 0o644, Vec::new()).unwrap();
    assert_ne!(bytes(&a), bytes(&b));
}

#[test]
fn the_guest_archive_reads_back() {
    let agent = static_program();
    let entries = read(&bytes(&Archive::guest(agent.clone()).unwrap()));
    let expected = [
        ("dev", 0o040_755, 2, (0, 0), Vec::new()),
        ("dev/console", 0o020_600, 1, (5, 1), Vec::new()),
        ("dev/null", 0o020_666, 1, (1, 3), Vec::new()),
        ("init", 0o100_755, 1, (0, 0), agent),
        ("proc", 0o040_555, 2, (0, 0), Vec::new()),
        ("run", 0o040_755, 2, (0, 0), Vec::new()),
        ("sys", 0o040_555, 2, (0, 0), Vec::new()),
        ("tmp", 0o041_777, 2, (0, 0), Vec::new()),
    ];
    let expected: Vec<_> = (1..)
        .zip(expected)
        .map(|(ino, (name, mode, nlink, rdev, contents))| Read {
            name: name.into(),
            ino,
            mode,
            nlink,
            rdev,
            contents,
        })
        .collect();
    assert_eq!(entries, expected);
}

#[test]
fn every_length_is_padded() {
    for len in 0..9 {
        let mut archive = Archive::new();
        let name = "n".repeat(len + 1);
        archive.file(&name, 0o644, vec![b'x'; len]).unwrap();
        let entries = read(&bytes(&archive));
        assert_eq!(entries.len(), 1);
        assert_eq!(
            (entries[0].name.as_str(), entries[0].contents.len()),
            (name.as_str(), len)
        );
    }
}

/// GNU cpio agrees with the reader above.
#[test]
fn cpio_lists_the_guest_archive() {
    use std::process::{Command, Stdio};

    let mut child = match Command::new("cpio")
        .args(["--list", "--quiet"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
    {
        Ok(child) => child,
        // Not every machine has cpio; the format is tested above without it.
        Err(e) if e.kind() == io::ErrorKind::NotFound => return,
        Err(e) => panic!("cpio: {e}"),
    };
    let archive = bytes(&Archive::guest(static_program()).unwrap());
    child.stdin.take().unwrap().write_all(&archive).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(
        String::from_utf8(output.stdout).unwrap(),
        "dev\ndev/console\ndev/null\ninit\nproc\nrun\nsys\ntmp\n"
    );
}

#[test]
fn bad_names_are_refused() {
    let long = "x".repeat(4096);
    for (name, why) in [
        ("", "empty"),
        ("/init", "plain relative path"),
        ("a//b", "plain relative path"),
        ("a/", "plain relative path"),
        ("./a", "plain relative path"),
        ("a/../b", "plain relative path"),
        ("a\0b", "NUL"),
        ("TRAILER!!!", "ends an archive"),
        (long.as_str(), "longer than 4095"),
    ] {
        let error = Archive::new()
            .file(name, 0o644, Vec::new())
            .unwrap_err()
            .to_string();
        assert!(error.contains(why), "{name:?}: {error}");
    }
    Archive::new()
        .file(&"x".repeat(4095), 0o644, Vec::new())
        .unwrap();
}

#[test]
fn bad_modes_and_places_are_refused() {
    let mut archive = Archive::new();
    archive.directory("d", 0o755).unwrap();
    archive.file("f", 0o644, Vec::new()).unwrap();
    let message = |e: InitramfsError| e.to_string();
    assert_eq!(
        archive.directory("x", 0o40_755).map_err(message),
        Err("x: mode 0o40755 has bits beyond 07777".into())
    );
    assert_eq!(
        archive.directory("d", 0o700).map_err(message),
        Err("d: added twice".into())
    );
    assert_eq!(
        archive.file("f/g", 0o644, Vec::new()).map_err(message),
        Err("f/g: its directory f is not in the archive".into())
    );
    assert_eq!(
        archive.file("e/g", 0o644, Vec::new()).map_err(message),
        Err("e/g: its directory e is not in the archive".into())
    );
}

#[test]
fn an_agent_that_cannot_run_is_refused() {
    let error = Archive::guest(std::fs::read("/proc/self/exe").unwrap()).unwrap_err();
    assert!(
        matches!(error, InitramfsError::Agent(ElfError::Interpreter(_))),
        "{error:?}"
    );
}
