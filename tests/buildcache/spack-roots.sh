# shellcheck shell=bash disable=SC2154
#
# What the tests with stock Spack share: where to work, two packages that need no compiler, and a Spack of its own for each
# store. To be sourced with the script's arguments, by a script that has set
#
#   here    its folder
#   title   what its lines begin with
#   tools   programs that it needs beside those of everybody
#   (which is why shellcheck, looking at this file alone, must not ask where they are set)
#
# Sets program, work, short (a folder whose path is shorter than any store of ours), recipes and packages.

top=$(cd "$here/../.." && pwd)

die() {
    printf '%s: %s\n' "$title" "$*" >&2
    exit 1
}
say() {
    printf '%s: %s\n' "$title" "$*"
}
loud() {
    printf '%s\n' \
        '****************************************************************************************************' \
        "$title: NOT RUN: $1" \
        '****************************************************************************************************' >&2
}

if [[ -z ${SLURM_FACTORY_TEST_SPACK:-} || -z ${SLURM_FACTORY_TEST_SPACK_PACKAGES:-} ]]; then
    loud 'nothing was read by real Spack. Set SLURM_FACTORY_TEST_SPACK and SLURM_FACTORY_TEST_SPACK_PACKAGES to git directories.'
    exit 0
fi
[[ $# -ge 1 && $# -le 2 ]] || die "usage: ${0##*/} PROGRAM [WORK]"
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
finish() {
    # Stores in it are looked at, and used by benchmarks, as long as the rest is kept.
    [[ $keep ]] || rm -rf "$short" "$work"
}
trap finish EXIT

export SLURM_FACTORY_CACHE_DIR=$work/cache GIT_CONFIG_COUNT=1 GIT_CONFIG_KEY_0=safe.directory GIT_CONFIG_VALUE_0='*'
for tool in git gcc gpg patchelf python3 "${tools[@]}"; do
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
    # A folder to work in may be one of an earlier run.
    rm -rf "$3" "$at/user" "$at/scope"
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

# slurm_runs NAME STORE: that Spack installs a Slurm with one of the hashes $slurm, of release $release, and it runs
slurm_runs() {
    local name=$1 store=$2 prefix conf found
    # By its name, as people ask for it, with the recipes that we hand out; Spack chooses as it does from the start.
    printf 'concretizer: {reuse: true}\n' >"$work/$name/scope/concretizer.yaml"
    spack "$name" install --cache-only "slurm@$release" >"$work/$name/install.log" 2>&1 || { cat "$work/$name/install.log" >&2; die "$name: Slurm was not installed"; }
    found=$(spack "$name" find --format '{hash}' slurm)
    [[ -n $found && $'\n'$slurm$'\n' == *$'\n'"$found"$'\n'* ]] || die "$name: another Slurm was installed than the cache has"
    prefix=$(echo "$store"/slurm-*)
    conf=$work/$name/slurm.conf
    printf 'ClusterName=c\nSlurmctldHost=localhost\nPluginDir=%s/lib/slurm\n' "$prefix" >"$conf"
    env -u LD_LIBRARY_PATH "$prefix/sbin/slurmctld" -V
    env -u LD_LIBRARY_PATH SLURM_CONF="$conf" "$prefix/bin/sinfo" --version
    [[ $(ldd "$prefix/sbin/slurmctld") != *'not found'* ]] || die "$name: libraries are missing"
    grep -r -l -a -F __spack_path_placeholder__ "$store"/*/{bin,sbin,lib,lib64} 2>/dev/null | grep -v '\.a$' >"$work/$name/left" || true
    [[ ! -s $work/$name/left ]] || die "$name: these still name the store of the build: $(head -n 5 "$work/$name/left")"
}
