#!/usr/bin/env bash
#
# The parsers of what comes from strangers, fuzzed: image archives, layers, documents and names, and ELF files.
#
#   run.sh [SECONDS] [TARGET...]     each target for so long (20 when not given); all of tests/fuzz/targets when none is named
#
# libFuzzer on a stable compiler: the flags are those of `cargo fuzz run --sanitizer none`, which works on this folder too
# (--fuzz-dir tests/fuzz). What is found new goes to the corpus beside the build, not into the project; what crashes is
# left in tests/fuzz/artifacts and named.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
seconds=${1:-20}
shift || true
targets=("$@")
if ((${#targets[@]} == 0)); then
    for path in "$here"/targets/*.rs; do targets+=("$(basename "$path" .rs)"); done
fi

build=${CARGO_TARGET_DIR:-$here/../../target}/fuzz
export RUSTFLAGS="--cfg fuzzing -Ccodegen-units=1 -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares -Clink-arg=-Wl,-z,nostart-stop-gc"
host=$(rustc -vV | sed -n 's/^host: //p')
# With a target named, the flags are for the fuzzed code alone and not for build scripts.
cargo build --locked --release --quiet --manifest-path "$here/Cargo.toml" --target "$host" --target-dir "$build"

for target in "${targets[@]}"; do
    found=$build/corpus/$target
    mkdir -p "$found" "$here/artifacts/$target"
    corpora=("$found")
    if [[ -d $here/corpus/$target ]]; then corpora+=("$here/corpus/$target"); fi
    log=$build/$target.log
    if ! "$build/$host/release/$target" "${corpora[@]}" -max_total_time="$seconds" -timeout=20 -rss_limit_mb=2048 -max_len=65536 \
        -artifact_prefix="$here/artifacts/$target/" -print_final_stats=1 >"$log" 2>&1; then
        tail -n 40 "$log" >&2
        printf 'fuzz: %s FAILED; the input is in tests/fuzz/artifacts/%s\n' "$target" "$target" >&2
        exit 1
    fi
    printf 'fuzz: %-10s %s runs, %s\n' "$target" "$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")" \
        "$(grep -o 'cov: [0-9]*' "$log" | tail -n 1)"
done
