#!/usr/bin/env bash
#
# Stock Spack installs from what slurm-factory pushed to an OCI registry, and pushes beside it.
#
#   spack-oci.sh PROGRAM [WORK]      as spack.sh, whose variables it takes
#
# A real registry (docker-registry) with TLS, for Spack v1.0.0 speaks nothing else to one, by an authority made here.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
top=$(cd "$here/../.." && pwd)

die() {
    printf 'buildcache, registry: %s\n' "$*" >&2
    exit 1
}
say() {
    printf 'buildcache, registry: %s\n' "$*"
}
loud() {
    printf '%s\n' \
        '****************************************************************************************************' \
        "buildcache, registry: NOT RUN: $1" \
        '****************************************************************************************************' >&2
}

if [[ -z ${SLURM_FACTORY_TEST_SPACK:-} || -z ${SLURM_FACTORY_TEST_SPACK_PACKAGES:-} ]]; then
    loud 'no registry was read by real Spack. Set SLURM_FACTORY_TEST_SPACK and SLURM_FACTORY_TEST_SPACK_PACKAGES to git directories.'
    exit 0
fi
[[ $# -ge 1 && $# -le 2 ]] || die "usage: spack-oci.sh PROGRAM [WORK]"
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
registry=
finish() {
    [[ ! $registry ]] || kill "$registry" 2>/dev/null || true
    rm -rf "$short"
    [[ $keep ]] || rm -rf "$work"
}
trap finish EXIT

export SLURM_FACTORY_CACHE_DIR=$work/cache GIT_CONFIG_COUNT=1 GIT_CONFIG_KEY_0=safe.directory GIT_CONFIG_VALUE_0='*'
for tool in git gcc gpg patchelf python3 docker-registry openssl skopeo; do
    command -v "$tool" >/dev/null || die "$tool is not installed"
done
export_tree() { # GIT TAG INTO
    local git=$1
    [[ ! -d $git/.git ]] || git=$git/.git
    rm -rf "$3"
    mkdir -p "$3"
    git --git-dir="$git" archive "$2" | tar -x -C "$3" || die "$1 has no $2"
}
if [[ ! -x $work/python/bin/python3 ]]; then
    python3 -m venv "$work/python"
    "$work/python/bin/pip" install --quiet clingo
fi

# --- a registry --------------------------------------------------------------------------------------------------------------

port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
printf 'subjectAltName=DNS:localhost\n' >"$work/san"
(
    cd "$work"
    openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=authority -keyout ca.key -out ca.pem
    openssl req -newkey rsa:2048 -nodes -subj /CN=localhost -keyout server.key -out server.csr
    openssl x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile san -out server.pem
) >/dev/null 2>&1
rm -rf "$work/storage"
cat >"$work/registry.yml" <<YAML
version: 0.1
log: {level: error, accesslog: {disabled: true}}
storage: {filesystem: {rootdirectory: $work/storage}, delete: {enabled: true}}
http:
  addr: 127.0.0.1:$port
  tls: {certificate: $work/server.pem, key: $work/server.key}
YAML
docker-registry serve "$work/registry.yml" >"$work/registry.log" 2>&1 &
registry=$!
for _ in $(seq 100); do
    (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null && break
    sleep 0.1
done
# Ours: a folder of the registry's name, as podman has it. Spack: the bundle that its Python trusts.
export HOME=$work/home
mkdir -p "$HOME/.config/containers/certs.d/localhost:$port"
cp "$work/ca.pem" "$HOME/.config/containers/certs.d/localhost:$port/ca.crt"
export SSL_CERT_FILE=$work/ca.pem

# --- recipes ---------------------------------------------------------------------------------------------------------------

recipes=$work/recipes/spack_repo/ocitest
mkdir -p "$recipes/packages/oci_below" "$recipes/packages/oci_above"
printf 'repo:\n  namespace: ocitest\n  api: v2.0\n' >"$recipes/repo.yaml"
cat >"$recipes/packages/oci_below/package.py" <<'PY'
from spack_repo.builtin.build_systems.generic import Package

from spack.package import *


class OciBelow(Package):
    """Something to depend on."""

    homepage = "https://www.example.org"
    has_code = False
    version("1.0")

    def install(self, spec, prefix):
        mkdirp(prefix.lib)
        with open(join_path(prefix.lib, "below.txt"), "w") as f:
            f.write("below is at {0}\n".format(prefix))
PY
cat >"$recipes/packages/oci_above/package.py" <<'PY'
import os

from spack_repo.builtin.build_systems.generic import Package

from spack.package import *


class OciAbove(Package):
    """A program, and a script that names the store."""

    homepage = "https://www.example.org"
    has_code = False
    version("2.0")
    depends_on("oci-below", type=("link", "run"))

    def install(self, spec, prefix):
        mkdirp(prefix.bin)
        program = join_path(prefix.bin, "program")
        install("/bin/true", program)
        below = spec["oci-below"].prefix
        which("patchelf", required=True)("--set-rpath", below.lib, program)
        with open(join_path(prefix.bin, "script"), "w") as f:
            f.write("#!/bin/sh\ncat {0}/below.txt\n".format(below.lib))
        os.chmod(join_path(prefix.bin, "script"), 0o755)
PY
packages=$work/packages
reference=$(awk '$0 == "[spack-packages]" { here = 1; next } /^\[/ { here = 0 } here && $1 == "reference" { gsub(/"/, "", $3); print $3 }' "$top/assets/catalog.toml")
[[ -d $packages ]] || export_tree "$SLURM_FACTORY_TEST_SPACK_PACKAGES" "$reference" "$packages"

# root NAME TAG STORE [PADDED]: a Spack of its own with a store of its own, called by `spack NAME ...`
root() {
    local at=$work/$1
    export_tree "$SLURM_FACTORY_TEST_SPACK" "$2" "$at/spack"
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
  misc_cache: $work/misc-$1
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
    printf 'repos::\n  ocitest: %s\n  builtin: %s\n' "$recipes" "$packages/repos/spack_repo/builtin" >"$at/scope/repos.yaml"
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
installs() { # NAME TAG STORE ADDRESS: a fresh Spack takes it from there, and from nowhere else
    root "$1" "$2" "$3"
    spack "$1" mirror add x "$4" >/dev/null
    spack "$1" buildcache list --allarch >"$work/$1/list.log" 2>&1 || { cat "$work/$1/list.log" >&2; die "$1: Spack cannot list it"; }
    grep -q 'oci-above@' "$work/$1/list.log" || { cat "$work/$1/list.log" >&2; die "$1: Spack lists nothing of it"; }
    spack "$1" install --cache-only "/$above" >"$work/$1/install.log" 2>&1 || { cat "$work/$1/install.log" >&2; die "$1: not installed"; }
    local own=$3/oci-above-2.0-$above
    [[ $("$own/bin/script") == "below is at $3/oci-below-1.0-$below" ]] || die "$1: the script says $("$own/bin/script")"
    "$own/bin/program" || die "$1: the program does not run"
    [[ $(patchelf --print-rpath "$own/bin/program") == "$3/oci-below-1.0-$below/lib" ]] || die "$1: wrong RPATH"
    say "Spack $2 lists and installs from $4, at a path of ${#3} characters"
}

# --- pushed by us, installed by both releases ------------------------------------------------------------------------------

root maker v1.0.0 "$work/maker/store" 160
spack maker install oci-above >"$work/maker/install.log" 2>&1 || { cat "$work/maker/install.log" >&2; die "Spack cannot make the tree"; }
above=$(spack maker find --format '{hash}' oci-above)
below=$(spack maker find --format '{hash}' oci-below)
store=$(spack maker location -i oci-above)
store=${store%/*}
ours=oci://localhost:$port/site/ours
"$program" --quiet buildcache push --from "$store" --to "$ours" >/dev/null
"$program" --quiet buildcache check "$ours" >/dev/null
again=$("$program" --quiet buildcache push --from "$store" --to "$ours" --json)
[[ $again == *'"pushed": []'* && $again == *'"index_changed": false'* ]] || die "a second push did something: $again"
for tag in v1.0.0 v1.1.0; do
    installs "user-$tag" "$tag" "$short/${tag//./}" "$ours"
    installs "longer-$tag" "$tag" "$work/a-store-whose-path-is-a-good-deal-longer-than-the-other-$tag" "$ours"
done

# --- what Spack's own push writes, read by us -------------------------------------------------------------------------------

theirs=oci://localhost:$port/site/theirs
spack maker mirror add theirs "$theirs" >/dev/null
spack maker buildcache push --unsigned --update-index theirs oci-above >"$work/theirs.log" 2>&1 || { cat "$work/theirs.log" >&2; die "Spack cannot push"; }
tags() {
    skopeo list-tags --cert-dir "$HOME/.config/containers/certs.d/localhost:$port" "docker://localhost:$port/site/$1" | grep -o '"[^"]*\.spack"' | sort
}
[[ $(tags ours) == "$(tags theirs)" ]] || die "other tags than Spack's: $(tags ours) and $(tags theirs)"
# An index of ours and one of Spack's name the same, and we read what it wrote.
[[ $("$program" buildcache list "$ours") == "$("$program" buildcache list "$theirs")" ]] || die "another list than of Spack's own"
code=0
"$program" --quiet buildcache check "$theirs" >/dev/null 2>"$work/check.err" || code=$?
if [[ $code -ne 5 ]] || ! grep -q 'not signed' "$work/check.err"; then
    die "check of what nobody signed ended with $code: $(cat "$work/check.err")"
fi
"$program" --quiet buildcache check "$theirs" --unsigned >"$work/check.out" || die "what Spack wrote is not good: $(cat "$work/check.out")"
grep -q 'signed by nobody' "$work/check.out" || die "it is not said that nobody signed it"
say "what Spack pushed is listed and checked, and that nobody signed it is said"

# --- Spack and we, in turn, in one repository --------------------------------------------------------------------------------

both=oci://localhost:$port/site/both
spack maker mirror add both "$both" >/dev/null
"$program" --quiet buildcache push oci-below --from "$store" --to "$both" >/dev/null
spack maker buildcache push --unsigned --update-index both oci-above >"$work/both.log" 2>&1 || { cat "$work/both.log" >&2; die "Spack cannot push beside us"; }
"$program" buildcache list "$both" | grep -q "$below" || die "after Spack's push, the index lost a package"
"$program" --quiet buildcache check "$both" --unsigned >/dev/null || die "what both pushed is not good"
"$program" --quiet buildcache push --from "$store" --to "$both" >/dev/null
"$program" --quiet buildcache check "$both" >/dev/null || die "after our push not all is signed"
installs both-v1.1.0 v1.1.0 "$short/both" "$both"
say "Spack and we push to one repository in turn"

# --- Slurm -------------------------------------------------------------------------------------------------------------------

if [[ -z ${SLURM_FACTORY_TEST_TREE:-} ]]; then
    loud 'no Slurm was installed. Set SLURM_FACTORY_TEST_TREE to a build folder.'
    exit 0
fi
"$program" --quiet buildcache push slurm --from "$SLURM_FACTORY_TEST_TREE" --to "oci://localhost:$port/site/slurm" >/dev/null
"$program" --quiet buildcache check "oci://localhost:$port/site/slurm" >/dev/null
slurm=$("$program" buildcache list "oci://localhost:$port/site/slurm" | awk '$2 ~ /^slurm@/ { print $1 }')
[[ $slurm ]] || die "no slurm is listed"
say "a Slurm and what it links is pushed and good: /$slurm"
