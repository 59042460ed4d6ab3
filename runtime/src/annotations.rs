//! What annotations say about a virtual machine: the size of a pod, which containerd's CRI plugin
//! tells of every sandbox, and settings that the machine's administrator lets pods choose.

use std::collections::HashMap;

use crate::config::Config;

/// What the annotations for settings begin with; a key of the configuration follows.
const SETTINGS: &str = "io.cloister.";

/// The keys that annotations may be allowed to set.
pub const CHOOSABLE: [&str; 2] = ["vcpus", "memory_mib"];

const MEMORY: &str = "io.kubernetes.cri.sandbox-memory";
const CPU_QUOTA: &str = "io.kubernetes.cri.sandbox-cpu-quota";
const CPU_PERIOD: &str = "io.kubernetes.cri.sandbox-cpu-period";

/// Why an annotation cannot be followed.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum AnnotationError {
    /// There is no such setting.
    #[error("config.json: annotations[{0:?}]: no such setting: vcpus and memory_mib can be set")]
    Unknown(String),
    /// The administrator has not said that it may be set.
    #[error("config.json: annotations[{0:?}]: not in allowed_annotations of the configuration")]
    NotAllowed(String),
    /// The value is none.
    #[error("config.json: annotations[{name:?}]: {value:?} is not a whole number that fits")]
    Value {
        /// The annotation.
        name: String,
        /// Its value.
        value: String,
    },
}

/// What all containers of a pod may use together, as far as there is a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PodLimits {
    /// Memory, in bytes.
    pub memory: Option<u64>,
    /// Processor time in each period, in microseconds.
    pub cpu_quota: Option<u64>,
    /// The period, in microseconds.
    pub cpu_period: Option<u64>,
}

impl PodLimits {
    /// Reads them. What is not above zero is no limit.
    ///
    /// # Errors
    /// [`AnnotationError::Value`] for what is no number.
    pub fn of(annotations: &HashMap<String, String>) -> Result<Self, AnnotationError> {
        let read = |name: &str| {
            let Some(value) = annotations.get(name) else {
                return Ok(None);
            };
            let number = value.parse::<i64>().map_err(|_| AnnotationError::Value {
                name: name.to_owned(),
                value: value.clone(),
            })?;
            Ok(u64::try_from(number).ok().filter(|&number| number > 0))
        };
        Ok(Self {
            memory: read(MEMORY)?,
            cpu_quota: read(CPU_QUOTA)?,
            cpu_period: read(CPU_PERIOD)?,
        })
    }
}

/// Whether an annotation of this name chooses a setting.
#[must_use]
pub fn chooses(name: &str) -> bool {
    name.starts_with(SETTINGS)
}

/// The settings of a container: the machine's, and those that its annotations choose.
///
/// # Errors
/// The annotation that cannot be followed.
pub fn apply(
    config: &Config,
    annotations: &HashMap<String, String>,
) -> Result<Config, AnnotationError> {
    PodLimits::of(annotations)?;
    let mut config = config.clone();
    for (name, value) in annotations {
        let Some(key) = name.strip_prefix(SETTINGS) else {
            continue;
        };
        if !CHOOSABLE.contains(&key) {
            return Err(AnnotationError::Unknown(name.clone()));
        }
        if !config
            .allowed_annotations
            .iter()
            .any(|allowed| allowed == key)
        {
            return Err(AnnotationError::NotAllowed(name.clone()));
        }
        let wrong = || AnnotationError::Value {
            name: name.clone(),
            value: value.clone(),
        };
        // The ranges are those of the configuration, and checked with it.
        match key {
            "vcpus" => config.vcpus = value.parse().map_err(|_| wrong())?,
            _ => config.memory_mib = value.parse().map_err(|_| wrong())?,
        }
    }
    Ok(config)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn annotations(pairs: &[(&str, &str)]) -> HashMap<String, String> {
        let own = pairs
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        own.collect()
    }

    fn config(allowed: &[&str]) -> Config {
        let mut config = Config::load(None, Path::new("/nonexistent"), |_| None).unwrap();
        config.allowed_annotations = allowed.iter().map(|key| (*key).to_owned()).collect();
        config
    }

    #[test]
    fn what_is_allowed_is_chosen() {
        let given = annotations(&[("io.cloister.vcpus", "3"), ("other", "x")]);
        let chosen = apply(&config(&["vcpus"]), &given).unwrap();
        assert_eq!((chosen.vcpus, chosen.memory_mib), (3, 128));
        let error = |allowed: &[&str], name: &str, value: &str| {
            apply(&config(allowed), &annotations(&[(name, value)]))
                .unwrap_err()
                .to_string()
        };
        assert_eq!(
            error(&["vcpus"], "io.cloister.memory_mib", "256"),
            "config.json: annotations[\"io.cloister.memory_mib\"]: not in allowed_annotations of the \
             configuration"
        );
        assert_eq!(
            error(&["vcpus"], "io.cloister.kernel", "/k"),
            "config.json: annotations[\"io.cloister.kernel\"]: no such setting: vcpus and memory_mib \
             can be set"
        );
        assert_eq!(
            error(&["vcpus"], "io.cloister.vcpus", "many"),
            "config.json: annotations[\"io.cloister.vcpus\"]: \"many\" is not a whole number that fits"
        );
    }

    #[test]
    fn a_pod_has_the_limits_that_its_caller_tells() {
        let given = annotations(&[
            (MEMORY, "1048576"),
            (CPU_QUOTA, "-1"),
            (CPU_PERIOD, "100000"),
        ]);
        let limits = PodLimits {
            memory: Some(1 << 20),
            cpu_quota: None,
            cpu_period: Some(100_000),
        };
        assert_eq!(PodLimits::of(&given), Ok(limits));
        let error = PodLimits::of(&annotations(&[(MEMORY, "1Gi")])).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!(
                "config.json: annotations[{MEMORY:?}]: \"1Gi\" is not a whole number that fits"
            )
        );
    }
}
