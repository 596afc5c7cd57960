#!/usr/bin/env bash
#
# Makes a Spack source mirror out of Debian's source packages.
#
# Spack takes sources from the sites of forty projects; the end-to-end test must run where only package registries are
# reached. Debian's archive holds the original sources of everything that Slurm needs, so this fetches those that
# debian-sources.tsv names and lays them out as Spack finds them by sum:
#
#   OUTDIR/_source-cache/archive/<first two digits of the sum>/<sum>.<extension>
#
#   make-sources.sh OUTDIR [PACKAGE[@VERSION]...]      all of the table without names; prints OUTDIR
#   make-sources.sh --compiler OUTDIR                  what a GCC is built of as well: compiler-sources.tsv. Debian's archive of GCC
#                                                      holds the source archive as a member (column `inside`, with its sum)
#
# Needs no root. A file that is there with the right sum is not fetched again; nothing wrong is ever left under a final name.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=tests/e2e/debian-archive.sh
source "$here/debian-archive.sh"

table=$here/debian-sources.tsv
if [[ ${1:-} == --compiler ]]; then
    table=$here/compiler-sources.tsv
    shift
fi
[[ $# -ge 1 ]] || die "usage: make-sources.sh [--compiler] OUTDIR [PACKAGE[@VERSION]...]"
mkdir -p "$1"
out=$(cd "$1" && pwd)
shift

apt_helper=/usr/lib/apt/apt-helper
need apt-get:apt sha256sum:coreutils awk:mawk xargs:findutils
[[ -x $apt_helper ]] || die "$apt_helper is missing: this needs Debian's or Ubuntu's apt"

# The archive's file name decides the extension that Spack looks for.
extension_of() {
    case $1 in
    *.tar.gz | *.tgz) printf 'tar.gz' ;;
    *.tar.bz2) printf 'tar.bz2' ;;
    *.tar.xz) printf 'tar.xz' ;;
    *) die "debian-sources.tsv: no extension is known for $1" ;;
    esac
}

has_sum() {
    [[ -f $1 ]] && [[ $(sha256sum <"$1") == "$2  -" ]]
}

# --- what is asked for, and what of it is missing -----------------------------------------------------------------
wanted=("$@")
is_wanted() {
    local each
    ((${#wanted[@]} > 0)) || return 0
    for each in "${wanted[@]}"; do
        [[ $each == "$1" || $each == "$1@$2" ]] && return 0
    done
    return 1
}

declare -A known=()
missing=() # "sum file target [member of the archive, its sum]" each
while IFS=$'\t' read -r package version file _ sum _ inside inner; do
    [[ $package == spack_package ]] && continue
    known[$package]=1
    known[$package@$version]=1
    is_wanted "$package" "$version" || continue
    own=${inner:-$sum}
    target=$out/_source-cache/archive/${own:0:2}/$own.$(extension_of "${inside:-$file}")
    has_sum "$target" "$own" || missing+=("$sum $file $target $inside $inner")
done <"$table"
for each in "${wanted[@]}"; do
    [[ -n ${known[$each]:-} ]] || die "${table##*/} knows no $each; it knows: $(printf '%s\n' "${!known[@]}" | grep @ | sort | paste -sd' ')"
done
if ((${#missing[@]} == 0)); then
    printf '%s\n' "$out"
    exit 0
fi

# --- a private apt, that knows where source packages are ------------------------------------------------------------
archive=$(debian_archive) # asked of the host's apt, so before the private one is set
work=$(mktemp -d "$out/.make-sources.XXXXXX")
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/state/lists/partial" "$work/cache/archives/partial" "$work/got"
debian_sources deb-src bookworm bookworm-updates bookworm-backports trixie >"$work/debian.sources"
cat >"$work/apt.conf" <<CONF
Dir::Etc::sourcelist "$work/debian.sources";
Dir::Etc::sourceparts "/dev/null";
Dir::State "$work/state";
Dir::State::status "/dev/null";
Dir::Cache "$work/cache";
APT::Sandbox::User "root";
Acquire::GzipIndexes "false";
Acquire::Languages "none";
Acquire::Retries "3";
CONF
export APT_CONFIG=$work/apt.conf
note "reading the archive's source indexes"
apt-get --quiet=2 update >&2 || die "apt-get update failed for source packages (see above)"

# sum and file name -> folder in the pool, for every file of every index
for list in "$work"/state/lists/*_Sources*; do
    "$apt_helper" cat-file "$list"
done | awk '
    /^Directory: / { folder = $2 }
    /^Checksums-Sha256:/ { sums = 1; next }
    /^[^ ]/ { sums = 0 }
    sums && NF == 3 { sum[$3] = $1 }
    /^$/ { for (file in sum) print sum[file], file, folder; delete sum; folder = "" }
    END { for (file in sum) print sum[file], file, folder }
' | sort -u >"$work/index"

unknown=()
for each in "${missing[@]}"; do
    read -r sum file target _ <<<"$each"
    folder=$(awk -v sum="$sum" -v file="$file" '$1 == sum && $2 == file { print $3; exit }' "$work/index")
    if [[ -z $folder ]]; then
        unknown+=("$file")
        continue
    fi
    printf '%s\n' "$archive/$folder/$file" "$work/got/$sum" "SHA256:$sum" >>"$work/downloads"
done
((${#unknown[@]} == 0)) || die "no index of the archive lists these with the sum of ${table##*/}: ${unknown[*]}"

# --- fetch, four at a time; what counts is the file and its sum, not apt's exit status -----------------------------------
note "fetching ${#missing[@]} source archives"
xargs -d '\n' -n 3 -P 4 "$apt_helper" download-file <"$work/downloads" >"$work/log" 2>&1 || true

failed=()
for each in "${missing[@]}"; do
    read -r sum file target inside inner <<<"$each"
    if [[ -n $inside ]] && has_sum "$work/got/$sum" "$sum"; then
        tar --extract --gzip --to-stdout --file "$work/got/$sum" "$inside" >"$work/got/$inner"
        sum=$inner
    fi
    if has_sum "$work/got/$sum" "$sum"; then
        mkdir -p "${target%/*}"
        chmod 0644 "$work/got/$sum"
        mv "$work/got/$sum" "$target"
    else
        failed+=("$file")
    fi
done
if ((${#failed[@]} > 0)); then
    tail -n 20 "$work/log" >&2
    die "not fetched, or with another sum: ${failed[*]}"
fi
printf '%s\n' "$out"
