#!/usr/bin/env bash
#
# The main job from end to end, on real input, as ordinary users: base image from a registry, rootfs, Spack, Slurm,
# relocation, package, signature; then the proof that the package runs from any folder.
#
#   run.sh [WORKDIR]       WORKDIR keeps images, sources and results between runs; a temporary folder when not given
#
# Runs as root, because it makes users and a base image; slurm-factory itself runs only as those users. With
#   SLURM_FACTORY_TEST_SPACK, SLURM_FACTORY_TEST_SPACK_PACKAGES    git directories of Spack and its recipes
# it is real Spack that builds real Slurm with all of its libraries (about 12 minutes a user); without them the stand-in
# of tests/spack-standin builds Slurm and the few libraries that it cannot do without (about 5 minutes a user).
#   SLURM_FACTORY_BIN          the program; built with cargo when not given
#   SLURM_FACTORY_TEST_USERS   which of `plain`, a user without subordinate ids, `subuid`, one with, and `podman`, one whose builds
#                              run under podman; all when not given, `plain subuid` with real Spack
# The last line is `package: PATH`.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
project=$(cd "$here/../.." && pwd)
# shellcheck source=tests/e2e/debian-archive.sh
source "$here/debian-archive.sh"
# shellcheck source=tests/e2e/input.sh
source "$here/input.sh"
# shellcheck source=tests/e2e/no-compiler.sh
source "$here/no-compiler.sh"

[[ $(id -u) -eq 0 ]] || die "run as root: it makes users and a base image"
need pkill:procps openssl podman mmdebstrap umoci skopeo docker-registry bwrap:bubblewrap gpg:gnupg useradd:passwd setpriv:util-linux curl python3
[[ -r /usr/share/lmod/lmod/init/bash ]] || die "Lmod is not installed (package lmod)"
s3s=$("$project/tests/common/s3s-fs.sh")

if [[ $# -ge 1 ]]; then
    mkdir -p "$1"
    work=$(cd "$1" && pwd)
    keep=yes
else
    work=$(mktemp -d /var/tmp/slurm-factory-e2e.XXXXXX)
    keep=no
fi
chmod 755 "$work"

# The accounts are named the same in every run: one run at a time, and nobody else's account is touched.
mark='slurm-factory end-to-end test'
# What is started does not get the lock (9>&-): rootless podman leaves a process that would hold it.
exec 9>/run/lock/slurm-factory-e2e.lock
flock --nonblock 9 || {
    note "another end-to-end test runs on this machine: waiting for its end"
    flock 9
}

# Rootless podman leaves a process, which would keep its user from being removed.
remove_user() {
    pkill -KILL --uid "$1" 2>/dev/null && sleep 0.2
    userdel --remove "$1" 2>/dev/null || true
}

registry_pid=
mirror_pid=
bucket_pid=
users=()
cleanup() {
    local status=$? user
    [[ -z $registry_pid ]] || kill "$registry_pid" 2>/dev/null || true
    [[ -z $mirror_pid ]] || kill "$mirror_pid" 2>/dev/null || true
    [[ -z $bucket_pid ]] || kill "$bucket_pid" 2>/dev/null || true
    # After a failure the homes stay, to look into; the next run removes them with their users.
    for user in "${users[@]}"; do
        if [[ $status -eq 0 ]]; then remove_user "$user"; fi
    done
    [[ $keep == yes || $status -ne 0 ]] || rm -rf "$work"
    [[ $status -eq 0 ]] || note "FAILED; what it left is in $work"
    exit "$status"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

started=$SECONDS
step() {
    printf '[%4d s] %s\n' $((SECONDS - started)) "$*"
}

# --- the program -----------------------------------------------------------------------------------------------------
if [[ -z ${SLURM_FACTORY_BIN:-} ]]; then
    step "building slurm-factory"
    (cd "$project" && cargo build --locked --quiet)
    SLURM_FACTORY_BIN=${CARGO_TARGET_DIR:-$project/target}/debug/slurm-factory
fi
# --- what it works on ------------------------------------------------------------------------------------------------
step "base image"
"$here/make-base-image.sh" "$work" >/dev/null
step "sources"
stage=$work/input
take_input "$SLURM_FACTORY_BIN" "$stage" "$work/sources"
step "$built_by"
chmod -R a+rX "$work/oci"

step "registry on loopback"
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
mkdir -p "$work/registry"
cat >"$work/registry.yml" <<CONF
version: 0.1
log: {level: error}
storage: {filesystem: {rootdirectory: $work/registry}}
http: {addr: 127.0.0.1:$port}
CONF
docker-registry serve "$work/registry.yml" >"$work/registry.log" 2>&1 9>&- &
registry_pid=$!
for ((turn = 0; turn < 100; turn++)); do
    curl -fs "http://127.0.0.1:$port/v2/" >/dev/null 2>&1 && break
    sleep 0.1
done
image=127.0.0.1:$port/library/debian:12
skopeo copy --quiet --dest-tls-verify=false "oci:$work/oci:debian12" "docker://$image"

# The plain base image of a user's own, with that user in its passwd: no compiler, nothing of the build.
# plain_root USER DIR
plain_root() {
    local user=$1 dir=$2 uid
    uid=$(id -u "$user")
    as "$user" umoci unpack --rootless --image "$work/oci:debian12" "$dir" >/dev/null
    as "$user" mkdir -p "$dir/rootfs/slurm"
    printf 'root:x:0:0:root:/root:/bin/bash\n%s:x:%s:%s::/tmp:/bin/bash\n' "$user" "$uid" "$uid" |
        as "$user" tee "$dir/passwd" >/dev/null
    printf 'root:x:0:\n%s:x:%s:\n' "$user" "$uid" | as "$user" tee "$dir/group" >/dev/null
    printf '127.0.0.1 localhost node1\n' | as "$user" tee "$dir/rootfs/etc/hosts" >/dev/null
    if as "$user" test -e "$dir/rootfs/usr/bin/gcc"; then die "the plain base image has a compiler"; fi
}

# in_plain USER DIR TREE COMMAND...: TREE is bound at a path of its own name below /slurm, read-only
in_plain() {
    local user=$1 dir=$2 tree=$3
    shift 3
    # The host's network, because glibc resolves no name where loopback is the only one; Slurm listens on loopback only.
    as "$user" bwrap --unshare-user --unshare-pid --unshare-ipc --unshare-uts --hostname node1 --die-with-parent \
        --ro-bind "$dir/rootfs" / --proc /proc --dev /dev --tmpfs /tmp --tmpfs /run \
        --ro-bind "$dir/passwd" /etc/passwd --ro-bind "$dir/group" /etc/group \
        --tmpfs /slurm --ro-bind "$tree" "/slurm/${tree##*/}" --ro-bind "$stage/run-slurm.sh" /tmp/run-slurm.sh \
        --ro-bind "$stage/compile.sh" /tmp/compile.sh \
        --clearenv --setenv PATH /usr/bin:/bin --setenv HOME /tmp -- "$@"
}

# A full disk would be found by whatever is written last, half an hour later.
enough_space() {
    local free
    free=$(df --output=avail --block-size=1M "$work" | tail -n 1)
    # Measured with the stand-in: 2.3 GB.
    ((free >= 4000)) || die "$((free)) MB are free in $work, and one user's build takes up to 4000: make room, or name another folder"
}

# --- the job, for one kind of user -------------------------------------------------------------------------------------
package=
one_user() {
    local kind=$1 user=sf-e2e-$1 home factory rootfs=() shared flags began took first other
    step "user $user"
    if [[ $(getent passwd "$user" | cut -d: -f5) != "$mark" ]] && getent passwd "$user" >/dev/null; then
        die "there is an account $user that this test did not make: remove or rename it"
    fi
    remove_user "$user"
    useradd --comment "$mark" --create-home --base-dir "$work" "$user"
    users+=("$user")
    home=$work/$user
    case $kind in
    plain) sed -i "/^$user:/d" /etc/subuid /etc/subgid ;;
    subuid | podman) grep -q "^$user:" /etc/subuid || die "useradd gave $user no subordinate ids" ;;
    esac
    factory=(as "$user" "$stage/slurm-factory" --config "$stage/site.toml")
    # With subordinate ids the files are whose the image says, in a rootfs that builds may write to.
    if [[ $kind == subuid ]]; then rootfs=(--ownership range --writable); fi
    shared=(--image "$image" "${rootfs[@]}" "${spack[@]}" --spack-repo "$stage/spack-repo" --source-mirror "$work/sources" --jobs 0)
    # One of the two builds without a network once the sources are there.
    if [[ $kind == subuid ]]; then shared+=(--network fetch-only); fi
    if [[ $kind == podman ]]; then shared+=(--backend podman); fi
    flags=(--slurm-version 24.11 "${shared[@]}")

    check_interrupts
    began=$SECONDS
    "${factory[@]}" build "${flags[@]}" >"$work/$kind-build.out" 2> >(tee "$work/$kind-build.log" >&2) &
    first=$!
    check_waits_for_another
    took=$((SECONDS - began))
    package=$(tail -n 1 "$work/$kind-build.out")
    step "built in $took s: $package"
    [[ $(tail -n 1 "$work/$kind-other.out") == "$package" ]] || die "the build that waited gave $(tail -n 1 "$work/$kind-other.out")"
    grep -q 'prepared, GCC' "$work/$kind-build.log" && die "the rootfs that was whole before the interruption was made again"
    [[ $package == "$home"/.slurm-factory/builds/slurm-24.11-gcc*-software.tar.gz ]] || die "unexpected path $package"

    check_second_build
    check_signature
    check_relocation
    check_install
    check_module
    check_shell
    check_travel
    check_store_reuse
    check_publish_all
    check_compiler
}

# interrupt SIGNAL EXPECTED PATTERN: starts a build, sends the signal once a line of its output matches, and looks at what is
# left: no process, no mount, no half-made entry.
interrupt() {
    local signal=$1 expected=$2 pattern=$3 log=$work/$kind-$1.log pid status=0 turn left
    "${factory[@]}" build "${flags[@]}" >/dev/null 2>"$log" &
    pid=$!
    for ((turn = 0; turn < 6000; turn++)); do
        grep -q "$pattern" "$log" && break
        kill -0 "$pid" 2>/dev/null || die "the build ended before '$pattern': $(tail -n 3 "$log")"
        sleep 0.1
    done
    sleep 2
    pkill "-$signal" --uid "$user" --exact slurm-factory --oldest || die "no slurm-factory of $user to send $signal to"
    wait "$pid" || status=$?
    [[ $status -eq $expected ]] || die "after SIG$signal the build ended with $status, not $expected"
    sleep 1
    # What has ended and waits for init to take note of it is nothing that was left.
    left=$(pgrep --uid "$user" --list-full | grep -v '<defunct>$' || true)
    # Rootless podman keeps one process of its own for as long as the user is logged in: `podman` and no argument.
    if [[ $kind == podman ]]; then left=$(grep -v -x '[0-9]* podman' <<<"$left" || true); fi
    [[ -z $left ]] || die "SIG$signal left processes: $left"
    if grep -q "$home" /proc/self/mounts; then die "SIG$signal left a mount"; fi
    left=$(find "$home/.slurm-factory" -maxdepth 3 -name '.tmp-*' -not -path '*/work/*')
    [[ -z $left ]] || die "SIG$signal left half-made entries: $left"
    step "SIG$signal during '$pattern': exit code $status, nothing left"
}

# Ctrl-C while the rootfs is made, SIGTERM while packages are built; the next run goes on from the last whole stage.
check_interrupts() {
    interrupt INT 130 'rootfs .* packages'
    check_missing
    check_full_disk
    interrupt TERM 143 'install .* packages'
    [[ $(find "$home/.slurm-factory/rootfs" -mindepth 1 -maxdepth 1 | wc -l) -eq 1 ]] || die "there is no whole rootfs after SIGTERM"
}

# Something missing is named, with what to do, before anything is compiled: a rootfs with --offline, and sources that no
# mirror has.
check_missing() {
    local bare=(--slurm-version 24.11 --image "$image" "${rootfs[@]}" "${spack[@]}" --spack-repo "$stage/spack-repo" --jobs 0)
    refused "$kind-no-rootfs" 3 'rootfs' "${bare[@]}" --offline
    site_mirror
    SSL_CERT_FILE=$work/site/bundle.pem refused "$kind-no-sources" 4 'error: the sources of .* cannot be had' \
        "${bare[@]}" --network none --apt-mirror "https://localhost:$mirror_port/site/debian"
    site_mirror_was_used
    grep -q -e '--source-mirror' "$work/$kind-no-sources.log" || die "nothing says where sources may come from"
    refused "$kind-offline" 3 'error: the sources of .* cannot be had' "${bare[@]}" --offline
    if grep -q 'Executing phase' "$home"/.slurm-factory/logs/*/fetch.log; then die "something was compiled before sources were looked for"; fi
    step "a rootfs and sources that are missing are named: exit codes 3, 4 and 3"
}

# No space left, for the cache while the image comes and for the build folder while packages are built: said with what to
# do, and with space the next run goes on.
check_full_disk() {
    local bare=(--slurm-version 24.11 --image "$image" "${rootfs[@]}" "${spack[@]}" --spack-repo "$stage/spack-repo" --source-mirror "$work/sources" --jobs 0)
    as "$user" mkdir "$home/small"
    full "$kind-full-cache" 16m "${bare[@]}" --cache-dir "$home/small"
    full "$kind-full-build-dir" 8m "${bare[@]}" --build-dir "$home/small"
    step "a full disk is named: exit code 4"
}

# full NAME SIZE FLAG...: a build with a file system of that size at HOME/small, in a mount namespace of its own
full() {
    local name=$1 size=$2 status=0
    shift 2
    export -f as
    # shellcheck disable=SC2016  # the inner shell expands it
    unshare --mount bash -c 'mount -t tmpfs -o "size=$2,mode=755,uid=$(id -u "$1")" none "$3" && user=$1 && shift 3 && as "$user" "$@"' \
        _ "$user" "$size" "$home/small" "$stage/slurm-factory" --config "$stage/site.toml" build "$@" >/dev/null 2>"$work/$name.log" || status=$?
    [[ $status -eq 4 ]] || die "$name ended with $status, not 4: $(tail -n 5 "$work/$name.log")"
    grep -q 'No space left on device' "$work/$name.log" || die "$name does not name the cause: $(tail -n 5 "$work/$name.log")"
    grep -q 'the disk is full: free some space' "$work/$name.log" || die "$name does not say what to do: $(tail -n 5 "$work/$name.log")"
    [[ $(grep -c '^error:' "$work/$name.log") -eq 1 ]] || die "$name says its error more than once"
}

# A site's mirror of the distribution's archive, behind a CA that only this site knows; the rootfs of this job is made from it.
mirror_port=
site_mirror() {
    local site=$work/site host_bundle=${SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt}
    mkdir -p "$site"
    openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=site -addext subjectAltName=DNS:localhost \
        -keyout "$site/key.pem" -out "$site/certificate.pem" 2>/dev/null
    cat "$host_bundle" "$site/certificate.pem" >"$site/bundle.pem"
    coproc MIRROR { exec "$here/apt-mirror.py" "$(debian_archive)" "$site/certificate.pem" "$site/key.pem" "$site/requests.log" 9>&-; }
    # shellcheck disable=SC2153  # bash sets it
    mirror_pid=$MIRROR_PID
    read -r mirror_port <&"${MIRROR[0]}" || die "the apt mirror did not start"
}

site_mirror_was_used() {
    local log
    kill "$mirror_pid"
    wait "$mirror_pid" 2>/dev/null || true
    mirror_pid=
    grep -q '/site/debian/pool/main/g/gcc-12/.*\.deb$' "$work/site/requests.log" || die "gcc did not come from the site's mirror"
    for log in "$home"/.slurm-factory/logs/rootfs-*/prepare.log; do
        if grep '^Get:' "$log" | grep -v -q "https://localhost:$mirror_port/site/debian "; then
            die "a package came from elsewhere than the site's mirror: see $log"
        fi
    done
    if grep -rqs "localhost:$mirror_port" "$home"/.slurm-factory/rootfs/*/root/etc; then die "the rootfs remembers the mirror"; fi
    step "the rootfs was prepared from a site's mirror behind a private CA"
}

# refused NAME EXPECTED PATTERN FLAG...: a build that ends with that code and says that
refused() {
    local name=$1 expected=$2 pattern=$3 status=0
    shift 3
    "${factory[@]}" build "$@" >/dev/null 2>"$work/$name.log" || status=$?
    [[ $status -eq $expected ]] || die "$name ended with $status, not $expected: $(tail -n 5 "$work/$name.log")"
    grep -q "$pattern" "$work/$name.log" || die "$name does not say '$pattern': $(tail -n 5 "$work/$name.log")"
}

# The same build a second time at once waits, says for what, and ends with the same package.
check_waits_for_another() {
    local turn
    sleep 3
    # What an earlier run left there would be read before the new one is opened.
    : >"$work/$kind-other.log"
    "${factory[@]}" build "${flags[@]}" >"$work/$kind-other.out" 2>"$work/$kind-other.log" &
    other=$!
    for ((turn = 0; turn < 600; turn++)); do
        grep -q 'waiting for another run that holds the same build' "$work/$kind-other.log" && break
        sleep 0.1
    done
    grep -q 'waiting for another run that holds the same build' "$work/$kind-other.log" ||
        die "a second build at once does not say what it waits for: $(cat "$work/$kind-other.log")"
    wait "$first" || die "build failed"
    wait "$other" || die "the build that waited failed: $(tail -n 3 "$work/$kind-other.log")"
    step "a second build at once waited and found the package"
}

# A second build of the same plan finds the package, quickly and without Spack.
check_second_build() {
    local again began took
    began=$(date +%s%N)
    again=$("${factory[@]}" build "${flags[@]}" --offline 2>"$work/$kind-second.log")
    took=$((($(date +%s%N) - began) / 1000000))
    [[ $again == "$package" ]] || die "the second build gave $again"
    grep -q concretize "$work/$kind-second.log" && die "the second build started Spack"
    ((took < 2000)) || die "the second build took $took ms"
    step "second build: $took ms, offline, without Spack"
    # What was built before is published by the build that finds it.
    "${factory[@]}" build "${flags[@]}" --offline --publish slurm-only --to "$home/site" 2>"$work/$kind-publish.log" >/dev/null
    cmp "$package" "$home"/site/slurm/*/*/"$(basename "$package")" || die "the published package is not the one that was built"
    grep -q "$(sha256sum <"$package" | cut -d' ' -f1)" "$home/site/index.json" || die "the index does not name the package"
    "${factory[@]}" verify "$home"/site/slurm/*/*/"$(basename "$package")" >/dev/null 2>&1 || die "the published package is not fit"
    step "published to a folder by a build that found it"
}

# Sum and signature as anyone checks them, with gpg and coreutils, and by our own verify.
check_signature() {
    local keyring=$home/gnupg
    as "$user" mkdir -m 700 "$keyring"
    "${factory[@]}" key export | as "$user" gpg --homedir "$keyring" --batch --quiet --import
    as "$user" gpg --homedir "$keyring" --batch --quiet --verify "$package.asc" "$package"
    as "$user" sh -c "cd '${package%/*}' && sha256sum --check --quiet '${package##*/}.sha256'"
    "${factory[@]}" verify "$package" >"$work/$kind-verify.txt"
    "${factory[@]}" verify --json "$package" >"$work/$kind-verify.json"
    python3 - "$work/$kind-verify.json" <<'PYTHON'
import json, sys
answer = json.load(open(sys.argv[1]))
assert answer["fit"] is True and answer["problems"] == [] and answer["glibc"]["version"], answer
for leak in answer["allowed"]:
    assert leak["reason"], leak
PYTHON
    # One changed byte must be noticed.
    as "$user" sh -c "cp '$package' '$home/damaged.tar.gz' && cp '$package.asc' '$home/damaged.tar.gz.asc'"
    as "$user" python3 - "$home/damaged.tar.gz" <<'PYTHON'
import sys
with open(sys.argv[1], "r+b") as archive:
    archive.seek(5000)
    byte = archive.read(1)
    archive.seek(5000)
    archive.write(bytes([byte[0] ^ 1]))
PYTHON
    local status=0
    "${factory[@]}" verify "$home/damaged.tar.gz" >/dev/null 2>&1 || status=$?
    [[ $status -eq 5 ]] || die "verify of a damaged package ended with $status, not 5"
    step "gpg, sha256sum and verify agree; a changed byte is noticed"
}

# Unpacked with plain tar to two folders, one of them with a name of 200 characters, the build folders gone.
check_relocation() {
    local long folder
    long=$(printf 'x%.0s' {1..200})
    as "$user" mv "$home/.slurm-factory/work" "$home/.work-hidden"
    plain_root "$user" "$home/plain"
    for folder in "$home/short" "$home/$long"; do
        as "$user" mkdir "$folder"
        as "$user" tar -xzf "$package" -C "$folder"
        in_plain "$user" "$home/plain" "$folder" /bin/bash /tmp/run-slurm.sh "/slurm/${folder##*/}/view" ||
            die "Slurm does not run from a folder with a name of $(basename "$folder" | wc -c) characters"
    done
    as "$user" rm -rf "${home:?}/$long"
    as "$user" mv "$home/.work-hidden" "$home/.slurm-factory/work"
    step "Slurm runs from two folders, without compilers, LD_LIBRARY_PATH or PluginDir"
}

check_install() {
    "${factory[@]}" install "$package" --prefix "$home/opt slurm" >/dev/null
    in_plain "$user" "$home/plain" "$home/opt slurm" /bin/bash /tmp/run-slurm.sh "/slurm/opt slurm/view" >/dev/null ||
        die "Slurm does not run from where install put it"
    if grep -rqF '@SLURM_FACTORY_PREFIX@' "$home/opt slurm/view"; then die "install left a placeholder"; fi
    "${factory[@]}" verify "$home/opt slurm" >/dev/null 2>&1 || die "verify does not like what install made"
    local status=0
    printf x | as "$user" dd of="$home/opt slurm/view/bin/sinfo" bs=1 seek=5000 conv=notrunc status=none
    "${factory[@]}" verify "$home/opt slurm" >"$work/$kind-changed.log" 2>&1 || status=$?
    [[ $status -eq 5 ]] || die "verify of a changed tree ended with $status, not 5"
    grep -q 'view/bin/sinfo' "$work/$kind-changed.log" || die "verify does not name the file that was changed"
    step "install to a folder with a space in its name"
}

# Real Lmod, with SLURM_INSTALL_PREFIX set (to the folder and to its view) and unset.
check_module() {
    local prefix expected found
    expected=$home/short/view/bin/sinfo
    for prefix in "" "$home/short" "$home/short/view"; do
        # shellcheck disable=SC2016  # the inner shell expands it
        found=$(as "$user" ${prefix:+env SLURM_INSTALL_PREFIX="$prefix"} bash -c '
            source /usr/share/lmod/lmod/init/bash
            module use "$1/modules" && module load slurm && command -v sinfo && test -z "${LD_LIBRARY_PATH:-}"' _ "$home/short")
        [[ $found == "$expected" ]] || die "module load slurm (SLURM_INSTALL_PREFIX='$prefix') finds sinfo at '$found'"
    done
    step "module load slurm under real Lmod"
}

# The last build's sandbox, as Spack saw it, with a `spack` that means its environment.
check_shell() {
    local found
    found=$("${factory[@]}" shell -- sh -c 'id -un; pwd; ls; spack --no-such-option >/dev/null 2>&1 || echo refused' </dev/null)
    [[ $found == builder$'\n'/slurm-factory.build/env/*spack.lock*refused ]] || [[ $kind == podman && $found == *spack.lock*refused ]] ||
        die "shell shows: $found"
    step "shell opens the sandbox of the last build"
}

# The prepared rootfs, carried to a cache that knows nothing: a build there without a network unpacks it and gets as far as
# the sources, which were not carried. One whose owners are a user's own range of ids is not saved.
check_travel() {
    if [[ $kind == subuid ]]; then
        "${factory[@]}" image save --prepared "$image" "$home/prepared.tar.zst" >/dev/null 2>"$work/$kind-save.log" && die "a rootfs with a range of owners was saved"
        grep -q 'prepare it with --ownership single' "$work/$kind-save.log" || die "a rootfs that is not saved: $(cat "$work/$kind-save.log")"
        step "a rootfs with a range of owners is not saved, which is said"
        return
    fi
    "${factory[@]}" image save --prepared "$image" "$home/prepared.tar.zst" >/dev/null
    "${factory[@]}" --cache-dir "$home/elsewhere" image load "$home/prepared.tar.zst" >/dev/null
    refused "$kind-elsewhere" 3 'error: the sources of .* cannot be had' --slurm-version 24.11 --image "$image" "${rootfs[@]}" "${spack[@]}" \
        --spack-repo "$stage/spack-repo" --offline --cache-dir "$home/elsewhere"
    grep -q 'unpacked as it was saved' "$work/$kind-elsewhere.log" || die "the rootfs that was carried was not used"
    as "$user" rm -rf "$home/elsewhere" "$home/prepared.tar.zst"
    step "a prepared rootfs was saved, loaded elsewhere and used without a network"
}

# Another variant of the same Slurm takes rootfs, Spack and dependencies as they are.
check_store_reuse() {
    "${factory[@]}" build "${flags[@]}" --compression zstd >"$work/$kind-zstd.txt" 2>"$work/$kind-zstd.log"
    grep -q 'all packages were there' "$work/$kind-zstd.log" || die "a build that changes only the archive built packages again"
    grep -q 'dependencies already chosen' "$work/$kind-zstd.log" || die "a build that changes only the archive concretized again"
    [[ $(tail -n 1 "$work/$kind-zstd.txt") == *.tar.zst ]] || die "no .tar.zst"
    step "a build with zstd reused everything"
}

# What a build installed, published with the package: to a folder and to a bucket. Each of its packages is compressed once, for the
# cache's own binary cache, and taken from there.
check_publish_all() {
    local all=("${flags[@]}" --compression zstd --offline --publish all) place count log
    local -a reach=()
    bucket
    for place in "$home/all" s3://packages/all; do
        log=$work/$kind-publish-all-${place//[^a-z0-9]/}.log
        if [[ $place == s3://* ]]; then
            # `as` empties the environment.
            reach=(env AWS_ACCESS_KEY_ID=AKIDEXAMPLETESTKEY00 AWS_SECRET_ACCESS_KEY="$bucket_secret" AWS_EC2_METADATA_DISABLED=true
                SLURM_FACTORY_S3_ENDPOINT="http://127.0.0.1:$bucket_port")
        fi
        # shellcheck disable=SC2054  # no array of words with commas
        local program=(as "$user" "${reach[@]}" "$stage/slurm-factory" --config "$stage/site.toml")
        # A bucket is no folder: it is asked although the sources are not.
        if [[ $place == s3://* ]]; then all=("${flags[@]}" --compression zstd --publish all); fi
        "${program[@]}" build "${all[@]}" --to "$place" >/dev/null 2>"$log" || die "build --publish all: $(tail -n 3 "$log")"
        count=$(sed -n 's/.* \([0-9]*\) packages pushed, .*, \([0-9]*\) of them as they are in the cache;.*/\1 \2/p' "$log")
        [[ -n $count && ${count% *} -gt 0 && ${count% *} == "${count#* }" ]] || die "packages were compressed twice ($count): $(cat "$log")"
        if grep -q "$bucket_secret" "$log"; then die "the secret key is in the log"; fi
        "${program[@]}" buildcache check "$(cache_below "$place")" >"$log.check" 2>&1 || die "what was published is not right: $(cat "$log.check")"
        grep -q "${count% *} packages, ${count% *} of them good" "$log.check" || die "not what was pushed: $(cat "$log.check")"
        step "published with its ${count% *} packages to ${place%%/*}, each compressed once"
    done
    kill "$bucket_pid"
    wait "$bucket_pid" 2>/dev/null || true
    bucket_pid=
}

# Where the binary cache of the only Slurm is, below a place.
cache_below() {
    local found=("$home"/all/slurm/*/*/buildcache)
    [[ ${#found[@]} -eq 1 && -d ${found[0]} ]] || die "there is no binary cache, or more than one: ${found[*]}"
    echo "$1${found[0]#"$home/all"}"
}

# An S3 server with a bucket `packages`.
bucket_port=
bucket_secret=wJalrXUtnFEMIsecretSecretK7MDENGexampleKEY
bucket() {
    local turn
    rm -rf "$work/bucket"
    mkdir -p "$work/bucket/packages"
    bucket_port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
    "$s3s" --host 127.0.0.1 --port "$bucket_port" --access-key AKIDEXAMPLETESTKEY00 --secret-key "$bucket_secret" "$work/bucket" \
        >"$work/bucket.log" 2>&1 9>&- &
    bucket_pid=$!
    for ((turn = 0; turn < 100; turn++)); do
        (exec 3<>"/dev/tcp/127.0.0.1/$bucket_port") 2>/dev/null && return
        sleep 0.1
    done
    die "the S3 server did not start: $(cat "$work/bucket.log")"
}

# A GCC that the toolchain has not. The stand-in's is a copy of the toolchain's under another number; a real one takes hours:
# docs/testing.md says when it was last built.
check_compiler() {
    local log=$work/$kind-compiler.log gcc=("${shared[@]}" --compiler-version 13.4.0) archive
    "${factory[@]}" plan --slurm-version 24.11 "${gcc[@]}" >"$work/$kind-compiler.txt"
    grep -q 'compiler  GCC 13.4.0 .*built first' "$work/$kind-compiler.txt" || die "the plan does not say which GCC is built"
    if [[ $real == yes ]]; then
        step "NOTE: build-compiler and its package are NOT RUN with real Spack: tests/deep/compiler.sh"
        return
    fi
    "${factory[@]}" build-compiler "${gcc[@]}" >"$work/$kind-compiler.txt" 2>"$log" || die "build-compiler: $(tail -n 5 "$log")"
    [[ $(tail -n 1 "$work/$kind-compiler.txt") == 'gcc 13.4.0' ]] || die "build-compiler ends with $(tail -n 1 "$work/$kind-compiler.txt")"
    grep -q 'gcc-13.4.0 installed' "$log" || die "no GCC was built"
    "${factory[@]}" build-compiler "${gcc[@]}" --package --publish all --to "$home/compilers" >"$work/$kind-compiler.txt" 2>"$log" ||
        die "build-compiler --package: $(tail -n 5 "$log")"
    grep -q 'all packages were there' "$log" || die "a GCC that is there was built again"
    archive=$(tail -n 1 "$work/$kind-compiler.txt")
    [[ $archive == "$home/.slurm-factory/builds/compilers/13.4.0/gcc-13.4.0-compiler.tar.gz" ]] || die "build-compiler --package ends with $archive"
    step "build-compiler made a GCC once, and its package"
    check_compiler_package
    check_compiler_from_mirror
    # Slurm is built with it by one kind of user: that is the same for all.
    if [[ $kind == plain ]]; then
        "${factory[@]}" build --slurm-version 24.11 "${gcc[@]}" >"$work/$kind-compiled.txt" 2>"$log" || die "build with that GCC: $(tail -n 5 "$log")"
        [[ $(tail -n 1 "$work/$kind-compiled.txt") == *-gcc13.4.0-software.tar.gz ]] || die "build with that GCC ends with $(tail -n 1 "$work/$kind-compiled.txt")"
        "${factory[@]}" verify "$(tail -n 1 "$work/$kind-compiled.txt")" >"$log" 2>&1 || die "a Slurm of that GCC is not fit: $(tail -n 5 "$log")"
        step "build took that GCC"
    fi
}

# The GCC out of what was published, in a new cache and a new build folder: nothing is compiled, and its package is the same. The
# root file system is carried over, because Spack's packages are those of one.
check_compiler_from_mirror() {
    local other=$home/other program
    [[ $kind == plain ]] || return 0
    as "$user" mkdir "$other"
    as "$user" cp -al "$home"/.slurm-factory/{rootfs,images,blobs,spack} "$other"
    program=("${factory[@]}" --cache-dir "$other")
    "${factory[@]}" key export | as "$user" tee "$home/site.asc" >/dev/null
    "${program[@]}" key import "$home/site.asc" >/dev/null 2>&1
    "${program[@]}" build-compiler "${gcc[@]}" --package --build-dir "$home/other-build" \
        --binary-mirror "$home/compilers/compilers/13.4.0/buildcache" >"$work/$kind-compiler.txt" 2>"$log" ||
        die "a GCC from a mirror: $(tail -n 5 "$log")"
    grep -q 'packages are taken from binary caches' "$log" || die "nothing was taken from the mirror: $(cat "$log")"
    grep -q 'Extracting gcc-13.4.0-.* from binary cache' "$other"/logs/*/install.log || die "GCC did not come from the mirror"
    if grep -q 'Executing phase' "$other"/logs/*/install.log; then die "something was compiled although the mirror has it"; fi
    # All files with their sums: the rest of a manifest counts Spack's own records too, which are others where a cache was asked.
    python3 - "$archive.manifest.json" "$(tail -n 1 "$work/$kind-compiler.txt").manifest.json" <<'PYTHON' || die "the package of the GCC from the mirror is another"
import json, sys
first, second = (json.load(open(path))["files"] for path in sys.argv[1:])
assert first == second and len(first) > 500
PYTHON
    as "$user" rm -rf "$other" "$home/other-build"
    step "a new cache took the GCC from a mirror, and its package is the same"
}

# The compiler's archive: sum, signature, contents; unpacked to three folders it compiles, on a host that has headers and the C library
# and no compiler, and what it made runs on a host that has nothing.
check_compiler_package() {
    local folder long
    cmp "$archive" "$home/compilers/compilers/13.4.0/${archive##*/}" || die "the published compiler is not the one that was built"
    grep -q "$(sha256sum <"$archive" | cut -d' ' -f1)" "$home/compilers/index.json" || die "the index does not name the compiler"
    as "$user" gpg --homedir "$home/gnupg" --batch --quiet --verify "$archive.asc" "$archive"
    as "$user" sh -c "cd '${archive%/*}' && sha256sum --check --quiet '${archive##*/}.sha256'"
    "${factory[@]}" verify "$archive" >"$log" 2>&1 || die "the compiler's package is not fit: $(tail -n 5 "$log")"
    long=$home/$(printf 'g%.0s' {1..150})
    as "$user" mkdir "$home/gcc" "$long"
    as "$user" tar -xzf "$archive" -C "$home/gcc"
    as "$user" tar -xzf "$archive" -C "$long"
    "${factory[@]}" install "$archive" --prefix "$home/opt gcc" >"$work/$kind-compiler.txt"
    grep -q 'module load gcc/13.4.0' "$work/$kind-compiler.txt" || die "install does not say how the compiler is loaded"
    as "$user" mv "$home/.slurm-factory/work" "$home/.work-hidden"
    for folder in "$home/gcc" "$long" "$home/opt gcc"; do
        as "$user" mkdir "$folder/out"
        in_rootfs "$folder" /bin/bash /tmp/compile.sh "/slurm/${folder##*/}/view" "/slurm/${folder##*/}/out" >"$work/$kind-compiled.txt" ||
            die "the compiler does not work from $folder"
        in_plain "$user" "$home/plain" "$folder" /bin/bash /tmp/compile.sh "/slurm/${folder##*/}/view" "/slurm/${folder##*/}/out" run ||
            die "what the compiler made in $folder does not run where there is no compiler"
        step "compiled, linked and ran in a folder with a name of $(basename "$folder" | wc -c) characters: $(cat "$work/$kind-compiled.txt")"
    done
    as "$user" mv "$home/.work-hidden" "$home/.slurm-factory/work"
    # shellcheck disable=SC2016  # the inner shell expands it
    folder=$(as "$user" bash -c 'source /usr/share/lmod/lmod/init/bash
        module use "$1/modules" && module load gcc && command -v g++ && test -z "${LD_LIBRARY_PATH:-}"' _ "$home/gcc")
    [[ $folder == "$home/gcc/view/bin/g++" ]] || die "module load gcc finds g++ at '$folder'"
    as "$user" rm -rf "$long" "$home/gcc" "$home/opt gcc"
}

# in_rootfs TREE COMMAND...: the build's root file system with its C library and headers, its compiler hidden
in_rootfs() {
    local tree=$1 roots=("$home"/.slurm-factory/rootfs/*/root) sealed
    shift
    no_compiler "${roots[0]}"
    as "$user" "${sealed[@]}" --bind "$tree" "/slurm/${tree##*/}" --ro-bind "$stage/compile.sh" /tmp/compile.sh -- "$@"
}

kinds='plain subuid podman'
if [[ $real == yes ]]; then kinds='plain subuid'; fi
for kind in ${SLURM_FACTORY_TEST_USERS:-$kinds}; do
    # A home is 2 GB; the last one is looked at below.
    for before in "${users[@]}"; do remove_user "$before"; done
    users=()
    enough_space
    one_user "$kind"
done
# The stand-in is worth something only as far as it is like Spack: without Spack this says that it was not compared.
if [[ $real == yes ]]; then
    for rootfs in "$work/sf-e2e-$kind"/.slurm-factory/rootfs/*/root; do
        "$here/contract.sh" "$rootfs" "$work/sources"
    done
    step "the stand-in and real Spack agree"
else
    "$here/contract.sh"
fi
saved=$work/${package##*/}
cp "$package" "$saved"
step "done"
if [[ $real == yes ]]; then echo "built with: real Spack"; else echo "built with: the stand-in"; fi
echo "package: $saved"
