//! `-info`: what the runtime can do.

use std::io::{self, Write};

use containerd_shim_protos::types::introspection::{RuntimeInfo, RuntimeVersion};
use protobuf::well_known_types::any::Any;
use protobuf::{Message, MessageField};

use super::start;

/// The type of the features of the OCI runtime specification, as JSON.
const FEATURES: &str = "types.containerd.io/opencontainers/runtime-spec/1/features/Features";
/// The runtime's name.
pub(crate) const NAME: &str = "io.containerd.cloister.v2";

/// Prints it.
pub(crate) fn info() -> anyhow::Result<()> {
    let input = start::input()?;
    let info = RuntimeInfo {
        name: NAME.into(),
        version: MessageField::some(RuntimeVersion {
            version: env!("CARGO_PKG_VERSION").into(),
            ..RuntimeVersion::default()
        }),
        options: input.options.into(),
        features: MessageField::some(Any {
            type_url: FEATURES.into(),
            value: cloister_spec::features().to_string().into_bytes(),
            ..Any::default()
        }),
        // No annotation `containerd.io/runtime-allow-mounts`: what is no file system of the kernel's (loop devices, `format/`,
        // `mkfs/`, `mkdir/`) is for containerd's mount manager, and the shim gets what that has made of it.
        ..RuntimeInfo::default()
    };
    let mut stdout = io::stdout().lock();
    stdout.write_all(&info.write_to_bytes()?)?;
    Ok(stdout.flush()?)
}
