//! Documents are kept true: the CLI reference is what the program says of itself, links lead somewhere, versions and exit codes
//! agree with the code. `UPDATE_DOCS=1 cargo test --test docs` writes the reference anew.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods, missing_docs)]

use slurm_factory::catalog::Catalog;
use slurm_factory::report::{Event, Stage};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn help(verb: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_slurm-factory"))
        .args(verb)
        .arg("--help")
        .env_clear()
        .env("COLUMNS", "110")
        .output()
        .unwrap();
    assert!(output.status.success(), "{verb:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The verbs that a help text lists.
fn verbs(help: &str) -> Vec<String> {
    let Some((_, commands)) = help.split_once("Commands:\n") else { return Vec::new() };
    commands
        .lines()
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.strip_prefix("  ")?.split_whitespace().next().filter(|_| !line.starts_with("   ")))
        .filter(|verb| *verb != "help")
        .map(str::to_owned)
        .collect()
}

fn reference() -> String {
    let mut text = String::from(
        "# Command line\n\nGenerated from the program; `UPDATE_DOCS=1 cargo test --test docs` writes it anew.\n",
    );
    let top = help(&[]);
    let _ = write!(text, "\n## slurm-factory\n\n```\n{}\n```\n", top.trim_end());
    for verb in verbs(&top) {
        let own = help(&[&verb]);
        let _ = write!(text, "\n## slurm-factory {verb}\n\n```\n{}\n```\n", own.trim_end());
        for below in verbs(&own) {
            let _ =
                write!(text, "\n### slurm-factory {verb} {below}\n\n```\n{}\n```\n", help(&[&verb, &below]).trim_end());
        }
    }
    text
}

#[test]
fn the_cli_reference_is_what_the_program_says() {
    let path = root().join("docs/cli.md");
    let now = reference();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs_err::write(&path, now).unwrap();
        return;
    }
    let old = fs_err::read_to_string(&path).unwrap();
    let differ = old.lines().zip(now.lines()).find(|(old, now)| old != now);
    assert!(old == now, "docs/cli.md is old ({differ:?}): UPDATE_DOCS=1 cargo test --test docs");
}

fn documents() -> Vec<PathBuf> {
    let mut found = vec![root().join("README.md")];
    for dir in ["docs", "docs/decisions"] {
        for entry in fs_err::read_dir(root().join(dir)).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|e| e == "md") {
                found.push(path);
            }
        }
    }
    found
}

#[test]
fn links_lead_somewhere() {
    for document in documents() {
        let text = fs_err::read_to_string(&document).unwrap();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.contains("://") || link.starts_with('#') {
                continue;
            }
            let target = document.parent().unwrap().join(link.split('#').next().unwrap());
            assert!(target.exists(), "{}: link to {link}", document.display());
        }
    }
}

#[test]
fn verbs_and_flags_named_in_documents_exist() {
    let reference = reference();
    for document in documents().into_iter().filter(|d| !d.ends_with("cli.md")) {
        let text = fs_err::read_to_string(&document).unwrap();
        for line in text.lines() {
            let Some((_, call)) = line.split_once("slurm-factory ") else { continue };
            let call: Vec<&str> = call.split_whitespace().collect();
            let known = |verb: &str| reference.contains(&format!("\n## slurm-factory {verb}\n"));
            if !line.contains(&format!("`slurm-factory {}", call[0]))
                && !line.trim_start().starts_with("slurm-factory ")
            {
                continue;
            }
            let verb = call[0].trim_matches(|c: char| !c.is_ascii_alphanumeric());
            assert!(known(verb), "{}: no verb `{verb}` in: {line}", document.display());
        }
    }
}

#[test]
fn versions_in_the_readme_are_those_of_the_catalog() {
    let readme = fs_err::read_to_string(root().join("README.md")).unwrap();
    let catalog = Catalog::embedded().unwrap();
    assert!(readme.contains(&format!("--slurm-version {}", catalog.defaults.slurm)));
    for toolchain in catalog.toolchains() {
        assert!(readme.contains(&format!("`{toolchain}`")), "README does not name toolchain {toolchain}");
    }
}

#[test]
fn every_setting_is_documented() {
    let text = fs_err::read_to_string(root().join("docs/configuration.md")).unwrap();
    let code = fs_err::read_to_string(root().join("src/config/mod.rs")).unwrap();
    let fields = code.split("pub struct Settings {").nth(1).unwrap().split("\n}").next().unwrap();
    let mut count = 0;
    for field in fields.lines().filter_map(|l| l.trim().strip_prefix("pub ")?.split(':').next()) {
        let key = field.replace('_', "-");
        assert!(text.contains(&format!("`{key}`")) || key == "catalog", "docs/configuration.md does not name `{key}`");
        count += 1;
    }
    assert!(count > 15, "the settings were not read");
}

#[test]
fn what_is_reported_is_documented() {
    let stage = Stage::Image;
    let (detail, text) = (String::new(), String::new());
    let events = [
        Event::StageStarted { stage, detail: detail.clone() },
        Event::StageDone { stage, detail, seconds: 0.0, cached: false },
        Event::Progress { stage, done: 0, total: 0, unit: "", current: text.clone() },
        Event::Package { name: text.clone(), state: text.clone(), done: 0, total: 0 },
        Event::Note { text: text.clone() },
        Event::Detail { text: text.clone() },
        Event::Warning { text: text.clone() },
        Event::LogFile { stage, path: PathBuf::new() },
        Event::Output { stage, line: text },
    ];
    let formats = fs_err::read_to_string(root().join("docs/formats.md")).unwrap();
    let section = formats.split("## What is reported").nth(1).unwrap().split("\n## ").next().unwrap();
    for event in &events {
        let value = serde_json::to_value(event).unwrap();
        let fields = value.as_object().unwrap();
        let name = format!("`{}`", fields["event"].as_str().unwrap());
        let row = section.lines().find(|l| l.split(" | ").next().is_some_and(|cell| cell.contains(&name)));
        let row = row.unwrap_or_else(|| panic!("docs/formats.md does not name the event {name}"));
        for field in fields.keys().filter(|f| *f != "event") {
            assert!(row.contains(&format!("`{field}`")), "docs/formats.md: {name} has no `{field}`");
        }
    }
    let code = fs_err::read_to_string(root().join("src/report/mod.rs")).unwrap();
    let of =
        |name: &str| code.split(&format!("pub enum {name} {{")).nth(1).unwrap().split("\n}").next().unwrap().to_owned();
    let variants = |name: &str| {
        let lines = of(name);
        let names = lines.lines().filter(|l| l.starts_with("    ") && l.as_bytes()[4].is_ascii_uppercase());
        names.map(|l| l.trim().trim_end_matches([',', '{', ' ']).to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(variants("Event").len(), events.len(), "an event is missing in this test");
    for stage in variants("Stage") {
        assert!(section.contains(&format!("`{}`", stage.to_lowercase())), "docs/formats.md does not name {stage}");
    }
}
