#!/usr/bin/env bash
#
# Makes a plain Debian base image as an OCI layout, from the package archive alone.
#
# A build starts from a base image of a public registry. A machine that reaches only package registries has none, so
# the end-to-end test makes its own: what docker.io/library/debian:12 holds in essence, Debian's minbase. Debian's name is
# kept because the image's os-release is checked against the toolchain (debian12).
#
#   make-base-image.sh OUTDIR [SUITE]      -> OUTDIR/oci, tag debian12 (trixie: debian13); prints the digest of its manifest
#
# Runs as root (mode root) or as a user with subordinate ids (mode unshare). An image that is there is kept.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=tests/e2e/debian-archive.sh
source "$here/debian-archive.sh"

[[ $# -eq 1 || $# -eq 2 ]] || die "usage: make-base-image.sh OUTDIR [SUITE]"
suite=${2:-bookworm}
case $suite in
bookworm) tag=debian12 ;;
trixie) tag=debian13 ;;
*) die "no tag is known for the suite $suite" ;;
esac
mkdir -p "$1"
out=$(cd "$1" && pwd)

need mmdebstrap umoci python3 apt-get:apt

# The manifest's digest of the tag in a layout; empty when there is none.
digest_of() {
    python3 - "$1" "$tag" <<'PYTHON'
import json, os, sys
layout, tag = sys.argv[1:]
path = os.path.join(layout, "index.json")
if os.path.exists(path):
    with open(path) as index:
        for entry in json.load(index)["manifests"]:
            if entry.get("annotations", {}).get("org.opencontainers.image.ref.name") == tag:
                print(entry["digest"])
PYTHON
}

digest=$(digest_of "$out/oci")
if [[ -z $digest ]]; then
    work=$(mktemp -d "$out/.base-image.XXXXXX")
    trap 'rm -rf "$work"' EXIT

    if [[ $(id -u) -eq 0 ]]; then mode=root; else mode=unshare; fi
    note "mmdebstrap, mode $mode"
    debian_sources deb "$suite" "$suite-updates" >"$work/debian.sources"
    # The image lists the same archive, so that apt works in it wherever it works on the host.
    mmdebstrap --quiet --variant=minbase --mode="$mode" --format=tar "$suite" "$work/base.tar" "$work/debian.sources" ||
        die "mmdebstrap failed: does apt-get update work on this host?"

    case $(uname -m) in
    x86_64) architecture=amd64 ;;
    aarch64) architecture=arm64 ;;
    *) die "no image architecture is known for $(uname -m)" ;;
    esac
    umoci init --layout "$work/oci" >&2
    umoci new --image "$work/oci:$tag" >&2
    umoci raw add-layer --image "$work/oci:$tag" "$work/base.tar" >&2
    umoci config --image "$work/oci:$tag" --config.cmd /bin/bash --architecture "$architecture" --os linux >&2
    umoci gc --layout "$work/oci" >&2

    # Beside, then renamed: a killed run leaves nothing that looks whole.
    rm -rf "$out/oci"
    mv "$work/oci" "$out/oci"
    digest=$(digest_of "$out/oci")
    [[ -n $digest ]] || die "umoci left no tag $tag in $out/oci"
fi
printf '%s\n' "$digest"
