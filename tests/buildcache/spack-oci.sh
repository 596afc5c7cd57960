#!/usr/bin/env bash
#
# Stock Spack installs from what slurm-factory pushed to an OCI registry, and pushes beside it.
#
#   spack-oci.sh PROGRAM [WORK]      as spack.sh, whose variables it takes
#
# A real registry (docker-registry) with TLS, for Spack v1.0.0 speaks nothing else to one, by an authority made here.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
title='buildcache, registry'
tools=(docker-registry openssl skopeo)
# shellcheck source=tests/buildcache/spack-roots.sh
source "$here/spack-roots.sh"

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
registry=
finish_all() {
    [[ ! $registry ]] || kill "$registry" 2>/dev/null || true
    finish
}
trap finish_all EXIT
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

installs() { # NAME TAG STORE ADDRESS: a fresh Spack takes it from there, and from nowhere else
    root "$1" "$2" "$3"
    spack "$1" mirror add x "$4" >/dev/null
    spack "$1" buildcache list --allarch >"$work/$1/list.log" 2>&1 || { cat "$work/$1/list.log" >&2; die "$1: Spack cannot list it"; }
    grep -q 'cache-above@' "$work/$1/list.log" || { cat "$work/$1/list.log" >&2; die "$1: Spack lists nothing of it"; }
    spack "$1" install --cache-only "/$above" >"$work/$1/install.log" 2>&1 || { cat "$work/$1/install.log" >&2; die "$1: not installed"; }
    local own=$3/cache-above-2.0-$above
    [[ $("$own/bin/script") == "below is at $3/cache-below-1.0-$below"$'\n'"above is at $own" ]] || die "$1: the script says $("$own/bin/script")"
    "$own/bin/program" || die "$1: the program does not run"
    [[ $(patchelf --print-rpath "$own/bin/program") == "$3/cache-below-1.0-$below/lib" ]] || die "$1: wrong RPATH"
    say "Spack $2 lists and installs from $4, at a path of ${#3} characters"
}

# --- pushed by us, installed by both releases ------------------------------------------------------------------------------

root maker v1.0.0 "$work/maker/store" 160
spack maker install cache-above >"$work/maker/install.log" 2>&1 || { cat "$work/maker/install.log" >&2; die "Spack cannot make the tree"; }
above=$(spack maker find --format '{hash}' cache-above)
below=$(spack maker find --format '{hash}' cache-below)
store=$(spack maker location -i cache-above)
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
spack maker buildcache push --unsigned --update-index theirs cache-above >"$work/theirs.log" 2>&1 || { cat "$work/theirs.log" >&2; die "Spack cannot push"; }
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
"$program" --quiet buildcache push cache-below --from "$store" --to "$both" >/dev/null
spack maker buildcache push --unsigned --update-index both cache-above >"$work/both.log" 2>&1 || { cat "$work/both.log" >&2; die "Spack cannot push beside us"; }
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
release=$("$program" buildcache list "oci://localhost:$port/site/slurm" | sed -n 's/.* slurm@\([0-9]*-[0-9]*\)-.*/\1/p')
root slurm-v1.0.0 v1.0.0 "$short/slurm"
spack slurm-v1.0.0 mirror add x "oci://localhost:$port/site/slurm" >/dev/null
slurm_runs slurm-v1.0.0 "$short/slurm"
say "Spack v1.0.0 installed it from the registry, and it runs"
