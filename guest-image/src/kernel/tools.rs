//! The programs and libraries that building a kernel takes, and the Debian packages that have them.

use std::io::{self, Write};
use std::process::{Command, Stdio};

/// A program on the `PATH`, the argument with which it succeeds, and its package.
const PROGRAMS: &[(&str, &str, &str)] = &[
    ("make", "--version", "make"),
    ("gcc", "--version", "gcc"),
    ("ld", "--version", "binutils"),
    ("objcopy", "--version", "binutils"),
    ("flex", "--version", "flex"),
    ("bison", "--version", "bison"),
    ("bc", "--version", "bc"),
    ("awk", "BEGIN{}", "mawk"),
    ("tar", "--version", "tar"),
    ("xz", "--version", "xz-utils"),
    ("gzip", "--version", "gzip"),
];

/// A header that the compiler must find, and its package.
const HEADERS: &[(&str, &str)] = &[("stdio.h", "libc6-dev"), ("gelf.h", "libelf-dev")];

/// Why the tools do not do.
#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    /// Something is not installed.
    #[error(
        "to build the guest kernel, {} missing: apt-get install {}",
        .missing.join(", ") + if .missing.len() == 1 { " is" } else { " are" },
        .packages.join(" ")
    )]
    Missing {
        /// The programs and headers.
        missing: Vec<String>,
        /// The Debian packages that have them.
        packages: Vec<String>,
    },
    /// A tool is there and cannot be run.
    #[error("cannot run {program}")]
    Run {
        /// The tool.
        program: String,
        /// Why.
        source: io::Error,
    },
    /// A tool does not say what it is.
    #[error("{program} --version: {status}")]
    NoVersion {
        /// The tool.
        program: String,
        /// How it ended.
        status: std::process::ExitStatus,
    },
}

/// Succeeds if everything is there.
pub(super) fn check() -> Result<(), ToolError> {
    check_for(PROGRAMS, HEADERS)
}

fn check_for(programs: &[(&str, &str, &str)], headers: &[(&str, &str)]) -> Result<(), ToolError> {
    let mut missing = Vec::new();
    let mut packages = Vec::new();
    let mut lacks = |what: &str, package: &str| {
        missing.push(what.to_owned());
        if !packages.iter().any(|p| p == package) {
            packages.push(package.to_owned());
        }
    };
    for (program, argument, package) in programs {
        match quiet(program).arg(argument).status() {
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => lacks(program, package),
            Err(source) => {
                return Err(ToolError::Run {
                    program: (*program).into(),
                    source,
                });
            }
        }
    }
    // Headers are looked for as the build will: by asking the compiler, if there is one.
    for (header, package) in headers {
        if !has_header(header).unwrap_or(true) {
            lacks(header, package);
        }
    }
    if missing.is_empty() {
        Ok(())
    } else {
        Err(ToolError::Missing { missing, packages })
    }
}

fn quiet(program: &str) -> Command {
    let mut command = Command::new(program);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command
}

fn has_header(header: &str) -> io::Result<bool> {
    let mut child = quiet("gcc")
        .args(["-fsyntax-only", "-x", "c", "-"])
        .stdin(Stdio::piped())
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        writeln!(stdin, "#include <{header}>")?;
    }
    Ok(child.wait()?.success())
}

/// The first line with which `program` introduces itself.
pub(super) fn version(program: &str) -> Result<String, ToolError> {
    let output = Command::new(program)
        .arg("--version")
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .map_err(|source| ToolError::Run {
            program: program.into(),
            source,
        })?;
    let text = String::from_utf8_lossy(&output.stdout);
    match text.lines().next() {
        Some(line) if output.status.success() => Ok(line.to_owned()),
        _ => Err(ToolError::NoVersion {
            program: program.into(),
            status: output.status,
        }),
    }
}

/// The installed version of a Debian package; `None` where dpkg does not know it.
pub(super) fn package_version(package: &str) -> Option<String> {
    let output = Command::new("dpkg-query")
        .args([
            "--show",
            "--showformat=${db:Status-Status} ${Version}",
            package,
        ])
        .stdin(Stdio::null())
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    text.strip_prefix("installed ").map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named_with_its_package() {
        let error = check_for(
            &[
                ("sh", "-c:", "dash"),
                ("no-such-flex", "--version", "flex"),
                ("no-such-ld", "--version", "binutils"),
                ("no-such-objcopy", "--version", "binutils"),
            ],
            &[],
        )
        .unwrap_err();
        assert_eq!(
            error.to_string(),
            "to build the guest kernel, no-such-flex, no-such-ld, no-such-objcopy are missing: \
             apt-get install flex binutils"
        );
    }

    #[test]
    fn a_missing_header_is_named_with_its_package() {
        if version("gcc").is_err() {
            return;
        }
        check_for(&[], &[("stddef.h", "gcc")]).unwrap();
        let error = check_for(&[], &[("no/such.h", "libnosuch-dev")]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "to build the guest kernel, no/such.h is missing: apt-get install libnosuch-dev"
        );
    }

    #[test]
    fn a_version_is_one_line() {
        let version = version("tar").unwrap();
        assert!(
            version.starts_with("tar ") && !version.contains('\n'),
            "{version:?}"
        );
        assert!(matches!(
            super::version("no-such-tool"),
            Err(ToolError::Run { .. })
        ));
        assert!(matches!(
            super::version("false"),
            Err(ToolError::NoVersion { .. })
        ));
    }

    #[test]
    fn a_package_that_is_not_installed_has_no_version() {
        assert_eq!(package_version("no-such-package-anywhere"), None);
    }
}
