//! `cloister`: the OCI command line, and the monitor that it starts.
//!
//! `cloister monitor FD` is the command line's own: it takes its orders from a socket at that
//! descriptor (`cloister::launch`). Everything else is in [`cli`].

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    let exec_ns = cloister::time::monotonic_ns();
    let mut args = std::env::args_os().skip(1);
    if args.next().is_some_and(|command| command == "monitor") {
        return monitor(args.next().as_deref());
    }
    cli::main(exec_ns)
}

#[expect(unsafe_code, reason = "the monitor takes over an inherited descriptor")]
fn monitor(control: Option<&std::ffi::OsStr>) -> ExitCode {
    let control = control
        .and_then(|fd| fd.to_str())
        .and_then(|fd| fd.parse().ok());
    let Some(control) = control else {
        eprintln!("cloister monitor: started by `cloister create` and `cloister run` only");
        return ExitCode::FAILURE;
    };
    // SAFETY: this is the beginning of the process, which has opened nothing yet.
    match unsafe { cloister::monitor::run(control) } {
        Ok(code) => ExitCode::from(code),
        Err(e) => {
            eprintln!("cloister monitor: {}", cloister::text::chain(&e));
            ExitCode::FAILURE
        }
    }
}
