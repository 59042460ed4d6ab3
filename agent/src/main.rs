//! `cloister-agent`, the first process of every guest. See the library for what it does.

use std::process::ExitCode;

fn main() -> ExitCode {
    // A container's init stage is this executable, executed again.
    if cloister_container::init::is_init_stage() {
        return cloister_container::init::main();
    }
    let Err(error) = cloister_agent::run();
    // The console. The kernel panics when its first process ends, and the host finds this line.
    eprintln!("cloister-agent: {}", cloister_agent::chain(&*error));
    ExitCode::FAILURE
}
