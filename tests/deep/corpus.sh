#!/usr/bin/env bash
#
# Every program and shared library of a Debian installation with a desktop, Python, LLVM, Qt and Perl: given another search path
# and stripped by us, each must load or start as before, satisfy readelf and eu-elflint as before, and still do so after strip.
# patchelf gets the same files; its failures are counted beside ours. What is tried stands in tests/elf/corpus.rs.
#
#   tests/deep/corpus.sh [NUMBER]       so many files, the same ones each time; without a number, all
#
# As root, on Debian 12: mmdebstrap makes the installation in a folder of its own (about 3 GB), and nothing is installed on the
# host. ROOT=DIR takes an installation that is there, with binutils, elfutils, gcc and patchelf in it. Ends with 0 when no file failed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
[[ $(id -u) -eq 0 ]] || {
    echo "corpus: mmdebstrap and the chroot want root" >&2
    exit 1
}
work=$(mktemp -d "${TMPDIR:-/tmp}/corpus.XXXXXX")
trap 'rm -rf "$work"' EXIT

packages=(
    binutils elfutils gcc libc6-dev patchelf
    clang-14 ffmpeg gimp git libdbd-sqlite3-perl libgtk3-perl llvm-14 nodejs openssh-client perl php-cli postgresql-client python3-full
    python3-numpy python3-scipy qt6-base-dev qtbase5-dev qtwayland5 ruby sqlite3 thunar vim-tiny xfce4
)
root=${ROOT:-}
if [[ -z $root ]]; then
    root=$work/root
    list=$(IFS=,; echo "${packages[*]}")
    mmdebstrap --quiet --variant=minbase --include="$list" --aptopt='APT::Install-Recommends "false"' bookworm "$root"
fi
test=$(cargo test --locked --no-run --test elf 2>&1 | sed -n 's/.*(\(.*\))$/\1/p' | tail -n 1)
[[ -x $test ]] || {
    echo "corpus: the test program was not built" >&2
    exit 1
}
# A namespace of its own: programs of a desktop are started, and none may see the host.
bwrap --unshare-pid --unshare-net --unshare-ipc --unshare-uts --die-with-parent \
    --ro-bind "$root" / --dev /dev --proc /proc --tmpfs /tmp --tmpfs /run --tmpfs /root --ro-bind "$test" /tmp/elf \
    --clearenv --setenv PATH /usr/sbin:/usr/bin:/sbin:/bin --setenv HOME /root --setenv LANG C.UTF-8 \
    --setenv SLURM_FACTORY_ELF_CORPUS "${1:-all}" --setenv SLURM_FACTORY_ELF_PATCHELF 1 -- \
    /tmp/elf --nocapture corpus::
