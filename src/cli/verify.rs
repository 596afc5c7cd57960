//! `verify`

use super::args::{Global, VerifyArgs};
use super::{catalog, exit, print, print_json, settings};
use crate::config::Settings;
use crate::oldest::Oldest;
use crate::package::{Attested, Difference, Manifest};
use crate::relocate::verify::{Findings, Named, Needed};
use crate::relocate::{Layout, Rules};
use crate::report::Ctx;
use crate::sign::Fingerprint;
use crate::workflows::{processor, verify};
use anyhow::Result;
use serde::Serialize;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;

#[derive(Serialize)]
struct Answer<'a> {
    path: String,
    fit: bool,
    /// The first of them.
    signer: Option<&'a str>,
    signers: &'a [Fingerprint],
    /// Keys that signed it too and are not known: they count for nothing.
    unknown_signers: &'a [String],
    /// What lay beside it and vouches for it.
    attestations: &'a [Attested],
    sha256: Option<&'a str>,
    /// What code was made for, in Spack's words.
    target: Option<&'a str>,
    fill_in: &'a [String],
    differences: &'a [Difference],
    #[serde(flatten)]
    findings: &'a Findings,
}

/// What a package and a tree have in common for whoever asks.
#[derive(Default)]
struct Checked {
    findings: Findings,
    signers: Vec<Fingerprint>,
    strangers: Vec<String>,
    attested: Vec<Attested>,
    sha256: Option<String>,
    target: Option<String>,
    toolchain: Option<String>,
    fill_in: Vec<String>,
    /// Why the signature or the sums say nothing.
    unsure: Option<&'static str>,
    differences: Vec<Difference>,
}

fn check_tree(args: &VerifyArgs, rules: &Rules, layout: Layout<'_>, ctx: &Ctx) -> Result<Checked> {
    let verified = verify::tree(&args.path, rules, layout, ctx)?;
    if let (Some(_), Some(package)) = (&args.from, &verified.package) {
        return Err(exit::Usage(format!(
            "verify --from is about what others made, and `{}` is a package of ours: {}",
            args.path.display(),
            package.manifest().facts.title()
        ))
        .into());
    }
    let facts = verified.package.as_ref().map(|tree| tree.manifest().facts.clone());
    let (unsure, fill_in) = match &verified.package {
        None => (
            "a tree has no signature; it holds no package's manifest.json: only what is in the files is checked",
            Vec::new(),
        ),
        Some(tree) => (
            "a tree has no signature; every file is checked against the manifest.json in it, which anyone could change: verify the package for the signature",
            if tree.record().is_none() { files(tree.manifest()) } else { Vec::new() },
        ),
    };
    let (findings, differences) = (verified.findings, verified.differences);
    let (target, toolchain) = facts.map(|facts| (facts.target, facts.toolchain)).unzip();
    Ok(Checked { findings, differences, fill_in, target, toolchain, unsure: Some(unsure), ..Checked::default() })
}

/// The files into which `install` writes.
fn files(manifest: &Manifest) -> Vec<String> {
    manifest.facts.filled_in().into_iter().map(str::to_owned).collect()
}

fn check_package(global: &Global, args: &VerifyArgs, rules: &Rules, ctx: &Ctx) -> Result<Checked> {
    let keyring = args.trust.keyring(global, ctx)?;
    let verified = verify::package(&args.path, args.trust.trust(&keyring), rules, ctx)?;
    let target = &verified.package.manifest().facts.target;
    if processor::runs_here(target) == Some(false) {
        ctx.warn(format!("made for {target}, which this machine's processor is older than: it does not run here"));
    }
    Ok(Checked {
        signers: verified.signers,
        strangers: verified.package.strangers().to_vec(),
        attested: verified.package.attested().to_vec(),
        sha256: Some(verified.package.sha256().to_owned()),
        target: Some(target.clone()),
        toolchain: Some(verified.package.manifest().facts.toolchain.clone()),
        fill_in: files(verified.package.manifest()),
        findings: verified.findings,
        ..Checked::default()
    })
}

/// `verify`
pub fn run(global: &Global, args: &VerifyArgs, ctx: &Ctx) -> Result<ExitCode> {
    let settings = settings(global, Settings::default())?;
    let rules = Rules::of_site(&settings.catalog.relocate)?;
    let catalog = catalog(&settings)?;
    let oldest = args.oldest.as_deref().map(|asked| Oldest::parse(asked, &catalog));
    let oldest = oldest.transpose().map_err(|e| exit::Usage(format!("--for: {e}")))?;
    let is_tree = fs_err::metadata(&args.path).map_err(|e| exit::Usage(format!("verify: {e}")))?.is_dir();
    let of_others = args.from.as_ref().map(|_| rules.of_others());
    let layout = args.from.as_deref().map_or(Ok(Layout::BUILD), prefix)?;
    let mut checked = match (is_tree, args.foreign) {
        (true, _) => check_tree(args, of_others.as_ref().unwrap_or(&rules), layout, ctx)?,
        (false, false) if args.from.is_some() => {
            let text = "verify --from is about a tree, or about an archive of another: add --foreign";
            return Err(exit::Usage(text.into()).into());
        }
        (false, true) => Checked {
            findings: verify::foreign(&args.path, of_others.as_ref().unwrap_or(&rules), layout, ctx)?,
            unsure: Some("no signature, sum or manifest was asked for: only what is in the files is checked"),
            ..Checked::default()
        },
        (false, false) => check_package(global, args, &rules, ctx)?,
    };
    let oldest = oldest.or_else(|| Oldest::of_toolchain(checked.toolchain.as_deref()?, &catalog));
    verify::hold_to(&mut checked.findings, oldest.as_ref());
    if let Some(unsure) = checked.unsure {
        ctx.warn(unsure);
    }
    ctx.reporter.finish();
    let fit = checked.findings.problems.is_empty() && checked.differences.is_empty();
    if args.json {
        print_json(&Answer {
            path: args.path.display().to_string(),
            fit,
            signer: checked.signers.first().map(Fingerprint::as_str),
            signers: &checked.signers,
            unknown_signers: &checked.strangers,
            attestations: &checked.attested,
            sha256: checked.sha256.as_deref(),
            target: checked.target.as_deref(),
            fill_in: &checked.fill_in,
            differences: &checked.differences,
            findings: &checked.findings,
        })?;
    } else {
        let closure = if args.closure { closure(&checked.findings) } else { String::new() };
        let verdict = match (fit, checked.unsure) {
            (false, _) => "",
            (true, None) => "   verdict  good\n",
            (true, Some(_)) => "   verdict  nothing wrong was found in what was looked at\n",
        };
        let text = describe(&checked, args.foreign) + &looked_for(&checked, layout) + verdict + &closure;
        print(&text)?;
    }
    if fit {
        return Ok(ExitCode::SUCCESS);
    }
    let changed = checked.differences.iter().map(|d| format!("{}: {}", d.path, d.problem));
    let found = verify::list(&checked.findings);
    let lines: Vec<String> = changed.chain((!found.is_empty()).then_some(found)).collect();
    let count = checked.findings.problems.len() + checked.differences.len();
    Err(exit::Unfit(format!("{}: {count} problems\n  {}", args.path.display(), lines.join("\n  "))).into())
}

/// `--from`: what is looked for in place of our own builds' prefix.
fn prefix(text: &str) -> Result<Layout<'_>, exit::Usage> {
    let root = text.trim_end_matches('/');
    if !root.starts_with('/') {
        return Err(exit::Usage(format!(
            "verify --from `{text}`: a prefix is an absolute path below /, such as /opt/spack"
        )));
    }
    Ok(Layout { root, store: root, views: root })
}

/// What another's files were searched for: that nothing of it was found says nothing of other prefixes.
fn looked_for(checked: &Checked, layout: Layout<'_>) -> String {
    if checked.toolchain.is_some() {
        return String::new();
    }
    let more = if layout == Layout::BUILD { "; --from names the prefix that it was built for" } else { "" };
    format!("{:>10}  {}{more}\n", "sought", layout.root)
}

/// Who needs what, and where it is found, as a tree below each file that no other file needs: what a library needs stands below
/// it, once in each tree.
fn closure(findings: &Findings) -> String {
    let needed: BTreeSet<&Path> = findings.closure.values().flatten().filter_map(|n| n.found.as_deref()).collect();
    let mut shown = BTreeSet::new();
    let mut text = String::new();
    let tops = findings.closure.keys().filter(|path| !needed.contains(path.as_path()));
    // Libraries that need each other in a ring are below no other file: what is left comes last.
    for path in tops.chain(findings.closure.keys()) {
        if shown.contains(path.as_path()) {
            continue;
        }
        // Writing to a string does not fail.
        let _ = writeln!(text, "\n{}", path.display());
        let mut here = BTreeSet::from([path.as_path()]);
        below(path, 1, findings, &mut here, &mut text);
        shown.extend(here);
    }
    text
}

/// How deep a tree is shown. What is deeper, in an archive that was made for it, begins a tree of its own.
const DEEPEST: usize = 64;

/// What a file needs, a library a line, and below it what that needs.
fn below<'f>(path: &Path, depth: usize, findings: &'f Findings, here: &mut BTreeSet<&'f Path>, text: &mut String) {
    for Needed { library, found } in findings.closure.get(path).into_iter().flatten() {
        let (place, more) = match found {
            Some(found) if depth < DEEPEST && here.insert(found) => (found.display().to_string(), Some(found)),
            Some(found) if here.contains(found.as_path()) && findings.closure.contains_key(found) => {
                (format!("{} (above)", found.display()), None)
            }
            Some(found) => (found.display().to_string(), None),
            None if findings.from_host.contains(library) => ("the host's".to_owned(), None),
            None => ("NOT FOUND".to_owned(), None),
        };
        let _ = writeln!(text, "{:indent$}{library} => {place}", "", indent = 4 * depth);
        if let Some(found) = more {
            below(found, depth + 1, findings, here, text);
        }
    }
}

fn describe(checked: &Checked, foreign: bool) -> String {
    let Checked { findings, signers, strangers, attested, sha256, fill_in, .. } = checked;
    let mut text = String::new();
    let mut row = |name: &str, value: &str| {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{name:>10}  {value}");
    };
    for signer in signers {
        row("signature", &format!("good, by {signer}"));
    }
    for stranger in strangers {
        row("", &format!("another, by {stranger}: that key is not known, so it counts for nothing"));
    }
    if let Some(sum) = sha256 {
        row("sha256", sum);
    }
    for Attested { file, signers, strangers } in attested {
        let signers: Vec<_> = signers.iter().map(|f| format!(", signed by {f}")).collect();
        let strangers: Vec<_> = strangers.iter().map(|id| format!(", by {id} whose key is not known")).collect();
        row("beside it", &format!("{file}: belongs to it{}{}", signers.concat(), strangers.concat()));
    }
    if sha256.is_some() && attested.is_empty() {
        row("beside it", "neither a bill of materials nor a statement of provenance");
    }
    row("files", &format!("{}, of which {} ELF", findings.files, findings.elf_files));
    let host: Vec<_> = findings.from_host.iter().map(String::as_str).collect();
    if !host.is_empty() {
        row("from host", &host.join(" "));
    }
    if let Some(floor) = &findings.glibc {
        let symbol = floor.symbol.as_ref().map_or_else(String::new, |name| format!(" ({name} of {})", floor.library));
        row("glibc", &format!("{} or newer, asked for by {}{symbol}", floor.version, floor.path.display()));
    }
    if let Some(isa) = &findings.isa {
        row("processor", &format!("{} or newer, asked for by {}", isa.level, isa.path.display()));
    }
    if let Some(target) = &checked.target {
        row("made for", target);
    }
    for leak in &findings.allowed {
        let place =
            leak.strings.first().map_or_else(String::new, |Named { offset, text }| format!(" at {offset} `{text}`"));
        let more = if leak.count > 1 { format!(", and {} more", leak.count - 1) } else { String::new() };
        row("names build", &format!("{}{place}{more}: {}", leak.path.display(), leak.reason));
    }
    for unseen in &findings.unseen {
        row("not seen", &format!("{}: {}", unseen.path.display(), unseen.reason));
    }
    if foreign || fill_in.is_empty() && sha256.is_none() {
        // A tree was unpacked already; of another's archive nothing is promised.
    } else if fill_in.is_empty() {
        row("unpacking", "plain tar -x gives a working tree");
    } else {
        row("unpacking", &format!("{} files wait for `slurm-factory install` to fill in a folder:", fill_in.len()));
        for path in fill_in {
            row("", path);
        }
    }
    text
}
