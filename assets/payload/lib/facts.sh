# shellcheck shell=bash
#
# What slurm_install.sh finds out about the package and the host, and the templates filled in with it. Sourced.
#
# A template is text with @NAME@, and with lines that begin with %FEATURE (or %!FEATURE): kept when the host has that feature
# (or has it not), without the mark. A name or feature that nobody set is an error.
# shellcheck disable=SC2154  # the options are slurm_install.sh's

declare -A values=() features=()
daemons=()

# The folders of the package, and that only root can write to them: slurmd runs as root from here.
find_package() {
    local part='' each owner mode parts
    package=${assets%/*/*}
    [[ -x $package/view/sbin/slurmctld && -x $package/view/sbin/munged ]] ||
        die "$package/view/sbin holds no slurmctld and munged: the package is not whole, or this script was moved out of it" \
            "unpack the whole package and run its data/slurm_assets/slurm_install.sh"
    # The image knows the package by its own path.
    if [[ -n $root ]]; then
        package=$(cd -- "$package" && pwd -P)
        [[ $package == "$root"/* ]] || die "the package in $package is not in the image $root" "unpack it in there: tar -xf PACKAGE -C $root/opt/slurm"
        package=${package#"$root"}
        part=$root
    fi
    IFS=/ read -r -a parts <<<"${package#/}/view/sbin"
    for each in '' "${parts[@]}"; do
        part=$part${each:+/$each}
        owner=$(stat -L -c %U -- "${part:-/}") mode=$(stat -L -c %a -- "${part:-/}")
        [[ $owner == root || $owner == "$trusted" ]] ||
            die "${part:-/} belongs to $owner, who could change what root runs here" \
                "unpack the package as root, or chown -R root:root $package, or name who is trusted: --trust-owner $owner"
        [[ $((8#$mode & 8#1000)) -ne 0 || $((8#$mode & 8#022)) -eq 0 ]] ||
            die "${part:-/} can be written to by others (mode $mode), who could change what root runs here" "chmod go-w ${part:-/}"
    done
    [[ $package =~ ^[A-Za-z0-9/._+:,=~-]+$ ]] ||
        die "the folder '$package' has blanks or signs that systemd, shells and slurm.conf each read in their own way" \
            "move the package, or make a link without them and run the script through that: ln -s '$package' /opt/slurm"
    view=$package/view
}

has_plugin() {
    [[ -e $root$view/lib/slurm/$1.so || -e $root$view/lib64/slurm/$1.so ]]
}

# conf_value FILE KEY: the last one counts, as for Slurm
conf_value() {
    [[ -f $root$1 ]] || return 0
    sed -n "s/^[[:space:]]*$2[[:space:]]*=[[:space:]]*\([^[:space:]#]*\).*/\1/Ip" "$root$1" | tail -n 1
}

# feature NAME COMMAND...: on when the command succeeds
feature() {
    local name=$1
    shift
    if "$@"; then features[$name]=yes; else features[$name]=no; fi
}

is() {
    [[ $1 == "$2" ]]
}

host_name() {
    local name
    if [[ -z $root ]]; then
        name=$(uname -n)
    else
        name=$(head -n 1 "$root/etc/hostname" 2>/dev/null || true)
        [[ -n $name ]] || die "the image has no name yet" "--controller HOST names the controller"
    fi
    printf '%s\n' "${name%%.*}"
}

# NodeName=... of this host. Memory is rounded down, so that a new kernel which keeps a little more does not drain the node.
node_line() {
    local line memory
    line=$("$root$view/sbin/slurmd" -C 2>/dev/null | grep '^NodeName=' | head -n 1 || true)
    if [[ -z $line ]]; then
        line="NodeName=$(host_name) CPUs=$(nproc) RealMemory=$(awk '/^MemTotal:/ { print int($2 / 1024) }' /proc/meminfo)"
    fi
    memory=${line##*RealMemory=}
    memory=${memory%%[!0-9]*}
    line=$(sed -e "s/RealMemory=[0-9]*/RealMemory=$((memory > 1024 ? memory / 256 * 256 : memory))/" -e 's/ Gres=[^ ]*//' -e 's/[[:space:]]*$//' <<<"$line")
    printf '%s\n' "$line"
}

# A quarter of the memory, between 1 and 16 GiB, in MiB.
buffer_size() {
    local memory
    memory=$(awk '/^MemTotal:/ { print int($2 / 4096 / 1024) * 1024 }' /proc/meminfo)
    printf '%s\n' $((memory < 1024 ? 1024 : memory > 16384 ? 16384 : memory))
}

# Where a MariaDB or MySQL of this distribution listens for local clients.
db_socket() {
    if [[ -e $root/etc/redhat-release ]]; then
        printf '/var/lib/mysql/mysql.sock\n'
    elif [[ -e $root/etc/SUSE-brand || -e $root/etc/SuSE-release ]]; then
        printf '/run/mysql/mysql.sock\n'
    else
        printf '/run/mysqld/mysqld.sock\n'
    fi
}

find_facts() {
    local release here=no first
    release=$("$root$view/sbin/slurmctld" -V 2>/dev/null) ||
        die "$view/sbin/slurmctld does not start on this host: $("$root$view/sbin/slurmctld" -V 2>&1 | head -n 1)" \
            "slurm-factory verify says which glibc the package needs; take one for this distribution"
    release=${release##* }
    say package "Slurm $release in $package"

    # What is there already wins over defaults, options win over both.
    cluster=${cluster:-$(conf_value /etc/slurm/slurm.conf ClusterName)}
    # slurmctld refuses the state of a cluster of another name. Its file has the name, and since 24.11 a number behind it.
    cluster=${cluster:-$(sed -n '1s/^\([a-z0-9_-]*\).*/\1/p' "$root/var/spool/slurmctld/clustername" 2>/dev/null || true)}
    controller=${controller:-$(conf_value /etc/slurm/slurm.conf SlurmctldHost)}
    controller=${controller%%(*}
    if [[ $mode == compute-node-init ]]; then
        [[ -n $controller ]] || usage_error "--compute-node-init needs --controller HOST"
    else
        controller=${controller:-$(host_name)}
    fi
    [[ -n $accounting || ! -f $root/etc/slurm/slurmdbd.conf || $mode == compute-node-init ]] || accounting=yes
    if [[ $accounting == yes ]] && ! has_plugin accounting_storage_mysql; then
        die "this package cannot keep accounts: it has no plugin accounting_storage_mysql" \
            "build one with MariaDB's client library (the recipe's variant +mariadb), or leave --accounting out"
    fi
    db_host=${db_host:-$(conf_value /etc/slurm/slurmdbd.conf StorageHost)}
    values=(
        [CLUSTER]=${cluster:-cluster} [CONTROLLER]=$controller [VIEW]=$view [PACKAGE]=$package [SLURM_UID]=$slurm_uid
        [DB_HOST]=${db_host:-localhost} [DB_CLIENT]=localhost [DB_NAME]=$(conf_value /etc/slurm/slurmdbd.conf StorageLoc) [DB_USER]=$(conf_value /etc/slurm/slurmdbd.conf StorageUser)
        [DB_BUFFER_MB]=$(buffer_size) [DB_SOCKET]=$(db_socket) [NODE]='' [CGROUP_OFF]=disabled [DB_PASSWORD]='' [REST_OPENAPI]=''
    )
    values[DB_NAME]=${values[DB_NAME]:-slurm_acct_db}
    values[DB_USER]=${values[DB_USER]:-slurm}
    # A database elsewhere sees slurmdbd come from this host.
    if [[ ${values[DB_HOST]} != localhost ]]; then values[DB_CLIENT]=%; fi
    first=$(printf '%s\n' 24.05 "$release" | sort -V | head -n 1)
    [[ $first == 24.05 ]] || values[CGROUP_OFF]=cgroup/v1

    feature ctld test "$mode" != compute-node-init
    feature controller is "${features[ctld]}" yes
    feature slurmd test "$mode" != head-node-init
    # An image learns its hardware when it starts.
    if [[ ($mode == full-init || $mode == init-only) && -z $root ]]; then here=yes; fi
    feature node is $here yes
    if [[ $here == yes ]]; then values[NODE]=$(node_line); fi
    feature configless test "${features[slurmd]}" = yes -a $here = no
    feature jwt has_plugin auth_jwt
    feature restd test -x "$root$view/sbin/slurmrestd"
    feature accounting is "$accounting" yes
    # Without slurmdbd its part of the API is an error at the start.
    if [[ $accounting != yes ]] && has_plugin openapi_slurmctld; then values[REST_OPENAPI]=' -s slurmctld'; fi
    feature nvml has_plugin gpu_nvml
    feature rsmi has_plugin gpu_rsmi
    # Where OpenSSL's own folder of authorities is no such folder: Red Hat and its kin.
    # Its other names are absolute links, which in an image lead to the host.
    feature pki test -f "$root/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem" -a ! -e "$root/etc/ssl/certs/ca-certificates.crt"
    feature gpu test "${features[nvml]}${features[rsmi]}" != nono
    if [[ $use_cgroup == yes && $(conf_value /etc/slurm/slurm.conf ProctrackType) == proctrack/linuxproc ]]; then use_cgroup=no; fi
    feature cgroup can_cgroup
    find_task_plugins

    daemons=()
    if [[ ${features[accounting]} == yes && ${features[ctld]} == yes ]]; then daemons+=(slurmdbd); fi
    if [[ ${features[ctld]} == yes ]]; then daemons+=(slurmctld); fi
    if [[ ${features[slurmd]} == yes ]]; then daemons+=(slurmd); fi
}

# Small packages lack some of them.
find_task_plugins() {
    local found=''
    if [[ ${features[cgroup]} == yes ]]; then found=task/cgroup; fi
    if has_plugin task_affinity; then found=${found:+$found,}task/affinity; fi
    values[TASK_PLUGINS]=${found:-task/none}
}

# The unified hierarchy needs a plugin that packages without dbus do not have.
can_cgroup() {
    [[ $use_cgroup == yes ]] || return 1
    has_plugin proctrack_cgroup && has_plugin task_cgroup || return 1
    if [[ -n $root || -e /sys/fs/cgroup/cgroup.controllers ]]; then
        if ! has_plugin cgroup_v2; then
            say note "this package has no plugin for control groups v2, which this host uses: jobs are followed by their parents instead"
            return 1
        fi
        [[ -z $root ]] || return 0
        [[ " $(cat /sys/fs/cgroup/cgroup.controllers) " == *' memory '* && " $(cat /sys/fs/cgroup/cgroup.controllers) " == *' cpuset '* ]] && return 0
        say note "the kernel gives this host no control groups for memory and processors (a container?): jobs are followed by their parents instead"
        return 1
    fi
    [[ -d /sys/fs/cgroup/freezer || -d /sys/fs/cgroup/memory ]]
}

# fill TEMPLATE
fill() {
    local line name
    [[ -f $assets/$1 ]] || die "$assets/$1 is missing: the package is not whole" "unpack it again"
    while IFS= read -r line; do
        if [[ $line =~ ^%(!?)([a-z]+)\ (.*)$ ]]; then
            case ${BASH_REMATCH[1]}${features[${BASH_REMATCH[2]}]:-} in
            yes | '!no') line=${BASH_REMATCH[3]} ;;
            no | '!yes') continue ;;
            *) die "$1: unknown feature ${BASH_REMATCH[2]}" "report this: the package is at fault" ;;
            esac
        fi
        while [[ $line =~ @([A-Z_]+)@ ]]; do
            name=${BASH_REMATCH[1]}
            [[ -n ${values[$name]+set} ]] || die "$1: unknown name @$name@" "report this: the package is at fault"
            line=${line//"@$name@"/${values[$name]}}
        done
        printf '%s\n' "$line"
    done <"$assets/$1"
}

# put_template KIND TEMPLATE PATH MODE USER GROUP
put_template() {
    local kind=$1 template=$2 text
    shift 2
    # Its own step, so that an error in it ends the run.
    text=$(fill "$template")
    put_file "$kind" "$@" <<<"$text"
}
