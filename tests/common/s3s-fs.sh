#!/usr/bin/env bash
#
# The S3 server that tests write to: installs it where it is not yet, and prints where it is. Kept in target/ for the next run.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

version=0.14.1
tools=$(realpath -m "${CARGO_TARGET_DIR:-target}")/test-tools
if ! [[ -x $tools/bin/s3s-fs ]] || ! grep -qs "^\"s3s-fs $version " "$tools/.crates.toml"; then
    cargo install "s3s-fs@$version" --locked --quiet --features binary --root "$tools" --target-dir "$tools/build" >&2
    rm -rf "$tools/build"
fi
printf '%s\n' "$tools/bin/s3s-fs"
