//! `cloister spec`.

use std::fs::OpenOptions;
use std::io::{self, Write};

use anyhow::Context;
use cloister::paths::SPEC_FILE;

use super::Fatal;
use super::args::SpecOptions;

pub(crate) fn spec(options: &SpecOptions) -> Result<u8, Fatal> {
    if options.rootless {
        return Err(anyhow::anyhow!("--rootless is not supported: cloister runs as root").into());
    }
    let path = options.bundle.join(SPEC_FILE);
    let file = OpenOptions::new().write(true).create_new(true).open(&path);
    let mut file = match file {
        Ok(file) => file,
        // runc's words.
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
            return Err(anyhow::anyhow!("File {SPEC_FILE} exists. Remove it first").into());
        }
        Err(e) => {
            return Err(anyhow::Error::new(e)
                .context(format!("--bundle: {}", path.display()))
                .into());
        }
    };
    file.write_all(cloister_spec::default_spec().as_bytes())
        .with_context(|| path.display().to_string())?;
    Ok(0)
}
