//! The messages of callers that containerd's own crate does not have: `proto/callers.proto`.

mod generated {
    #![allow(
        clippy::all,
        clippy::cast_possible_truncation,
        clippy::cast_possible_wrap,
        clippy::cast_sign_loss,
        clippy::expect_used,
        clippy::panic,
        clippy::unwrap_used,
        missing_docs,
        unreachable_pub,
        dead_code,
        reason = "generated code; proto/callers.proto documents it"
    )]
    include!(concat!(env!("OUT_DIR"), "/mod.rs"));
}

pub(crate) use generated::callers::{
    DNSConfig, Data, LinuxContainerResources, NamespaceMode, PodSandboxConfig, RuntimeOptions,
    StreamInit, WindowUpdate,
};
#[cfg(test)]
pub(crate) use generated::callers::{
    LinuxPodSandboxConfig, LinuxSandboxSecurityContext, NamespaceOption, UserNamespace,
};
