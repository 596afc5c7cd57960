#!/usr/bin/env bash
#
# Makes a running Slurm of this package on this host: users, folders, keys, configuration, services. Works from wherever the
# package lies, may be run again at any time, and downloads nothing. docs: README.md beside this file; --help.
#
# Every change goes through lib/act.sh, which says what was done, keeps what is not ours, and writes down what it made, so
# that --uninstall knows. What is found out about host and package stands in lib/facts.sh, services and database in
# lib/services.sh. Templates are in config/, systemd/, system/ and sql/.
set -euo pipefail
export LC_ALL=C PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin
umask 022

# The folder as it was named, links and all: a link that is turned to a newer package takes the services along.
assets=$(cd -L -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -L)
# shellcheck source=assets/payload/lib/act.sh
source "$assets/lib/act.sh"
# shellcheck source=assets/payload/lib/facts.sh
source "$assets/lib/facts.sh"
# shellcheck source=assets/payload/lib/services.sh
source "$assets/lib/services.sh"

usage() {
    cat <<'HELP'
slurm_install.sh: a running Slurm out of the package that this script lies in.

  slurm_install.sh MODE [OPTION]...

What this host is to be:
  --full-init            controller and compute node in one: everything set up, enabled and started
  --head-node-init       controller: set up and enabled; started with --start-services
  --compute-node-init    compute node of another controller: needs --controller, and the munge key of the cluster
  --init-only            the files of --full-init, nothing enabled or started: to look them over, or for images

Without one of them:
  --start-services       start what was set up before (with a mode: set up, then start)
  --print-sql            print the SQL that makes slurmdbd's database, password included: for a database on another host
  --uninstall            remove what this script made; keys, changed files, spool, logs and accounting data stay
  --help

Options:
  --dry-run              say what would be done; change nothing
  --cluster-name NAME    default: as in slurm.conf or slurmctld's state, else "cluster"
  --controller HOST      the controller's name; default: as in slurm.conf, else this host
  --munge-key FILE       this munge key, when there is none yet
  --accounting           slurmdbd in front of MariaDB or MySQL; stays on once there is a slurmdbd.conf
  --init-database        --accounting, and make database and user in the server on this host, as its administrator
  --db-host HOST         where the database is; default localhost
  --db-password-file F   slurmdbd's database password from a file, `-` asks for it; made up when there is none
  --slurm-uid N          number of the user slurm, equal on all nodes; default 64030
  --without-cgroup       do not hold jobs by control groups: for containers and tests
  --trust-owner USER     the package may belong to this user; who can write to it is root on this host
  --root DIR             work on the image in DIR, which holds the package; nothing is started

Exit codes: 0 done, 1 failed, 2 usage.
HELP
}

mode='' start=no uninstall=no print_sql=no init_database=no
controller='' cluster='' munge_key='' accounting='' db_host='' password_file='' slurm_uid=64030 uid_asked=no use_cgroup=yes trusted=root
unit_folder=/etc/systemd/system systemd=no
while (($#)); do
    case $1 in
    --full-init | --head-node-init | --compute-node-init | --init-only)
        [[ -z $mode || $mode == "${1#--}" ]] || usage_error "--$mode and $1: one host is one of them"
        mode=${1#--}
        ;;
    --start-services) start=yes ;;
    --print-sql) print_sql=yes ;;
    --uninstall) uninstall=yes ;;
    --dry-run) dry=yes ;;
    --accounting) accounting=yes ;;
    --init-database) accounting=yes init_database=yes ;;
    --without-cgroup) use_cgroup=no ;;
    --cluster-name=* | --controller=* | --munge-key=* | --db-host=* | --db-password-file=* | --slurm-uid=* | --trust-owner=* | --root=*)
        set -- "${1%%=*}" "${1#*=}" "${@:2}"
        continue
        ;;
    --cluster-name | --controller | --munge-key | --db-host | --db-password-file | --slurm-uid | --trust-owner | --root)
        (($# > 1)) || usage_error "$1: its value is missing"
        case $1 in
        --cluster-name) cluster=$2 ;;
        --controller) controller=$2 ;;
        --munge-key) munge_key=$2 ;;
        --db-host) db_host=$2 ;;
        --db-password-file) password_file=$2 ;;
        --slurm-uid) slurm_uid=$2 uid_asked=yes ;;
        --trust-owner) trusted=$2 ;;
        --root) root=$2 ;;
        esac
        shift
        ;;
    --help | -h)
        usage
        exit 0
        ;;
    *) usage_error "unknown option: $1" ;;
    esac
    shift
done
[[ -n $mode || $start == yes || $print_sql == yes || $uninstall == yes ]] ||
    usage_error "what is this host to be? --full-init, --head-node-init, --compute-node-init or --init-only"
[[ $uninstall == no || ($mode == '' && $start == no && $print_sql == no) ]] || usage_error "--uninstall goes with --dry-run and --root only"
[[ $mode != compute-node-init || -z $accounting ]] || usage_error "--accounting belongs to the controller"
[[ $start == no || -z $root ]] || usage_error "--start-services starts nothing in an image (--root)"
[[ $init_database == no || -z $root ]] || usage_error "--init-database reaches no database in an image (--root)"
[[ -z $cluster || $cluster =~ ^[a-z0-9][a-z0-9_-]{0,39}$ ]] || usage_error "--cluster-name $cluster: lower case letters, digits, - and _ are what slurmdbd takes"
for each in "$controller" "$db_host"; do
    [[ -z $each || $each =~ ^[A-Za-z0-9][A-Za-z0-9.-]*$ ]] || usage_error "$each is no host's name"
done
[[ $slurm_uid =~ ^[1-9][0-9]{0,8}$ ]] || usage_error "--slurm-uid $slurm_uid is no user's number"

[[ $(id -u) -eq 0 ]] || die "this makes users and services: it must run as root" "sudo $assets/slurm_install.sh ..."
# Two at the same time would each take the other's half for the host's own.
exec {lock}<"${BASH_SOURCE[0]}"
flock --nonblock "$lock" || die "another slurm_install.sh of this package runs" "wait for it"
open_root
if [[ -z $root && -d /run/systemd/system ]]; then systemd=yes; fi
read_record

if [[ $uninstall == yes ]]; then
    uninstall_all
    summary
    exit 0
fi

if [[ $print_sql == yes ]]; then
    [[ -z $mode && $start == no ]] || usage_error "--print-sql goes alone"
    # SQL alone goes to standard output.
    {
        find_package
        find_facts
    } >&2
    print_sql
    exit 0
fi
find_package
find_facts
if [[ -n $mode ]]; then
    need_password
    need_key
    need_number
    make_users
    make_folders
    make_keys
    write_configuration
    write_units
    if [[ $init_database == yes ]]; then init_database; fi
    if [[ $mode != init-only ]]; then enable_services; fi
fi
if [[ $start == yes ]]; then
    start_services
elif [[ $mode == full-init && -z $root ]]; then
    if [[ $systemd == yes ]]; then
        start_services
    else
        say 'not started' "no systemd runs here: start munged, ${daemons[*]} by the lines ExecStart of $unit_folder/*.service"
    fi
fi
summary
