//! Spellings that Go's command lines take and clap does not.
//!
//! A long option may have one dash (`-no-subreaper`, as go-runc writes it), and everything behind
//! the first word that is no option is left alone for commands that execute another's words.

use std::ffi::OsString;

use clap::Command;

/// Gives options with one dash their second one.
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
        let name = name.split_once('=').map_or(name, |(name, _)| name);
        let long = current
            .get_opts()
            .chain(current.get_arguments())
            .find(|option| name.len() > 1 && option.get_long() == Some(name));
        let short = (text.len() == 2)
            .then(|| {
                let letter = name.chars().next();
                current
                    .get_arguments()
                    .find(|option| option.get_short() == letter)
            })
            .flatten();
        let takes_value = |option: &clap::Arg| {
            option.get_action().takes_values()
                && !option.is_require_equals_set()
                && !text.contains('=')
        };
        is_value = long.or(short).is_some_and(takes_value);
        if long.is_some() && !text.starts_with("--") {
            normal.push(format!("-{text}").into());
        } else {
            normal.push(arg);
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
    fn values_and_words_of_others_stay() {
        check(
            "c exec -e -tty -env A=-tty id -tty -env --tty",
            "c exec -e -tty --env A=-tty id -tty -env --tty",
        );
        check("c --log -debug state -root", "c --log -debug state -root");
        check("c kill id -- -all", "c kill id -- -all");
    }
}
