//! `sign`

use super::args::Global;
use super::signer::{KeyArgs, signing_key};
use super::{exit, open_cache, print, settings};
use crate::config::Settings;
use crate::package::{Package, Trust};
use crate::report::{Ctx, Stage};
use crate::sign::{KeyStore, Others};
use anyhow::Result;
use clap::Args;
use std::path::PathBuf;
use std::process::ExitCode;

/// `sign`
#[derive(Debug, Args)]
pub struct SignArgs {
    /// A finished package (.tar.gz, .tar.zst)
    #[arg(value_name = "PACKAGE")]
    pub package: PathBuf,
    /// Who signs.
    #[command(flatten)]
    pub key: KeyArgs,
    /// Drop the signatures of others; they stay otherwise
    #[arg(long)]
    pub replace: bool,
}

/// `sign`
pub fn run(global: &Global, args: &SignArgs, ctx: &Ctx) -> Result<ExitCode> {
    let settings = settings(global, Settings { key: args.key.key.clone(), ..Settings::default() })?;
    let (cache, _lock) = open_cache(&settings, ctx)?;
    // The key first: a package of gigabytes is not read for a passphrase that is wrong.
    let Some(key) = signing_key(&settings, &args.key.source()?, &cache, ctx)? else {
        let can_sign: Vec<String> =
            KeyStore::new(&cache).list()?.iter().filter(|k| k.can_sign).map(|k| k.fingerprint.to_string()).collect();
        let text = match can_sign.as_slice() {
            [] => {
                "there is no signing key yet: `slurm-factory key generate` makes one, or name one with --key".to_owned()
            }
            some => format!(
                "no key is the default, and {} can sign: `slurm-factory key default FINGERPRINT` chooses one, or name one with --key",
                some.join(", ")
            ),
        };
        return Err(exit::HostFault(text).into());
    };
    let timer = ctx.stage(Stage::Package, args.package.display().to_string());
    // Whole and as its manifest says: a signature under a damaged file would vouch for the damage.
    let (package, _) = Package::open(&args.package, Trust::Skip, ctx)?;
    let others = if args.replace { Others::Replace } else { Others::Keep };
    let signed = package.sign(&key, others, ctx)?;
    timer.done(format!("signed by {}", signed.fingerprint()));
    ctx.reporter.finish();
    print(&format!("{}\n", signed.signature().display()))?;
    Ok(ExitCode::SUCCESS)
}
