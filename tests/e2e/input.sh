# shellcheck shell=bash
#
# What a build of the tests' Slurm starts from, and the users whose it is; to be sourced behind debian-archive.sh:
#
#   take_input PROGRAM STAGE SOURCES    fills STAGE, which users may read, and the source mirror SOURCES; gives `spack`, flags of
#                                       `build`, `real` (yes or no), and `built_by`, which says it loudly
#   as USER COMMAND...                  with a login's environment and nothing of ours
#
#   SLURM_FACTORY_TEST_SPACK, SLURM_FACTORY_TEST_SPACK_PACKAGES    real Spack builds, else the stand-in

e2e=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

take_input() {
    local program=$1 stage=$2 sources=$3
    # A user may not be able to look into the project's folder: what they need is copied.
    rm -rf "$stage"
    mkdir -p "$stage"
    install -m 755 "$program" "$stage/slurm-factory"
    install -m 755 "$e2e/run-slurm.sh" "$e2e/compile.sh" "$stage/"
    cp -r "$e2e/spack-repo" "$stage/spack-repo"
    cp "$e2e/site.toml" "$stage/site.toml"
    # shellcheck disable=SC2034  # whoever sources this uses them
    if [[ -n ${SLURM_FACTORY_TEST_SPACK:-} && -n ${SLURM_FACTORY_TEST_SPACK_PACKAGES:-} ]]; then
        real=yes
        built_by="REAL SPACK builds real Slurm and all of its libraries"
        spack=(--spack-source "$SLURM_FACTORY_TEST_SPACK" --spack-packages "$SLURM_FACTORY_TEST_SPACK_PACKAGES")
        "$e2e/make-sources.sh" "$sources" >/dev/null
    else
        real=no
        built_by="NOTE: the STAND-IN builds; real Spack is NOT RUN: set SLURM_FACTORY_TEST_SPACK and SLURM_FACTORY_TEST_SPACK_PACKAGES"
        cp -r "$e2e/../spack-standin" "$stage/spack-standin"
        find "$stage/spack-standin" -name __pycache__ -prune -exec rm -rf {} +
        spack=(--spack-source "$stage/spack-standin" --spack-packages "$stage/spack-standin/packages")
        cat "$e2e/standin.toml" >>"$stage/site.toml"
        "$e2e/make-sources.sh" "$sources" slurm@24-11-5-1 munge json-c lz4 zlib libgcrypt libgpg-error >/dev/null
    fi
    chmod -R a+rX "$stage" "$sources"
}

# What is started does not get the lock of a test that holds one (9>&-).
as() {
    local user=$1 home
    shift
    home=$(getent passwd "$user" | cut -d: -f6)
    (cd / && exec setpriv --reuid="$user" --regid="$user" --init-groups --reset-env -- \
        env HOME="$home" PATH=/usr/local/bin:/usr/bin:/bin LANG=C.UTF-8 ${SSL_CERT_FILE:+SSL_CERT_FILE="$SSL_CERT_FILE"} \
        ${PIP_INDEX_URL:+PIP_INDEX_URL="$PIP_INDEX_URL"} "$@") 9>&-
}
