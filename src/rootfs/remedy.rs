//! What to do about a step of the prepare stage that failed, from the words of apt, dnf (libcurl's) and pip.

/// A sentence that begins on a line of its own, or nothing.
pub fn remedy(step: &str, tail: &[String]) -> String {
    let text = tail.join("\n");
    let says = |words: &[&str]| words.iter().any(|word| text.contains(word));
    let flag = if step.starts_with("dnf") {
        "--dnf-mirror"
    } else if step.starts_with("pip") {
        "--pip-index"
    } else {
        "--apt-mirror"
    };
    let what = if step.starts_with("pip") { "the Python package index" } else { "the distribution's package archive" };
    let sentence = if says(&["407 Proxy", "response 407", "failed: 407", "Proxy Authentication Required"])
        || says(&["CONNECT tunnel failed, response 401", "Tunnel connection failed: 401"])
        || says(&["from proxy: HTTP/1.0 401", "from proxy: HTTP/1.1 401"])
    {
        "the proxy wants a login, or another one: put it into the *_proxy variable, as in http://user:password@proxy:3128 (it is kept out of \
         logs)"
            .to_owned()
    } else if says(&["CERTIFICATE_VERIFY_FAILED", "certificate verify failed", "Certificate verification failed"])
        || says(&["SSL peer certificate", "Curl error (60)", "Curl error (77)"])
    {
        "the site's CA is not trusted inside: set SSL_CERT_FILE to a bundle that holds it".to_owned()
    } else if says(&["No space left", "more space needed on the"]) {
        "the cache's file system is full: free some space or choose another --cache-dir".to_owned()
    } else if says(&["DO NOT MATCH THE HASHES"]) {
        format!(
            "{what} has another file under that name than the one that is pinned: {flag} names a true mirror of PyPI"
        )
    } else if says(&["No matching distribution found"]) && !says(&["Connection", "Proxy", "Max retries"]) {
        format!("{what} does not have it: {flag} names another, and PIP_FIND_LINKS a folder of wheels")
    } else if says(&["GPG check FAILED", "is not signed", "NO_PUBKEY"]) {
        "the packages are not signed with a key that is known: a repository of the site names its key (gpgkey= in a .repo file, \
         Signed-By: in apt's sources)"
            .to_owned()
    } else if says(&["No match for argument", "Unable to find a match", "Unable to locate package"]) {
        format!("{what} that was used does not have these packages: does {flag} name a full mirror of this release?")
    } else if says(&["Could not resolve", "Couldn't resolve", "Temporary failure resolving", "Could not connect"])
        || says(&["Couldn't connect", "Failed to connect", "Connection refused", "Timeout was reached", "timed out"])
        || says(&["Cannot prepare internal mirrorlist", "Failed to download metadata", "Max retries exceeded"])
        || says(&["Connection to", "ProxyError", "Failed to establish a new connection"])
    {
        format!(
            "{what} cannot be reached from here: check the network and the *_proxy variables, or name the site's mirror with \
             {flag}"
        )
    } else {
        return String::new();
    };
    format!("\n{sentence}")
}

#[cfg(test)]
mod tests {
    use super::remedy;

    #[test]
    fn each_tools_words_lead_to_the_flag_that_helps() {
        for (step, line, part) in [
            (
                "dnf install",
                "Curl error (6): Couldn't resolve host name for https://x [Could not resolve host: x]",
                "--dnf-mirror",
            ),
            ("dnf install", "Curl error (60): SSL peer certificate or SSH remote key was not OK", "SSL_CERT_FILE"),
            ("dnf install", "Error: GPG check FAILED", "gpgkey="),
            ("apt-get update", "E: Failed to fetch http://x  Could not connect to x:80", "--apt-mirror"),
            (
                "apt-get update",
                "Invalid response from proxy: HTTP/1.0 407 Proxy Authentication Required",
                "user:password@",
            ),
            (
                "pip install of pinned wheels",
                "ERROR: No matching distribution found for clingo==5.8.3",
                "PIP_FIND_LINKS",
            ),
            ("pip install of pinned wheels", "Failed to establish a new connection: [Errno 111]", "--pip-index"),
            ("dnf install", "Curl error (56) [CONNECT tunnel failed, response 407]", "user:password@"),
            ("apt-get install", "dpkg: error: cannot write: No space left on device", "--cache-dir"),
        ] {
            let said = remedy(step, &[line.to_owned()]);
            assert!(said.starts_with('\n') && said.contains(part), "{line}: {said}");
        }
        assert_eq!(remedy("dnf install", &["Error: something else".into()]), "");
    }
}
