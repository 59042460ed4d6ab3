//! `cloister events`.

use std::collections::HashMap;
use std::io::Write;
use std::time::Duration;

use anyhow::anyhow;
use cloister::agent::{Agent, AgentError};
use cloister::control;
use cloister::figures::{oom_kills, report};
use cloister::id::ContainerId;
use cloister::text::chain;
use serde_json::{Value, json};

use super::args::EventsOptions;
use super::container::Container;
use super::{Fatal, Globals};

pub(crate) fn events(globals: &Globals, options: &EventsOptions) -> Result<u8, Fatal> {
    let container = Container::find(globals, &options.id)?;
    let id = &container.id;
    if !container.lives() {
        // runc's words.
        return Err(anyhow!("container with id {id} is not running").into());
    }
    container.ask(async |agent| {
        if options.stats {
            let stats = agent.stats(id.as_str()).await?;
            return Ok(print_stats(&container, &stats));
        }
        Ok(tokio::select! {
            result = tell_stats(agent, &container, options) => result,
            result = tell_oom(agent, id) => result,
        })
    })???;
    Ok(0)
}

/// Tells what is used, again and again, until the container has ended.
async fn tell_stats(
    agent: &Agent,
    container: &Container,
    options: &EventsOptions,
) -> anyhow::Result<()> {
    loop {
        tokio::time::sleep(options.interval).await;
        match agent.stats(container.id.as_str()).await {
            Ok(stats) => print_stats(container, &stats)?,
            Err(e) => return ended(e),
        }
    }
}

/// Tells when the OOM killer has struck, until the container has ended.
async fn tell_oom(agent: &Agent, id: &ContainerId) -> anyhow::Result<()> {
    let mut known = match agent.stats(id.as_str()).await {
        Ok(stats) => oom_kills(&stats),
        Err(e) => return ended(e),
    };
    loop {
        match agent.wait_oom(id.as_str(), known).await {
            Ok(count) if count > known => {
                known = count;
                print(id, "oom", &Value::Null)?;
            }
            Ok(_) => {}
            Err(e) => return ended(e),
        }
        // A guest must not keep this machine busy by its answers.
        tokio::time::sleep(OOM_PAUSE).await;
    }
}

/// The end of the container, which comes as a refusal or as a broken connection, is the end of its
/// events and no failure.
fn ended(error: AgentError) -> anyhow::Result<()> {
    match error {
        AgentError::Refused { gone: true, .. } | AgentError::Lost { .. } => Ok(()),
        error => Err(error.into()),
    }
}

fn print_stats(container: &Container, files: &HashMap<String, String>) -> anyhow::Result<()> {
    let mut report = report(files);
    // A container that has joined a network has none to tell of, as under runc.
    if container.state.network.is_some() {
        let counters = control::network_counters(&container.dir.file(), container.limit);
        match counters {
            Ok(counters) if counters.is_empty() => {}
            Ok(counters) => report["network_interfaces"] = json!(counters),
            // It may be at its end. The rest is worth telling.
            Err(e) => log::warn!("{}", chain(&e)),
        }
    }
    print(&container.id, "stats", &report)
}

fn print(id: &ContainerId, kind: &str, data: &Value) -> anyhow::Result<()> {
    let mut event = json!({ "type": kind, "id": id.as_str() });
    if !data.is_null() {
        event["data"] = data.clone();
    }
    let mut out = std::io::stdout().lock();
    writeln!(out, "{event}")?;
    Ok(out.flush()?)
}

/// The least time between two reports of the OOM killer.
const OOM_PAUSE: Duration = Duration::from_millis(100);
