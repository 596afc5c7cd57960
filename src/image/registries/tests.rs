//! What files mean for images, laid over each other as sites have them.

use super::*;

fn load(files: &[(&str, &str)]) -> Registries {
    let mut registries = Registries::default();
    for (origin, text) in files {
        registries.add(origin, text, UnknownKeys::Note).unwrap_or_else(|e| panic!("{e}"));
    }
    registries
}

fn refused(text: &str) -> String {
    Registries::default().add("/etc/x.conf", text, UnknownKeys::Note).unwrap_err().to_string()
}

fn registry(text: &str) -> RegistryReference {
    let Reference::Registry(r) = text.parse().unwrap() else { panic!("{text}") };
    r
}

/// The places in order; `!` marks insecure ones.
fn places(registries: &Registries, image: &str) -> Vec<String> {
    let route = registries.route(&registry(image)).unwrap_or_else(|e| panic!("{e}"));
    let show = |e: &Endpoint| {
        let mark = if e.insecure == Some(true) { "!" } else { "" };
        format!("{mark}{}", e.reference)
    };
    route.endpoints.iter().map(show).collect()
}

const DIGEST: &str = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

#[test]
fn the_longest_prefix_wins_and_the_rest_of_the_name_stays() {
    let registries = load(&[(
        "f",
        r#"
        [[registry]]
        prefix = "docker.io"
        location = "mirror.site:5000/hub/"
        [[registry]]
        prefix = "docker.io/library"
        location = "mirror.site:5000/library"
        [[registry]]
        prefix = "docker.io/library/ubuntu:24.04"
        location = "pinned.site/noble:1"
        [[registry]]
        prefix = "*.example.com"
        insecure = true
        [[registry]]
        prefix = "*.deep.example.com"
        location = "deep.site/d"
        [[registry]]
        prefix = "*.plain.example.com"
        [[registry]]
        location = "plain.site"
        insecure = true
        [[registry]]
        prefix = "defaulted.site/a"
        "#,
    )]);
    for (image, want) in [
        ("team/app:1", "mirror.site:5000/hub/team/app:1"),
        ("debian:12", "mirror.site:5000/library/debian:12"),
        ("ubuntu:24.04", "pinned.site/noble:1"),
        ("ubuntu:24.10", "mirror.site:5000/library/ubuntu:24.10"),
        ("docker.io/librarything/a:1", "mirror.site:5000/hub/librarything/a:1"),
        ("a.example.com/x/y:1", "!a.example.com/x/y:1"),
        ("a.b.example.com:5000/x:1", "!a.b.example.com:5000/x:1"),
        ("a.deep.example.com/x:1", "deep.site/d/x:1"),
        ("a.plain.example.com/x:1", "a.plain.example.com/x:1"),
        ("plain.example.com:5000/x:1", "!plain.example.com:5000/x:1"),
        ("example.com/x:1", "example.com/x:1"),
        ("notexample.com/x:1", "notexample.com/x:1"),
        ("a.example.com.evil.net/x:1", "a.example.com.evil.net/x:1"),
        ("plain.site/x:1", "!plain.site/x:1"),
        ("plain.site.net/x:1", "plain.site.net/x:1"),
        ("defaulted.site/a/b:1", "defaulted.site/a/b:1"),
        ("quay.io/x/y:1", "quay.io/x/y:1"),
    ] {
        assert_eq!(places(&registries, image), [want], "{image}");
    }
    let route = registries.route(&registry("debian:12")).unwrap();
    assert_eq!(route.rule, Some(("docker.io/library".to_owned(), "f".to_owned())));
}

#[test]
fn mirrors_come_first_and_as_they_may_be_used() {
    let text = r#"
        [[registry]]
        location = "quay.io"
        [[registry.mirror]]
        location = "a.site/q"
        insecure = true
        [[registry.mirror]]
        location = "b.site"
        pull-from-mirror = "digest-only"
        [[registry.mirror]]
        location = "c.site"
        pull-from-mirror = "tag-only"
        [[registry]]
        location = "ghcr.io"
        mirror-by-digest-only = true
        [[registry.mirror]]
        location = "d.site"
        "#;
    let registries = load(&[("f", text)]);
    for (image, want) in [
        ("quay.io/x:1", vec!["!a.site/q/x:1", "c.site/x:1", "quay.io/x:1"]),
        (
            &format!("quay.io/x@{DIGEST}"),
            vec![&*format!("!a.site/q/x@{DIGEST}"), &*format!("b.site/x@{DIGEST}"), &*format!("quay.io/x@{DIGEST}")],
        ),
        ("ghcr.io/x:1", vec!["ghcr.io/x:1"]),
        (&format!("ghcr.io/x:1@{DIGEST}"), vec![&*format!("d.site/x:1@{DIGEST}"), &*format!("ghcr.io/x:1@{DIGEST}")]),
    ] {
        assert_eq!(places(&registries, image), want, "{image}");
    }
}

#[test]
fn what_is_blocked_is_refused_with_file_and_prefix() {
    let text = r#"
        [[registry]]
        prefix = "docker.io"
        blocked = true
        [[registry]]
        prefix = "docker.io/library"
        location = "docker.io/library"
        [[registry]]
        prefix = "quay.io"
        [[registry.mirror]]
        location = "bad.site/q"
        [[registry]]
        location = "bad.site"
        blocked = true
        [[registry]]
        prefix = "led.astray"
        location = "bad.site/x"
        "#;
    let registries = load(&[("/etc/r.conf", text)]);
    let blocked = |image: &str| registries.route(&registry(image)).unwrap_err().to_string();
    for (image, prefix) in [("team/app", "docker.io"), ("bad.site/y", "bad.site"), ("led.astray/z", "bad.site")] {
        let error = blocked(image);
        assert!(error.contains(&format!("`{prefix}`")) && error.contains("/etc/r.conf"), "{error}");
    }
    assert_eq!(places(&registries, "ubuntu:1"), ["docker.io/library/ubuntu:1"]);
    assert_eq!(places(&registries, "quay.io/x:1"), ["quay.io/x:1"]);
    assert_eq!(registries.route(&registry("quay.io/x:1")).unwrap().skipped.len(), 1);
}

#[test]
fn short_names() {
    let aliases = r#"
        [aliases]
        ubuntu = "mirror.site:5000/base/ubuntu"
        "team/app" = "quay.io/team/app"
        debian = "docker.io/debian"
        "#;
    let one = r#"unqualified-search-registries = ["registry.site"]"#;
    let two = r#"unqualified-search-registries = ["a.site", "docker.io"]"#;
    let pinned = format!("ubuntu@{DIGEST}");
    let pinned_full = format!("mirror.site:5000/base/ubuntu@{DIGEST}");
    for (files, text, want) in [
        (vec![aliases], "ubuntu:24.04", "mirror.site:5000/base/ubuntu:24.04"),
        (vec![aliases], "ubuntu", "mirror.site:5000/base/ubuntu:latest"),
        (vec![aliases], &pinned, &pinned_full),
        (vec![aliases, one], "team/app:1", "quay.io/team/app:1"),
        (vec![aliases], "debian:12", "docker.io/library/debian:12"),
        (vec![aliases], "alpine:3", "docker.io/library/alpine:3"),
        (vec![aliases, one], "alpine:3", "registry.site/alpine:3"),
        (vec![r#"unqualified-search-registries = ["docker.io"]"#], "alpine", "docker.io/library/alpine:latest"),
        (vec![aliases, "[aliases]\nubuntu = ''", one], "ubuntu:1", "registry.site/ubuntu:1"),
        (vec![two, one], "a:1", "registry.site/a:1"),
        (vec![two, "unqualified-search-registries = []"], "a:1", "docker.io/library/a:1"),
        (vec![aliases, two], "ubuntu:1", "mirror.site:5000/base/ubuntu:1"),
        // These name where they are.
        (vec![aliases, two], "docker.io/library/ubuntu:1", "docker.io/library/ubuntu:1"),
        (vec![aliases, two], "docker://ubuntu:1", "docker.io/library/ubuntu:1"),
        (vec![aliases, two], "localhost/ubuntu:1", "localhost/ubuntu:1"),
        (vec![aliases, two], "oci:ubuntu:1", "oci:ubuntu:1"),
    ] {
        let files: Vec<_> = files.iter().map(|text| ("f", *text)).collect();
        let got = load(&files).expand(text).unwrap_or_else(|e| panic!("{text}: {e}"));
        assert_eq!(got.reference.to_string(), want, "{text}");
    }
    let because = |files: &[(&str, &str)], text: &str| load(files).expand(text).unwrap().because;
    assert_eq!(because(&[("/a.conf", aliases)], "ubuntu").as_deref(), Some("an alias in /a.conf"));
    assert!(because(&[("/a.conf", one)], "x").unwrap().contains("/a.conf"));
    assert_eq!(because(&[("/a.conf", one)], "quay.io/x"), None);

    let error = load(&[("/etc/r.conf", two)]).expand("alpine:3").unwrap_err().to_string();
    for part in ["`alpine:3`", "a.site/alpine:3", "docker.io/library/alpine:3", "/etc/r.conf", "alias"] {
        assert!(error.contains(part), "{part}: {error}");
    }
}

#[test]
fn later_files_replace_by_prefix_and_name() {
    let registries = load(&[
        (
            "1",
            "credential-helpers = ['a']\n[[registry]]\nprefix='quay.io'\nlocation='one.site'\ninsecure=true\n[[registry]]\nlocation='ghcr.io'\n[[registry.mirror]]\nlocation='m.site'",
        ),
        (
            "2",
            "credential-helpers = ['b', 'containers-auth.json']\n[[registry]]\nprefix='quay.io'\nlocation='two.site'",
        ),
    ]);
    assert_eq!(places(&registries, "quay.io/x:1"), ["two.site/x:1"]);
    assert_eq!(places(&registries, "ghcr.io/x:1"), ["m.site/x:1", "ghcr.io/x:1"]);
    let (helpers, origin) = registries.credential_helpers();
    assert_eq!((helpers.join(" ").as_str(), origin), ("b containers-auth.json", Some("2")));
}

#[test]
fn refusals_name_file_and_cause() {
    for (text, parts) in [
        ("[registries.search]\nregistries = ['a.site']", vec!["version 1", "version 2"]),
        ("[registries.block]\nregistries = ['a.site']", vec!["version 1"]),
        ("unqualified-search-registries = 'a'", vec!["unqualified-search-registries"]),
        ("x = [\n1", vec!["line 2"]),
        ("[[registry]]\ninsecure = true", vec!["neither"]),
        ("[[registry]]\nlocation = 'https://a.site'", vec!["scheme", "insecure"]),
        ("[[registry]]\nlocation = 'a.*.site'", vec!["*"]),
        ("[[registry]]\nprefix = '*.a.site/b'", vec!["*"]),
        ("[[registry]]\nprefix = 'a.site'\nlocation = '*.b.site'", vec!["*"]),
        ("[[registry]]\nprefix = 'a.site'\n[[registry.mirror]]\ninsecure = true", vec!["mirror"]),
        (
            "[[registry]]\nprefix = 'a.site'\n[[registry.mirror]]\nlocation='b'\npull-from-mirror='x'",
            vec!["digest-only"],
        ),
        (
            "[[registry]]\nprefix = 'a.site'\nmirror-by-digest-only = true\n[[registry.mirror]]\nlocation='b'\npull-from-mirror='tag-only'",
            vec!["mirror-by-digest-only", "pull-from-mirror"],
        ),
        (
            "[[registry]]\nlocation='a.site'\n[[registry]]\nprefix='b.site'\nlocation='a.site'\ninsecure=true",
            vec!["a.site", "insecure"],
        ),
        ("short-name-mode = 'loud'", vec!["loud", "enforcing"]),
        ("[aliases]\nx = 'y'", vec!["`x`", "HOST/NAME"]),
        ("[aliases]\nx = 'a.site/y:1'", vec!["tag"]),
        ("[aliases]\n'a.site/x' = 'a.site/y'", vec!["a.site/x"]),
        ("[aliases]\n'x:1' = 'a.site/y'", vec!["x:1"]),
    ] {
        let error = refused(text);
        assert!(error.contains("/etc/x.conf"), "{text}: {error}");
        for part in parts {
            assert!(error.contains(part), "{text}: `{part}` is not in: {error}");
        }
    }
    // What was version 1 and says nothing is nothing.
    load(&[("f", "[registries.search]\nregistries = []")]);
    // A location that makes no name.
    let registries = load(&[("/etc/x.conf", "[[registry]]\nprefix='a.site'\nlocation='b.site:1'")]);
    assert_eq!(places(&registries, "a.site/x:1"), ["b.site:1/x:1"]);
    let registries = load(&[("/etc/x.conf", "[[registry]]\nprefix='a.site/x'\nlocation='b.site'")]);
    let error = registries.route(&registry("a.site/x:1")).unwrap_err().to_string();
    assert!(error.contains("/etc/x.conf") && error.contains("a.site/x"), "{error}");
}

#[test]
fn unknown_keys_are_noted_or_refused() {
    let text = "future = 1\n[[registry]]\nlocation = 'a.site'\nspeed = 2\n[[registry.mirror]]\nlocation = 'b'\nx = 3";
    let notes = load(&[("/etc/x.conf", text)]);
    let notes = notes.notes();
    assert_eq!(notes.len(), 3, "{notes:?}");
    for (note, key) in notes.iter().zip(["`future`", "`speed`", "`x`"]) {
        assert!(note.contains(key) && note.contains("/etc/x.conf"), "{note}");
    }
    let error = Registries::default().add("ours", text, UnknownKeys::Refuse).unwrap_err().to_string();
    assert!(error.contains("future"), "{error}");
}
