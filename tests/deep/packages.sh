#!/usr/bin/env bash
#
# Packages whose scripts need a root are installed by a user without subordinate ids: openssh-client dbus man-db cron munge
# systemd at, in Debian's minbase of each suite, in the sandbox in which a rootfs is prepared (one id, root's calls faked).
#
#   tests/deep/packages.sh [SUITE...]          bookworm and trixie when none is named
#   OWNERSHIP=range tests/deep/packages.sh     the same with the user's subordinate ids, who gets some
#
# As root, on a host that tests/run.sh has run on; packages come from the host's own archive. SLURM_FACTORY names the program,
# target/debug/slurm-factory when it does not.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=tests/e2e/debian-archive.sh
source "$here/../e2e/debian-archive.sh"

packages=(openssh-client dbus man-db cron munge systemd at)
program=$(realpath "${SLURM_FACTORY:-$here/../../target/debug/slurm-factory}")
suites=("$@")
((${#suites[@]})) || suites=(bookworm trixie)
ownership=${OWNERSHIP:-single}
need umoci python3 setpriv useradd
[[ $(id -u) -eq 0 ]] || die "root makes the user that this is about"
[[ -x $program ]] || die "no program at $program: cargo build"

work=$(mktemp -d /var/tmp/packages.XXXXXX)
user=packages$$
sub=0
[[ $ownership == single ]] || sub=65536
useradd --no-create-home --user-group -K SUB_UID_COUNT=$sub -K SUB_GID_COUNT=$sub "$user"
trap 'userdel --force "$user" 2>/dev/null; rm -rf "$work"' EXIT
mkdir "$work/home"
install -m 755 "$program" "$work/slurm-factory"
chmod 755 "$work"
chown "$user:" "$work/home"
as_user() { setpriv --reuid "$user" --regid "$user" --clear-groups env HOME="$work/home" "$@"; }

# The sandbox as the last build's, which `shell` opens: of the prepare stage, in this rootfs.
spec() {
    python3 - "$1" <<'PYTHON'
import json, sys
copied = lambda path: {"target": path, "content": {"host-file": {"path": path, "then": ""}}}
print(json.dumps({
    "rootfs": sys.argv[1], "rootfs_access": "read-write", "identity": "fake-root",
    "user": {"name": "root", "home": "/root"}, "mounts": [],
    "tmpfs": [{"target": "/tmp", "size": None, "mode": 0o1777}, {"target": "/run", "size": None, "mode": 0o755}],
    "overlays": [copied("/etc/resolv.conf"), copied("/etc/hosts")], "shm_size": 1 << 28, "network": "host",
    "env": [["PATH", "/usr/sbin:/usr/bin:/sbin:/bin"], ["HOME", "/root"], ["DEBIAN_FRONTEND", "noninteractive"], ["LC_ALL", "C.UTF-8"]],
    "cwd": "/", "hostname": "packages", "cpus": None, "confinement": "strict", "grace_ms": 700,
}))
PYTHON
}

for suite in "${suites[@]}"; do
    "$here/../e2e/make-base-image.sh" "$work/image-$suite" "$suite" >/dev/null
    tag=debian12
    [[ $suite == bookworm ]] || tag=debian13
    chmod -R a+rX "$work/image-$suite"
    cache=$work/home/$suite
    as_user mkdir "$cache"
    as_user umoci raw unpack --rootless --image "$work/image-$suite/oci:$tag" "$cache/rootfs" >/dev/null
    # Images keep no device nodes that a user can make.
    as_user rm -rf "$cache/rootfs/dev"
    as_user mkdir "$cache/rootfs/dev"
    spec "$cache/rootfs" | as_user tee "$cache/last-build.json" >/dev/null
    inside() { as_user "$work/slurm-factory" --cache-dir "$cache" shell --ownership "$ownership" -- "$@"; }
    start=$SECONDS
    apt=(apt-get -q -o APT::Sandbox::User=root -o Dpkg::Options::=--force-unsafe-io)
    if ! { inside "${apt[@]}" update && inside "${apt[@]}" install -y --no-install-recommends "${packages[@]}"; } >"$work/log" 2>&1; then
        tail -n 40 "$work/log" >&2
        die "$suite: apt-get failed"
    fi
    audit=$(inside dpkg --audit)
    [[ -z $audit ]] || die "$suite: dpkg --audit says: $audit"
    for package in "${packages[@]}"; do
        # shellcheck disable=SC2016 # dpkg's own
        state=$(inside dpkg-query -W -f '${db:Status-Abbrev}' "$package")
        [[ $state == "ii " ]] || die "$suite: $package is \`$state\`"
    done
    note "$suite, --ownership $ownership: ${packages[*]} installed in $((SECONDS - start)) s, dpkg --audit silent"
    if [[ $ownership == range ]]; then
        inside stat -c '%U:%G %a %n' /usr/bin/ssh-agent /var/lib/munge /usr/bin/crontab /var/spool/cron/atjobs
        as_user podman unshare rm -rf "$cache" 2>/dev/null || rm -rf "$cache"
    fi
done
