//! What this host and this user have configured about registries: finds the files and reads them.
//!
//! ```text
//! registries.conf   CONTAINERS_REGISTRIES_CONF, else ~/.config/containers/, else /etc/containers/
//!   .d/*.conf       /etc/containers/registries.conf.d, then ~/.config/containers/registries.conf.d;
//!                   beside the user's own registries.conf only the user's
//!   short-name-aliases.conf   in ~/.cache/containers (for root in /var/cache/containers): what podman was answered
//!   [registries]    of our own configuration, over all of them
//! certs.d/          ~/.config/containers/, /etc/containers/, /etc/docker/
//! logins            REGISTRY_AUTH_FILE, else $XDG_RUNTIME_DIR/containers/auth.json (/run/containers/UID/auth.json);
//!                   then ~/.config/containers/auth.json, then ~/.docker/config.json (DOCKER_CONFIG)
//! ```
//!
//! Sources: containers-registries.conf(5), containers-registries.conf.d(5), containers-certs.d(5),
//! containers-auth.json(5).

use super::{Lookup, ResolveError};
use crate::config::Settings;
use crate::image::{AuthFile, ClientConfig, Credentials, Reference, Registries, RegistriesError, UnknownKeys};
use crate::report::Ctx;
use fs_err as fs;
use std::io;
use std::path::{Path, PathBuf};

/// What a user's text names, and how it is reached.
///
/// For a file or folder nothing about registries is read: what is wrong there must not stop a site that carries its
/// images in. It is meant as seen from the current folder, whatever folder a later run is in.
pub fn image_reference(
    text: &str,
    settings: &Settings,
    lookup: Lookup<'_>,
    ctx: &Ctx,
) -> Result<(Reference, ClientConfig), ResolveError> {
    let plain: Reference = text.parse()?;
    if plain.path().is_some() {
        let reference = match std::env::current_dir() {
            Ok(cwd) => plain.below(&cwd),
            // A folder that was deleted: only an absolute path can be found then.
            Err(_) => plain,
        };
        return Ok((reference, ClientConfig::default()));
    }
    let client = client_config(settings, lookup, ctx)?;
    let reference = registry_reference(text, &client, ctx)?;
    Ok((reference, client))
}

/// The whole name that a short one means, for who asks no registry.
pub fn whole_name(text: &str, settings: &Settings, lookup: Lookup<'_>, ctx: &Ctx) -> Result<Reference, ResolveError> {
    Ok(Host::new(lookup).registries(settings, ctx)?.expand(text)?.reference)
}

/// How registries are reached: proxies, the site's CA, mirrors, short names, logins that containers' tools or docker
/// keep.
pub(super) fn client_config(settings: &Settings, lookup: Lookup<'_>, ctx: &Ctx) -> Result<ClientConfig, ResolveError> {
    let host = Host::new(lookup);
    let mut client = ClientConfig::from_environment(lookup);
    for name in ["SSL_CERT_FILE", "SSL_CERT_DIR", "no_proxy", "NO_PROXY"] {
        if let Some(value) = lookup(name) {
            ctx.detail(format!("{name} is set: {value}"));
        }
    }
    for (proxy, what) in [(&client.https_proxy, "https"), (&client.http_proxy, "http")] {
        // Its address may hold a password.
        if proxy.is_some() {
            ctx.detail(format!("a proxy for {what} is set"));
        }
    }
    client.extra_ca_files.extend(lookup("SSL_CERT_FILE").map(PathBuf::from).filter(|p| p.is_file()));
    client.certificate_dirs = host.certificate_dirs();
    client.registries = host.registries(settings, ctx)?;
    client.credentials = host.credentials(ctx)?;
    if let (helpers, Some(origin)) = client.registries.credential_helpers() {
        client.credentials.use_helpers(helpers, origin);
    }
    Ok(client)
}

/// What a name means, and where it will be asked for.
fn registry_reference(text: &str, client: &ClientConfig, ctx: &Ctx) -> Result<Reference, RegistriesError> {
    let expanded = client.registries.expand(text)?;
    if let Some(because) = expanded.because {
        ctx.detail(format!("`{text}` is {}: {because}", expanded.reference));
    }
    if let Reference::Registry(reference) = &expanded.reference {
        // An image that is in the cache may be used although it may not be pulled: no error yet.
        match client.registries.route(reference) {
            Ok(route) => {
                if let Some((prefix, origin)) = &route.rule {
                    ctx.detail(format!("`{reference}`: the prefix `{prefix}` in {origin}"));
                }
                route.skipped.iter().for_each(|skipped| ctx.detail(format!("left out: {skipped}")));
                let places: Vec<String> = route.endpoints.iter().map(ToString::to_string).collect();
                ctx.detail(format!("`{reference}` is asked for at: {}", places.join(", then ")));
            }
            Err(error) => ctx.detail(error.to_string()),
        }
    }
    Ok(expanded.reference)
}

/// Where this user's and this host's files are.
struct Host {
    /// `/`, but in tests.
    root: PathBuf,
    home: Option<PathBuf>,
    named_conf: Option<PathBuf>,
    cache: Option<PathBuf>,
    named_auth: Option<PathBuf>,
    runtime: PathBuf,
    config: Option<PathBuf>,
    docker: Option<PathBuf>,
}

impl Host {
    fn new(lookup: Lookup<'_>) -> Self {
        let dir = |name: &str| lookup(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let home = dir("HOME");
        let below = |name: &str| home.as_ref().map(|home| home.join(name));
        let uid = nix::unistd::getuid();
        let cache = if uid.is_root() {
            Some(PathBuf::from("/var/cache"))
        } else {
            dir("XDG_CACHE_HOME").or_else(|| below(".cache"))
        };
        Self {
            root: PathBuf::from("/"),
            named_conf: dir("CONTAINERS_REGISTRIES_CONF"),
            cache,
            named_auth: dir("REGISTRY_AUTH_FILE"),
            runtime: dir("XDG_RUNTIME_DIR")
                .map_or_else(|| PathBuf::from(format!("/run/containers/{uid}")), |dir| dir.join("containers")),
            config: dir("XDG_CONFIG_HOME").or_else(|| below(".config")),
            docker: dir("DOCKER_CONFIG").or_else(|| below(".docker")),
            home,
        }
    }

    fn certificate_dirs(&self) -> Vec<PathBuf> {
        let user = self.home.iter().map(|home| home.join(".config/containers/certs.d"));
        user.chain(["etc/containers/certs.d", "etc/docker/certs.d"].map(|dir| self.root.join(dir))).collect()
    }

    fn registries(&self, settings: &Settings, ctx: &Ctx) -> Result<Registries, ResolveError> {
        let mut registries = Registries::default();
        let mut read = Vec::new();
        for path in self.conf_files()? {
            let origin = path.display().to_string();
            registries.add(
                &origin,
                &fs::read_to_string(&path).map_err(ResolveError::Unreadable)?,
                UnknownKeys::Note,
            )?;
            read.push(origin);
        }
        for layer in &settings.registries {
            let origin = format!("[registries] of {}", layer.origin);
            registries.add_table(&origin, layer.table.clone(), UnknownKeys::Refuse)?;
            read.push(origin);
        }
        let read = if read.is_empty() { "none".to_owned() } else { read.join(", ") };
        ctx.detail(format!("configuration of registries: {read}"));
        registries.notes().iter().for_each(|note| ctx.detail(note));
        Ok(registries)
    }

    /// The files in their order; all of them were there.
    fn conf_files(&self) -> Result<Vec<PathBuf>, ResolveError> {
        let system = self.root.join("etc/containers");
        let user = self.home.as_ref().map(|home| home.join(".config/containers"));
        let own = user.as_ref().map(|dir| dir.join("registries.conf")).filter(|path| path.exists());
        let mut files = Vec::new();
        let mut dirs: Vec<&Path> = user.as_deref().into_iter().collect();
        if let Some(named) = &self.named_conf {
            // Also when it is not there: who names a file means it.
            files.push(named.clone());
            dirs.insert(0, &system);
        } else if let Some(own) = own {
            files.push(own);
        } else {
            files.extend(Some(system.join("registries.conf")).filter(|path| path.exists()));
            dirs.insert(0, &system);
        }
        for dir in dirs {
            files.extend(drop_ins(&dir.join("registries.conf.d"))?);
        }
        let answers = self.cache.as_ref().map(|dir| dir.join("containers/short-name-aliases.conf"));
        files.extend(answers.filter(|path| path.is_file()));
        Ok(files)
    }

    fn credentials(&self, ctx: &Ctx) -> Result<Credentials, ResolveError> {
        let mut credentials = Credentials::default();
        let primary = self.named_auth.clone().unwrap_or_else(|| self.runtime.join("auth.json"));
        let more = [
            self.config.as_ref().map(|dir| dir.join("containers/auth.json")),
            self.docker.as_ref().map(|dir| dir.join("config.json")),
        ];
        for (index, path) in [Some(primary)].into_iter().chain(more).flatten().enumerate() {
            let named = index == 0 && self.named_auth.is_some();
            let text = match fs::read_to_string(&path) {
                Ok(text) => text,
                Err(e) if named => return Err(ResolveError::Unreadable(e)),
                Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => continue,
                // Where there is no XDG_RUNTIME_DIR the place is a guess, below a folder that may be root's alone.
                Err(e) if e.kind() == io::ErrorKind::PermissionDenied && path.starts_with("/run/containers") => {
                    ctx.detail(format!("logins: {e}"));
                    continue;
                }
                Err(e) => {
                    ctx.warn(format!("logins: {e}"));
                    continue;
                }
            };
            match AuthFile::parse(&path, &text) {
                Ok(file) => credentials.add_file(file),
                Err(e) => ctx.warn(format!("{} is not used: {e}", path.display())),
            }
        }
        let files: Vec<&str> = credentials.files().collect();
        ctx.detail(format!("files with logins: {}", if files.is_empty() { "none".into() } else { files.join(", ") }));
        Ok(credentials)
    }
}

/// The files `*.conf` of a folder by name; none when it is not there.
fn drop_ins(dir: &Path) -> Result<Vec<PathBuf>, ResolveError> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => return Ok(Vec::new()),
        Err(e) => return Err(ResolveError::Unreadable(e)),
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(ResolveError::Unreadable)?.path();
        if path.extension().is_some_and(|e| e == "conf") && path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    struct Tree(tempfile::TempDir);

    impl Tree {
        fn new(files: &[(&str, &str)]) -> Self {
            let tree = Self(tempfile::tempdir().unwrap());
            for (path, text) in files {
                let path = tree.0.path().join(path);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, text).unwrap();
            }
            tree
        }

        /// A host whose root is the tree, with the home `home`; `{}` in a variable is the tree.
        fn host(&self, env: &[(&str, &str)]) -> Host {
            let root = self.0.path().display().to_string();
            let mut vars: BTreeMap<_, _> = env.iter().map(|(k, v)| (*k, v.replace("{}", &root))).collect();
            vars.entry("HOME").or_insert_with(|| format!("{root}/home"));
            let host = Host::new(&|name| vars.get(name).cloned());
            Host { root: self.0.path().to_owned(), cache: Some(self.0.path().join("cache")), ..host }
        }

        fn relative(&self, paths: &[PathBuf]) -> Vec<String> {
            paths.iter().map(|p| p.strip_prefix(self.0.path()).unwrap_or(p).display().to_string()).collect()
        }
    }

    #[test]
    fn which_files_count_and_in_which_order() {
        let system = ["etc/containers/registries.conf", "etc/containers/registries.conf.d/10.conf"];
        let user = "home/.config/containers/registries.conf.d/05.conf";
        let own = "home/.config/containers/registries.conf";
        let answers = "cache/containers/short-name-aliases.conf";
        let more =
            ["etc/containers/registries.conf.d/02.conf", "etc/containers/registries.conf.d/README", "named.conf"];
        let all: Vec<(&str, &str)> =
            [system[0], system[1], user, answers, more[0], more[1], more[2]].map(|p| (p, "")).to_vec();
        let tree = Tree::new(&all);
        let files = |tree: &Tree, env: &[(&str, &str)]| tree.relative(&tree.host(env).conf_files().unwrap());
        assert_eq!(files(&tree, &[]), [system[0], more[0], system[1], user, answers]);
        assert_eq!(
            files(&tree, &[("CONTAINERS_REGISTRIES_CONF", "{}/named.conf")]),
            ["named.conf", more[0], system[1], user, answers]
        );
        let tree = Tree::new(&[all, vec![(own, "")]].concat());
        assert_eq!(files(&tree, &[]), [own, user, answers], "the user's own file stands in for the system's");
        assert_eq!(files(&Tree::new(&[]), &[]), [""; 0]);

        let missing = tree.host(&[("CONTAINERS_REGISTRIES_CONF", "{}/none.conf")]);
        let error = missing.registries(&Settings::default(), &Ctx::silent()).unwrap_err().to_string();
        assert!(error.contains("none.conf"), "{error}");
    }

    #[test]
    fn our_own_section_is_laid_over_the_files() {
        let tree = Tree::new(&[(
            "etc/containers/registries.conf",
            "unqualified-search-registries = ['a.site', 'b.site']\n[aliases]\nx = 'a.site/x'",
        )]);
        let text = "[registries]\nunqualified-search-registries = ['c.site']\n[registries.aliases]\ny = 'c.site/z'";
        let settings = Settings::parse(Path::new("/s/slurm-factory.toml"), text).unwrap();
        let registries = tree.host(&[]).registries(&settings, &Ctx::silent()).unwrap();
        let name = |text: &str| registries.expand(text).unwrap();
        assert_eq!(name("x").reference.to_string(), "a.site/x:latest");
        assert_eq!(name("y").reference.to_string(), "c.site/z:latest");
        assert_eq!(name("q").reference.to_string(), "c.site/q:latest");
        assert!(name("q").because.unwrap().contains("/s/slurm-factory.toml"));

        let settings = Settings::parse(Path::new("/s/slurm-factory.toml"), "[registries]\nregistery = []").unwrap();
        let error = tree.host(&[]).registries(&settings, &Ctx::silent()).unwrap_err().to_string();
        assert!(error.contains("registery") && error.contains("/s/slurm-factory.toml"), "{error}");
    }

    #[test]
    fn logins_in_their_order() {
        // base64 of `primary:p`, `user:p`, `docker:p`
        let file = |auth: &str| format!(r#"{{"auths": {{"a.site": {{"auth": "{auth}"}}}}}}"#);
        let (primary, user, docker) = (file("cHJpbWFyeTpw"), file("dXNlcjpw"), file("ZG9ja2VyOnA="));
        let tree = Tree::new(&[
            ("run/containers/auth.json", &primary),
            ("home/.config/containers/auth.json", &user),
            ("home/.docker/config.json", &docker),
            ("other/config.json", &docker),
            ("named.json", "{}"),
        ]);
        let files = |env: &[(&str, &str)]| {
            let credentials = tree.host(env).credentials(&Ctx::silent()).unwrap();
            tree.relative(&credentials.files().map(PathBuf::from).collect::<Vec<_>>())
        };
        let (user, docker) = ("home/.config/containers/auth.json", "home/.docker/config.json");
        assert_eq!(files(&[("XDG_RUNTIME_DIR", "{}/run")]), ["run/containers/auth.json", user, docker]);
        assert_eq!(
            files(&[("XDG_RUNTIME_DIR", "{}/run"), ("REGISTRY_AUTH_FILE", "{}/named.json")]),
            ["named.json", user, docker]
        );
        assert_eq!(files(&[("XDG_RUNTIME_DIR", "{}"), ("DOCKER_CONFIG", "{}/other")]), [user, "other/config.json"]);
        let named = tree.host(&[("REGISTRY_AUTH_FILE", "{}/none.json")]);
        let error = named.credentials(&Ctx::silent()).unwrap_err().to_string();
        assert!(error.contains("none.json"), "{error}");
    }
}
