//! Generates the messages and the ttrpc service from `proto/agent.proto`, without protoc.

use std::io;
use std::path::Path;

fn main() -> io::Result<()> {
    println!("cargo:rerun-if-changed=proto/agent.proto");
    let out = std::env::var("OUT_DIR").map_err(io::Error::other)?;
    ttrpc_codegen::Codegen::new()
        .out_dir(&out)
        .inputs(["proto/agent.proto"])
        .include("proto")
        .rust_protobuf()
        .customize(ttrpc_codegen::Customize {
            async_all: true,
            ..Default::default()
        })
        .run()
        .map_err(io::Error::other)?;
    // Both generated files begin with inner attributes, so that they cannot be included
    // directly: a module file of our own names them.
    let modules = "pub mod agent;\npub mod agent_ttrpc;\n";
    std::fs::write(Path::new(&out).join("mod.rs"), modules)
}
