//! Exit codes ([`CODES`]), and the one place where an error is shown.

use super::args::Format;
use crate::buildcache::BuildcacheError;
use crate::cache::CacheError;
use crate::config::ConfigError;
use crate::image::{ImageError, RegistriesError};
use crate::package::PackageError;
use crate::pipeline::BuildError;
use crate::plan::PlanError;
use crate::publish::StoreError;
use crate::relocate::MoveError;
use crate::report::{Ctx, Stage};
use crate::resolve::ResolveError;
use crate::rootfs::PrepareError;
use crate::sandbox::SandboxError;
use crate::sign::SignError;
use crate::spack::{SourceError, SpackError};
use crate::workflows::buildcache::PushError;
use crate::workflows::clean::CleanError;
use crate::workflows::images::RemoveError;
use crate::workflows::install::InstallError;
use crate::workflows::package_image::PackageImageError;
use crate::workflows::publish::PublishError;
use crate::workflows::verify::VerifyError;
use anyhow::Error;
use serde_json::json;
use std::io::Write as _;
use std::process::ExitCode;

/// What each means, as `--help` says it.
pub(super) const CODES: &str = "\
Exit codes:
  0  done
  2  usage: flags, names, files or folders that are not known or not there, or that do not go together
  3  this host, its configuration, or something missing while offline
  4  a stage of the build, the pull included
  5  verification
  6  publishing
  128+n  ended by signal n";

const USAGE: u8 = 2;
const HOST: u8 = 3;
const BUILD: u8 = 4;
pub(super) const VERIFY: u8 = 5;
const PUBLISH: u8 = 6;

/// What was asked makes no sense; nothing was done.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Usage(pub String);

/// Something of this host or its configuration is missing; nothing was done.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct HostFault(pub String);

/// Something is not fit; the list was printed.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Unfit(pub String);

/// Shows the error once, with its causes, and picks the exit code.
pub fn report(error: &Error, ctx: &Ctx, format: Format) -> ExitCode {
    let signal = ctx.interrupt.signal();
    let code = signal.and_then(|s| u8::try_from(128 + s).ok()).unwrap_or_else(|| code(error));
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        // Most of our errors already say their cause.
        if !text.contains(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
    }
    if signal.is_some() {
        text = "interrupted; what was whole is kept, and the next run goes on from there".into();
    } else if full_disk(error) {
        text.push_str(
            "\nthe disk is full: free some space (`slurm-factory clean`), or choose another --cache-dir or --build-dir",
        );
    }
    let mut out = anstream::stderr().lock();
    let _ = match format {
        Format::Json => writeln!(out, "{}", json!({"event": "error", "message": text, "exit_code": code})),
        Format::Human => {
            use owo_colors::OwoColorize as _;
            writeln!(out, "{} {text}", "error:".red().bold())
        }
    };
    ExitCode::from(code)
}

fn full_disk(error: &Error) -> bool {
    error.chain().any(|cause| {
        cause.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == std::io::ErrorKind::StorageFull)
    }) || error.to_string().contains("No space left on device")
}

/// The exit code for an error of any verb.
fn code(error: &Error) -> u8 {
    fn find<T: std::error::Error + Send + Sync + 'static>(error: &Error) -> Option<&T> {
        error.chain().find_map(|cause| cause.downcast_ref::<T>())
    }
    if find::<Usage>(error).is_some() {
        return USAGE;
    }
    if find::<Unfit>(error).is_some() {
        return VERIFY;
    }
    // A size is typed wrong wherever it stands.
    if let Some(ConfigError::Size { .. }) = find::<ConfigError>(error) {
        return USAGE;
    }
    if find::<HostFault>(error).is_some() || find::<ConfigError>(error).is_some() {
        return HOST;
    }
    if let Some(e) = find::<PublishError>(error) {
        return publish(e);
    }
    if let Some(e) = find::<StoreError>(error) {
        return store(e);
    }
    if let Some(signal) = find::<SandboxError>(error).and_then(SandboxError::lost_by) {
        // As a shell says it of a program that was killed.
        return u8::try_from(128 + signal).unwrap_or(BUILD);
    }
    if let Some(e) = find::<PackageError>(error) {
        return package(e);
    }
    if find::<CacheError>(error).is_some()
        || find::<SandboxError>(error).is_some()
        || find::<SignError>(error).is_some()
    {
        return HOST;
    }
    if let Some(PushError::Cache(_)) = find::<PushError>(error) {
        return HOST;
    }
    if let Some(PushError::Buildcache(e)) = find::<PushError>(error) {
        return buildcache(e);
    }
    if let Some(e) = find::<BuildcacheError>(error) {
        return buildcache(e);
    }
    if let Some(e) = find::<BuildError>(error) {
        return build(e);
    }
    if let Some(e) = find::<ResolveError>(error) {
        return resolve(e);
    }
    if let Some(e) = find::<ImageError>(error) {
        return image(e);
    }
    if let Some(e) = find::<RegistriesError>(error) {
        return registries(e);
    }
    if let Some(RemoveError::Unknown { .. } | RemoveError::Ambiguous { .. }) = find::<RemoveError>(error) {
        return USAGE;
    }
    if let Some(e) = find::<PackageImageError>(error) {
        return match e {
            PackageImageError::Package(e) => package(e),
            PackageImageError::Image(e) => image(e),
            PackageImageError::OtherMachine { .. } => USAGE,
            PackageImageError::OlderGlibc { .. } => VERIFY,
            _ => BUILD,
        };
    }
    if let Some(e) = find::<VerifyError>(error) {
        return verify(e);
    }
    if let Some(e) = find::<MoveError>(error) {
        return match e {
            MoveError::Leftover { .. } => VERIFY,
            MoveError::Busy { .. } => HOST,
            MoveError::Halfway { .. } => BUILD,
            MoveError::Io(e) if e.kind() != std::io::ErrorKind::NotFound => BUILD,
            _ => USAGE,
        };
    }
    if let Some(InstallError::Package(e)) = find::<InstallError>(error) {
        return package(e);
    }
    if find::<InstallError>(error).is_some() || find::<CleanError>(error).is_some() {
        return HOST;
    }
    1
}

fn build(error: &BuildError) -> u8 {
    match error {
        BuildError::Resolve(e) => resolve(e),
        BuildError::Cache(_) => HOST,
        BuildError::Image(e) => image(e),
        BuildError::Prepare(PrepareError::Offline { .. })
        | BuildError::Spack(SpackError::Source(SourceError::Offline { .. })) => HOST,
        BuildError::Prepare(PrepareError::Sandbox(e)) | BuildError::Spack(SpackError::Sandbox(e))
            if e.over_limit() || e.lost_by().is_some() =>
        {
            BUILD
        }
        BuildError::Prepare(PrepareError::Sandbox(_)) | BuildError::Spack(SpackError::Sandbox(_)) => HOST,
        BuildError::Spack(SpackError::Failed(e)) if e.offline && e.stage == Stage::Fetch => HOST,
        BuildError::Package(e) => package(e),
        BuildError::Verify(e) => verify(e),
        BuildError::Publish(e) => publish(e),
        BuildError::Unfit { .. } => VERIFY,
        BuildError::Prepare(_)
        | BuildError::Spack(_)
        | BuildError::Relocate(_)
        | BuildError::Compiler(_)
        | BuildError::Io(_)
        | BuildError::Interrupted(_) => BUILD,
    }
}

fn buildcache(error: &BuildcacheError) -> u8 {
    match error {
        BuildcacheError::NotATree { .. }
        | BuildcacheError::Unknown { .. }
        | BuildcacheError::OlderLayout { .. }
        | BuildcacheError::NoKeys { .. } => USAGE,
        BuildcacheError::Sign(_) => HOST,
        BuildcacheError::Format { .. } => VERIFY,
        BuildcacheError::Io(_)
        | BuildcacheError::Store(_)
        | BuildcacheError::Interrupted(_)
        | BuildcacheError::Package { .. }
        | BuildcacheError::Contended { .. } => PUBLISH,
    }
}

fn resolve(error: &ResolveError) -> u8 {
    match error {
        ResolveError::Value { .. }
        | ResolveError::Fingerprint { .. }
        | ResolveError::NoUrl { .. }
        | ResolveError::OfCache { .. }
        | ResolveError::TwoKeys { .. }
        | ResolveError::KeyDescriptor { .. }
        | ResolveError::Catalog(_)
        | ResolveError::Reference(_)
        | ResolveError::Named { .. }
        | ResolveError::Snapshot(_)
        | ResolveError::Address { .. }
        | ResolveError::NoWheels { .. }
        | ResolveError::Distribution(PrepareError::WrongImage { .. })
        | ResolveError::Size { .. }
        | ResolveError::NoFolder { .. } => USAGE,
        ResolveError::Registries(e) => registries(e),
        ResolveError::Plan(e) => plan(e),
        ResolveError::Image(e) => image(e),
        ResolveError::Source(SourceError::Git { .. } | SourceError::Io(_)) | ResolveError::Rules(_) => BUILD,
        ResolveError::Source(
            SourceError::NotASource { .. } | SourceError::NoReference { .. } | SourceError::NotARepo { .. },
        ) => USAGE,
        ResolveError::Source(_)
        | ResolveError::Distribution(_)
        | ResolveError::Config(_)
        | ResolveError::Unreadable(_)
        | ResolveError::Cache(_)
        | ResolveError::Sign(_)
        | ResolveError::Ask(_)
        | ResolveError::Sandbox(_)
        | ResolveError::NoExec { .. }
        | ResolveError::Closed { .. }
        | ResolveError::NoHome => HOST,
    }
}

fn plan(_error: &PlanError) -> u8 {
    USAGE
}

fn image(error: &ImageError) -> u8 {
    match error {
        ImageError::NotCached { .. } | ImageError::Client { .. } => HOST,
        ImageError::Target { .. } | ImageError::Absent { .. } => USAGE,
        ImageError::Registries(e) => registries(e),
        _ => BUILD,
    }
}

fn registries(error: &RegistriesError) -> u8 {
    match error {
        RegistriesError::Ambiguous { .. } | RegistriesError::Reference(_) => USAGE,
        RegistriesError::Parse { .. }
        | RegistriesError::Version1 { .. }
        | RegistriesError::Blocked { .. }
        | RegistriesError::Location { .. } => HOST,
    }
}

fn package(error: &PackageError) -> u8 {
    match error {
        PackageError::Cache(_) => HOST,
        PackageError::NoSlurm { .. } => USAGE,
        PackageError::Io(e) if e.kind() == std::io::ErrorKind::NotFound => USAGE,
        PackageError::Io(_) | PackageError::Write { .. } => BUILD,
        _ => VERIFY,
    }
}

fn publish(error: &PublishError) -> u8 {
    match error {
        PublishError::Store(e) => store(e),
        PublishError::Package(e) => package(e),
        PublishError::Resolve(e) => resolve(e),
        PublishError::Sign(_) | PublishError::NoKey => HOST,
        PublishError::NoDestination
        | PublishError::Folder { .. }
        | PublishError::Offline { .. }
        | PublishError::BadName { .. } => USAGE,
        PublishError::Beside { .. } | PublishError::OtherManifest { .. } => VERIFY,
        PublishError::Packages(_)
        | PublishError::Taken { .. }
        | PublishError::NotAsSent { .. }
        | PublishError::Index { .. }
        | PublishError::Page { .. }
        | PublishError::Interrupted(_) => PUBLISH,
    }
}

fn store(error: &StoreError) -> u8 {
    match error {
        StoreError::BadAddress { .. } | StoreError::BadKey { .. } => USAGE,
        _ => PUBLISH,
    }
}

fn verify(error: &VerifyError) -> u8 {
    match error {
        VerifyError::Package(e) => package(e),
        VerifyError::NoArchive { .. } => VERIFY,
        VerifyError::Io(_) | VerifyError::Interrupted(_) => USAGE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_that_is_whole_and_the_wrong_one_is_no_verification_failure() {
        let path = std::path::PathBuf::from("gcc.tar.gz");
        let compiler = PackageError::NoSlurm { path: path.clone(), title: "GCC 13.4.0".into(), what: "package --oci" };
        assert_eq!(code(&compiler.into()), USAGE);
        let damaged = PackageError::Contents { path, entry: "view".into(), problem: "is missing".into() };
        assert_eq!(code(&damaged.into()), VERIFY);
    }
}
