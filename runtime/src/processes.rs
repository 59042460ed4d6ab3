//! The processes of a container, as its guest tells of them, in the form of ps(1).

use std::time::{SystemTime, UNIX_EPOCH};

use cloister_protocol::agent::Process;

use crate::sys::wall_clock;
use crate::users::Users;

/// Linux's major numbers of Unix98 pseudoterminals (Documentation/admin-guide/devices.txt).
const PTS_MAJORS: std::ops::RangeInclusive<u32> = 136..=143;

/// An option of ps(1) that cannot be had.
#[derive(Debug, thiserror::Error)]
#[error(
    "ps {0}: not supported: the processes are in a virtual machine, where ps(1) is not; -A, -a, -e, \
     -f and -x are"
)]
pub struct UnknownOption(String);

/// The columns that options of ps(1) choose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Columns {
    /// Without options, and with -f.
    Full,
    /// With -e or -A alone.
    Short,
    /// With -x.
    State,
}

impl Columns {
    /// Understands options of ps(1).
    ///
    /// # Errors
    /// If one is not of those that are known here.
    pub fn parse(words: &[String]) -> Result<Self, UnknownOption> {
        let mut letters = String::new();
        for word in words {
            let option = word.strip_prefix('-').unwrap_or(word);
            if option.is_empty() || !option.chars().all(|letter| "Aaefx".contains(letter)) {
                return Err(UnknownOption(word.clone()));
            }
            letters.push_str(option);
        }
        Ok(match letters {
            letters if letters.is_empty() || letters.contains('f') => Self::Full,
            letters if letters.contains('x') => Self::State,
            _ => Self::Short,
        })
    }

    /// The table of `processes`, of which nothing is believed but that their texts are clean.
    #[must_use]
    pub fn table(self, processes: &[Process]) -> String {
        let mut text = String::from(match self {
            Self::Full => "UID          PID    PPID  C STIME TTY          TIME CMD\n",
            Self::Short => "    PID TTY          TIME CMD\n",
            Self::State => "    PID TTY      STAT   TIME COMMAND\n",
        });
        let users = Users::read();
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.map_or(0, |now| now.as_secs().cast_signed());
        for process in processes {
            let Process {
                pid,
                ppid,
                uid,
                state,
                tty,
                started_s,
                cpu_ms,
                command,
                ..
            } = process;
            let tty = terminal(*tty);
            let cpu_s = cpu_ms / 1000;
            let (hours, minutes, seconds) = (cpu_s / 3600, cpu_s / 60 % 60, cpu_s % 60);
            let started = started_s.cast_signed();
            text.push_str(&match self {
                Self::Full => {
                    let user = users.name(*uid);
                    let user = user.trim_start_matches('#');
                    let lived = u64::try_from(now.saturating_sub(started)).unwrap_or(0).max(1);
                    let share = (cpu_ms / 10 / lived).min(99);
                    let start = wall_clock(started, now);
                    format!("{user:<8} {pid:>7} {ppid:>7} {share:>2} {start} {tty:<8} {hours:02}:{minutes:02}:{seconds:02} {command}\n")
                }
                Self::Short => {
                    let name = command.split(' ').next().unwrap_or_default();
                    let name = name.rsplit('/').next().unwrap_or_default();
                    format!("{pid:>7} {tty:<8} {hours:02}:{minutes:02}:{seconds:02} {name}\n")
                }
                Self::State => {
                    let minutes = cpu_s / 60;
                    format!("{pid:>7} {tty:<8} {state:<4} {minutes:>3}:{seconds:02} {command}\n")
                }
            });
        }
        text
    }
}

/// A terminal's device number as ps(1) writes it. The kernel's encoding: the minor number's low
/// byte, the major number, the rest of the minor number.
fn terminal(device: u32) -> String {
    let (major, minor) = (device >> 8 & 0xfff, device & 0xff | device >> 12 & 0xf_ff00);
    match (device, major) {
        (0, _) => "?".into(),
        (_, major) if PTS_MAJORS.contains(&major) => {
            format!("pts/{}", (major - PTS_MAJORS.start()) * 256 + minor)
        }
        _ => format!("{major}:{minor}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_choose_columns_or_are_refused_by_name() {
        let columns = |line: &str| {
            let words: Vec<_> = line.split_whitespace().map(String::from).collect();
            Columns::parse(&words).map_err(|e| e.to_string())
        };
        assert_eq!(columns(""), Ok(Columns::Full));
        assert_eq!(columns("-ef"), Ok(Columns::Full));
        assert_eq!(columns("-e"), Ok(Columns::Short));
        assert_eq!(columns("-e -x"), Ok(Columns::State));
        let error = columns("-o pid").unwrap_err();
        assert!(error.starts_with("ps -o: not supported: "), "{error}");
    }

    #[test]
    fn a_process_is_a_line() {
        let process = Process {
            pid: 12,
            ppid: 1,
            uid: 0,
            state: "S".into(),
            tty: 0x8803,
            started_s: 0,
            cpu_ms: 3_661_000,
            command: "/bin/sh -c x".into(),
            ..Process::default()
        };
        let processes = [process];
        let full = Columns::Full.table(&processes);
        let line = full.lines().nth(1).unwrap();
        let words: Vec<_> = line.split_whitespace().collect();
        assert_eq!(words[..4], ["root", "12", "1", "0"]);
        assert_eq!(words[5..], ["pts/3", "01:01:01", "/bin/sh", "-c", "x"]);
        let short = Columns::Short.table(&processes);
        assert!(short.ends_with("pts/3    01:01:01 sh\n"), "{short}");
        let state = Columns::State.table(&processes);
        assert!(
            state.ends_with("pts/3    S     61:01 /bin/sh -c x\n"),
            "{state}"
        );
        assert_eq!(terminal(0x0501), "5:1");
    }
}
