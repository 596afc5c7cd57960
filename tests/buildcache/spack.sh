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
top=$(cd "$here/../.." && pwd)

die() {
    printf 'buildcache: %s\n' "$*" >&2
    exit 1
}
say() {
    printf 'buildcache: %s\n' "$*"
}
loud() {
    printf '%s\n' \
        '****************************************************************************************************' \
        "buildcache: NOT RUN: $1" \
        '****************************************************************************************************' >&2
}

if [[ -z ${SLURM_FACTORY_TEST_SPACK:-} || -z ${SLURM_FACTORY_TEST_SPACK_PACKAGES:-} ]]; then
    loud 'no cache was read by real Spack. Set SLURM_FACTORY_TEST_SPACK and SLURM_FACTORY_TEST_SPACK_PACKAGES to git directories.'
    exit 0
fi
[[ $# -ge 1 && $# -le 2 ]] || die "usage: spack.sh PROGRAM [WORK]"
program=$(cd "$(dirname "$1")" && pwd)/$(basename "$1")
if [[ $# -eq 2 ]]; then
    mkdir -p "$2"
    work=$(cd "$2" && pwd)
    keep=1
else
    work=$(mktemp -d)
    keep=
fi
# A path that is shorter than any store of ours
short=$(mktemp -d /tmp/sfXXXXXX)
trap '[[ $keep ]] || rm -rf "$short" "$work"' EXIT

export SLURM_FACTORY_CACHE_DIR=$work/cache GIT_CONFIG_COUNT=1 GIT_CONFIG_KEY_0=safe.directory GIT_CONFIG_VALUE_0='*'
for tool in git gcc gpg patchelf python3; do
    command -v "$tool" >/dev/null || die "$tool is not installed"
done

git_directory() {
    if [[ -d $1/.git ]]; then printf '%s/.git' "$1"; else printf '%s' "$1"; fi
}
# export_tree GIT TAG INTO
export_tree() {
    rm -rf "$3"
    mkdir -p "$3"
    git --git-dir="$(git_directory "$1")" archive "$2" | tar -x -C "$3" || die "$1 has no $2"
}
if [[ ! -x $work/python/bin/python3 ]]; then
    python3 -m venv "$work/python"
    "$work/python/bin/pip" install --quiet clingo
fi

# --- recipes ---------------------------------------------------------------------------------------------------------------

recipes=$work/recipes/spack_repo/cachetest
mkdir -p "$recipes/packages/cache_below" "$recipes/packages/cache_above"
printf 'repo:\n  namespace: cachetest\n  api: v2.0\n' >"$recipes/repo.yaml"
cat >"$recipes/packages/cache_below/package.py" <<'PY'
from spack_repo.builtin.build_systems.generic import Package

from spack.package import *


class CacheBelow(Package):
    """Something to depend on."""

    homepage = "https://www.example.org"
    has_code = False
    version("1.0")

    def install(self, spec, prefix):
        mkdirp(prefix.lib)
        with open(join_path(prefix.lib, "below.txt"), "w") as f:
            f.write("below is at {0}\n".format(prefix))
PY
cat >"$recipes/packages/cache_above/package.py" <<'PY'
import os

from spack_repo.builtin.build_systems.generic import Package

from spack.package import *


class CacheAbove(Package):
    """Everything that moving a prefix has to do with."""

    homepage = "https://www.example.org"
    has_code = False
    version("2.0")
    depends_on("cache-below", type=("link", "run"))

    def install(self, spec, prefix):
        mkdirp(prefix.bin, prefix.share, join_path(prefix, "deep", "x" * 60, "y" * 60))
        program = join_path(prefix.bin, "program")
        install("/bin/true", program)
        below = spec["cache-below"].prefix
        which("patchelf", required=True)("--set-rpath", below.lib, program)
        os.link(program, join_path(prefix.bin, "program-too"))
        with open(join_path(prefix.bin, "script"), "w") as f:
            f.write("#!/bin/sh\ncat {0}/below.txt {1}/share/own.txt\n".format(below.lib, prefix))
        os.chmod(join_path(prefix.bin, "script"), 0o755)
        with open(join_path(prefix.share, "own.txt"), "w") as f:
            f.write("above is at {0}\n".format(prefix))
        with open(join_path(prefix.share, "latin.txt"), "wb") as f:
            f.write(b"caf\xe9 " + str(prefix).encode() + b"\n")
        with open(join_path(prefix.share, "data"), "wb") as f:
            f.write(b"\x00\x01\x80\xff" + str(prefix).encode())
        with open(join_path(prefix, "deep", "x" * 60, "y" * 60, "naïve.txt"), "w") as f:
            f.write("far below\n")
        os.symlink(join_path(below.lib, "below.txt"), join_path(prefix.share, "into-the-store"))
        os.symlink("own.txt", join_path(prefix.share, "relative"))
PY

rm -rf "$work/handed-out"
"$program" --quiet buildcache recipes "$work/handed-out" >/dev/null
packages=$work/packages
reference=$(awk '$0 == "[spack-packages]" { here = 1; next } /^\[/ { here = 0 } here && $1 == "reference" { gsub(/"/, "", $3); print $3 }' "$top/assets/catalog.toml")
[[ -d $packages ]] || export_tree "$SLURM_FACTORY_TEST_SPACK_PACKAGES" "$reference" "$packages"

# root NAME TAG STORE [PADDED]: a Spack of its own with a store of its own; made in $work/NAME, called by `spack NAME ...`
root() {
    local at=$work/$1
    export_tree "$SLURM_FACTORY_TEST_SPACK" "$2" "$at/spack"
    mkdir -p "$at/scope"
    cat >"$at/scope/config.yaml" <<YAML
config:
  install_tree:
    root: $3
    padded_length: ${4:-0}
    projections: {all: "{name}-{version}-{hash}"}
  build_stage: [$at/stage]
  source_cache: $at/sources
  misc_cache: $work/misc-$2
YAML
    printf 'bootstrap:: {enable: true, root: %s, sources: [], trusted: {}}\n' "$at/bootstrap" >"$at/scope/bootstrap.yaml"
    printf 'concretizer: {reuse: false}\n' >"$at/scope/concretizer.yaml"
    cat >"$at/scope/packages.yaml" <<YAML
packages:
  all: {target: [$(uname -m)]}
  gcc:
    buildable: false
    externals:
    - spec: gcc@$(gcc -dumpfullversion) languages:='c,c++'
      prefix: /usr
      extra_attributes: {compilers: {c: /usr/bin/gcc, cxx: /usr/bin/g++}}
YAML
    {
        printf 'repos::\n  cachetest: %s\n' "$recipes"
        printf '  e2e_debian: %s\n  slurm_factory: %s\n' "$top/tests/e2e/spack-repo/spack_repo/e2e_debian" \
            "$work/handed-out/spack_repo/slurm_factory"
        printf '  builtin: %s\n' "$packages/repos/spack_repo/builtin"
    } >"$at/scope/repos.yaml"
    cat >"$at/run" <<SH
#!/bin/sh
exec env SPACK_DISABLE_LOCAL_CONFIG=1 SPACK_USER_CACHE_PATH="$at/user" SPACK_GNUPGHOME="$at/gnupg" SPACK_PYTHON="$work/python/bin/python3" \\
    PYTHONPYCACHEPREFIX="$work/pyc" "$at/spack/bin/spack" --color never -C "$at/scope" "\$@"
SH
    chmod +x "$at/run"
}
spack() {
    local at=$work/$1
    shift
    "$at/run" "$@"
}
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
slurm=$("$program" buildcache list "$work/slurm" | awk '$2 ~ /^slurm@/ { print $1 }')
release=$("$program" buildcache list "$work/slurm" | sed -n 's/.* slurm@\([0-9]*-[0-9]*\)-.*/\1/p')
# A short path, and the longest that Spack takes: its script helper, `bin/sbang` below it, must fit into a first line of 127 bytes.
longest=$work/as-long-as-it-can-be-
while ((${#longest} < 115)); do longest+=x; done
slurm_at() { # TAG STORE
    local tag=$1 store=$2 name=slurm-$1-${#2} prefix conf
    root "$name" "$tag" "$store"
    trusts "$name" "$work/slurm"
    # By its name, as people ask for it, with the recipes that we hand out; Spack chooses as it does from the start.
    printf 'concretizer: {reuse: true}\n' >"$work/$name/scope/concretizer.yaml"
    spack "$name" install --cache-only "slurm@$release" >"$work/$name/install.log" 2>&1 || { cat "$work/$name/install.log" >&2; die "$name: Slurm was not installed"; }
    [[ $(spack "$name" find --format '{hash}' slurm) == "$slurm" ]] || die "$name: another Slurm was installed than the cache has"
    prefix=$(echo "$store"/slurm-*)
    conf=$work/$name/slurm.conf
    printf 'ClusterName=c\nSlurmctldHost=localhost\nPluginDir=%s/lib/slurm\n' "$prefix" >"$conf"
    env -u LD_LIBRARY_PATH "$prefix/sbin/slurmctld" -V
    env -u LD_LIBRARY_PATH SLURM_CONF="$conf" "$prefix/bin/sinfo" --version
    ldd "$prefix/sbin/slurmctld" | grep -q 'not found' && die "$name: libraries are missing"
    grep -r -l -a -F __spack_path_placeholder__ "$store"/*/{bin,sbin,lib,lib64} 2>/dev/null | grep -v '\.a$' >"$work/$name/left" || true
    [[ ! -s $work/$name/left ]] || die "$name: these still name the store of the build: $(head -n 5 "$work/$name/left")"
    say "Spack $tag installed Slurm from the cache at a path of ${#store} characters, and it runs"
}
for tag in v1.0.0 v1.1.0; do
    slurm_at "$tag" "$short/s${tag//./}"
    slurm_at "$tag" "$longest-${tag:3:1}"
done
