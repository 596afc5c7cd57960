# shellcheck shell=bash
#
# Every change that slurm_install.sh makes to a host, and the record of them. Sourced.
#
# Three kinds of files: "own" (units, lists: replaced by a newer package's as long as nobody changed them), "config" (never
# overwritten: what would be written goes beside as .new), "secret" (like config, and no .new).
#
# The record, $root/var/lib/slurm-factory/assets.list, has a line for each thing made: kind, sum, path, with tabs between. A
# "file" has the sum of what was written; "dir" is a folder that was not there before; "enabled" a service. It is rewritten
# after each step, so a run that was killed can be uninstalled as well.

root='' dry=no
record_file=/var/lib/slurm-factory/assets.list
declare -A recorded=() # path -> kind<TAB>sum
record_order=()
changes=0 same=0 kept=0

usage_error() {
    printf 'slurm_install.sh: %s\n  mend: slurm_install.sh --help\n' "$1" >&2
    exit 2
}

# die WHAT HOW-TO-MEND
die() {
    printf 'slurm_install.sh: %s\n  mend: %s\n' "$1" "$2" >&2
    exit 1
}

# say VERB TEXT
say() {
    printf '%-12s %s\n' "$1" "$2"
}

declare -A told=(
    [made]=make [wrote]=write [replaced]=replace ['set']='set' [removed]=remove [enabled]=enable [disabled]=disable
    [started]=start [stopped]=stop
)
# did VERB TEXT: a change, done or (--dry-run) only told
did() {
    changes=$((changes + 1))
    if [[ $dry == yes ]]; then say 'would' "${told[$1]} $2"; else say "$1" "$2"; fi
}

as_it_is() {
    same=$((same + 1))
}

summary() {
    local would=''
    [[ $dry == no ]] || would=' to make (--dry-run: nothing was changed)'
    if ((changes)); then
        printf '%d changes%s, %d things as they should be, %d of yours kept\n' "$changes" "$would" "$same" "$kept"
    else
        printf 'nothing to change: %d things are as they should be, %d of yours kept\n' "$same" "$kept"
    fi
}

sum_of() {
    sha256sum | cut -d ' ' -f 1
}

# The image's folder, as an absolute path without links; or the host.
open_root() {
    [[ -n $root ]] || return 0
    [[ -d $root ]] || die "--root $root is no folder" "name the folder that holds the image's etc and usr"
    root=$(cd -- "$root" && pwd -P)
    [[ $root != / ]] || root=''
    [[ -z $root || -f $root/etc/passwd ]] || die "$root has no etc/passwd: it is no image of a system" "name the folder that holds its etc and usr"
}

# --- the record ------------------------------------------------------------------------------------------------------
read_record() {
    local kind sum path
    [[ -f $root$record_file ]] || return 0
    while IFS=$'\t' read -r kind sum path; do
        [[ -n $path && $kind != '#'* ]] || continue
        recorded[$path]=$kind$'\t'$sum
        record_order+=("$path")
    done <"$root$record_file"
}

write_record() {
    local path dir=$root${record_file%/*}
    mkdir -p -- "$dir"
    {
        printf '# What slurm_install.sh made: kind, sum, path. --uninstall reads it.\n'
        for path in "${record_order[@]}"; do
            [[ -z ${recorded[$path]:-} ]] || printf '%s\t%s\n' "${recorded[$path]}" "$path"
        done
    } >"$dir/.assets.list.$$" || die "cannot write $root$record_file" "make room on that disk, or mend its permissions, and run this again"
    mv -- "$dir/.assets.list.$$" "$root$record_file"
}

# remember KIND SUM PATH
remember() {
    [[ $dry == no && ${recorded[$3]:-} != "$1"$'\t'"$2" ]] || return 0
    [[ -n ${recorded[$3]:-} ]] || record_order+=("$3")
    recorded[$3]=$1$'\t'$2
    write_record
}

# --- users -----------------------------------------------------------------------------------------------------------
# number_of passwd|group NAME: from the image's files, or from whatever the host asks
number_of() {
    if [[ -z $root ]]; then
        getent "$1" "$2" | cut -d : -f 3 || true
    else
        awk -F : -v name="$2" '$1 == name { print $3; exit }' "$root/etc/$1"
    fi
}

# name_of passwd|group NUMBER -> who has it; nothing where nobody does
name_of() {
    if [[ -z $root ]]; then
        getent "$1" "$2" | cut -d : -f 1 || true
    else
        awk -F : -v number="$2" '$3 == number { print $1; exit }' "$root/etc/$1"
    fi
}

# owner_of USER GROUP -> uid:gid, which must be there by now
owner_of() {
    local uid gid
    uid=$(number_of passwd "$1") gid=$(number_of group "$2")
    [[ -n $uid && -n $gid ]] || die "there is no user $1 with a group $2" "make them by hand: useradd --system --user-group $1"
    printf '%s:%s\n' "$uid" "$gid"
}

# make_user NAME NUMBER|- COMMENT HOME, for hosts without systemd-sysusers
make_user() {
    local number=()
    [[ $2 == - ]] || number=(--uid "$2")
    useradd ${root:+--root "$root"} --system "${number[@]}" --user-group --comment "$3" --home-dir "$4" --no-create-home \
        --shell /usr/sbin/nologin "$1" || die "useradd could not make the user $1" "make it by hand, with the number that it has on the other nodes"
}

# --- folders ---------------------------------------------------------------------------------------------------------
# The folders above a path, as root's; those that were not there go with --uninstall.
make_parents() {
    local part='' each parts
    IFS=/ read -r -a parts <<<"${1#/}"
    for each in "${parts[@]::${#parts[@]}-1}"; do
        part=$part/$each
        [[ -d $root$part ]] && continue
        mkdir -m 0755 -- "$root$part" || die "cannot make the folder $part" "see the words of mkdir above"
        remember dir - "$part"
    done
}

# put_folder PATH MODE USER GROUP
# One of root's that is there stays as the site has it; one of a service must be the service's.
put_folder() {
    local path=$1 mode=$2 user=$3 group=$4 at=$root$1 owner now
    if [[ ! -d $at ]]; then
        [[ ! -e $at && ! -L $at ]] || die "$path is there and is no folder" "move it away"
        did made "$path ($user:$group $mode)"
        [[ $dry == no ]] || return 0
        owner=$(owner_of "$user" "$group")
        make_parents "$path"
        mkdir -m 0700 -- "$at"
        chown "$owner" "$at"
        chmod "$mode" "$at"
        remember dir - "$path"
        return 0
    fi
    now=$(stat -L -c '%u:%g 0%a' -- "$at")
    if [[ $user == root || $now == "$(number_of passwd "$user"):$(number_of group "$group") $mode" ]]; then
        as_it_is
    else
        did 'set' "$path to $user:$group $mode (was $now)"
        [[ $dry == no ]] || return 0
        owner=$(owner_of "$user" "$group")
        chown "$owner" "$at"
        chmod "$mode" "$at"
    fi
}

# --- files -----------------------------------------------------------------------------------------------------------
# put_file KIND PATH MODE USER GROUP, the content on standard input
put_file() {
    local kind=$1 path=$2 mode=$3 user=$4 group=$5 at=$root$2 text new old=''
    text=$(cat)
    new=$(printf '%s\n' "$text" | sum_of)
    if [[ ! -e $at && ! -L $at ]]; then
        did wrote "$path"
        write_file "$path" "$text" "$mode" "$user" "$group"
        remember file "$new" "$path"
        return 0
    fi
    [[ -f $at ]] || die "$path is there and is no file" "move it away"
    old=$(sum_of <"$at")
    if [[ $old == "$new" ]]; then
        as_it_is
        # Ours again, when somebody moved the .new in its place.
        [[ -z ${recorded[$path]:-} ]] || remember file "$new" "$path"
    elif [[ $kind == own && ${recorded[$path]:-} == file$'\t'$old ]]; then
        # Ours, untouched, of another package.
        did replaced "$path"
        write_file "$path" "$text" "$mode" "$user" "$group"
        remember file "$new" "$path"
    elif [[ ${recorded[$path]:-} == file$'\t'$new ]]; then
        # Changed by hand since, and we have nothing newer to offer.
        kept=$((kept + 1))
        say kept "$path: changed by hand"
    elif [[ $kind == secret ]]; then
        kept=$((kept + 1))
        say kept "$path: it is not overwritten; what it would be differs (move it away to have it made anew)"
    else
        kept=$((kept + 1))
        say kept "$path: yours; what this package would write is in $path.new"
        if [[ -f $at.new && $(sum_of <"$at.new") == "$new" ]]; then return 0; fi
        did wrote "$path.new"
        write_file "$path.new" "$text" "$mode" "$user" "$group"
        remember file "$new" "$path.new"
    fi
}

# Beside and renamed, so that no reader sees half a file, and nobody reads a secret before it is closed.
write_file() {
    local path=$1 text=$2 mode=$3 owner beside
    [[ $dry == no ]] || return 0
    owner=$(owner_of "$4" "$5")
    make_parents "$path"
    beside=$root${path%/*}/.${path##*/}.$$
    (umask 077 && printf '%s\n' "$text" >"$beside") || die "cannot write $path" "make room on that disk, or mend its permissions, and run this again"
    chown "$owner" "$beside"
    chmod "$mode" "$beside"
    mv -- "$beside" "$root$path"
}

# put_key PATH USER GROUP MODE SOURCE BYTES: so many bytes at the most; one that is there is never touched
put_key() {
    local path=$1 at=$root$1 beside owner
    if [[ -e $at || -L $at ]]; then
        as_it_is
        return 0
    fi
    did made "$path ($2:$3 $4)"
    [[ $dry == no ]] || return 0
    owner=$(owner_of "$2" "$3")
    beside=$root${path%/*}/.${path##*/}.$$
    (umask 077 && head -c "$6" -- "$5" >"$beside")
    [[ -s $beside ]] || {
        rm -f -- "$beside"
        die "no key could be made for $path" "look whether $5 can be read"
    }
    chown "$owner" "$beside"
    chmod "$4" "$beside"
    # A link fails where something is, a rename would not.
    ln -- "$beside" "$at" && rm -f -- "$beside"
}

# --- taking away -----------------------------------------------------------------------------------------------------
uninstall_all() {
    local path kind sum turn left=()
    if ((${#record_order[@]} == 0)); then
        say nothing "$root$record_file lists nothing: nothing was made here, or it was removed already"
        return 0
    fi
    stop_and_disable
    for ((turn = ${#record_order[@]} - 1; turn >= 0; turn--)); do
        path=${record_order[turn]}
        IFS=$'\t' read -r kind sum <<<"${recorded[$path]}"
        case $kind in
        file)
            [[ -e $root$path || -L $root$path ]] || continue
            if [[ -f $root$path && ! -L $root$path && $(sum_of <"$root$path") == "$sum" ]]; then
                did removed "$path"
                [[ $dry == yes ]] || rm -f -- "$root$path"
            else
                kept=$((kept + 1))
                say kept "$path: it was changed"
            fi
            ;;
        dir) left+=("$path") ;;
        esac
    done
    for path in "${left[@]}"; do
        [[ -d $root$path && ! -L $root$path ]] || continue
        if [[ -z $(ls -A -- "$root$path") ]]; then
            did removed "$path"
            [[ $dry == yes ]] || rmdir -- "$root$path"
        elif [[ $dry == no ]]; then
            kept=$((kept + 1))
            say kept "$path: it is not empty"
        fi
    done
    say kept "the users munge and slurm, and their keys: what stays belongs to them (userdel when nothing does)"
    did removed "$record_file"
    if [[ $dry == no ]]; then
        rm -f -- "$root$record_file"
        rmdir -- "$root${record_file%/*}" 2>/dev/null || true
    fi
}
