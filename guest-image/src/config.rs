//! Kernel configuration fragments, and the check that what they ask for came true.
//!
//! A fragment is a file of `CONFIG_X=value` and `# CONFIG_X is not set` lines between comments.
//! Kconfig silently drops an option whose dependencies are not met, which shows months later as a
//! feature that is missing in the guest; so the configuration that Kconfig made is read back and
//! compared with the fragment.

use std::collections::BTreeMap;
use std::fmt;

/// What an option is, or must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// `CONFIG_X=value`, the value as written, quotes included.
    Set(String),
    /// `# CONFIG_X is not set`, or no line at all.
    Unset,
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Set(value) => f.write_str(value),
            Self::Unset => f.write_str("not set"),
        }
    }
}

/// Why a fragment cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ConfigError {
    /// A line is neither an option nor a comment.
    #[error("{origin}:{line}: neither an option nor a comment: {text:?}")]
    Syntax {
        /// The file, as the user knows it.
        origin: String,
        /// The line, from 1.
        line: usize,
        /// What stands there.
        text: String,
    },
    /// One file says two things about an option.
    #[error("{origin}:{line}: {option} is given twice")]
    Twice {
        /// The file, as the user knows it.
        origin: String,
        /// The line of the second, from 1.
        line: usize,
        /// The option.
        option: String,
    },
    /// Kconfig did not do as it was asked.
    #[error("kernel configuration: {} did not take effect (a dependency is missing, or another option selects it): {}",
            count(.0.len()), list(.0))]
    Dropped(Vec<Mismatch>),
}

/// An option that is not what a fragment asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mismatch {
    /// The option, with its `CONFIG_`.
    pub option: String,
    /// What the fragment asked for.
    pub wanted: Value,
    /// What Kconfig made of it.
    pub got: Value,
}

fn count(options: usize) -> String {
    match options {
        1 => "1 option".into(),
        n => format!("{n} options"),
    }
}

fn list(mismatches: &[Mismatch]) -> String {
    let one = |m: &Mismatch| format!("{} (asked for: {}; is: {})", m.option, m.wanted, m.got);
    mismatches.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// The options of one fragment, or of several laid over each other.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fragment(BTreeMap<String, Value>);

impl Fragment {
    /// Reads a fragment; `origin` names it in errors.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Syntax`] and [`ConfigError::Twice`].
    pub fn parse(origin: &str, text: &str) -> Result<Self, ConfigError> {
        let mut options = BTreeMap::new();
        for (index, raw) in text.lines().enumerate() {
            let line = index + 1;
            let Some((option, value)) = parse_line(raw).map_err(|()| ConfigError::Syntax {
                origin: origin.into(),
                line,
                text: raw.into(),
            })?
            else {
                continue;
            };
            if options.insert(option.to_owned(), value).is_some() {
                return Err(ConfigError::Twice {
                    origin: origin.into(),
                    line,
                    option: option.into(),
                });
            }
        }
        Ok(Self(options))
    }

    /// Lays `over` on top: what it says wins.
    pub fn overlay(&mut self, over: Self) {
        self.0.extend(over.0);
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Compares with the `.config` that Kconfig made.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Dropped`] names every option that is not as asked for, and
    /// [`ConfigError::Syntax`] a `.config` that is none.
    pub fn check(&self, dot_config: &str) -> Result<(), ConfigError> {
        let made = Self::parse(".config", dot_config)?;
        let mismatches: Vec<_> = self
            .0
            .iter()
            .filter_map(|(option, wanted)| {
                let got = made.0.get(option).unwrap_or(&Value::Unset);
                (got != wanted).then(|| Mismatch {
                    option: option.clone(),
                    wanted: wanted.clone(),
                    got: got.clone(),
                })
            })
            .collect();
        if mismatches.is_empty() {
            Ok(())
        } else {
            Err(ConfigError::Dropped(mismatches))
        }
    }
}

/// The options alone, sorted: a form in which a reworded comment changes nothing.
impl fmt::Display for Fragment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (option, value) in &self.0 {
            match value {
                Value::Set(value) => writeln!(f, "{option}={value}")?,
                Value::Unset => writeln!(f, "# {option} is not set")?,
            }
        }
        Ok(())
    }
}

/// One line of a configuration: an option, or `None` for a comment.
fn parse_line(line: &str) -> Result<Option<(&str, Value)>, ()> {
    let line = line.trim();
    if let Some(comment) = line.strip_prefix('#') {
        let unset = comment
            .trim()
            .strip_suffix(" is not set")
            .filter(|name| is_option(name));
        return Ok(unset.map(|name| (name, Value::Unset)));
    }
    if line.is_empty() {
        return Ok(None);
    }
    match line.split_once('=') {
        Some((name, "n")) if is_option(name) => Ok(Some((name, Value::Unset))),
        Some((name, value)) if is_option(name) && !value.is_empty() => {
            Ok(Some((name, Value::Set(value.to_owned()))))
        }
        _ => Err(()),
    }
}

fn is_option(name: &str) -> bool {
    name.strip_prefix("CONFIG_")
        .is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fragment(text: &str) -> Fragment {
        Fragment::parse("test", text).unwrap()
    }

    #[test]
    fn every_form_of_a_line_is_read() {
        let f = fragment(
            "# why\n\nCONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C=\"x y\"\nCONFIG_D=-1\nCONFIG_E=n\n",
        );
        assert_eq!(
            f.to_string(),
            "CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C=\"x y\"\nCONFIG_D=-1\n# CONFIG_E is not set\n"
        );
    }

    #[test]
    fn a_line_that_is_neither_is_named() {
        for bad in ["CONFIG_A", "CONFIG_A=", "A=y", "CONFIG_=y", "CONFIG_A B=y"] {
            let error = Fragment::parse("kernel/config", &format!("# fine\n{bad}\n")).unwrap_err();
            assert_eq!(
                error.to_string(),
                format!("kernel/config:2: neither an option nor a comment: {bad:?}")
            );
        }
    }

    #[test]
    fn an_option_given_twice_is_named() {
        let error = Fragment::parse("f", "CONFIG_A=y\n# CONFIG_A is not set\n").unwrap_err();
        assert_eq!(error.to_string(), "f:2: CONFIG_A is given twice");
    }

    #[test]
    fn the_check_names_each_option_that_was_dropped() {
        let f = fragment("CONFIG_A=y\nCONFIG_B=64\n# CONFIG_C is not set\nCONFIG_D=y\n");
        let error = f
            .check("CONFIG_A=y\nCONFIG_B=32\nCONFIG_C=y\n")
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            "kernel configuration: 3 options did not take effect (a dependency is missing, or another option selects it): \
             CONFIG_B (asked for: 64; is: 32), CONFIG_C (asked for: not set; is: y), CONFIG_D (asked for: y; is: not set)"
        );
    }

    #[test]
    fn the_check_passes_when_all_is_as_asked() {
        let f = fragment("CONFIG_A=y\n# CONFIG_B is not set\n# CONFIG_C is not set\n");
        f.check("#\n# Linux/x86\n#\nCONFIG_A=y\n# CONFIG_C is not set\nCONFIG_EXTRA=y\n")
            .unwrap();
    }

    #[test]
    fn a_variant_wins_over_the_base() {
        let mut f = fragment("CONFIG_A=y\nCONFIG_B=y\n");
        f.overlay(fragment("# CONFIG_A is not set\nCONFIG_C=y\n"));
        assert_eq!(
            f.to_string(),
            "# CONFIG_A is not set\nCONFIG_B=y\nCONFIG_C=y\n"
        );
    }

    #[test]
    fn the_configuration_of_the_project_is_well_formed() {
        let f = Fragment::parse("kernel/config", crate::kernel::BASE_FRAGMENT).unwrap();
        let text = f.to_string();
        for option in [
            "CONFIG_VIRTIO_VSOCKETS=y",
            "# CONFIG_PCI is not set",
            "CONFIG_PVH=y",
        ] {
            assert!(
                text.lines().any(|line| line == option),
                "{option} is missing"
            );
        }
    }
}
