# shellcheck shell=bash
#
# The Debian archive as this host already reaches it; to be sourced.
#
# The end-to-end test needs suites that the host does not list (trixie, backports, source packages), from the archive
# that the host does use: a site's mirror, a proxy, the public one. So the address is asked of the host's own apt, and
# is written down nowhere in this project.

die() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 1
}

note() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
}

# Stops with a sentence that names every program that is missing and the package that holds it.
# need PROGRAM[:PACKAGE]...
need() {
    local item missing=()
    for item in "$@"; do
        command -v "${item%%:*}" >/dev/null || missing+=("${item%%:*} (package ${item##*:})")
    done
    ((${#missing[@]} == 0)) || die "not installed: $(printf '%s, ' "${missing[@]}" | sed 's/, $//')"
}

# Prints the address of the Debian archive (not of the security one), without a slash at its end.
# SLURM_FACTORY_TEST_DEBIAN_MIRROR overrides it, for a host whose apt lists nothing of use.
debian_archive() {
    local address=${SLURM_FACTORY_TEST_DEBIAN_MIRROR:-}
    if [[ -z $address ]]; then
        # shellcheck disable=SC2016  # apt's own placeholders
        address=$(apt-get indextargets --format '$(REPO_URI) $(RELEASE) $(COMPONENT)' 'Identifier: Packages' |
            awk '$2 ~ /^(bookworm|trixie|stable|oldstable|oldoldstable|forky|sid)$/ && $3 == "main" { print $1; exit }')
    fi
    [[ -n $address ]] || die "apt on this host lists no Debian archive: set SLURM_FACTORY_TEST_DEBIAN_MIRROR to one"
    printf '%s\n' "${address%/}"
}

# Prints apt sources (deb822) of the given kind for the given suites, verified with Debian's archive keys.
# debian_sources deb|deb-src SUITE...
debian_sources() {
    local kind=$1 keyring=/usr/share/keyrings/debian-archive-keyring.gpg archive
    shift
    [[ -r $keyring ]] || die "$keyring is missing: install debian-archive-keyring"
    archive=$(debian_archive)
    printf 'Types: %s\nURIs: %s\nSuites: %s\nComponents: main\nSigned-By: %s\n' "$kind" "$archive" "$*" "$keyring"
}
