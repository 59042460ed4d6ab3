//! `cloister features`.

use std::io::Write;

use super::Fatal;

pub(crate) fn features() -> Result<u8, Fatal> {
    let features = cloister_spec::features();
    let mut out = std::io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, &features)?;
    writeln!(out)?;
    Ok(0)
}
