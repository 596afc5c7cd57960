#!/usr/bin/env bash
#
# Boots a Debian tree with its own systemd as process 1: services are started, fail and are stopped for real.
#
#   boot.sh ROOTFS      ends when that systemd does, and takes along all that ran in it
#
# To be run by run.sh, as root, in new mount, pid, uts, ipc, net and cgroup namespaces. The host's own settings are kept from
# it: /proc/sys is read-only, its control groups are one group of the host's, its network is loopback.
set -euo pipefail

root=$1
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount --bind "$root/proc/sys" "$root/proc/sys"
mount -o remount,bind,ro "$root/proc/sys"
mount -t sysfs -o ro sysfs "$root/sys"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
for name in null zero full random urandom tty; do
    touch "$root/dev/$name"
    mount --bind "/dev/$name" "$root/dev/$name"
done
mkdir "$root/dev/pts" "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts "$root/dev/pts"
mount -t tmpfs tmpfs "$root/dev/shm"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
mount -t tmpfs tmpfs "$root/tmp"
hostname node1
# A name resolves only where there is an address besides 127.0.0.1.
ip link set lo up
ip address add 10.11.12.1/24 dev lo
cd "$root"
pivot_root . mnt
umount -l /mnt
exec env -i container=slurm-factory-test PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd --system --unit=multi-user.target \
    --log-target=journal --show-status=no
