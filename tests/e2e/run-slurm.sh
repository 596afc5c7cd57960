#!/usr/bin/env bash
#
# Runs a whole Slurm from an extracted package, as an ordinary user: the proof that a package is relocatable.
#
#   run-slurm.sh TREE      TREE is the folder that holds bin/sinfo and sbin/slurmctld
#
# To be started inside a plain base image without compilers, with every folder of the build gone. It needs no root, sets
# neither PluginDir nor LD_LIBRARY_PATH, and uses nothing of the base image but its C library, bash and coreutils.
# It starts munged, slurmctld and slurmd, waits for an idle node, runs srun, sbatch, sinfo and every plugin that loads
# something at run time (PMIx, Lua), Open MPI if there is one, and reads in /proc which libraries the daemons really have loaded.
# Ends with 0 and "run-slurm: ok", or with 1, what failed, and the end of each log. Whatever it started is stopped.
set -euo pipefail

[[ $# -eq 1 ]] || {
    echo "usage: run-slurm.sh TREE" >&2
    exit 2
}
[[ -x $1/sbin/slurmctld ]] || {
    echo "run-slurm: $1 has no sbin/slurmctld" >&2
    exit 1
}
tree=$(cd "$1" && pwd -P)
[[ -z ${LD_LIBRARY_PATH:-} ]] || {
    echo "run-slurm: LD_LIBRARY_PATH is set: it would hide what this is to show" >&2
    exit 1
}

# Sockets have a limit of 108 bytes for their path: short, whatever the tree's is
work=$(mktemp -d /tmp/rs.XXXXXX)
declare -A pids=() # name -> process

fail() {
    printf 'run-slurm: FAILED: %s\n' "$*" >&2
    local log
    for log in "$work"/*.log "$work"/*.out; do
        [[ -s $log ]] || continue
        printf -- '--- the end of %s\n' "${log##*/}" >&2
        tail -n 25 "$log" >&2
    done
    exit 1
}

step() {
    printf 'run-slurm: %s\n' "$*"
}

alive() {
    kill -0 "$1" 2>/dev/null
}

# Stops what was started, last first, each by its process id
stop_all() {
    local status=$? name waited
    for name in slurmd slurmctld munged; do
        [[ -n ${pids[$name]:-} ]] || continue
        kill -TERM "${pids[$name]}" 2>/dev/null || true
        for ((waited = 0; waited < 100; waited++)); do
            alive "${pids[$name]}" || break
            sleep 0.1
        done
        kill -KILL "${pids[$name]}" 2>/dev/null || true
        wait "${pids[$name]}" 2>/dev/null || true
    done
    rm -rf "$work"
    exit "$status"
}
trap stop_all EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# start NAME PROGRAM ARGUMENT...: in the background, output to NAME.log
start() {
    local name=$1
    shift
    "$@" >>"$work/$name.log" 2>&1 &
    pids[$name]=$!
}

# wait_for SECONDS NAME WHAT COMMAND...: until the command succeeds, while the daemon NAME lives
wait_for() {
    local limit=$1 name=$2 what=$3 turn
    shift 3
    for ((turn = 0; turn < limit * 5; turn++)); do
        "$@" >"$work/last.out" 2>&1 && return
        alive "${pids[$name]}" || fail "$name ended while waiting for $what"
        sleep 0.2
    done
    fail "no $what within $limit seconds"
}

# The libraries that a process, of whose maps this is a copy, has loaded from outside the tree, but for the C library's own and
# PAM, with what the host's PAM loads (assets/relocate.toml says why it is the host's)
foreign_libraries() {
    # The sixth field to the end of the line: names may hold blanks
    sed -nE 's/^([^ ]+ +){5}(\/.*)$/\2/p' "$1" | grep -E '\.so($|\.)' | sort -u | while IFS= read -r file; do
        [[ $file == "$tree"/* ]] && continue
        [[ $file =~ ^(/usr)?/lib(64)?/ && $file == */security/pam_* ]] && continue
        grep -q -x -F "$file" "$work/of-pam" && continue
        [[ $file =~ ^(/usr)?/lib(64)?/ ]] && [[ ${file##*/} =~ ^(ld-linux.*|ld-[0-9.]+|libc|libm|libdl|librt|libpthread|libresolv|libutil|libanl|libnsl|libmvec|libnss_(files|dns|compat|systemd|myhostname|mymachines|resolve))(-[0-9.]+)?\.so(\.[0-9]+)*$ ]] && continue
        printf '%s ' "$file"
    done
}

# check_libraries NAME MAPS: of a copy, because a process that ends has no maps from one moment to the next
check_libraries() {
    local foreign
    foreign=$(foreign_libraries "$2")
    [[ -z $foreign ]] || fail "$1 has loaded libraries from outside the tree: $foreign"
    grep -q -F "$tree/" "$2" || fail "$1 has loaded nothing from the tree: is it the tree's?"
}

# --- versions, before there is any configuration -------------------------------------------------------------------
export PATH=$tree/bin:$tree/sbin:/usr/bin:/bin
version=$("$tree/sbin/slurmctld" -V) || fail "slurmctld -V"
[[ $version == slurm\ * ]] || fail "slurmctld -V prints '$version'"
[[ $("$tree/sbin/slurmd" -V) == "$version" ]] || fail "slurmd -V is not '$version'"
(cd "$tree" && [[ $(sbin/slurmd -V) == "$version" ]]) || fail "slurmd -V by a relative path"
step "$version"

# --- what users and compilers meet --------------------------------------------------------------------------------------
# A module puts bin first on the PATH, and Open MPI's wrappers look into include and lib before the host's: only what is Slurm's,
# munge's, hwloc's and MPI's own may be there.
stray=()
for file in "$tree"/{bin,sbin}/* "$tree"/include/* "$tree"/lib*/lib*.so; do
    name=${file##*/}
    case ${file#"$tree"/} in
    *bin/*) own='(s(acct|acctmgr|alloc|attach|batch|bcast|cancel|control|crontab|crun|diag|gather|h5util|info|lurm.*|ackd|prio|queue|report|run|share|stat|trigger)|(un|re)?munged?|mungekey|(hwloc-|lstopo).*|mpi([cC].*|run|exec)|o(mpi|rte|pal)[_-]?.*)' ;;
    include/*) own='(slurm|openmpi|pmix|(mpi|pmix)[^f].*)' ;;
    *)
        # One that has no name with a number is loaded by this one.
        [[ -L $file || $(head -c 4 "$file") != $'\x7fELF' ]] || continue
        own='lib(slurm|pmi2?|pmix|mpi|open-.*|mca_.*|ompitrace|lua.*)\.so'
        ;;
    esac
    [[ ! -e $file || $name =~ ^$own$ ]] || stray+=("${file#"$tree"/}")
done
((${#stray[@]} == 0)) || fail "of libraries below Slurm, and in the way of the host's own: ${stray[*]}"

# --- the configuration of a cluster of one ----------------------------------------------------------------------
user=$(id -un) || fail "no user name for uid $(id -u): the sandbox's passwd must have one"
host=$(uname -n)
host=${host%%.*}
getent hosts "$host" >/dev/null || fail "the host's own name, $host, does not resolve: the sandbox's hosts must have it"
# Two that nobody listens on, below those that the kernel gives to clients (32768 and up).
free_ports() {
    local port
    while :; do
        port=$((15000 + RANDOM % 17000))
        (: <>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || (: <>"/dev/tcp/127.0.0.1/$((port + 1))") 2>/dev/null || break
    done
    echo "$port"
}
port=$(free_ports)
mkdir -p "$work/state" "$work/spool"
cat >"$work/slurm.conf" <<CONF
ClusterName=run-slurm
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
SlurmdPort=$((port + 1))
SlurmUser=$user
SlurmdUser=$user
AuthType=auth/munge
AuthInfo=socket=$work/munge.socket
CredType=cred/munge
StateSaveLocation=$work/state
SlurmdSpoolDir=$work/spool
SlurmctldPidFile=$work/slurmctld.pid
SlurmdPidFile=$work/slurmd.pid
SlurmctldLogFile=$work/slurmctld.log
SlurmdLogFile=$work/slurmd.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
ReturnToService=2
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
MpiDefault=none
NodeName=$host NodeAddr=127.0.0.1 CPUs=1 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
# There is no cgroup file system in here to look for. Slurm before 24.05 cannot be told so, but v1 looks only when used.
number=${version#slurm }
if [[ $(printf '%s\n' 24.05 "$number" | sort -V | head -n 1) == 24.05 ]]; then
    echo 'CgroupPlugin=disabled' >"$work/cgroup.conf"
else
    echo 'CgroupPlugin=cgroup/v1' >"$work/cgroup.conf"
fi
has_plugin() {
    [[ -e $tree/lib/slurm/$1.so ]]
}
if has_plugin job_submit_lua; then
    # opens liblua by its bare name
    echo 'JobSubmitPlugins=lua' >>"$work/slurm.conf"
    cat >"$work/job_submit.lua" <<'LUA'
function slurm_job_submit(job, parts, uid)
    job.comment = "seen by " .. _VERSION
    return slurm.SUCCESS
end
function slurm_job_modify(job, record, parts, uid)
    return slurm.SUCCESS
end
LUA
fi
# What the host says of PAM is read by the host's libpam, and its modules are the host's, with what they need.
pam=no
: >"$work/of-pam"
# Not `ldd | grep -q`: whoever still writes when grep has seen enough fails, and with pipefail so does the pipe.
linked=$(ldd "$tree/sbin/slurmd")
if [[ $linked == *'libpam.so.0 => /'* ]]; then
    {
        sed -n 's/.*libpam.* => \([^ ]*\) .*/\1/p' <<<"$linked"
        find /lib/ /lib64/ -path '*/security/pam_*.so' 2>/dev/null
    } | while IFS= read -r file; do
        readlink -f "$file"
        ldd "$file" 2>/dev/null | sed -n 's/.* => \(\/[^ ]*\) .*/\1/p' | xargs -r readlink -f
    done | sort -u >"$work/of-pam"
    if [[ -r /etc/pam.d/slurm ]]; then
        pam=yes
        echo 'UsePAM=1' >>"$work/slurm.conf"
    fi
fi
export SLURM_CONF=$work/slurm.conf

# --- the daemons ---------------------------------------------------------------------------------------------------
(umask 077 && head -c 128 /dev/urandom >"$work/munge.key")
start munged "$tree/sbin/munged" --foreground --force --key-file="$work/munge.key" --socket="$work/munge.socket" \
    --pid-file="$work/munged.pid" --log-file="$work/munged.log" --seed-file="$work/munge.seed"
wait_for 20 munged "credential from munged" munge --socket="$work/munge.socket" --no-input
start slurmctld "$tree/sbin/slurmctld" -D -c
wait_for 60 slurmctld "answer from slurmctld" timeout 20 scontrol ping
start slurmd "$tree/sbin/slurmd" -D
is_idle() {
    [[ $(timeout 20 sinfo --noheader --format=%T) == idle ]]
}
wait_for 60 slurmd "idle node" is_idle
step "munged, slurmctld and slurmd run; the node is idle"

plugins=$(scontrol show config | sed -n 's/^PluginDir *= //p')
[[ $plugins == "$tree/lib/slurm" ]] || fail "slurmctld takes plugins from '$plugins', not from $tree/lib/slurm"

# --- jobs -----------------------------------------------------------------------------------------------------------
run() {
    timeout 60 "$@" 2>>"$work/jobs.log" || fail "$* (exit status $?)"
}
[[ $(run srun -N1 hostname) == "$(hostname)" ]] || fail "srun -N1 hostname printed something else"
step "srun -N1 hostname"
if [[ $pam == yes ]]; then
    grep -q pam_permit /etc/pam.d/slurm || fail "/etc/pam.d/slurm is not as this script's caller makes it"
    if grep -i 'pam' "$work/slurmd.log" | grep -i -E 'error|fail|unknown'; then fail "UsePAM=1"; fi
    step "UsePAM=1, by the host's libpam"
fi
# A site's LD_LIBRARY_PATH: a file of a library's name, which is none, would end whoever opened it.
mkdir "$work/site"
for library in libmunge.so.2 libslurmfull.so libz.so.1 libcrypto.so.3; do : >"$work/site/$library"; done
[[ $(LD_LIBRARY_PATH=$work/site run srun -N1 hostname) == "$(hostname)" ]] || fail "srun goes by LD_LIBRARY_PATH"
run sbatch --wait --output="$work/batch.out" --job-name=batch --wrap="echo batch ran on \$(hostname)" >/dev/null
grep -q "batch ran on $(hostname)" "$work/batch.out" || fail "the batch job left no output"
step "sbatch"
run srun --mpi=pmi2 -n1 true
mpi=pmi2
if has_plugin mpi_pmix; then
    run srun --mpi=pmix -n1 true
    mpi+=" pmix"
fi
step "srun --mpi: $mpi"
if has_plugin job_submit_lua; then
    run sbatch --wait --output=/dev/null --job-name=lua --wrap=true >"$work/lua.id"
    [[ $(scontrol show job "$(awk '{ print $NF }' "$work/lua.id")") == *'Comment=seen by Lua'* ]] || fail "job_submit.lua was not called"
    step "job_submit.lua"
fi
if [[ -x $tree/bin/ompi_info ]]; then
    found=$(run ompi_info --parsable --path prefix)
    [[ $found == "path:prefix:$tree" ]] || fail "Open MPI takes '$found' for its prefix, not $tree"
    [[ $(run mpirun -n 2 --oversubscribe printenv OMPI_COMM_WORLD_SIZE | sort -u) == 2 ]] || fail "mpirun started something else than two of two"
    step "Open MPI: $(ompi_info --version | sed -n '1s/.* //p'), mpirun"
fi
if [[ -x $tree/sbin/slurmrestd ]]; then
    run "$tree/sbin/slurmrestd" -V >/dev/null
    step "slurmrestd -V"
fi

# --- what is really loaded: in the daemons, and in the step of a job that runs -----------------------------------------
timeout 60 srun --job-name=sleeper sleep 30 >/dev/null 2>>"$work/jobs.log" &
sleeper=$!
step_pid=
for ((turn = 0; turn < 100; turn++)); do
    for comm in /proc/[0-9]*/comm; do
        if read -r name <"$comm" && [[ $name == slurmstepd ]]; then
            candidate=${comm#/proc/}
            candidate=${candidate%/comm}
            [[ $(readlink "/proc/$candidate/exe") == "$tree/sbin/slurmstepd" ]] && step_pid=$candidate
        fi 2>/dev/null
    done
    # The one of the job before may be about to end: ours lives on.
    if [[ -n $step_pid ]]; then
        sleep 1
        cat "/proc/$step_pid/maps" >"$work/step.maps" 2>/dev/null && grep -q -F "$tree/" "$work/step.maps" && break
        step_pid=
    fi
    sleep 0.1
done
[[ -n $step_pid ]] || fail "no slurmstepd of the tree runs while a job does"
check_libraries slurmstepd "$work/step.maps"
for name in munged slurmctld slurmd; do
    cat "/proc/${pids[$name]}/maps" >"$work/$name.maps" || fail "$name is gone: its libraries cannot be read"
    check_libraries "$name" "$work/$name.maps"
done
run scancel --name=sleeper
wait "$sleeper" 2>/dev/null || true
wait_for 60 slurmd "idle node after the jobs" is_idle
step "no library from outside the tree but the C library's own"

printf '%s\n' "$(sinfo --version), $(sinfo --noheader --format='%P %a %D %T')"
echo "run-slurm: ok"
