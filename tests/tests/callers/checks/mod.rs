//! What Podman and Docker both do, by theme; each check is a test of either (see [`engine_checks`]).

pub(crate) mod exec;
pub(crate) mod lifecycle;
pub(crate) mod limits;
pub(crate) mod network;
pub(crate) mod process;
pub(crate) mod rootfs;
pub(crate) mod run;

/// Makes a test of each check, for one engine.
macro_rules! engine_checks {
    ($engine:ident) => {
        crate::checks::engine_checks! { @tests $engine,
            run: output_and_exit_code, input, exit_codes_of_signals, terminal, names_and_environment,
                a_missing_program, init;
            exec: output_and_exit_code, environment_and_user, input, terminal, detached, a_missing_program;
            lifecycle: logs, stop, kill, pause, top, stats, wait, start_again, remove_by_force,
                two_at_once;
            limits: memory, cpus, pids, update, ulimit;
            network: published_port, two_containers, names_in_a_network_of_ones_own, connect_and_disconnect,
                interfaces_on_one_of_the_machine, the_network_of_another_container, the_hosts_network;
            process: user, capabilities, no_new_privileges, seccomp, sysctl;
            rootfs: read_only, tmpfs, volumes, a_file_as_volume, copy, shm, device;
        }
    };
    (@tests $engine:ident, $($theme:ident: $($check:ident),+;)+) => {
        $(mod $theme {
            $(#[test]
            fn $check() {
                crate::checks::$theme::$check(&crate::harness::Case::new(crate::harness::Engine::$engine));
            })+
        })+
    };
}
pub(crate) use engine_checks;
