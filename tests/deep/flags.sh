#!/usr/bin/env bash
#
# Programs built with every linker and odd flag of tests/elf/linkers.rs, given a longer search path by us and by patchelf. Ours
# must run, satisfy readelf and eu-elflint as before, and still run after strip and eu-strip, or the test fails; patchelf's
# results are looked at in the same way, and what is wrong with them is listed and counted.
#
#   tests/deep/flags.sh
#
# Needs what tests/elf needs, and patchelf. Ends with 0 when none of ours failed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
command -v patchelf >/dev/null || {
    echo "flags: patchelf is missing (Debian's package patchelf)" >&2
    exit 1
}
log=$(mktemp "${TMPDIR:-/tmp}/flags.XXXXXX")
trap 'rm -f "$log"' EXIT
status=0
SLURM_FACTORY_ELF_PATCHELF=1 cargo test --locked --test elf -- --nocapture linkers:: >"$log" 2>&1 || status=$?
grep '^patchelf: ' "$log" | grep -v ': good$' | cut -c 1-300 || true
all=$(grep -c '^patchelf: ' "$log" || true)
good=$(grep -c '^patchelf: .*: good$' "$log" || true)
if [[ $status -ne 0 ]]; then
    tail -n 60 "$log" >&2
    exit "$status"
fi
if [[ $all -eq 0 ]]; then
    tail -n 20 "$log" >&2
    echo "flags: no program was tried" >&2
    exit 1
fi
lint=$(grep -c '^patchelf: .*: eu-elflint: ' "$log" || true)
echo "$all programs: 0 of ours failed, $((all - good)) of patchelf's, $lint of them by eu-elflint ($(patchelf --version))"
