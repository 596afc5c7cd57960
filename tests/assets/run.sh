#!/usr/bin/env bash
#
# What ships in data/slurm_assets, run for real: a Debian with systemd and MariaDB is booted in namespaces, and in it the install
# script makes a cluster that runs jobs and keeps accounts. inside.sh has the checks.
#
#   run.sh [WORKDIR]      WORKDIR keeps the Debian tree between runs; a temporary folder when not given
#
# Runs as root. The Slurm is Debian's, in the folders of a package, because it has the accounting plugin;
#   SLURM_FACTORY_TEST_PACKAGE   a package of slurm-factory: a cluster is made with it as well, with accounts when it has the plugin for them
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
project=$(cd "$here/../.." && pwd)
# shellcheck source=tests/e2e/debian-archive.sh
source "$here/../e2e/debian-archive.sh"
[[ $(id -u) -eq 0 ]] || die "run as root: it boots a tree of its own"
need mmdebstrap unshare:util-linux ip:iproute2 python3

if [[ $# -ge 1 ]]; then
    mkdir -p "$1"
    work=$(cd "$1" && pwd)
    keep=yes
else
    work=$(mktemp -d /var/tmp/slurm-factory-assets.XXXXXX)
    keep=no
fi
rootfs=$work/rootfs
groups=''
cleanup() {
    local status=$?
    if [[ -n $groups ]]; then
        # The groups of a systemd that is gone: empty, deepest first.
        find "$groups" -depth -type d -name '[!.]*' -exec rmdir {} + 2>/dev/null || true
        umount "$work/groups" 2>/dev/null || true
    fi
    if [[ $keep == no && $status -eq 0 ]]; then rm -rf "$work"; fi
    [[ $status -eq 0 ]] || note "FAILED; what it left is in $work"
    exit "$status"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
step() {
    printf '[%3d s] %s\n' "$SECONDS" "$*"
}

# --- a Debian ----------------------------------------------------------------------------------------------------------
# trixie, whose Slurm is 24.11; its archive is made once.
if [[ ! -f $work/base.tar ]]; then
    step "a Debian with systemd, MariaDB and Slurm"
    debian_sources deb trixie trixie-updates >"$work/debian.sources"
    mmdebstrap --quiet --variant=minbase --mode=root --format=tar --aptopt='Apt::Install-Recommends "false"' \
        --include=systemd,mariadb-server,slurmctld,slurmd,slurmdbd,slurmrestd,slurm-wlm-mysql-plugin,slurm-wlm-jwt-plugin,slurm-client,munge,procps,strace \
        trixie "$work/.base.tar" "$work/debian.sources" || die "mmdebstrap failed: does apt-get update work on this host?"
    mv "$work/.base.tar" "$work/base.tar"
fi
rm -rf "$rootfs"
mkdir "$rootfs"
tar -xf "$work/base.tar" -C "$rootfs"

echo node1 >"$rootfs/etc/hostname"
printf '127.0.0.1 localhost\n10.11.12.1 node1\n' >"$rootfs/etc/hosts"
# What would reach for the host below.
for unit in systemd-sysctl systemd-modules-load systemd-remount-fs systemd-udevd; do
    ln -s /dev/null "$rootfs/etc/systemd/system/$unit.service"
done

# --- Debian's Slurm as a package, and nothing left of Debian's own setup ------------------------------------------------
step "its Slurm in the folders of a package"
label=24.11-gcc14.2.0
tree=$work/package
rm -rf "$tree"
mkdir -p "$tree/view/bin" "$tree/view/sbin" "$tree/view/lib" "$tree/modules/slurm" "$tree/data"
for name in sacct sacctmgr salloc sbatch scancel scontrol sinfo squeue srun munge unmunge; do
    mv "$rootfs/usr/bin/$name" "$tree/view/bin/"
done
for name in munged mungekey slurmctld slurmd slurmdbd slurmrestd; do
    # slurmctld and slurmd are links to alternatives.
    if [[ -L $rootfs/usr/sbin/$name ]]; then mv "$rootfs/usr/sbin/$name-wlm" "$rootfs/usr/sbin/$name"; fi
    mv "$rootfs/usr/sbin/$name" "$tree/view/sbin/"
done
# Its places are compiled in: slurmstepd stays, the plugins are shown.
ln -s /usr/sbin/slurmstepd "$tree/view/sbin/slurmstepd"
plugins=$(cd "$rootfs" && echo usr/lib/*/slurm-wlm)
ln -s "/$plugins" "$tree/view/lib/slurm"
cp -r "$project/assets/payload" "$tree/data/slurm_assets"
chmod -R go-w "$tree"
mkdir -p "$rootfs/test"
tar -C "$tree" --owner=0 --group=0 -czf "$rootfs/test/slurm-$label-software.tar.gz" view modules data
cp "$rootfs/usr/lib/systemd/system/munge.service" "$rootfs/test/"
(
    cd "$rootfs"
    rm -rf etc/munge etc/slurm var/lib/munge var/log/munge var/log/slurm* var/spool/slurm* var/lib/slurm* etc/default/{munge,slurm*} \
        etc/init.d/{munge,slurm*} usr/lib/systemd/system/{munge,slurm*}.service usr/lib/{tmpfiles,sysusers}.d/{munge,slurm}* \
        etc/logrotate.d/{munge,slurm*}
    find etc/systemd/system -xtype l -lname '*/munge.service' -delete -o -xtype l -lname '*/slurm*.service' -delete
    sed -i '/^\(slurm\|munge\):/d' etc/passwd etc/group etc/shadow etc/gshadow
    rm -f etc/passwd- etc/group- etc/shadow- etc/gshadow- etc/systemd/system/multi-user.target.wants/mariadb.service
)
install -m 755 "$here/inside.sh" "$rootfs/test/inside.sh"
# The command blocks of the guide, each a script of its own.
python3 - "$project/docs/install.md" "$rootfs/test" "$label" <<'PYTHON'
import re, sys
page, out, label = sys.argv[1:]
blocks = re.findall(r"^```sh\n(.*?)^```$", open(page, encoding="utf-8").read(), re.M | re.S)
assert blocks, "docs/install.md has no command blocks"
for number, block in enumerate(blocks):
    assert "slurm-factory " not in block, "a block that needs slurm-factory is not run here: mark it console"
    with open(f"{out}/guide-{number:02}.sh", "w") as script:
        script.write(f"set -euo pipefail\nexport PS4='guide: '\nset -x\n{block}")
PYTHON
if [[ -n ${SLURM_FACTORY_TEST_PACKAGE:-} ]]; then
    cp "$SLURM_FACTORY_TEST_PACKAGE" "$rootfs/test/real-package.tar.gz"
    # Its install script is the one of this source.
    tar -C "$tree" --owner=0 --group=0 -czf "$rootfs/test/assets.tar.gz" data
else
    step "NOTE: no package of slurm-factory is given (SLURM_FACTORY_TEST_PACKAGE): Debian's Slurm alone is used"
fi
cat >"$rootfs/etc/systemd/system/slurm-factory-test.service" <<'UNIT'
[Unit]
After=basic.target
SuccessAction=exit-force
FailureAction=exit-force
[Service]
Type=oneshot
Environment=HOME=/root
ExecStart=/test/inside.sh
ExecStopPost=/bin/sh -c 'echo $EXIT_STATUS >/test/status'
StandardOutput=file:/test/log
StandardError=file:/test/log
TimeoutStartSec=600
UNIT
ln -s ../slurm-factory-test.service "$rootfs/etc/systemd/system/multi-user.target.wants/"

# --- run ---------------------------------------------------------------------------------------------------------------
step "boot"
mkdir -p "$work/groups"
mount -t cgroup2 cgroup2 "$work/groups"
groups=$work/groups$(sed -n 's/^0:://p' /proc/self/cgroup)
groups=${groups%/}/slurm-factory-assets-$$
mkdir "$groups"
: >"$rootfs/test/log"
# The shell that goes into the group is the first process of the new namespace.
# shellcheck disable=SC2016  # the inner shell's
timeout --kill-after=10 900 bash -c 'echo $$ >"$1/cgroup.procs" && exec unshare --mount --pid --uts --ipc --net --cgroup --fork --kill-child "$2" "$3"' \
    _ "$groups" "$here/boot.sh" "$rootfs" >"$work/boot.log" 2>&1 || true
cat "$rootfs/test/log"
[[ $(cat "$rootfs/test/status" 2>/dev/null) == 0 ]] || {
    tail -n 20 "$work/boot.log" >&2
    die "the checks in the booted system failed (its journal: $rootfs/var/log/journal)"
}
grep -q '^assets: ok$' "$rootfs/test/log" || die "the checks did not come to their end"
step "assets: ok"
