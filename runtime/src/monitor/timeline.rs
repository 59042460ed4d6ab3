//! When what happened in a container's life, for those who look for lost time.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use cloister_vmm_api::Timeline as VmTimeline;

use crate::time::monotonic_ns;

/// The phases that were reached, in nanoseconds of `CLOCK_MONOTONIC`.
#[derive(Debug, Default)]
pub(crate) struct Timeline {
    phases: BTreeMap<&'static str, u64>,
}

impl Timeline {
    /// Notes that `phase` is reached now.
    pub(crate) fn reached(&mut self, phase: &'static str) {
        self.at(phase, monotonic_ns());
    }

    /// Notes when `phase` was reached; 0 means that it was not.
    pub(crate) fn at(&mut self, phase: &'static str, ns: u64) {
        if ns != 0 {
            self.phases.insert(phase, ns);
        }
    }

    /// Notes the phases of the virtual machine.
    pub(crate) fn vm(&mut self, vm: &VmTimeline) {
        self.at("vmm_main", vm.main);
        self.at("vmm_configured", vm.configured);
        self.at("vm_created", vm.created);
        self.at("kernel_loaded", vm.loaded);
        self.at("kernel_entered", vm.entered);
        self.at("guest_init", vm.init);
    }

    /// Writes what was noted as one JSON object.
    pub(crate) fn write(&self, path: &Path) -> io::Result<()> {
        let mut text = serde_json::to_string_pretty(&self.phases)?;
        text.push('\n');
        std::fs::write(path, text)
    }
}
