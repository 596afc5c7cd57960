# shellcheck shell=bash
#
# A host that has the C library, its headers and no compiler, as a prepared root file system without its own; to be sourced:
#
#   no_compiler ROOT       gives `sealed`, the beginning of a bwrap command; what is tried there is to be bound and named behind it

no_compiler() {
    local root=$1 file hidden=()
    for file in "$root"/usr/bin/*-linux-gnu-*; do
        if [[ -f $file && ! -L $file ]]; then hidden+=(--ro-bind /dev/null "${file#"$root"}"); fi
    done
    [[ ${#hidden[@]} -gt 0 ]] || die "there is no compiler to hide in $root"
    # shellcheck disable=SC2034  # whoever sources this uses it
    sealed=(bwrap --unshare-user --unshare-pid --unshare-ipc --unshare-net --die-with-parent
        --ro-bind "$root/usr" /usr --ro-bind "$root/etc" /etc --symlink usr/bin /bin --symlink usr/sbin /sbin
        --symlink usr/lib /lib --symlink usr/lib64 /lib64 "${hidden[@]}" --tmpfs /usr/lib/gcc --proc /proc --dev /dev --tmpfs /tmp
        --clearenv --setenv PATH /usr/bin:/bin --setenv HOME /tmp)
}
