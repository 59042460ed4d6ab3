//! Which containers share a shim: those of one pod.

use std::fs;
use std::io;
use std::path::Path;

use cloister::paths::SPEC_FILE;
use serde::Deserialize;

/// The annotations that name the pod of a container, the first first.
const ANNOTATIONS: [&str; 3] = [
    "io.containerd.runc.v2.group",
    "io.kubernetes.cri.sandbox-id",
    "io.kubernetes.cri-o.SandboxID",
];

/// What of the specification says how the shim is run.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Brief {
    #[serde(default)]
    annotations: std::collections::HashMap<String, String>,
    #[serde(default)]
    linux: Option<Linux>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Linux {
    #[serde(default)]
    cgroups_path: Option<String>,
}

impl Brief {
    /// Reads it from a bundle. One that has no specification, as that of a sandbox may, is empty;
    /// what is wrong with one is for whoever creates the container.
    pub(crate) fn of(bundle: &Path) -> io::Result<Self> {
        let text = match fs::read(bundle.join(SPEC_FILE)) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(e) => return Err(e),
        };
        Ok(serde_json::from_slice(&text).unwrap_or_default())
    }

    /// The name of the group of container `id`: its sandbox's, or its own.
    pub(crate) fn group<'a>(&'a self, id: &'a str) -> &'a str {
        let named = ANNOTATIONS
            .iter()
            .find_map(|annotation| self.annotations.get(*annotation));
        named.map_or(id, String::as_str)
    }

    /// Whether the path of the cgroup has systemd's form, SLICE:PREFIX:NAME. containerd's CRI
    /// plugin and Docker do not say it otherwise.
    pub(crate) fn has_systemd_cgroup(&self) -> bool {
        let path = self
            .linux
            .as_ref()
            .and_then(|linux| linux.cgroups_path.as_deref());
        let mut parts = path.unwrap_or_default().split(':');
        let (slice, rest) = (parts.next().unwrap_or_default(), parts.count());
        rest == 2 && !slice.contains('/') && (slice.is_empty() || slice.ends_with(".slice"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn brief(text: &str) -> Brief {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(SPEC_FILE), text).unwrap();
        Brief::of(dir.path()).unwrap()
    }

    #[test]
    fn a_pod_has_one_group() {
        assert_eq!(
            Brief::of(Path::new("/nonexistent")).unwrap().group("x"),
            "x"
        );
        assert_eq!(brief("{}").group("x"), "x");
        for annotation in ANNOTATIONS {
            let spec = format!("{{\"annotations\": {{\"{annotation}\": \"pod\"}}}}");
            assert_eq!(brief(&spec).group("x"), "pod");
        }
    }

    #[test]
    fn systemds_form_of_a_cgroup_is_known() {
        for (path, expected) in [
            ("system.slice:docker:abc", true),
            (":cri-containerd:abc", true),
            ("kubepods-burstable-pod1.slice:cri-containerd:abc", true),
            ("/default/abc", false),
            ("/k8s.io/a:b:c", false),
            ("", false),
        ] {
            let spec = format!("{{\"linux\": {{\"cgroupsPath\": \"{path}\"}}}}");
            assert_eq!(brief(&spec).has_systemd_cgroup(), expected, "{path}");
        }
    }
}
