//! Checks of single strings.

type Check = Result<(), String>;

/// The newest version of the specification whose properties are in the table.
pub(crate) const NEWEST: (u64, u64) = (1, 3);

/// ociVersion: SemVer 2.0.0, major version 1 (config.md#specification-version).
pub(crate) fn version(text: &str) -> Check {
    match parse_version(text) {
        None => Err(format!(
            "{text:?} is not a version of the form MAJOR.MINOR.PATCH"
        )),
        Some((1, _)) => Ok(()),
        Some(_) => Err(format!(
            "version {text} of the specification is not supported, only 1.x is"
        )),
    }
}

/// Major and minor number of a semantic version.
pub(crate) fn parse_version(text: &str) -> Option<(u64, u64)> {
    let (rest, build) = match text.split_once('+') {
        Some((rest, build)) => (rest, Some(build)),
        None => (text, None),
    };
    let (core, pre) = match rest.split_once('-') {
        Some((core, pre)) => (core, Some(pre)),
        None => (rest, None),
    };
    let mut numbers = core.split('.').map(number);
    let (major, minor, _patch) = (numbers.next()??, numbers.next()??, numbers.next()??);
    let identifiers = |part: Option<&str>| {
        part.is_none_or(|part| {
            part.split('.').all(|id| {
                !id.is_empty() && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            })
        })
    };
    (numbers.next().is_none() && identifiers(pre) && identifiers(build)).then_some((major, minor))
}

fn number(text: &str) -> Option<u64> {
    let canonical =
        text == "0" || (!text.starts_with('0') && text.bytes().all(|b| b.is_ascii_digit()));
    canonical.then(|| text.parse().ok()).flatten()
}

pub(crate) fn not_empty(text: &str) -> Check {
    if text.is_empty() {
        Err("must not be empty".into())
    } else {
        Ok(())
    }
}

pub(crate) fn absolute_path(text: &str) -> Check {
    if text.starts_with('/') {
        Ok(())
    } else {
        Err(format!("{text:?} is not an absolute path"))
    }
}

/// A path that may be left empty.
pub(crate) fn optional_path(text: &str) -> Check {
    if text.is_empty() {
        Ok(())
    } else {
        absolute_path(text)
    }
}

/// The name of a network device, as the kernel takes it (dev_valid_name), or nothing.
pub(crate) fn optional_interface(text: &str) -> Check {
    // IFNAMSIZ is 16, with the zero at the end.
    let fits = text.len() < 16 && text != "." && text != "..";
    if fits && !text.contains(|c: char| c == '/' || c == ':' || c.is_whitespace()) {
        Ok(())
    } else {
        Err(format!("{text:?} is not the name of a network device"))
    }
}

/// A list of processors as in cpuset(7): `0-3,7`. Empty is none.
pub(crate) fn cpu_list(text: &str) -> Check {
    let number = |text: &str| {
        // cpu_set_t of the C library holds 1024.
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        digits
            .then(|| text.parse::<u32>().ok())
            .flatten()
            .filter(|&n| n < 1024)
    };
    let valid = |part: &str| match part.split_once('-') {
        Some((first, last)) => match (number(first), number(last)) {
            (Some(first), Some(last)) => first <= last,
            _ => false,
        },
        None => number(part).is_some(),
    };
    if text.is_empty() || text.split(',').all(|part| valid(part.trim())) {
        Ok(())
    } else {
        Err(format!("{text:?} is not a list of processors like 0-3,7"))
    }
}

/// The kernel holds 64 bytes (__NEW_UTS_LEN).
pub(crate) fn host_name(text: &str) -> Check {
    if text.len() <= 64 {
        Ok(())
    } else {
        Err("is longer than 64 bytes".into())
    }
}

/// IEEE Std 1003.1 environ: NAME=value.
pub(crate) fn environment(text: &str) -> Check {
    match text.split_once('=') {
        Some((name, _)) if !name.is_empty() => Ok(()),
        _ => Err(format!("{text:?} is not of the form NAME=value")),
    }
}

/// config-linux.md#allowed-device-list: r, w and m.
pub(crate) fn device_access(text: &str) -> Check {
    if text.bytes().all(|b| b"rwm".contains(&b)) {
        Ok(())
    } else {
        Err(format!("{text:?} is not a combination of r, w and m"))
    }
}

/// config-linux.md#huge-page-limits: `<size><unit-prefix>B`, as in 64KB, 2MB, 1GB.
pub(crate) fn page_size(text: &str) -> Check {
    let valid = text
        .strip_suffix('B')
        .and_then(|t| t.strip_suffix(['K', 'M', 'G']))
        .is_some_and(|t| {
            !t.is_empty() && !t.starts_with('0') && t.bytes().all(|b| b.is_ascii_digit())
        });
    if valid {
        Ok(())
    } else {
        Err(format!("{text:?} is not a page size like 2MB"))
    }
}
