# shellcheck shell=bash
#
# A user without subordinate ids and what a build of the end-to-end test's Slurm needs; to be sourced by scripts of this folder:
#
#   source job.sh USER     gives `work`, `stage`, `flags` of `build`, and `factory`, the program as that user
#
#   SLURM_FACTORY_TEST_SPACK, SLURM_FACTORY_TEST_SPACK_PACKAGES    real Spack builds, else the stand-in
#   SLURM_FACTORY_BIN                                              the program, target/debug/slurm-factory when not given
#   WORK                                                           a folder that stays: what was built there is found again

user=$1
deep=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=tests/e2e/debian-archive.sh
source "$deep/../e2e/debian-archive.sh"
# shellcheck source=tests/e2e/input.sh
source "$deep/../e2e/input.sh"

[[ $(id -u) -eq 0 ]] || die "root makes the user that this is about"
need umoci:umoci mmdebstrap:mmdebstrap python3 setpriv:util-linux useradd:passwd bwrap:bubblewrap
program=$(realpath "${SLURM_FACTORY_BIN:-$deep/../../target/debug/slurm-factory}")
[[ -x $program ]] || die "no program at $program: cargo build"

if [[ -n ${WORK:-} ]]; then
    mkdir -p "$WORK"
    work=$(realpath "$WORK")
else
    work=$(mktemp -d "/var/tmp/$user.XXXXXX")
fi
chmod 755 "$work"
mark="slurm-factory test"
if [[ $(getent passwd "$user" | cut -d: -f5) != "$mark" ]] && getent passwd "$user" >/dev/null; then
    die "there is an account $user that this test did not make: remove or rename it"
fi
userdel "$user" 2>/dev/null || true
useradd --comment "$mark" --no-create-home --home-dir "$work/home" --user-group -K SUB_UID_COUNT=0 -K SUB_GID_COUNT=0 "$user"
cleanup() {
    userdel "$user" 2>/dev/null || true
    [[ -n ${WORK:-} ]] || rm -rf "$work"
}
trap cleanup EXIT
mkdir -p "$work/home"
chown -R "$user:" "$work/home"

stage=$work/input
take_input "$program" "$stage" "$work/sources"
note "$built_by"
# shellcheck disable=SC2034  # whoever sources this uses it
flags=(--spack-repo "$stage/spack-repo" --source-mirror "$work/sources" --jobs 0 "${spack[@]}")
# shellcheck disable=SC2034  # the same
factory=(as "$user" "$stage/slurm-factory" --config "$stage/site.toml")

# The plain base image of a toolchain (debian12, debian13) as an OCI layout, and unpacked: image TOOLCHAIN, plain TOOLCHAIN
suite_of() {
    case $1 in
    debian12) echo bookworm ;;
    debian13) echo trixie ;;
    *) die "no image can be made here for $1" ;;
    esac
}
image() {
    local suite
    suite=$(suite_of "$1")
    "$e2e/make-base-image.sh" "$work/image-$suite" "$suite" >/dev/null
    chmod -R a+rX "$work/image-$suite"
    echo "oci:$work/image-$suite/oci:$1"
}
plain() {
    local suite plain
    suite=$(suite_of "$1")
    plain=$work/home/plain-$suite
    [[ -d $plain ]] || as "$user" umoci raw unpack --rootless --image "$work/image-$suite/oci:$1" "$plain" >/dev/null
    # What places.sh mounts there; in the image it is not.
    as "$user" touch "$plain/etc/hosts" "$plain/etc/pam.d/slurm"
    as "$user" mkdir -p "$plain/s"
    echo "$plain"
}
