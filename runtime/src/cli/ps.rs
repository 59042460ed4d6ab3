//! `cloister ps`.

use std::io::Write;

use anyhow::anyhow;
use cloister::processes::Columns;

use super::args::{ListFormat, PsOptions};
use super::container::Container;
use super::{Fatal, Globals, refuse_option};

pub(crate) fn ps(globals: &Globals, options: &PsOptions) -> Result<u8, Fatal> {
    let (id, words) = options
        .words
        .split_first()
        .ok_or_else(|| anyhow!("no container is named"))?;
    refuse_option(id)?;
    let columns = Columns::parse(words)?;
    let container = Container::find(globals, id)?;
    let lives = container.lives();
    let text = match options.format {
        ListFormat::Json => {
            let mut pids = Vec::new();
            if lives {
                pids.push(container.state.monitor.pid);
                let mut others = container.dir.execs()?;
                others.extend(container.dir.commands()?);
                others.sort_by_key(|process| process.pid);
                pids.extend(others.iter().map(|process| process.pid));
            }
            serde_json::to_string(&pids)? + "\n"
        }
        ListFormat::Table => {
            let mut processes = Vec::new();
            if lives {
                processes = container.ask(async |agent| agent.processes(id).await)??;
            }
            columns.table(&processes)
        }
    };
    std::io::stdout().lock().write_all(text.as_bytes())?;
    Ok(0)
}
