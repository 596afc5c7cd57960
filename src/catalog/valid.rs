//! What a site adds to the catalog, looked at when its file is read: a sum that is none, or a name that would become part of a
//! folder's name, is found before anything was built with it, and is named with the file that it stands in. Specs are Spack's to judge.
//!
//! Names are Spack's own (packages: small letters, digits, `-` and `_`). Whether a package or version exists, Spack alone knows.

use super::{Catalog, Overlay, SlurmRelease};

/// What images are for.
const PLATFORMS: [&str; 2] = ["linux/amd64", "linux/arm64"];
/// Where Spack can fetch an archive from.
const SCHEMES: [&str; 6] = ["https", "http", "ftp", "s3", "gs", "file"];

impl Overlay {
    /// What is wrong with it: the entry, its value and what it should be.
    pub fn check(&self) -> Result<(), String> {
        self.slurm.iter().try_for_each(release)?;
        for (at, release) in self.slurm.iter().enumerate() {
            let twice = self.slurm[..at].iter().any(|other| other.version == release.version);
            if twice {
                return Err(format!(
                    "catalog.slurm: version `{}` stands there twice: take one of them out",
                    release.version
                ));
            }
        }
        for compiler in &self.compiler {
            let entry = format!("catalog.compiler `{}`", compiler.version);
            let numbers = compiler.version.split('.').all(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()));
            demand(numbers, &entry, "version", &compiler.version, "a release of GCC, as 14.2.0")?;
        }
        for target in &self.target {
            let entry = format!("catalog.target `{}`", target.name);
            demand(is_name(&target.name), &entry, "name", &target.name, "Spack's name of a target, as x86_64_v3")?;
            let known = PLATFORMS.contains(&target.platform.as_str());
            demand(known, &entry, "platform", &target.platform, &format!("one of {}", PLATFORMS.join(", ")))?;
        }
        for name in self.pins.keys() {
            demand(is_package(name), "catalog.pins", "key", name, "the name of a package of Spack")?;
        }
        for (name, feature) in &self.features {
            let entry = format!("catalog.features `{name}`");
            demand(is_name(name), &entry, "name", name, "letters, digits, `-`, `_` and `.`")?;
            roots(&entry, &feature.roots)?;
            let does = !feature.spec.trim().is_empty() || !feature.roots.is_empty() || feature.refused.is_some();
            if !does {
                return Err(format!(
                    "{entry}: it changes nothing: give it a `spec`, `roots`, or say why it is `refused`"
                ));
            }
        }
        // Ours is read for those who add to it alone: every start reads a configuration.
        if self.variants.is_empty() && self.toolchains.is_empty() {
            return Ok(());
        }
        let own = Catalog::embedded().map_err(|e| e.to_string())?;
        for (name, variant) in &self.variants {
            let known: Vec<_> = own.variants.keys().map(String::as_str).collect();
            demand(
                known.contains(&name.as_str()),
                "catalog.variants",
                "key",
                name,
                &format!("one of {}", known.join(", ")),
            )?;
            roots(&format!("catalog.variants `{name}`"), &variant.roots)?;
        }
        for (name, toolchain) in &self.toolchains {
            let entry = format!("catalog.toolchains `{name}`");
            demand(is_name(name), &entry, "name", name, "letters, digits, `-`, `_` and `.`")?;
            let known = &own.toolchains.known;
            demand(
                known.contains(&toolchain.like),
                &entry,
                "like",
                &toolchain.like,
                &format!("one of {}", known.join(", ")),
            )?;
        }
        Ok(())
    }
}

fn release(release: &SlurmRelease) -> Result<(), String> {
    let entry = format!("catalog.slurm `{}`", release.version);
    for (key, value) in [("version", &release.version), ("patch", &release.patch), ("recipe", &release.recipe)] {
        demand(is_name(value), &entry, key, value, "letters, digits, `-`, `_` and `.`")?;
    }
    let form = release.patch.replace('.', "-");
    let fits = release.recipe.starts_with(&format!("{form}-"));
    demand(fits, &entry, "recipe", &release.recipe, &format!("`patch` in the recipe's form, as {form}-1"))?;
    let is_sum = release.sha256.len() == 64 && release.sha256.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    demand(is_sum, &entry, "sha256", &release.sha256, "64 small hexadecimal digits, as sha256sum prints them")?;
    let url = reqwest::Url::parse(&release.url).is_ok_and(|url| SCHEMES.contains(&url.scheme()));
    demand(url, &entry, "url", &release.url, &format!("an address that begins with one of {}", SCHEMES.join(", ")))
}

fn roots(entry: &str, roots: &[String]) -> Result<(), String> {
    roots.iter().try_for_each(|root| {
        let end = root.find(['@', '+', '~', '%', '^', '/', '[', ' ']).unwrap_or(root.len());
        let named = root[..end].split('.').all(is_package);
        let plain = !root.contains(|c: char| c.is_control() || ";$`&<>".contains(c));
        demand(named && plain, entry, "roots", root, "a spec that begins with the name of a package")
    })
}

fn demand(holds: bool, entry: &str, key: &str, value: &str, what: &str) -> Result<(), String> {
    if holds { Ok(()) } else { Err(format!("{entry}: {key} `{value}` is not {what}")) }
}

/// What may be a part of a file's name and of a spec.
fn is_name(text: &str) -> bool {
    text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
}

fn is_package(text: &str) -> bool {
    text.bytes().next().is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_".contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(text: &str) -> String {
        toml::from_str::<Overlay>(text).unwrap().check().unwrap_err()
    }

    #[test]
    fn what_is_no_sum_no_address_or_no_name_is_named_with_its_entry() {
        let release = |recipe: &str, url: &str, sum: &str| {
            format!(
                "[[slurm]]\nversion = '22.05'\npatch = '22.05.8'\nrecipe = '{recipe}'\nurl = '{url}'\nsha256 = '{sum}'"
            )
        };
        let (url, sum) = ("https://example.org/slurm.tar.bz2", "0".repeat(64));
        assert!(toml::from_str::<Overlay>(&release("22-05-8-1", url, &sum)).unwrap().check().is_ok());
        for (text, parts) in [
            (release("22-05-8-1", url, "abc"), ["catalog.slurm `22.05`", "sha256 `abc`"]),
            (release("22-05-8-1", "nonsense", &sum), ["url `nonsense`", "https"]),
            (release("hello", url, &sum), ["recipe `hello`", "22-05-8-1"]),
            (release("22-05-8-1 +x", url, &sum), ["recipe `22-05-8-1 +x`", "letters"]),
            ("[[compiler]]\nversion = 'abc;rm'".into(), ["catalog.compiler", "14.2.0"]),
            ("[pins]\n'a b' = '@1'".into(), ["catalog.pins", "`a b`"]),
            ("[features.x]\nwhy = 'none'".into(), ["catalog.features `x`", "changes nothing"]),
            ("[variants]\nminimla = '~lua'".into(), ["catalog.variants", "minimla"]),
            ("[[target]]\nname = 'a'\nplatform = 'linux/amd46'\nruns = 'x'".into(), ["linux/amd46", "linux/arm64"]),
            (format!("{0}\n{0}", release("22-05-8-1", url, &sum)), ["catalog.slurm", "`22.05` stands there twice"]),
            ("[features.x]\nroots = ['a b;c']".into(), ["catalog.features `x`", "a b;c"]),
            ("[features.x]\nroots = ['@1']".into(), ["roots `@1`", "name of a package"]),
            ("[variants.default]\nspec = '+lua'\nroots = ['A']".into(), ["catalog.variants `default`", "`A`"]),
            (release("22-05-80-1", url, &sum), ["recipe `22-05-80-1`", "22-05-8-1"]),
            (release("22-05-8-1", url, &"A".repeat(64)), ["sha256", "small"]),
            ("[toolchains.alma9]\nlike = 'nope'\nimage = 'x'".into(), ["like `nope`", "rockylinux9"]),
            ("[toolchains.'a/b']\nlike = 'noble'\nimage = 'x'".into(), ["name `a/b`", "letters"]),
        ] {
            let error = wrong(&text);
            assert!(parts.iter().all(|part| error.contains(part)), "{text}: {error}");
        }
        let good = "[features.x]\nroots = ['pyxis@0.21 +y', 'site.hdf5 ^[virtuals=mpi] openmpi', 'munge/abcdef']\n[caches.vantage]\nfingerprint = 'x'\n[pins]\nopenmpi = '@5'";
        assert!(toml::from_str::<Overlay>(good).unwrap().check().is_ok());
    }
}
