#!/usr/bin/env bash
#
# A GCC that real Spack builds, on Debian 12 from Debian's sources; its package, which compiles in two folders; and a Slurm that it
# compiles, run from two folders. Hours.
#
#   tests/deep/compiler.sh [FLAG...]        flags of `build` for Slurm, such as --minimal
#
# As root, on a host that tests/run.sh has run on, with SLURM_FACTORY_TEST_SPACK and SLURM_FACTORY_TEST_SPACK_PACKAGES; job.sh says what
# else it reads. Debian's archive has GCC 14.2.0. It is compiled once (BOOTSTRAP=yes: three times, as the recipe would).
set -euo pipefail
: "${SLURM_FACTORY_TEST_SPACK:?names a git directory of Spack}"
: "${SLURM_FACTORY_TEST_SPACK_PACKAGES:?names a git directory of its recipes}"
# shellcheck source=tests/deep/job.sh
source "$(dirname "${BASH_SOURCE[0]}")/job.sh" sf-compiler
# shellcheck source=tests/e2e/no-compiler.sh
source "$e2e/no-compiler.sh"

version=14.2.0
"$e2e/make-sources.sh" --compiler "$work/sources" >/dev/null
chmod -R a+rX "$work/sources"
compiler=(--compiler-version "$version")
[[ ${BOOTSTRAP:-no} == yes ]] || compiler+=(--no-bootstrap)
flags+=(--image "$(image debian12)")

began=$SECONDS
made=$("${factory[@]}" build-compiler "${compiler[@]}" "${flags[@]}" --package)
[[ $made == "gcc $version"$'\n'/*"/gcc-$version-compiler.tar.gz" ]] || die "build-compiler says '$made'"
archive=${made##*$'\n'}
"${factory[@]}" verify --for debian12 "$archive" >"$work/verify.log" || die "verify: $(cat "$work/verify.log")"
note "gcc $version and its package: $((SECONDS - began)) s"

# Where no other compiler is, from a folder with a blank and one with a long name; what it makes runs on the plain image too.
plain=$(plain debian12)
roots=("$work"/home/.slurm-factory/rootfs/*/root)
sealed=()
no_compiler "${roots[0]}"
for folder in "$work/home/a b" "$work/home/$(printf 'g%.0s' {1..150})"; do
    rm -rf "$folder"
    as "$user" mkdir -p "$folder/out"
    as "$user" tar -xzf "$archive" -C "$folder"
    name=${folder##*/}
    script=(/bin/bash /tmp/compile.sh "/s/$name/view" "/s/$name/out")
    compiled=$(as "$user" "${sealed[@]}" --bind "$folder" "/s/$name" --ro-bind "$stage/compile.sh" /tmp/compile.sh -- "${script[@]}") ||
        die "the compiler does not work from $folder"
    as "$user" bwrap --unshare-user --unshare-pid --unshare-ipc --unshare-net --die-with-parent \
        --ro-bind "$plain" / --proc /proc --dev /dev --tmpfs /tmp --tmpfs /s --ro-bind "$folder" "/s/$name" \
        --ro-bind "$stage/compile.sh" /tmp/compile.sh --clearenv --setenv PATH /usr/bin:/bin --setenv HOME /tmp -- \
        "${script[@]}" run || die "what the compiler made in $folder does not run where there is no compiler"
    note "compiled, linked and ran in a folder with a name of ${#name} characters: $compiled"
    rm -rf "$folder"
done

began=$SECONDS
package=$("${factory[@]}" build --slurm-version 24.11 "${compiler[@]}" "${flags[@]}" "$@" | tail -n 1)
[[ ${package##*/} == *-gcc$version-* ]] || die "the package's name is not its compiler's: $package"
"${factory[@]}" verify --for debian12 "$package" >"$work/verify.log" || die "verify: $(cat "$work/verify.log")"
note "${package##*/}: $((SECONDS - began)) s"

# What compiled it says so in each object file that it made.
rm -rf "$work/looked-at"
mkdir "$work/looked-at"
tar -xzf "$package" -C "$work/looked-at"
[[ $(readelf -p .comment "$work/looked-at/view/sbin/slurmctld") == *"GCC) $version"* ]] || die "slurmctld was not compiled by GCC $version"
PLAIN=$plain "$deep/places.sh" "$package" 1 10
note "ok"
