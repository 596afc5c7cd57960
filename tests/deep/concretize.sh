#!/usr/bin/env bash
#
# Every plan of the catalog, asked of real Spack: does each version, variant and toolchain have a solution, is it the one that was
# meant, and are the pins there? Nothing is built; half a minute to a minute a case and Spack.
#
#   tests/deep/concretize.sh [--cheap] [PATTERN...]     all cases, or those whose names match a pattern of the shell
#
# --cheap takes a dozen that touch every version, variant and toolchain: what tests/run.sh does where there is Spack.
#   SLURM_FACTORY_TEST_SPACK, SLURM_FACTORY_TEST_SPACK_PACKAGES    git directories of Spack and its recipes
#   SLURM_FACTORY_TEST_SPACK_TAGS                                  releases of Spack; v1.0.0 and v1.1.0 when not given
#   SLURM_FACTORY_TEST_KEEP                                        a folder that keeps what is unpacked, and cases that were done
#
# No sandbox and no rootfs: compilers and externals are declared as the toolchain's distribution has them, and the solver believes
# it. The operating system is this machine's and glibc too; no recipe of ours asks for either.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
project=$(cd "$here/../.." && pwd)

: "${SLURM_FACTORY_TEST_SPACK:?names a git directory of Spack}"
: "${SLURM_FACTORY_TEST_SPACK_PACKAGES:?names a git directory of its recipes}"
read -r -a tags <<<"${SLURM_FACTORY_TEST_SPACK_TAGS:-v1.0.0 v1.1.0}"

cheap=no
if [[ ${1:-} == --cheap ]]; then
    cheap=yes
    shift
fi
patterns=("$@")
if [[ $cheap == yes ]]; then
    patterns+=(25.11-default-noble 24.11-gpu-jammy 23.11-minimal-rockylinux8 25.11-gpu-rockylinux9 24.11-default-rockylinux10
        23.11-gpu-debian12 25.11-minimal-debian13 with-pyxis with-hdf5 target-x86_64_v3 gcc-13.4.0)
fi
((${#patterns[@]})) || patterns=('*')

if [[ -n ${SLURM_FACTORY_TEST_KEEP:-} ]]; then
    mkdir -p "$SLURM_FACTORY_TEST_KEEP"
    work=$(cd "$SLURM_FACTORY_TEST_KEEP" && pwd)
else
    work=$(mktemp -d /var/tmp/slurm-factory-concretize.XXXXXX)
    trap 'rm -rf "$work"' EXIT
fi

# unpack GIT TAG INTO
unpack() {
    [[ -d $3 ]] && return
    mkdir -p "$3.new"
    git --git-dir="$1" archive "$2" | tar -x -C "$3.new"
    mv "$3.new" "$3"
}

# Spack's solver, by the sums that the default toolchain's requirements name, for this machine's Python.
if [[ ! -x $work/venv/bin/python3 ]]; then
    python3 -m venv "$work/venv"
    "$work/venv/bin/pip" install --quiet --disable-pip-version-check clingo==5.8.3
fi

rm -rf "$work/rendered"
SLURM_FACTORY_TEST_RENDER=$work/rendered cargo test --locked --quiet --manifest-path "$project/Cargo.toml" --test catalog \
    rendered_for_real_spack >/dev/null
"$work/venv/bin/python3" "$here/pins.py" "$project/assets/catalog.toml" "$SLURM_FACTORY_TEST_SPACK_PACKAGES" "$SLURM_FACTORY_TEST_SPACK"

failed=0
count=0
for tag in "${tags[@]}"; do
    unpack "$SLURM_FACTORY_TEST_SPACK" "$tag" "$work/spack-$tag"
    export SPACK_DISABLE_LOCAL_CONFIG=1 SPACK_USER_CACHE_PATH=$work/user-$tag SPACK_GNUPGHOME=$work/gnupg \
        SPACK_PYTHON=$work/venv/bin/python3
    mkdir -p "$work/gnupg" "$work/done-$tag"
    chmod 700 "$work/gnupg"
    for rendered in "$work"/rendered/cases/*/; do
        name=$(basename "$rendered")
        wanted=no
        for pattern in "${patterns[@]}"; do
            # shellcheck disable=SC2053 # it is a pattern
            [[ $name == $pattern ]] && wanted=yes
        done
        [[ $wanted == yes ]] || continue
        # What the same files gave before is not asked again. The caches of recipes are by Spack's release.
        sum=$(cat "$rendered"/env/* "$rendered"/scope/* "$rendered/expected.json" | sed "s,$work,,g" | sha256sum | cut -c1-16)
        if [[ -e $work/done-$tag/$name-$sum ]]; then
            count=$((count + 1))
            continue
        fi
        folder=$work/cases-$tag/$name
        rm -rf "$folder"
        mkdir -p "$work/cases-$tag"
        cp -r "$rendered" "$folder"
        own=$(sed -n 's/.*"repo":"\([^"]*\)".*/\1/p' "$folder/expected.json")
        recipes=$(sed -n 's/.*"recipes":"\([^"]*\)".*/\1/p' "$folder/expected.json")
        unpack "$SLURM_FACTORY_TEST_SPACK_PACKAGES" "$recipes" "$work/packages-$recipes"
        sed -i -e "s,/slurm-factory.build/misc,$work/misc-$tag-$recipes,g" -e "s,/slurm-factory.build,$work/build-$tag,g" \
            -e "s,/var/cache/slurm-factory,$work/build-$tag,g" -e "s,/opt/slurm-factory/repo,$own,g" \
            -e "s,/opt/spack-packages,$work/packages-$recipes,g" "$folder"/env/* "$folder"/scope/*
        # A GCC that Spack would have built lies in no store here; the solver asks it for its C library.
        grep -rhoE "$work/build-$tag/[^ '\"]*/bin/(gcc|g\+\+|gfortran)" "$folder/scope" | while read -r compiler; do
            mkdir -p "${compiler%/*}"
            ln -sf /usr/bin/gcc "$compiler"
        done || true
        started=$SECONDS
        if "$work/spack-$tag/bin/spack" --color never -C "$folder/scope" -e "$folder/env" concretize --force >"$folder/log" 2>&1 &&
            "$work/venv/bin/python3" "$here/solution.py" "$folder/env/spack.lock" "$folder/expected.json" >>"$folder/log" 2>&1; then
            printf '%-8s %-36s %3d s  %s\n' "$tag" "$name" $((SECONDS - started)) "$(tail -n 1 "$folder/log")"
            touch "$work/done-$tag/$name-$sum"
            count=$((count + 1))
        else
            printf '%-8s %-36s FAILED\n' "$tag" "$name"
            tail -n 30 "$folder/log" | sed 's/^/    /'
            failed=$((failed + 1))
        fi
    done
done
printf '%d solved, %d failed\n' "$count" "$failed"
((failed == 0 && count > 0))
