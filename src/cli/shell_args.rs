//! `shell`'s flags without those of all other verbs.
//!
//! `shell -- CMD` starts in milliseconds (docs/decisions/0008), and to describe every flag of every verb with its help, which is what
//! clap does before it looks at the first word, takes a good part of one and half a megabyte of fresh memory. Here the program has
//! one verb. Whatever is not understood so, `--help` and mistakes included, is the whole program's to answer: nothing
//! is decided here that it would decide otherwise.

use super::args::{Cli, Global, ShellArgs, Verb};
use clap::{Parser, Subcommand};
use std::ffi::OsString;

#[derive(Debug, Parser)]
#[command(name = "slurm-factory", disable_help_flag = true, disable_help_subcommand = true)]
struct Alone {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    verb: OneVerb,
}

#[derive(Debug, Subcommand)]
enum OneVerb {
    #[command(disable_help_flag = true)]
    Shell(ShellArgs),
}

/// The command line, when it is one of `shell` without a mistake.
pub(super) fn alone(words: impl IntoIterator<Item = OsString>) -> Option<Cli> {
    let words: Vec<OsString> = words.into_iter().collect();
    if !words.iter().any(|word| word == "shell") {
        return None;
    }
    let Alone { global, verb: OneVerb::Shell(args) } = Alone::try_parse_from(words).ok()?;
    Some(Cli { global, verb: Verb::Shell(args) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_understood_alone_is_understood_alike_by_the_whole_program() {
        let shells = [
            "shell",
            "shell -- /bin/true",
            "shell -- --help",
            "shell --root -- apt-get install gdb",
            "--cache-dir /c -q shell --print",
            "--config shell shell --log-format json --color=never -- shell build",
            "shell --writable=overlay -v -- sh -c shell",
        ];
        for line in shells {
            let words = || ["slurm-factory"].into_iter().chain(line.split(' ')).map(OsString::from);
            let alone = alone(words()).unwrap_or_else(|| panic!("{line}"));
            assert_eq!(format!("{alone:?}"), format!("{:?}", Cli::try_parse_from(words()).unwrap()), "{line}");
        }
    }

    #[test]
    fn all_else_is_the_whole_programs() {
        for line in [
            "doctor",
            "shell --help",
            "shell -h",
            "help shell",
            "--version shell",
            "shell --nonsense",
            "shell build",
            "shell -v -q",
            "build --toolchain shell",
            "completions shell",
        ] {
            assert!(alone(format!("slurm-factory {line}").split(' ').map(OsString::from)).is_none(), "{line}");
        }
    }
}
