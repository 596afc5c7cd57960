#!/usr/bin/env bash
#
# What places.sh runs in a plain base image, for one folder that a package was unpacked to:
#
#   inside.sh TREE         TREE is the folder that holds bin/sinfo; beside this script: run-slurm.sh, probe.so
#
# 1. run-slurm.sh: the daemons, a job, munge, and which libraries they have loaded (/proc/PID/maps)
# 2. ldd of every ELF file: nothing from outside the tree but the C library's own, and PAM with what it loads
# 3. dlopen(3) with RTLD_NOW of every plugin, in a process each, in the program whose plugin it is
# 4. `slurmctld -D` with every auth, select, sched, accounting, priority and hash plugin that there is
# Ends with 0 and a line of counts, or with 1 and what failed.
set -euo pipefail
[[ $# -eq 1 && -x $1/sbin/slurmctld ]] || {
    echo "usage: inside.sh TREE" >&2
    exit 2
}
tree=$1
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
work=$(mktemp -d /tmp/pl.XXXXXX)
munged=''
slurmctld=''

fail() {
    printf 'inside: FAILED: %s\n' "$*" >&2
    exit 1
}

# stop PROCESS: ends a process that this script started
stop() {
    local turn
    [[ -n $1 ]] || return 0
    kill -TERM "$1" 2>/dev/null || true
    for ((turn = 0; turn < 200; turn++)); do
        kill -0 "$1" 2>/dev/null || break
        sleep 0.05
    done
    kill -KILL "$1" 2>/dev/null || true
    wait "$1" 2>/dev/null || true
}

finish() {
    local status=$?
    stop "$slurmctld"
    stop "$munged"
    rm -rf "$work"
    exit "$status"
}
trap finish EXIT
trap 'exit 143' TERM INT

# --- the daemons and a job ------------------------------------------------------------------------------------------
bash "$here/run-slurm.sh" "$tree" >"$work/run.out" 2>&1 || fail "run-slurm.sh: $(cat "$work/run.out")"

# --- ldd ------------------------------------------------------------------------------------------------------------
libc='^(/usr)?/lib(64)?/([a-z0-9_]+-linux-gnu[a-z0-9]*/)?(ld-linux[^/]*|lib(c|m|dl|rt|pthread|resolv|util|anl|mvec|pam|pam_misc|audit|cap-ng|selinux|pcre2-8|econf))\.so\.[0-9]+$'
# shellcheck disable=SC2094  # it only reads
is_elf() {
    local LC_ALL=C magic
    IFS= read -r -n 4 magic <"$1" 2>/dev/null
    [[ $magic == $'\x7fELF' ]]
}
elf=0
while IFS= read -r -d '' file; do
    is_elf "$file" 2>/dev/null || continue
    elf=$((elf + 1))
    ldd "$file" >"$work/ldd" 2>&1 || grep -q 'statically linked' "$work/ldd" || fail "ldd $file: $(cat "$work/ldd")"
    if grep -F 'not found' "$work/ldd" >"$work/missing"; then fail "ldd $file: $(cat "$work/missing")"; fi
    while IFS= read -r found; do
        [[ $found == "$tree"/* || $found =~ $libc ]] || fail "$file loads $found, which is outside the tree"
    done < <(sed -nE -e 's/^\t.* => (.*) \(0x[0-9a-f]+\)$/\1/p' -e 's/^\t(\/[^=]*) \(0x[0-9a-f]+\)$/\1/p' "$work/ldd")
done < <(find "$tree" -type f -print0)
((elf > 50)) || fail "only $elf ELF files in $tree"

# --- every plugin -----------------------------------------------------------------------------------------------------
# Which program a plugin belongs to shows only in the symbols it wants: tried one after the other.
programs=()
for name in bin/sinfo sbin/slurmctld sbin/slurmd sbin/slurmstepd sbin/slurmdbd sbin/slurmrestd bin/srun; do
    [[ -x $tree/$name ]] && programs+=("$tree/$name")
done
# What Slurm builds with a function missing, wherever it lies: it must load as Slurm loads it, lazily, and miss nothing else.
declare -A incomplete=(
    [gpu_nrt.so]=gpu_common_underscorify_tolower                        # not linked with libgpu_common (Slurm 24.11)
    [node_features_knl_cray.so]='(numa_available|unlock_slurmctld)' # 22.05: one is slurmd's, the other slurmctld's
    [switch_cray_aries.so]='print_jobinfo'                          # 22.05: defined where Cray's own libraries are only
    [prep_script.so]='(slurmscriptd_run_prepilog|send_slurmd_conf_lite)' # one is slurmctld's, the other slurmd's
)
plugins=0
while IFS= read -r -d '' plugin; do
    plugins=$((plugins + 1))
    loaded=
    : >"$work/dlopen"
    first='' # what the plugin opens by its bare name before it calls it
    case ${plugin##*/} in
    mpi_pmix*) first=libpmix.so.2 ;;
    *lua*) for first in liblua.so.5.3 liblua.so.5.4; do if [[ -e $tree/lib/$first ]]; then break; fi; done ;;
    esac
    export PROBE_FIRST=${first:+$tree/lib/$first}
    missing=${incomplete[${plugin##*/}]:-}
    for program in "${programs[@]}"; do
        if PROBE_FILE=$plugin LD_PRELOAD=$here/probe.so "$program" >/dev/null 2>>"$work/dlopen"; then
            loaded=yes
            break
        fi
        if [[ -n $missing ]] && PROBE_LAZY=1 PROBE_FILE=$plugin LD_PRELOAD=$here/probe.so "$program" >/dev/null 2>&1 &&
            ! grep -vE "undefined symbol: $missing\$" "$work/dlopen" >/dev/null; then
            loaded=yes
            break
        fi
    done
    [[ -n $loaded ]] || sed "s|^|no program loads it: |" "$work/dlopen" >>"$work/not-loaded"
done < <(find "$tree/lib/slurm" "$tree"/lib/security -name '*.so' -print0 2>/dev/null)
[[ ! -s $work/not-loaded ]] || fail "$(sort -u "$work/not-loaded")"
((plugins > 50)) || fail "only $plugins plugins in $tree/lib/slurm"

# --- slurmctld with each plugin that is chosen by configuration --------------------------------------------------------
export PATH=$tree/bin:$tree/sbin:/usr/bin:/bin
export SLURM_CONF=$work/slurm.conf
(umask 077 && head -c 128 /dev/urandom >"$work/munge.key" && head -c 64 /dev/urandom >"$work/jwt.key")
"$tree/sbin/munged" --foreground --force --key-file="$work/munge.key" --socket="$work/munge.socket" \
    --pid-file="$work/munged.pid" --log-file="$work/munged.log" --seed-file="$work/munge.seed" >"$work/munged.out" 2>&1 &
munged=$!
for ((turn = 0; turn < 100; turn++)); do
    munge --socket="$work/munge.socket" --no-input >/dev/null 2>&1 && break
    sleep 0.1
done
host=$(uname -n)
host=${host%%.*}
user=$(id -un)

# configure LINE...: a cluster whose configuration has these lines in place of those of the same key
configure() {
    local port line key
    # One that nobody listens on, below those that the kernel gives to clients (32768 and up).
    while :; do
        port=$((15000 + RANDOM % 17000))
        (: <>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || break
    done
    mkdir -p "$work/state"
    # shellcheck disable=SC2054  # commas of slurm.conf
    declare -A lines=(
        [AuthType]=auth/munge [AuthInfo]="socket=$work/munge.socket" [CredType]=cred/munge [SelectType]=select/cons_tres
        [ClusterName]=places [SlurmctldHost]="$host(127.0.0.1)" [SlurmctldPort]=$port [SlurmdPort]=$((port + 1))
        [SlurmUser]=$user [SlurmdUser]=$user [StateSaveLocation]=$work/state [SlurmctldPidFile]=$work/slurmctld.pid
        [ProctrackType]=proctrack/pgid [TaskPlugin]=task/none [CommunicationParameters]=NoInAddrAny,NoCtldInAddrAny
        [SlurmctldDebug]=debug2 [NodeName]="$host NodeAddr=127.0.0.1 CPUs=1 State=UNKNOWN"
        [PartitionName]="main Nodes=ALL Default=YES"
    )
    for line in "$@"; do lines[${line%%=*}]=${line#*=}; done
    for key in "${!lines[@]}"; do
        [[ -z ${lines[$key]} ]] || printf '%s=%s\n' "$key" "${lines[$key]}"
    done >"$work/slurm.conf"
}

# starts WHAT: slurmctld answers
starts() {
    local turn
    rm -rf "$work/state"
    mkdir "$work/state"
    "$tree/sbin/slurmctld" -D -c >"$work/slurmctld.log" 2>&1 &
    slurmctld=$!
    for ((turn = 0; turn < 300; turn++)); do
        if timeout 20 scontrol ping 2>/dev/null | grep -q 'is UP'; then break; fi
        kill -0 "$slurmctld" 2>/dev/null || fail "slurmctld with $1 ended: $(tail -n 20 "$work/slurmctld.log")"
        sleep 0.1
    done
    ((turn < 300)) || fail "slurmctld with $1 does not answer: $(tail -n 20 "$work/slurmctld.log")"
}

stops() {
    stop "$slurmctld"
    slurmctld=
}

# The names of the plugins of a kind: `munge` for lib/slurm/auth_munge.so
kinds() {
    local file
    for file in "$tree/lib/slurm/$1"_*.so; do
        [[ -e $file ]] || continue
        file=${file##*/"$1"_}
        printf '%s\n' "${file%.so}"
    done
}

chosen=0
# try KEY KIND/NAME LINE...
try() {
    local key=$1 value=$2
    shift 2
    configure "$key=$value" "$@"
    starts "$key=$value"
    [[ $(scontrol show config | sed -n "s/^$key *= //p") == "$value" ]] || fail "slurmctld does not show $key=$value"
    stops
    chosen=$((chosen + 1))
}

for name in $(kinds auth); do
    case $name in
    jwt) # only beside another; a token is made with it, and asked with
        configure AuthAltTypes=auth/jwt "AuthAltParameters=jwt_key=$work/jwt.key"
        starts auth/jwt
        token=$(scontrol token lifespan=60) || fail "no token from auth/jwt"
        SLURM_JWT=${token#SLURM_JWT=} scontrol show partition main >/dev/null || fail "a token of auth/jwt is refused"
        stops
        chosen=$((chosen + 1))
        ;;
    slurm) # its key, and the folder of its socket
        export SLURM_SACK_KEY=$work/jwt.key RUNTIME_DIRECTORY=$work SLURM_SACK_SOCKET=$work/sack.socket
        try AuthType auth/slurm CredType=cred/slurm AuthInfo=
        unset SLURM_SACK_KEY RUNTIME_DIRECTORY SLURM_SACK_SOCKET
        ;;
    none) try AuthType auth/none CredType=cred/none AuthInfo= ;;
    *) try AuthType "auth/$name" ;;
    esac
done
for name in $(kinds select); do try SelectType "select/$name"; done
for name in $(kinds sched); do try SchedulerType "sched/$name"; done
for name in $(kinds priority); do try PriorityType "priority/$name"; done
# slurm.conf of 22.05 has no word for it: the daemons choose.
version=$("$tree/sbin/slurmctld" -V)
if [[ ! ${version#slurm } =~ ^22\. ]]; then
    for name in $(kinds hash); do try HashPlugin "hash/$name"; done
fi
for name in $(kinds accounting_storage); do
    [[ $name == slurmdbd ]] || continue # mysql is slurmdbd's own, ctld_relay the steps'
    # There is no database here: it must get as far as asking for one.
    configure AccountingStorageType=accounting_storage/slurmdbd AccountingStorageHost=127.0.0.1 AccountingStoragePort=1
    rm -rf "$work/state" && mkdir "$work/state"
    timeout 60 "$tree/sbin/slurmctld" -D -c >"$work/slurmctld.log" 2>&1 || true
    grep -qiE 'slurmdbd.*(connection|refused|sending)|connect.*slurmdbd|persistent connection to host:127\.0\.0\.1:1: ' "$work/slurmctld.log" ||
        fail "accounting_storage/slurmdbd did not ask for its server: $(tail -n 20 "$work/slurmctld.log")"
    chosen=$((chosen + 1))
done
echo "$elf ELF files by ldd, $plugins plugins by dlopen, $chosen chosen by slurmctld"
