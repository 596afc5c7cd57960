#!/usr/bin/env bash
#
# The toolchains whose images can be made here, debian12 and debian13: Slurm is built on each by a user without subordinate ids, and
# each package run on the plain image of both, as far as its glibc reaches. Where it does not, `verify --for` must refuse the
# package, and the dynamic linker of that image must agree.
#
#   tests/deep/toolchains.sh [FLAG...]      flags of `build`, such as --minimal
#
# As root, on a host that tests/run.sh has run on; job.sh says what else it reads.
set -euo pipefail
# shellcheck source=tests/deep/job.sh
source "$(dirname "${BASH_SOURCE[0]}")/job.sh" sf-toolchains

declare -A plain=() package=() floor=()
for toolchain in debian12 debian13; do
    image=$(image "$toolchain")
    plain[$toolchain]=$(plain "$toolchain")
    began=$SECONDS
    package[$toolchain]=$("${factory[@]}" build --slurm-version 24.11 --toolchain "$toolchain" --image "$image" "${flags[@]}" "$@" | tail -n 1)
    note "$toolchain: built in $((SECONDS - began)) s: ${package[$toolchain]##*/}"
    "${factory[@]}" verify --json --for "$toolchain" "${package[$toolchain]}" >"$work/verify.json" ||
        die "verify --for $toolchain refuses what $toolchain built: $(cat "$work/verify.json")"
    # What --minimal promises.
    [[ " $* " != *" --minimal "* ]] || "${factory[@]}" package --sizes --json "${package[$toolchain]}" |
        python3 -c 'import json, sys; size = json.load(sys.stdin)["total"]; sys.exit(size >= 150_000_000 and f"unpacked it has {size} bytes")' ||
        die "--minimal is too large"
    floor[$toolchain]=$(python3 -c 'import json, sys; print(json.load(sys.stdin)["glibc"]["version"])' <"$work/verify.json")
done

# reaches A B: whether version A is B or older
reaches() {
    [[ $(printf '%s\n' "$1" "$2" | sort -V | head -n 1) == "$1" ]]
}

glibc_of() {
    bwrap --ro-bind "${plain[$1]}" / --proc /proc --dev /dev -- ldd --version | sed -n '1s/.* //p'
}

for built in debian12 debian13; do
    for on in debian12 debian13; do
        has=$(glibc_of "$on")
        status=0
        "${factory[@]}" verify --for "$on" "${package[$built]}" >"$work/verify.log" 2>&1 || status=$?
        if reaches "${floor[$built]}" "$has"; then
            [[ $status -eq 0 ]] || die "verify --for $on refuses the package of $built, which needs ${floor[$built]}: $(cat "$work/verify.log")"
            PLAIN=${plain[$on]} "$deep/places.sh" "${package[$built]}" 1 5
            note "built on $built (needs glibc ${floor[$built]}): runs on $on (glibc $has)"
        else
            [[ $status -eq 5 ]] || die "verify --for $on ends with $status for a package that needs ${floor[$built]}, not 5"
            grep -q "${floor[$built]}" "$work/verify.log" || die "verify --for $on does not say what is needed: $(cat "$work/verify.log")"
            rm -rf "$work/refused"
            mkdir "$work/refused"
            tar -xzf "${package[$built]}" -C "$work/refused"
            if bwrap --ro-bind "${plain[$on]}" / --ro-bind "$work/refused" /mnt --proc /proc --dev /dev -- /mnt/view/sbin/slurmctld -V \
                >"$work/refused.log" 2>&1; then
                die "verify --for $on refuses what runs there"
            fi
            grep -q 'GLIBC_.* not found' "$work/refused.log" || die "it does not run on $on, for another reason: $(cat "$work/refused.log")"
            note "built on $built (needs glibc ${floor[$built]}): refused for $on (glibc $has), which says: $(head -n 1 "$work/refused.log")"
        fi
    done
done
note "ok"
