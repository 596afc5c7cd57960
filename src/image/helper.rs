//! Credential helpers: programs that know logins.
//!
//! ```text
//! docker-credential-NAME get     standard input:  registry.site:5000
//!                                standard output: {"ServerURL": "...", "Username": "me", "Secret": "..."}
//!                                or, with status 1: credentials not found in native keychain
//! ```
//!
//! Docker Hub's logins are kept under `https://index.docker.io/v1/`. The user name `<token>` says that the secret
//! is an identity token. What a helper prints is never shown: it may hold the secret also when it failed.
//!
//! Protocol: the docker-credential-helpers project's documentation.

use super::credentials::Login;
use crate::process::{ProcessError, Program};
use crate::report::Interrupt;
use crate::secret::Secret;
use serde::Deserialize;
use std::time::Duration;

/// Helpers may ask a key ring or a cloud's own service, which takes a while; a prompt nobody sees would last for ever.
const TIMEOUT: Duration = Duration::from_secs(30);

/// More than any answer: a token has a few kilobytes.
const MAX_ANSWER: usize = 1 << 20;

/// What helpers print when they have no login, with a status that is not 0.
const NOT_FOUND: [&[u8]; 2] =
    [b"credentials not found in native keychain", b"credentials not found in native keychain\n"];

/// Why a helper gave no answer. Says nothing of what it printed.
#[derive(Debug, thiserror::Error)]
pub enum HelperError {
    /// A name that is no program's.
    #[error(
        "`{name}` is not the name of a credential helper (what follows `docker-credential-` in the program's name)"
    )]
    Name {
        /// As configured.
        name: String,
    },
    /// It could not be run.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// It ended with a failure.
    #[error("it failed; to see why: echo {server} | {program} get")]
    Failed {
        /// The program.
        program: String,
        /// What it was asked for.
        server: String,
    },
    /// Its answer is not what the protocol says.
    #[error("its answer is not the JSON of the credential helper protocol; to see it: echo {server} | {program} get")]
    Answer {
        /// The program.
        program: String,
        /// What it was asked for.
        server: String,
    },
}

#[derive(Deserialize)]
struct Answer {
    #[serde(rename = "Username", default)]
    user: String,
    #[serde(rename = "Secret")]
    secret: Secret<String>,
}

/// The program of a helper's name.
pub fn program(name: &str) -> String {
    format!("docker-credential-{name}")
}

/// Asks a helper for the login of a registry (`docker.io`, `registry.site:5000`); `None` when it has none.
pub fn ask(name: &str, host: &str, interrupt: &Interrupt) -> Result<Option<Login>, HelperError> {
    let fine = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if name.is_empty() || !name.bytes().all(fine) {
        return Err(HelperError::Name { name: name.to_owned() });
    }
    // Docker keeps its own registry's login under a historic name, other programs under the usual one.
    let servers = if host == "docker.io" { vec!["https://index.docker.io/v1/", host] } else { vec![host] };
    for server in servers {
        if let Some(login) = get(&program(name), server, TIMEOUT, interrupt)? {
            return Ok(Some(login));
        }
    }
    Ok(None)
}

fn get(program: &str, server: &str, timeout: Duration, interrupt: &Interrupt) -> Result<Option<Login>, HelperError> {
    let (fine, printed) = Program::new(program)
        .arg("get")
        .with_callers_environment()
        .input(server)
        .timeout(timeout)
        .secret_output(interrupt, MAX_ANSWER)?;
    let printed = printed.expose();
    if !fine {
        if NOT_FOUND.contains(&printed.as_slice()) {
            return Ok(None);
        }
        return Err(HelperError::Failed { program: program.to_owned(), server: server.to_owned() });
    }
    let answer: Answer = serde_json::from_slice(printed)
        .map_err(|_| HelperError::Answer { program: program.to_owned(), server: server.to_owned() })?;
    if answer.user.is_empty() && answer.secret.expose().is_empty() {
        return Ok(None);
    }
    Ok(Some(Login { user: answer.user, password: answer.secret }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use fs_err as fs;
    use std::os::unix::fs::PermissionsExt;

    /// A helper that runs `script`; its folder is in no PATH, so it is asked by its full name.
    fn helper(dir: &tempfile::TempDir, script: &str) -> String {
        let path = dir.path().join("docker-credential-test");
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path.display().to_string()
    }

    #[test]
    fn answers_are_read_and_errors_show_no_secret() {
        let dir = tempfile::tempdir().unwrap();
        let ask =
            |script: &str| get(&helper(&dir, script), "registry.site:5000", Duration::from_secs(1), &Interrupt::new());
        let login = ask(r#"read s || [ "$s" ]; echo "{\"ServerURL\":\"$s\",\"Username\":\"$1 $s\",\"Secret\":\"x\"}""#);
        let login = login.unwrap().unwrap();
        assert_eq!((login.user.as_str(), login.password.expose().as_str()), ("get registry.site:5000", "x"));
        assert!(ask("echo 'credentials not found in native keychain'; exit 1").unwrap().is_none());
        assert!(ask(r#"echo '{"ServerURL":"","Username":"","Secret":""}'"#).unwrap().is_none());
        for script in [
            "echo s3cret; echo s3cret >&2; exit 1",
            "echo s3cret",
            r#"echo '{"Username":"u","Secret":["s3cret"]}'"#,
            r#"echo '{"Username":"u"}' s3cret"#,
        ] {
            let error = ask(script).unwrap_err();
            assert!(!format!("{error} {error:?}").contains("s3cret"), "{script}: {error}");
            assert!(error.to_string().contains("docker-credential-test get"), "{error}");
        }
        let late = ask("echo s3cret; sleep 30").unwrap_err().to_string();
        assert!(late.contains("did not end") && !late.contains("s3cret"), "{late}");
    }

    #[test]
    fn a_name_with_a_path_is_no_helper() {
        for name in ["", "../x", "a/b", "a b"] {
            assert!(matches!(ask(name, "h", &Interrupt::new()), Err(HelperError::Name { .. })), "{name}");
        }
    }
}
