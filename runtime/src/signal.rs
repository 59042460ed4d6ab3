//! Signal numbers and their names, as `kill` takes them.

/// Linux signal names on x86-64, at the index that is their number.
const NAMES: [&str; 32] = [
    "", "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2",
    "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG",
    "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];

/// Other names for the same numbers.
const ALIASES: [(&str, u32); 4] = [("IOT", 6), ("CLD", 17), ("POLL", 29), ("UNUSED", 31)];

/// The real-time signals as the C library numbers them: it keeps 32 and 33 for itself.
const RTMIN: u32 = 34;
const RTMAX: u32 = 64;

/// A signal that may be sent to a workload: 1 to 64.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signal(u32);

/// A text that names no signal; the wording is runc's.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("unknown signal \"{0}\"")]
pub struct UnknownSignal(String);

impl Signal {
    /// The terminal of a process is gone.
    pub const HUP: Self = Self(1);
    /// Somebody at a terminal asks a process to end.
    pub const INT: Self = Self(2);
    /// Somebody at a terminal asks a process to end and leave a core.
    pub const QUIT: Self = Self(3);
    /// A child has ended.
    pub const CHLD: Self = Self(17);
    /// The window of a terminal has another size.
    pub const WINCH: Self = Self(28);
    /// Ends a process without asking it.
    pub const KILL: Self = Self(9);
    /// What `kill` sends when nothing is named.
    pub const TERM: Self = Self(15);

    /// Takes a number, or a name with or without `SIG`, in either case.
    ///
    /// # Errors
    /// If there is no such signal.
    pub fn parse(text: &str) -> Result<Self, UnknownSignal> {
        let unknown = || UnknownSignal(text.to_owned());
        if let Ok(number) = text.parse::<u32>() {
            return Self::from_number(number).ok_or_else(unknown);
        }
        let upper = text.to_ascii_uppercase();
        let name = upper.strip_prefix("SIG").unwrap_or(&upper);
        let number = NAMES
            .iter()
            .zip(0..)
            .skip(1)
            .find_map(|(known, number)| (*known == name).then_some(number))
            .or_else(|| ALIASES.iter().find(|(a, _)| *a == name).map(|(_, n)| *n))
            .or_else(|| real_time(name));
        number.and_then(Self::from_number).ok_or_else(unknown)
    }

    /// Takes a number.
    #[must_use]
    pub fn from_number(number: u32) -> Option<Self> {
        (1..=RTMAX).contains(&number).then_some(Self(number))
    }

    /// The number.
    #[must_use]
    pub fn number(self) -> u32 {
        self.0
    }
}

/// `RTMIN`, `RTMIN+n`, `RTMAX`, `RTMAX-n`.
fn real_time(name: &str) -> Option<u32> {
    let number = if let Some(offset) = name.strip_prefix("RTMIN") {
        RTMIN.checked_add(match offset {
            "" => 0,
            _ => offset.strip_prefix('+')?.parse().ok()?,
        })?
    } else {
        let offset = name.strip_prefix("RTMAX")?;
        RTMAX.checked_sub(match offset {
            "" => 0,
            _ => offset.strip_prefix('-')?.parse().ok()?,
        })?
    };
    (RTMIN..=RTMAX).contains(&number).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_numbers_and_real_time_signals_are_known() {
        for (text, number) in [
            ("9", 9),
            ("KILL", 9),
            ("SIGKILL", 9),
            ("sigterm", 15),
            ("SYS", 31),
            ("IOT", 6),
            ("RTMIN", 34),
            ("SIGRTMIN+3", 37),
            ("RTMAX-1", 63),
            ("64", 64),
        ] {
            assert_eq!(Signal::parse(text).unwrap().number(), number, "{text}");
        }
    }

    #[test]
    fn anything_else_is_refused_by_name() {
        for text in [
            "", "0", "65", "-1", "FOO", "SIG", "RTMIN+31", "RTMAX-31", "RTMIN-1",
        ] {
            let error = Signal::parse(text).unwrap_err().to_string();
            assert_eq!(error, format!("unknown signal \"{text}\""));
        }
    }

    #[test]
    fn numbers_agree_with_the_system() {
        assert_eq!(
            Signal::parse("CHLD").unwrap().number(),
            libc::SIGCHLD.unsigned_abs()
        );
        assert_eq!(
            Signal::parse("WINCH").unwrap().number(),
            libc::SIGWINCH.unsigned_abs()
        );
        assert_eq!(
            Signal::parse("RTMIN").unwrap().number(),
            libc::SIGRTMIN().unsigned_abs()
        );
        assert_eq!(
            Signal::parse("RTMAX").unwrap().number(),
            libc::SIGRTMAX().unsigned_abs()
        );
    }
}
