//! Runs the steps of the prepare stage in a sandbox, one after the other, with one log of all.
//!
//! Proxies, mirrors and indexes may be named with a password (`https://user:password@host/`). Programs that are refused like
//! to print where they were going, so each line is cleaned of what is secret before it is logged, shown or put in an error.

use super::prepare::PrepareError;
use crate::report::{Ctx, Event, Stage};
use crate::sandbox::{Io, Sandbox, Spec};
use fs_err as fs;
use percent_encoding::percent_decode_str;
use regex::Regex;
use std::borrow::Cow;
use std::collections::VecDeque;
use std::ffi::OsString;
use std::io::{self, BufWriter, Write};
use std::path::PathBuf;

/// How many lines of output an error carries.
const TAIL_LINES: usize = 15;

/// How many lines of a step are kept.
const KEPT_LINES: usize = 8192;

/// Runs steps.
pub struct Runner<'a> {
    sandbox: &'a Sandbox,
    ctx: &'a Ctx,
    log: BufWriter<fs::File>,
    path: PathBuf,
    hidden: Hidden,
}

impl<'a> Runner<'a> {
    /// Begins a log at `path`.
    pub fn new(sandbox: &'a Sandbox, ctx: &'a Ctx, path: PathBuf, hidden: Hidden) -> io::Result<Self> {
        Ok(Self { sandbox, ctx, log: BufWriter::new(fs::File::create(&path)?), path, hidden })
    }

    /// Runs one step to its end; returns its last lines (all of them when they are few).
    pub fn run(&mut self, step: &str, spec: &Spec, argv: &[String]) -> Result<Vec<String>, PrepareError> {
        self.ctx.check()?;
        writeln!(self.log, "# {}", argv.join(" "))?;
        let mut lines: VecDeque<String> = VecDeque::new();
        let mut written = Ok(());
        let argv: Vec<OsString> = argv.iter().map(OsString::from).collect();
        let exit = self.sandbox.run(
            spec,
            &argv,
            Io::Lines(&mut |line: &str| {
                let line = self.hidden.in_line(line).into_owned();
                if written.is_ok() {
                    written = writeln!(self.log, "{line}");
                }
                self.ctx.event(&Event::Output { stage: Stage::Rootfs, line: line.clone() });
                if lines.len() == KEPT_LINES {
                    lines.pop_front();
                }
                lines.push_back(line);
            }),
            &self.ctx.interrupt,
        )?;
        self.log.flush()?;
        written?;
        self.ctx.check()?;
        if exit.success() {
            return Ok(lines.into());
        }
        let skip = lines.len().saturating_sub(TAIL_LINES);
        Err(PrepareError::Step {
            step: step.to_owned(),
            exit: exit.ended,
            tail: lines.into_iter().skip(skip).chain(exit.memory).collect(),
            log: self.path.clone(),
        })
    }
}

/// What no line may show: the part before the `@` of addresses, and the passwords in it.
#[derive(Default)]
pub struct Hidden(Vec<String>);

impl Hidden {
    /// Of the addresses in these texts.
    pub fn of<'t>(texts: impl IntoIterator<Item = &'t str>) -> Self {
        let mut hidden = Vec::new();
        let Ok(user) = Regex::new(r"://([^/\s@]+)@") else { return Self(hidden) };
        for text in texts {
            for found in user.captures_iter(text) {
                let whole = &found[1];
                let password = whole.split_once(':').map_or(whole, |(_, password)| password);
                for secret in [whole, password] {
                    hidden.extend([secret.to_owned(), plain(secret)]);
                }
            }
        }
        // A short word would be found everywhere.
        hidden.retain(|secret| secret.len() > 3);
        hidden.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
        hidden.dedup();
        Self(hidden)
    }

    /// The line with `***` where something was hidden.
    pub fn in_line<'l>(&self, line: &'l str) -> Cow<'l, str> {
        let mut line = Cow::Borrowed(line);
        for secret in &self.0 {
            if line.contains(secret.as_str()) {
                line = Cow::Owned(line.replace(secret.as_str(), "***"));
            }
        }
        line
    }
}

/// Without percent-encoding (RFC 3986, 2.1); as it is when that gives no text.
fn plain(text: &str) -> String {
    percent_decode_str(text).decode_utf8().map_or_else(|_| text.to_owned(), Cow::into_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_hidden_in_either_spelling() {
        let hidden =
            Hidden::of(["http://me:hun%74er2@proxy:3128", "https://token1234@site/simple", "http://proxy:3128"]);
        for (line, want) in [
            ("cannot reach http://me:hun%74er2@proxy:3128/", "cannot reach http://***@proxy:3128/"),
            ("password hunter2 refused", "password *** refused"),
            ("GET https://token1234@site/simple", "GET https://***@site/simple"),
            ("Get:1 http://proxy:3128 x", "Get:1 http://proxy:3128 x"),
        ] {
            assert_eq!(hidden.in_line(line), want);
        }
        assert_eq!(plain("100%"), "100%");
    }
}
