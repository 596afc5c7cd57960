#!/usr/bin/env bash
#
# The one command that tests everything: installs what the tests need, checks the sources, runs the unit and integration
# tests and the whole job from end to end.
#
#   tests/run.sh            everything (about an hour on two cores from a bare machine, which needs 15 GB of disk)
#   tests/run.sh quick      without the end-to-end job
#
# On Debian 12, as root: tests make users, mounts and a base image. What claims to be rootless runs as those users. A tool
# that is missing is installed or the run fails; nothing is skipped for the want of one. The single thing that is not in any
# package registry is Spack itself: tests/e2e/run.sh says loudly which of Spack and the stand-in it ran.
set -euo pipefail
# What a script starts in the background, or nohup, ignores signals; children inherit that, and tests of Ctrl-C wait in vain.
if [[ -z ${SLURM_FACTORY_TEST_SIGNALS:-} ]]; then
    SLURM_FACTORY_TEST_SIGNALS=default exec env --default-signal=HUP,INT,QUIT "${BASH_SOURCE[0]}" "$@"
fi
cd "$(dirname "${BASH_SOURCE[0]}")/.."

packages=(
    acl apt apt-utils autoconf automake bubblewrap buildah busybox-static bzip2 ca-certificates charliecloud clang
    createrepo-c crun curl debian-archive-keyring docker-registry elfutils fuse-overlayfs g++ gcc
    gcc-aarch64-linux-gnu gcc-arm-linux-gnueabihf gcc-powerpc-linux-gnu gcc-s390x-linux-gnu git gnupg gpgv iproute2
    libc6-dev libc6-dev-arm64-cross libc6-dev-armhf-cross libc6-dev-powerpc-cross libc6-dev-s390x-cross libcap2-bin libtool lld
    lmod make mmdebstrap mold mount nasm openssl passwd patchelf pigz podman procps psmisc python3 python3-pip
    python3-venv qemu-user rpm runc shellcheck skopeo sq sqv strace tinyproxy tzdata uidmap umoci xz-utils zstd
)

step() {
    printf '\n=== %s (%d s)\n' "$*" "$SECONDS"
}

step "tools"
missing=()
for package in "${packages[@]}"; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
done
if ((${#missing[@]})); then
    [[ $(id -u) -eq 0 ]] || {
        echo "not installed: ${missing[*]}; run as root, or install them" >&2
        exit 1
    }
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi

# Debian's packages of Lmod and Environment Modules exclude each other: the second is unpacked beside.
modules=/var/lib/slurm-factory-tests/environment-modules
if [[ ! -f $modules/usr/lib/modulecmd.tcl ]]; then
    folder=$(mktemp -d)
    chmod 755 "$folder"
    (cd "$folder" && { apt-get download -qq environment-modules || { apt-get update -qq && apt-get download -qq environment-modules; }; })
    mkdir -p "$modules"
    dpkg-deb --extract "$folder"/environment-modules_*.deb "$modules"
    rm -r "$folder"
fi

step "S3 servers"
# Two, neither of which is enough alone (tests/publish); kept in target/ for the next run.
tests/common/s3s-fs.sh >/dev/null
servers=${CARGO_TARGET_DIR:-target}/test-tools
if [[ ! -x $servers/moto/bin/moto_server ]]; then
    python3 -m venv "$servers/moto"
    "$servers/moto/bin/pip" install --quiet 'moto[server,s3]==5.2.5'
fi
python3 -c 'import spdx_tools.spdx, in_toto_attestation.v1' 2>/dev/null ||
    python3 -m pip install --quiet --break-system-packages --root-user-action=ignore spdx-tools in-toto-attestation

step "sources: format, lints, shell scripts"
cargo fmt --check
cargo clippy --locked --all-targets -- -D warnings
# The second way to inflate layers, which is compiled from C and assembly: the same tests have to pass with it (below).
cargo clippy --locked --features isa-l --lib -- -D warnings
git ls-files '*.sh' '.ci/run' | xargs shellcheck -x

step "build"
cargo build --locked
# What is fuzzed is compiled once more, with all that it uses: while tests wait for what they started.
fuzz_log=$(mktemp)
# In a session of its own, whose processes all end with this script.
setsid nice -n 19 tests/fuzz/run.sh build >"$fuzz_log" 2>&1 &
fuzz_build=$!
end() {
    if [[ -n $fuzz_build ]]; then kill -- "-$fuzz_build" 2>/dev/null || true; fi
    rm -f "$fuzz_log"
    if [[ -n $job ]]; then
        # After a failure it stays, to be looked into.
        if [[ -n ${failed:-} ]]; then echo "the work folder of the end-to-end test: $job" >&2; else rm -rf "$job" || true; fi
    fi
}
job=
trap 'failed=${?#0}; end' EXIT
step "unit and integration tests"
cargo test --locked
cargo test --locked --quiet --features isa-l --lib -- rootfs::
step "fuzzing"
fuzz_status=0
wait "$fuzz_build" || fuzz_status=$?
# Its number may be another process's from now on.
fuzz_build=
((fuzz_status == 0)) || {
    cat "$fuzz_log" >&2
    exit 1
}
tests/fuzz/run.sh 15

if [[ -n ${SLURM_FACTORY_TEST_SPACK:-} && -n ${SLURM_FACTORY_TEST_SPACK_PACKAGES:-} ]]; then
    step "a dozen plans, asked of real Spack"
    tests/deep/concretize.sh --cheap
else
    step "NOTE: no plan is asked of real Spack: set SLURM_FACTORY_TEST_SPACK and SLURM_FACTORY_TEST_SPACK_PACKAGES"
fi

if [[ ${1:-all} != quick ]]; then
    step "the whole job"
    job=$(mktemp -d /var/tmp/slurm-factory-run.XXXXXX)
    tests/e2e/run.sh "$job" | tee "$job/log"
    SLURM_FACTORY_TEST_PACKAGE=$(sed -n '$s/^package: //p' "$job/log")
    export SLURM_FACTORY_TEST_PACKAGE
    [[ -f $SLURM_FACTORY_TEST_PACKAGE ]] || {
        echo "the end-to-end test names no package in its last line" >&2
        exit 1
    }
fi
step "what ships in the package, run for real"
tests/assets/run.sh
step "all tests passed"
