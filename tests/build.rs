//! Generates the messages of `proto/cri.proto` for the tests that speak them, without protoc.

fn main() -> std::io::Result<()> {
    println!("cargo:rerun-if-changed=proto/cri.proto");
    #[cfg(feature = "e2e")]
    generate()?;
    Ok(())
}

#[cfg(feature = "e2e")]
fn generate() -> std::io::Result<()> {
    use std::io::Error;

    let out = std::env::var("OUT_DIR").map_err(Error::other)?;
    protobuf_codegen::Codegen::new()
        .pure()
        .out_dir(&out)
        .include("proto")
        .input("proto/cri.proto")
        .run()
        .map_err(Error::other)?;
    // The generated file begins with inner attributes, so that it cannot be included directly: a
    // module file of our own names it.
    std::fs::write(std::path::Path::new(&out).join("mod.rs"), "pub mod cri;\n")
}
