//! A relocated tree becomes a finished package: written, checked as whoever gets it would, and remembered by its plan. The same for
//! Slurm and for a compiler.

use crate::cache::Cache;
use crate::package::{self, Content, Facts, Named, Package, Signed, Trust};
use crate::pipeline::BuildError;
use crate::plan::BuildPlan;
use crate::relocate::{Relocated, Rules};
use crate::report::{Ctx, Stage};
use crate::sign::{Keyring, SigningKey};
use crate::workflows::{finished, payload, verify};
use humansize::{BINARY, format_size};
use std::path::Path;

/// What a relocated tree becomes a finished package with.
pub struct Packing<'a> {
    /// What it was built by.
    pub plan: &'a BuildPlan,
    /// Where it goes: a folder of finished packages.
    pub dir: &'a Path,
    /// What it is called.
    pub name: &'a dyn Named,
    /// The build's, all of them.
    pub rules: &'a Rules,
    /// Who signs.
    pub key: &'a SigningKey,
    /// The cache.
    pub cache: &'a Cache,
}

impl Packing<'_> {
    /// The archive with what goes beside the tree, checked as whoever gets it would, and remembered.
    pub fn packed(
        &self,
        relocated: &Relocated,
        facts: Facts,
        beside: Vec<Content>,
        ctx: &Ctx,
    ) -> Result<Package, BuildError> {
        let (package, signed) = self.written(relocated, facts, beside, ctx)?;
        self.verified(&package, &signed, ctx)?;
        finished::remember(self.cache, self.plan, package.path())?;
        Ok(package)
    }

    /// The archive, its sum and its signature, written in one pass.
    fn written(
        &self,
        relocated: &Relocated,
        facts: Facts,
        beside: Vec<Content>,
        ctx: &Ctx,
    ) -> Result<(Package, Signed), BuildError> {
        let timer = ctx.stage(Stage::Package, self.name.label());
        let mut contents = vec![Content::Tree { root: relocated.tree().to_owned(), name: "view".into() }];
        contents.extend(beside);
        let request = package::Request {
            dir: self.dir,
            name: self.name,
            contents,
            facts,
            compression: payload::compression(self.plan.identity.compression),
            threads: self.plan.execution.cpus as usize,
            key: self.key,
        };
        let (package, signed) = Package::create(self.cache, request, ctx)?;
        timer.done(format!("{}, signed by {}", format_size(package.size(), BINARY), signed.fingerprint()));
        Ok((package, signed))
    }

    /// The finished package, checked.
    fn verified(&self, package: &Package, signed: &Signed, ctx: &Ctx) -> Result<(), BuildError> {
        let timer = ctx.stage(Stage::Verify, package.path().display().to_string());
        let keyring = Keyring::of(self.key);
        let verified = verify::package(package.path(), Trust::Require(&keyring), self.rules, ctx)?;
        if !verified.findings.problems.is_empty() {
            return Err(BuildError::Unfit { findings: Box::new(verified.findings) });
        }
        timer.done(format!("signature by {} good, {}", signed.fingerprint(), verified.findings.summary()));
        Ok(())
    }
}
