//! Writes the manual pages and the completion scripts of `cloister`, from the definitions that its
//! command line is parsed by.
//!
//! ```text
//! cargo run -p cloister --example manual -- DIR
//!   DIR/man/man8/cloister.8 cloister-COMMAND.8
//!   DIR/bash-completion/completions/cloister
//!   DIR/zsh/site-functions/_cloister
//!   DIR/fish/vendor_completions.d/cloister.fish
//! ```
#![allow(
    dead_code,
    reason = "of the definitions only their descriptions are used"
)]

#[path = "../src/cli/args.rs"]
mod args;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use clap::{Command, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man;

fn main() -> io::Result<()> {
    let Some(dir) = std::env::args_os().nth(1).map(PathBuf::from) else {
        eprintln!("usage: manual DIR");
        std::process::exit(2);
    };
    let command = args::Cli::command();
    pages(&command, &dir.join("man/man8"))?;
    for (shell, place) in [
        (Shell::Bash, "bash-completion/completions/cloister"),
        (Shell::Zsh, "zsh/site-functions/_cloister"),
        (Shell::Fish, "fish/vendor_completions.d/cloister.fish"),
    ] {
        let path = dir.join(place);
        fs::create_dir_all(path.parent().unwrap_or(&dir))?;
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut command.clone(), "cloister", &mut script);
        fs::write(path, script)?;
    }
    Ok(())
}

/// A page for the program and one for each of its commands, as git has them.
fn pages(command: &Command, dir: &Path) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    page(command.clone(), "cloister", dir)?;
    for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
        let name = format!("cloister-{}", sub.get_name());
        let shown = format!("cloister {}", sub.get_name());
        page(sub.clone().display_name(&name).bin_name(shown), &name, dir)?;
    }
    Ok(())
}

fn page(command: Command, name: &str, dir: &Path) -> io::Result<()> {
    let version = env!("CARGO_PKG_VERSION");
    let man = Man::new(command)
        .title(name.to_uppercase())
        .section("8")
        .source(format!("cloister {version}"))
        .manual("Containers");
    let mut text = Vec::new();
    man.render(&mut text)?;
    fs::write(dir.join(format!("{name}.8")), text)
}
