//! `relocate`

use super::args::RelocateArgs;
use super::{exit, print, print_json};
use crate::package::Tree;
use crate::relocate::{self, Moved, Request};
use crate::report::{Ctx, Stage};
use anyhow::{Context as _, Result};
use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;

/// `relocate`
pub fn run(args: &RelocateArgs, ctx: &Ctx) -> Result<ExitCode> {
    let to = match &args.to {
        Some(to) => to.clone(),
        None => std::path::absolute(&args.dir).context("relocate: where the tree lies")?,
    };
    if matches!(Tree::open(&args.dir), Ok(Some(_))) {
        let dir = args.dir.display();
        return Err(exit::Usage(format!(
            "`{dir}` holds a package of slurm-factory, whose files are checked against its manifest: install the package at the \
             new prefix (`slurm-factory install`), which needs no relocation"
        ))
        .into());
    }
    let request = Request { dir: &args.dir, from: &args.from, to: &to, dry_run: args.dry_run, force: args.force };
    let timer =
        ctx.stage(Stage::Relocate, format!("{} from {} to {}", args.dir.display(), args.from.display(), to.display()));
    let moved = relocate::in_place(&request, ctx)?;
    timer.done(format!("{} files", moved.files));
    ctx.reporter.finish();
    for path in &moved.through_env {
        ctx.warn(format!("{}: its interpreter is found through PATH now", path.display()));
    }
    for unseen in &moved.unseen {
        ctx.warn(format!("may name the old prefix: {}: {}", unseen.path.display(), unseen.reason));
    }
    for leftover in &moved.leftovers {
        ctx.warn(format!("still names the old prefix: {leftover}"));
    }
    if args.json {
        print_json(&moved)?;
    } else {
        print(&describe(&moved, args.dry_run, &args.from, &to))?;
    }
    Ok(if args.dry_run && !moved.leftovers.is_empty() { ExitCode::from(exit::VERIFY) } else { ExitCode::SUCCESS })
}

fn describe(moved: &Moved, dry_run: bool, from: &Path, to: &Path) -> String {
    let mut text = String::new();
    let Moved { files, search_paths, interpreters, text: texts, strings, links, completed, leftovers, .. } = moved;
    let how = if dry_run { "would be" } else { "were" };
    // Writing to a string does not fail.
    let _ = writeln!(
        text,
        "{files} files looked at; {how} changed: search paths of {search_paths}, loaders of {interpreters}, text of {texts}, \
         {strings} places in binaries, {links} symlinks"
    );
    if *completed {
        let _ = writeln!(text, "an earlier run that was cut is complete now");
    }
    let works = if dry_run { "would then work" } else { "works" };
    let _ = if moved.is_nothing() {
        writeln!(text, "nothing in it names {}: is that the prefix that it was built for?", from.display())
    } else if leftovers.is_empty() {
        writeln!(text, "the tree {works} at {}", to.display())
    } else {
        let count = leftovers.len();
        writeln!(text, "the tree {works} at {} as far as it does without the {count} places named above", to.display())
    };
    text
}
