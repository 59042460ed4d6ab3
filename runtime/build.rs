//! Generates the messages of `proto/callers.proto`, without protoc.

use std::io;
use std::path::Path;

fn main() -> io::Result<()> {
    println!("cargo:rerun-if-changed=proto/callers.proto");
    let out = std::env::var("OUT_DIR").map_err(io::Error::other)?;
    protobuf_codegen::Codegen::new()
        .pure()
        .out_dir(&out)
        .include("proto")
        .input("proto/callers.proto")
        .run()
        .map_err(io::Error::other)?;
    // The generated file begins with inner attributes, so that it cannot be included directly: a
    // module file of our own names it.
    std::fs::write(Path::new(&out).join("mod.rs"), "pub mod callers;\n")
}
