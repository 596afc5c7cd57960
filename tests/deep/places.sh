#!/usr/bin/env bash
#
# A package, unpacked to folders whose paths have 2 to 3,000 bytes, with blanks and UTF-8 in their names: does all of it work
# from each? What is tried in each folder stands at the top of places/inside.sh.
#
#   tests/deep/places.sh PACKAGE [NUMBER...]  a .tar.gz; each folder, or the first, second ... of them, gets it by plain `tar -x`
#
# On Debian 12 with gcc, mmdebstrap and bubblewrap, for packages built on Debian 12. Root or not: what runs, runs as an ordinary user of
# a user namespace, in a plain base image (mmdebstrap's minbase) without compilers. PLAIN=DIR takes a base image that is there.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
[[ $# -ge 1 && -f $1 ]] || {
    sed -n '3,10s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
    exit 2
}
package=$(readlink -f "$1")
shift
for tool in gcc mmdebstrap bwrap tar; do
    command -v "$tool" >/dev/null || {
        echo "places: $tool is needed" >&2
        exit 1
    }
done
work=$(mktemp -d "${TMPDIR:-/tmp}/places.XXXXXX")
trap 'rm -rf "$work"' EXIT

plain=${PLAIN:-}
if [[ -z $plain ]]; then
    plain=$work/plain
    mmdebstrap --quiet --variant=minbase bookworm "$plain" 2>"$work/mmdebstrap.log" || {
        cat "$work/mmdebstrap.log" >&2
        exit 1
    }
fi
[[ ! -e $plain/usr/bin/gcc ]] || {
    echo "places: $plain has a compiler: it would not show what a host without one does" >&2
    exit 1
}
mkdir "$work/tools" "$work/etc"
gcc -O1 -shared -fPIC -Wall -Werror -o "$work/tools/probe.so" "$here/places/probe.c" -ldl
install -m 755 "$here/places/inside.sh" "$here/../e2e/run-slurm.sh" "$work/tools/"
printf 'root:x:0:0:root:/root:/bin/bash\nuser:x:1000:1000::/tmp:/bin/bash\n' >"$work/etc/passwd"
printf 'root:x:0:\nuser:x:1000:\n' >"$work/etc/group"
printf '127.0.0.1 localhost node1\n' >"$work/etc/hosts"
printf '%s required pam_permit.so\n' auth account session password >"$work/etc/pam"

# path LENGTH PIECE: a path below /s with that many bytes, of folders that are called like the piece
path() {
    local LC_ALL=C length=$1 piece=$2 text=/s rest
    while ((${#text} + ${#piece} + 2 <= length)); do text+=/$piece; done
    rest=$((length - ${#text}))
    if ((rest > 1)); then text+=/$(printf 'x%.0s' $(seq "$((rest - 1))")); fi
    ((rest != 1)) || text+=x
    printf '%s' "$text"
}

places=(
    /s
    "/s/a b"
    "/s/öffentlich"
    "$(path 60 'with  two  blanks')"
    "$(path 127 plain)"
    "$(path 128 'größer als ein Wort')"
    "$(path 255 "quote's and \$dollar")"
    "$(path 700 '日本語 のフォルダ')"
    "$(path 1500 "$(printf 'y%.0s' {1..200})")"
    "$(path 3000 'tief und tiefer ünd')"
)

numbers=("$@")
((${#numbers[@]})) || mapfile -t numbers < <(seq "${#places[@]}")
for number in "${numbers[@]}"; do
    place=${places[number - 1]}
    bytes=$(LC_ALL=C; printf '%s' "${#place}")
    root=$work/root
    rm -rf "$root"
    target=$root${place#/s}
    mkdir -p "$target"
    tar -xzf "$package" -C "$target"
    began=$SECONDS
    bwrap --unshare-user --uid 1000 --gid 1000 --unshare-pid --unshare-ipc --unshare-uts --hostname node1 --die-with-parent \
        --bind "$plain" / --proc /proc --dev /dev --tmpfs /tmp --tmpfs /run \
        --ro-bind "$work/etc/passwd" /etc/passwd --ro-bind "$work/etc/group" /etc/group --ro-bind "$work/etc/hosts" /etc/hosts \
        --ro-bind "$work/etc/pam" /etc/pam.d/slurm \
        --ro-bind "$root" /s --ro-bind "$work/tools" /tmp/tools \
        --clearenv --setenv PATH /usr/bin:/bin --setenv HOME /tmp -- \
        /bin/bash /tmp/tools/inside.sh "$place/view" >"$work/out" 2>&1 || {
        status=$?
        cat "$work/out" >&2
        printf 'places: FAILED (exit status %s) in a folder of %s bytes: %s\n' "$status" "$bytes" "$place" >&2
        exit 1
    }
    printf 'places: %4s bytes (%s s): %s\n' "$bytes" "$((SECONDS - began))" "$(tail -n 1 "$work/out")"
done
echo "places: ok, ${#numbers[@]} folders"
