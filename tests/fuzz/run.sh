#!/usr/bin/env bash
#
# The parsers of what comes from strangers, fuzzed: image archives, layers, documents and names, and ELF files.
#
#   run.sh [SECONDS] [TARGET...]     each target for so long (20 when not given); all of tests/fuzz/targets when none is named
#   run.sh build                     only compiles them
#   FUZZ_SEED                        another seed than 1: a test that runs with every change should not differ between two runs
#
# libFuzzer on a stable compiler: the flags are those of `cargo fuzz run --sanitizer none`, which works on this folder too
# (--fuzz-dir tests/fuzz). Each target begins with the small files of tests/fuzz/corpus/TARGET: those that together reach most
# of what long runs have found, and for `document` an index, a manifest and a configuration of each kind. What is found new goes to
# the corpus beside the build, not into the project; to keep the best of it: BUILD/.../TARGET -set_cover_merge=1 NEW BUILD/corpus/TARGET,
# which writes the most useful files first. What crashes is left in tests/fuzz/artifacts and named; its cause mended, it belongs into
# the corpus.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
seconds=${1:-20}
shift || true
targets=("$@")
if ((${#targets[@]} == 0)); then
    for path in "$here"/targets/*.rs; do targets+=("$(basename "$path" .rs)"); done
fi

build=${CARGO_TARGET_DIR:-$here/../../target}/fuzz
export RUSTFLAGS="--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares -Clink-arg=-Wl,-z,nostart-stop-gc"
host=$(rustc -vV | sed -n 's/^host: //p')
# With a target named, the flags are for the fuzzed code alone and not for build scripts.
cargo build --locked --release --quiet --manifest-path "$here/Cargo.toml" --target "$host" --target-dir "$build"
[[ $seconds != build ]] || exit 0

# What libFuzzer starts from: archives of each form and a few libraries, made here.
seeds=$build/seeds
if [[ ! -d $seeds ]]; then
    rm -rf "$seeds.part"
    mkdir -p "$seeds.part/archive" "$seeds.part/elf" "$seeds.part/tree/folder"
    (
        cd "$seeds.part/tree"
        echo text >file
        ln file hard
        ln -s folder/none link
        truncate -s 200K sparse && printf x | dd of=sparse bs=1 seek=100000 conv=notrunc status=none
        touch "folder/$(printf 'n%.0s' {1..200})" && mkfifo pipe
    )
    for format in gnu posix ustar v7 oldgnu; do
        tar --create --sparse --format="$format" --directory="$seeds.part/tree" --file="$seeds.part/archive/$format.tar" . 2>/dev/null || true
    done
    code='int answer(void) { return 42; }'
    for flags in "" -Wl,-rpath,/a/b -Wl,-z,separate-code "-Wl,--enable-new-dtags -Wl,-rpath,/x" -Wl,--hash-style=sysv -g; do
        name=$(printf '%s' "$flags" | tr -c 'a-z0-9\n' _)
        # shellcheck disable=SC2086  # several flags
        gcc -x c -shared -fPIC -nostdlib -Os $flags -o "$seeds.part/elf/lib$name.so" - <<<"$code"
    done
    rm -rf "$seeds.part/tree"
    mv "$seeds.part" "$seeds"
fi

for target in "${targets[@]}"; do
    found=$build/corpus/$target
    mkdir -p "$found" "$here/artifacts/$target"
    [[ -d $here/corpus/$target ]] || {
        printf 'fuzz: %s has no corpus: tests/fuzz/corpus/%s is missing\n' "$target" "$target" >&2
        exit 1
    }
    corpora=("$found" "$here/corpus/$target")
    if [[ -d $seeds/$target ]]; then corpora+=("$seeds/$target"); fi
    log=$build/$target.log
    if ! "$build/$host/release/$target" "${corpora[@]}" -seed="${FUZZ_SEED:-1}" -max_total_time="$seconds" -timeout=20 -rss_limit_mb=2048 -max_len=262144 \
        -artifact_prefix="$here/artifacts/$target/" -print_final_stats=1 >"$log" 2>&1; then
        tail -n 40 "$log" >&2
        printf 'fuzz: %s FAILED; the input is in tests/fuzz/artifacts/%s\n' "$target" "$target" >&2
        exit 1
    fi
    printf 'fuzz: %-10s %s runs, %s\n' "$target" "$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")" \
        "$(grep -o 'cov: [0-9]*' "$log" | tail -n 1)"
done
