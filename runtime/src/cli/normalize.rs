//! Spellings that Go's command lines take and clap does not.
//!
//! A long option may have one dash (`-no-subreaper`, as go-runc writes it), one that takes no value
//! may be given a truth value (`--debug=false`), and everything behind the first word that is no
//! option is left alone for commands that execute another's words.

use std::ffi::OsString;

use clap::Command;
use cloister::text::truth;

/// Gives options with one dash their second one, and takes their truth values away.
pub(crate) fn normalize(args: impl Iterator<Item = OsString>, command: &Command) -> Vec<OsString> {
    let mut normal: Vec<OsString> = Vec::new();
    let mut level = Some(command);
    let mut is_value = false;
    for (position, arg) in args.enumerate() {
        let (Some(current), false, 1..) = (level, is_value, position) else {
            is_value = false;
            normal.push(arg);
            continue;
        };
        let Some(text) = arg
            .to_str()
            .filter(|text| text.starts_with('-') && text.len() > 1)
        else {
            // A command, or the first of its words.
            let next = current.find_subcommand(&arg);
            level = match next {
                Some(_) => next,
                None if current
                    .get_positionals()
                    .any(|p| p.is_trailing_var_arg_set()) =>
                {
                    None
                }
                None => level,
            };
            normal.push(arg);
            continue;
        };
        if text == "--" {
            level = None;
            normal.push(arg);
            continue;
        }
        let name = text.trim_start_matches('-');
        let (name, value) = match name.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (name, None),
        };
        let long = current
            .get_opts()
            .chain(current.get_arguments())
            .find(|option| name.len() > 1 && option.get_long() == Some(name));
        let short = (name.len() == 1)
            .then(|| {
                let letter = name.chars().next();
                current
                    .get_arguments()
                    .find(|option| option.get_short() == letter)
            })
            .flatten();
        let option = long.or(short);
        let takes_value = option.is_some_and(|option| option.get_action().takes_values());
        is_value = takes_value && value.is_none();
        let dashes = match long {
            Some(_) => "--",
            None => text
                .strip_suffix(text.trim_start_matches('-'))
                .unwrap_or("-"),
        };
        let truth = value
            .filter(|_| option.is_some() && !takes_value)
            .and_then(truth);
        match truth {
            Some(true) => normal.push(format!("{dashes}{name}").into()),
            // As if it were not there.
            Some(false) => {}
            None if long.is_some() && !text.starts_with("--") => {
                normal.push(format!("-{text}").into());
            }
            None => normal.push(arg),
        }
    }
    normal
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::super::args::Cli;
    use super::*;

    fn check(given: &str, expected: &str) {
        let args = given.split(' ').map(OsString::from);
        let normal = normalize(args, &Cli::command());
        assert_eq!(normal.join(std::ffi::OsStr::new(" ")), expected);
    }

    #[test]
    fn one_dash_is_as_good_as_two() {
        check(
            "c -root /r -debug run -no-subreaper --pid-file p -bundle=b id",
            "c --root /r --debug run --no-subreaper --pid-file p --bundle=b id",
        );
        check("c list -q -f json", "c list -q -f json");
    }

    #[test]
    fn truth_values_are_taken_away() {
        check(
            "c --debug=true -systemd-cgroup=0 exec -detach=T -t=false id --tty=false",
            "c --debug exec --detach id --tty=false",
        );
        check("c list -q=1 --quiet=maybe", "c list -q --quiet=maybe");
        check("c --rootless false list", "c --rootless false list");
        check("c --log=true state x", "c --log=true state x");
    }

    #[test]
    fn values_and_words_of_others_stay() {
        check(
            "c exec -e -tty -env A=-tty id -tty -env --tty",
            "c exec -e -tty --env A=-tty id -tty -env --tty",
        );
        check("c --log -debug state -root", "c --log -debug state -root");
        check("c kill id -- -all", "c kill id -- -all");
    }
}
