//! `publish`, and the flags by which every verb says where to.

use super::args::Global;
use super::signer::{KeysArgs, own_keyring};
use super::{print, print_json, settings, variable};
use crate::config::Settings;
use crate::publish as store;
use crate::report::Ctx;
use crate::resolve;
use crate::workflows::publish::{self, Options, Outgoing, PublishError, State};
use anyhow::Result;
use clap::Args;
use humansize::{BINARY, format_size};
use serde_json::json;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

/// Where to, and how a bucket is reached.
#[derive(Debug, Clone, Default, Args)]
pub struct StoreArgs {
    /// Where to publish to: s3://bucket/prefix, oci://host/repository, file:///folder or a folder
    #[arg(long, value_name = "URL")]
    pub to: Option<String>,
    /// How a bucket is reached.
    #[command(flatten)]
    pub bucket: BucketArgs,
}

/// How a bucket is reached.
#[derive(Debug, Clone, Default, Args)]
#[allow(clippy::struct_field_names)] // each is a flag's name
pub struct BucketArgs {
    /// Server of the bucket, when it is not AWS: https://s3.site.example:9000
    #[arg(long, value_name = "URL")]
    pub s3_endpoint: Option<String>,
    /// Region of the bucket [default: AWS_REGION, or the profile's]
    #[arg(long, value_name = "REGION")]
    pub s3_region: Option<String>,
    /// Whether the bucket stands in the path of URLs and not in the host's name [default: true with an endpoint]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub s3_path_style: Option<bool>,
}

impl StoreArgs {
    /// The settings that the flags make, over others.
    pub fn over(&self, settings: Settings) -> Settings {
        self.bucket.over(Settings { publish_to: self.to.clone(), ..settings })
    }
}

impl BucketArgs {
    /// The settings that the flags make, over others.
    pub fn over(&self, settings: Settings) -> Settings {
        Settings {
            s3_endpoint: self.s3_endpoint.clone(),
            s3_region: self.s3_region.clone(),
            s3_path_style: self.s3_path_style,
            ..settings
        }
    }
}

/// `publish`
#[derive(Debug, Args)]
pub struct PublishArgs {
    /// A finished package (.tar.gz, .tar.zst) with its .sha256, .asc and .manifest.json beside it
    pub package: PathBuf,
    /// Where to.
    #[command(flatten)]
    pub store: StoreArgs,
    /// Whose signatures count.
    #[command(flatten)]
    pub trust: KeysArgs,
    /// Change nothing; list what would be sent, and how many bytes
    #[arg(long)]
    pub dry_run: bool,
    /// Read everything back and compare it with what was sent
    #[arg(long, conflicts_with = "dry_run")]
    pub verify_upload: bool,
    /// Put it in the place of another package of the same name, or of the same package with another signature
    #[arg(long)]
    pub replace: bool,
    /// As JSON
    #[arg(long)]
    pub json: bool,
}

/// `publish`
pub fn run(global: &Global, args: &PublishArgs, ctx: &Ctx) -> Result<ExitCode> {
    let settings = settings(global, args.store.over(Settings::default()))?;
    let to = settings.publish_to.as_deref().ok_or(PublishError::NoDestination)?;
    let keyring = args.trust.keyring(|| own_keyring(global, ctx))?;
    let store = store::open(to, &resolve::reach([to], &settings, &variable, ctx)?, ctx).map_err(PublishError::from)?;
    if !args.dry_run {
        // Before gigabytes are read and hashed.
        store.check(ctx).map_err(PublishError::from)?;
    }
    let options = Options { replace: args.replace, verify: args.verify_upload };
    let outgoing = publish::look(&args.package, &keyring, store.as_ref(), options, ctx)?;
    if args.dry_run {
        outgoing.allowed(options, store.address())?;
    } else {
        publish::send(&outgoing, store.as_ref(), options, ctx)?;
    }
    ctx.reporter.finish();
    if args.json {
        print_json(&json!({
            "to": store.address(),
            "dry_run": args.dry_run,
            "objects": &outgoing.items,
            "bytes": outgoing.bytes(),
            "verified": args.verify_upload,
        }))?;
    } else {
        print(&table(&outgoing, store.address(), args.dry_run))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn table(outgoing: &Outgoing, address: &str, dry: bool) -> String {
    let mut text = String::new();
    for item in &outgoing.items {
        let state = match (item.state, dry) {
            (State::There, _) => "there",
            (State::New, true) => "new",
            (State::Replace, true) => "replace",
            (_, false) => "sent",
        };
        // Writing to a string does not fail.
        let _ = writeln!(text, "{state:>7} {:>10}  {address}/{}", format_size(item.bytes, BINARY), item.key);
    }
    let what = if dry { "would be sent" } else { "were sent" };
    let _ = writeln!(text, "{} bytes ({}) {what}", outgoing.bytes(), format_size(outgoing.bytes(), BINARY));
    text
}
