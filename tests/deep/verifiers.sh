#!/usr/bin/env bash
#
# What we sign is believed by OpenPGP programs that are newer than this host's: those of Debian 13, with gpg 2.4, rpm with its
# Sequoia backend, sqv and sq. A finished package is signed again by fresh keys of both kinds; everything signed is verified there, and
# refused when a byte of it has changed.
#
#   tests/deep/verifiers.sh PACKAGE [BUILDCACHE]     a finished package (tests/e2e/run.sh WORKDIR leaves one), and a folder with
#                                                    a binary cache, whose clear-signed manifests are verified too
#
# As root, on a host that tests/run.sh has run on. SLURM_FACTORY names the program, target/debug/slurm-factory when it does not.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=tests/e2e/debian-archive.sh
source "$here/../e2e/debian-archive.sh"

program=$(realpath "${SLURM_FACTORY:-$here/../../target/debug/slurm-factory}")
[[ $# -ge 1 && -f $1 ]] || die "which package?"
package=$(realpath "$1")
cache=${2:+$(realpath "$2")}
need mmdebstrap chroot:coreutils
[[ $(id -u) -eq 0 ]] || die "root makes the Debian 13 in which this runs"
[[ -x $program ]] || die "no program at $program: cargo build"

work=$(mktemp -d /var/tmp/verifiers.XXXXXX)
trap 'rm -rf "$work"' EXIT
debian_sources deb trixie trixie-updates >"$work/debian.sources"
mmdebstrap --quiet --variant=minbase --mode=root --include=gnupg,gpgv,rpm,sqv,sq trixie "$work/root" "$work/debian.sources" ||
    die "mmdebstrap failed: does apt-get update work on this host?"
inside() { chroot "$work/root" env -i HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 "$@"; }
factory() { HOME=$work/home "$program" --cache-dir "$work/cache" "$@"; }
mkdir "$work/home"

version=$(inside gpg --version | sed -n '1s/.* //p')
[[ $version == 2.[4-9].* ]] || die "gpg there is $version, and 2.4 or newer was meant"
inside ldd /usr/bin/rpmkeys | grep librpm_sequoia >/dev/null || die "rpm there is not linked with rpm-sequoia"
note "gpg $version, $(inside rpm --version), $(inside sqv --version 2>&1 | head -n 1)"

signed=0
for kind in ed25519 rsa4096; do
    dir=$work/root/data/$kind
    mkdir -p "$dir"
    cp "$package" "$package".* "$dir/"
    # The folder's name is the kind; the archive's stays, as the statement of provenance may name it.
    archive=$(basename "$package")
    rsa=()
    [[ $kind == ed25519 ]] || rsa=(--rsa)
    fingerprint=$(factory --quiet key generate "${rsa[@]}" --name Site --email "$kind@site.example")
    factory key export "$fingerprint" >"$dir/key.asc"
    factory key export --secret "$fingerprint" >"$work/$kind.asc"
    chmod 600 "$work/$kind.asc"
    factory --quiet sign --replace --key "$work/$kind.asc" "$dir/$archive" >/dev/null

    inside gpg --quiet --batch --homedir /root --import "/data/$kind/key.asc"
    inside gpg --quiet --batch --yes --dearmor -o "/data/$kind/key.gpg" "/data/$kind/key.asc"
    for name in "$archive" "$archive.provenance.json"; do
        at=/data/$kind/$name
        inside gpg --batch --homedir /root --status-fd 1 --verify "$at.asc" "$at" 2>/dev/null | grep "VALIDSIG.*$fingerprint" >/dev/null || die "gpg does not believe $at"
        inside gpgv --quiet --keyring "/data/$kind/key.gpg" "$at.asc" "$at" 2>/dev/null || die "gpgv does not believe $at"
        inside sqv --keyring "/data/$kind/key.asc" "$at.asc" "$at" | grep -i "$fingerprint" >/dev/null || die "sqv does not believe $at"
        inside sq --home none verify --signer-file "/data/$kind/key.asc" --signature-file "$at.asc" "$at" 2>/dev/null >/dev/null || die "sq does not believe $at"
        # Nor a byte more.
        cp "$work/root$at" "$work/root$at.changed"
        printf x >>"$work/root$at.changed"
        ! inside gpg --batch --homedir /root --verify "$at.asc" "$at.changed" 2>/dev/null || die "gpg believes a changed $at"
        ! inside sqv --keyring "/data/$kind/key.asc" "$at.asc" "$at.changed" >/dev/null 2>&1 || die "sqv believes a changed $at"
        rm "$work/root$at.changed"
        signed=$((signed + 1))
    done
    # rpm takes a certificate only when its policy accepts it: no SHA-1, no short key.
    inside rpmkeys --dbpath "/data/$kind/rpmdb" --import "/data/$kind/key.asc" || die "rpm-sequoia refuses our $kind key"
    inside rpm --dbpath "/data/$kind/rpmdb" -q gpg-pubkey --qf '%{SUMMARY}\n' | grep "$kind@site.example" >/dev/null || die "rpm has not kept our $kind key"
    note "$kind: gpg, gpgv, sqv, sq and rpm-sequoia believe the package and its provenance"
done

if [[ -n $cache ]]; then
    mkdir "$work/root/cache"
    cp -r "$cache/v3" "$work/root/cache/"
    # The keys as the cache offers them.
    count=0
    while IFS= read -r manifest; do
        blob=$(sed -n 's/.*"checksum": *"\([0-9a-f]*\)".*/\1/p' "$manifest" | head -n 1)
        cp "$cache/blobs/sha256/${blob:0:2}/$blob" "$work/root/cache/key"
        inside gpg --quiet --batch --homedir /root --import /cache/key
    done < <(find "$cache/v3/manifests/key" -name '*.key.manifest.json')
    while IFS= read -r manifest; do
        inside gpg --batch --homedir /root --status-fd 1 --verify "/cache/${manifest#"$cache/"}" 2>/dev/null | grep VALIDSIG >/dev/null || die "gpg does not believe $manifest"
        count=$((count + 1))
    done < <(find "$cache/v3/manifests/spec" -name '*.spec.manifest.json')
    ((count > 0)) || die "no manifests in $cache"
    note "gpg believes the $count clear-signed manifests"
fi
note "passed: $signed files signed"
