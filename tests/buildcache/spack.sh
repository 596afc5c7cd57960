#!/usr/bin/env bash
#
# Stock Spack installs from what slurm-factory pushed, with its signature checks on, and refuses what is wrong.
#
#   spack.sh PROGRAM [WORK]      PROGRAM: slurm-factory; WORK: where to work, else a folder that is removed at the end
#
# SLURM_FACTORY_TEST_SPACK         git directory of Spack: tags v1.0.0 and v1.1.0
# SLURM_FACTORY_TEST_SPACK_PACKAGES  git directory of its recipes (Spack knows no compiler without them)
# SLURM_FACTORY_TEST_TREE          a build folder or an install tree with a Slurm that slurm-factory built; not changed
#
# Without Spack nothing is shown, and that is said and is no failure. What is built here is two packages that need no compiler:
# a program of this system and a library, with texts and links that name the store. Runs as any user, without a sandbox; needs
# git, gcc (Spack wants to know one), gpg, patchelf, python3 with venv, and PyPI for clingo.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
title=buildcache
tools=()
# shellcheck source=tests/buildcache/spack-roots.sh
source "$here/spack-roots.sh"

# trusts NAME CACHE: the mirror and its keys
trusts() {
    spack "$1" mirror add --signed ours "file://$2" >/dev/null
    spack "$1" buildcache keys --install --trust >"$work/$1/keys.log" 2>&1 || { cat "$work/$1/keys.log" >&2; die "$1: the keys were not taken"; }
}
# refused NAME WHAT HASH REASON: Spack does not install it, and says in its debug log that this is why
refused() {
    if spack "$1" -d install --cache-only "/$3" >"$work/$1/install.log" 2>&1; then
        die "$1: Spack installed $2"
    fi
    grep -q "attempting to fetch archive for cache-.* (v3) due to .*$4" "$work/$1/install.log" ||
        { cat "$work/$1/install.log" >&2; die "$1: Spack did not install $2, and not because of this: $4"; }
    grep -q 'No binary found when cache-only was specified' "$work/$1/install.log" || die "$1: Spack ended otherwise"
    say "$1: Spack refuses $2: $4"
}
# named CACHE KIND WHAT [ARGUMENT...]: check ends with 5 and names the fault
named() {
    local cache=$1 kind=$2 what=$3 code=0
    shift 3
    "$program" --quiet buildcache check "$cache" --json "$@" >"$work/check.json" 2>"$work/check.err" || code=$?
    [[ $code -eq 5 ]] || die "check of $what ended with $code: $(cat "$work/check.err")"
    grep -q "\"kind\": \"$kind\"" "$work/check.json" || die "check of $what does not say $kind: $(cat "$work/check.json")"
    say "check names $what: $kind"
}

# --- a tree that Spack made, pushed by us ----------------------------------------------------------------------------------

root maker v1.0.0 "$work/maker/store" 160
spack maker install cache-above >"$work/maker/install.log" 2>&1 || { cat "$work/maker/install.log" >&2; die "Spack cannot make the tree"; }
above=$(spack maker find --format '{hash}' cache-above)
below=$(spack maker find --format '{hash}' cache-below)
store=$(spack maker location -i cache-above)
store=${store%/*}
"$program" --quiet buildcache push --from "$store" --to "$work/pushed" >/dev/null
"$program" --quiet buildcache check "$work/pushed" >/dev/null
again=$("$program" --log-format json buildcache push --from "$store" --to "$work/pushed" --json 2>/dev/null)
[[ $again == *'"pushed": []'* && $again == *'"index_changed": false'* ]] || die "a second push did something: $again"

# Entry for entry what Spack's own writer makes, and the same bytes from a copy with other times and modes.
mirror=$work/by-spack
rm -rf "$mirror"
spack maker buildcache push --unsigned --update-index "$mirror" cache-above >/dev/null 2>&1
"$work/python/bin/python3" "$here/compare.py" "$mirror" "$work/pushed" || die "the tarballs are not those of Spack"
say "tarballs, specs and index say what Spack's own say"

# --- installed elsewhere by both releases ----------------------------------------------------------------------------------

longer=$work/a-store-whose-path-is-a-good-deal-longer-than-the-other
for tag in v1.0.0 v1.1.0; do
    for where in "$short/${tag//./}" "$longer-$tag"; do
        name=user-$tag-${#where}
        root "$name" "$tag" "$where"
        trusts "$name" "$work/pushed"
        spack "$name" install --cache-only "/$above" >"$work/$name/install.log" 2>&1 || { cat "$work/$name/install.log" >&2; die "$name: not installed"; }
        grep -q 'Good signature' "$work/$name/install.log" || die "$name: no signature was checked"
        own=$where/cache-above-2.0-$above
        want=$(printf 'below is at %s/cache-below-1.0-%s\nabove is at %s' "$where" "$below" "$own")
        [[ $("$own/bin/script") == "$want" ]] || die "$name: the script says $("$own/bin/script")"
        "$own/bin/program" || die "$name: the program does not run"
        [[ $(patchelf --print-rpath "$own/bin/program") == "$where/cache-below-1.0-$below/lib" ]] || die "$name: wrong RPATH"
        [[ $own/bin/program -ef $own/bin/program-too ]] || die "$name: the hard link is gone"
        [[ $(readlink "$own/share/into-the-store") == "$where/cache-below-1.0-$below/lib/below.txt" ]] || die "$name: the link"
        [[ $(readlink "$own/share/relative") == own.txt ]] || die "$name: the relative link"
        grep -q -a "$own" "$own/share/latin.txt" || die "$name: the text in ISO 8859-1"
        grep -q -r -F "$store" "$own/bin" "$own/share" --exclude=data && die "$name: the old store is named: $(grep -r -l -F "$store" "$own")"
        say "Spack $tag installed it at a path of ${#where} characters, and it runs"
    done
done

# --- what is wrong is refused ----------------------------------------------------------------------------------------------

blob_of() { # CACHE NAME KIND: the blob that a package's manifest names
    sed -n "/$3/,/checksum\":/ s/.*\"checksum\": \"\(.*\)\".*/\1/p" "$1"/v3/manifests/spec/"$2"/*.json | awk 'NR == 1'
}
bad() { # NAME: a copy of the cache, and a root that trusts it
    rm -rf "$work/$1.cache"
    cp -r "$work/pushed" "$work/$1.cache"
}

bad changed
blob=$(blob_of "$work/changed.cache" cache-above install.v2.tar)
printf 'X' | dd of="$work/changed.cache/blobs/sha256/${blob:0:2}/$blob" bs=1 seek=500 conv=notrunc status=none
named "$work/changed.cache" changed-blob "a changed byte"

bad missing
blob=$(blob_of "$work/missing.cache" cache-above install.v2.tar)
rm "$work/missing.cache/blobs/sha256/${blob:0:2}/$blob"
named "$work/missing.cache" missing-blob "a missing blob"

bad nothing
rm "$work/nothing.cache/v3/manifests/spec/cache-above/"*
named "$work/nothing.cache" missing-manifest "an index that names what is not there"

bad foreign
"$program" --quiet --cache-dir "$work/other" buildcache push --force --from "$store" --to "$work/foreign.cache" >/dev/null
"$program" key export >"$work/own.asc"
named "$work/foreign.cache" foreign-key "a foreign signer" --key "$work/own.asc"

bad unsigned
manifest=$(echo "$work/unsigned.cache/v3/manifests/spec/cache-above/"*)
sed -n '/^{/,/^}/p' "$manifest" >"$work/plain" && cp "$work/plain" "$manifest"
named "$work/unsigned.cache" not-signed "a manifest without a signature"

declare -A reasons=(
    [changed]='sha256 checksum failed'
    [missing]='Unable to fetch blob'
    [nothing]='Error reading manifest'
    [foreign]='Signature could not be verified'
    [unsigned]='Required signature was not found on manifest'
)
for name in "${!reasons[@]}"; do
    root "$name" v1.0.0 "$work/$name/store"
    spack "$name" mirror add --signed ours "file://$work/$name.cache" >/dev/null
    # The key that the user trusts is the one of the first cache, whatever this one offers.
    spack "$name" gpg trust "$work/own.asc" >/dev/null 2>&1
    refused "$name" "a cache with this fault: $name" "$above" "${reasons[$name]}"
done

# Spack believes a signed manifest wherever it lies; we do not.
bad substituted
cp "$work/substituted.cache/v3/manifests/spec/cache-below/"*.json "$work/substituted.cache/v3/manifests/spec/cache-above/cache-above-2.0-$above.spec.manifest.json"
named "$work/substituted.cache" substituted "a signed manifest in another's place"

# --- Spack and we, in turn --------------------------------------------------------------------------------------------------

spack maker gpg create "Of the test" test@example.org >/dev/null 2>&1
cp -r "$work/pushed" "$work/both"
spack maker buildcache push --update-index --force "$work/both" cache-below >"$work/both.log" 2>&1 || { cat "$work/both.log" >&2; die "Spack cannot push to our cache"; }
"$program" buildcache list "$work/both" | grep -q "$above" || die "after Spack's push, the index lost a package"
spack maker gpg export "$work/spack.asc" >/dev/null 2>&1
"$program" --quiet buildcache check "$work/both" --key "$work/own.asc" --key "$work/spack.asc" >/dev/null || die "what Spack pushed beside us is not good"
say "Spack pushes to the same cache, and what it wrote is checked and good"

# --- Slurm -------------------------------------------------------------------------------------------------------------------

if [[ -z ${SLURM_FACTORY_TEST_TREE:-} ]]; then
    loud 'no Slurm was installed. Set SLURM_FACTORY_TEST_TREE to a build folder.'
    exit 0
fi
"$program" --quiet buildcache push slurm --from "$SLURM_FACTORY_TEST_TREE" --to "$work/slurm" >/dev/null
# The tree may hold several of a release.
slurm=$("$program" buildcache list "$work/slurm" | awk '$2 ~ /^slurm@/ { print $1 }')
release=$("$program" buildcache list "$work/slurm" | sed -n 's/.* slurm@\([0-9]*-[0-9]*\)-.*/\1/p' | sort -u)
# A short path, and the longest that Spack takes: its script helper, `bin/sbang` below it, must fit into a first line of 127 bytes.
longest=$work/as-long-as-it-can-be-
while ((${#longest} < 115)); do longest+=x; done
slurm_at() { # TAG STORE
    local name=slurm-$1-${#2}
    root "$name" "$1" "$2"
    trusts "$name" "$work/slurm"
    slurm_runs "$name" "$2"
    say "Spack $1 installed Slurm from the cache at a path of ${#2} characters, and it runs"
}
for tag in v1.0.0 v1.1.0; do
    slurm_at "$tag" "$short/s${tag//./}"
    slurm_at "$tag" "$longest-${tag:3:1}"
done
