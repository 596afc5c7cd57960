#!/usr/bin/env bash
#
# The checks of run.sh, inside the booted system, as root. Every claim of slurm_install.sh --help is tried: what it makes, that a
# second run changes nothing, what it refuses, what it keeps, what it takes away.
set -Eeuo pipefail
cd /root
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
trap 'echo "FAILED in line $LINENO: $BASH_COMMAND"' ERR

step() {
    printf 'assets: [%3d s] %s\n' "$SECONDS" "$*"
}
fail() {
    printf 'assets: FAILED: %s\n' "$*"
    local log
    for log in /var/log/slurm/*.log /tmp/out; do
        [[ -s $log ]] || continue
        printf -- '--- the end of %s\n' "$log"
        tail -n 15 "$log"
    done
    exit 1
}

# Everything on the disk but what daemons write while they run: names, modes, owners, times, sums.
snapshot() {
    find / -xdev \( -path /test -o -path /proc -o -path /sys -o -path /dev -o -path /tmp -o -path /var/lib/mysql -o -path /var/lib/systemd \
        -o -path /var/log/journal -o -path /var/tmp -o -path /root -o -path /var/cache -o -path /usr/share -o -path '/usr/lib/*-linux-gnu' \) -prune -o \
        \( -path '/var/spool/slurm*/*' -o -path '/var/log/*/*' -o -path '/var/lib/munge/*' -o -path /run \) -prune -o -print0 | sort -z >/tmp/names
    grep -z -v -x '/\|/etc\|/etc/\.pwd\.lock\|/var/spool/slurm[a-z]*' /tmp/names | xargs -0 stat -c '%n %f %u:%g %s %y' |
        grep -v '^/\(usr\|var\|opt\|etc/systemd/system/[a-z.-]*wants\) '
    # shellcheck disable=SC2016  # the inner shell's
    xargs -0 -a /tmp/names sh -c 'for f; do if [ -f "$f" ] && [ ! -L "$f" ]; then echo "$f"; fi; done' _ | grep '^/\(etc\|opt\)/' | xargs -d '\n' sha256sum
}
unchanged_by() {
    snapshot >/tmp/before
    "$@" >/tmp/out 2>&1 || fail "$* ended with $?"
    snapshot >/tmp/after
    diff /tmp/before /tmp/after || fail "$* changed something"
}
# refused STATUS PATTERN COMMAND...
refused() {
    local status=$1 pattern=$2 got=0
    shift 2
    "$@" >/tmp/out 2>&1 </dev/null || got=$?
    [[ $got -eq $status ]] || fail "$* ended with $got, not $status"
    grep -q -e "$pattern" /tmp/out || fail "$* does not say '$pattern'"
    grep -q '^  mend: ' /tmp/out || fail "$* does not say how to mend it"
}
run() {
    "$@" >/tmp/out 2>&1 </dev/null || fail "$* ended with $?"
}
says() {
    grep -q -e "$1" /tmp/out || fail "it does not say '$1'"
}
is_mode() {
    [[ $(stat -c '%U:%G %a' "$1") == "$2" ]] || fail "$1 is $(stat -c '%U:%G %a' "$1"), not $2"
}
idle() {
    local turn
    for ((turn = 0; turn < 60; turn++)); do
        [[ $(timeout 10 sinfo --noheader --format=%T 2>/dev/null) == idle ]] && return
        sleep 0.5
    done
    fail "no idle node"
}
job_runs() {
    idle
    [[ $(timeout 60 srun -N1 hostname) == node1 ]] || fail "srun hostname"
}

# A job of alice, and what the accounts say of it afterwards; leaves its number in `id`.
sacct_shows() {
    local turn
    # slurmdbd tells slurmctld of a new user a moment after sacctmgr's end, and a job from before that has no account.
    for ((turn = 0; turn < 60; turn++)); do
        if [[ $(scontrol show assoc_mgr flags=assoc users=alice) == *'Account=physics UserName=alice'* ]]; then break; fi
        sleep 0.5
    done
    ((turn < 60)) || fail "slurmctld does not learn of alice's account: $(scontrol show assoc_mgr flags=assoc)"
    id=$(setpriv --reuid=alice --regid=alice --init-groups sbatch --parsable --chdir=/tmp --output=/dev/null --wrap='sleep 1')
    for ((turn = 0; turn < 60; turn++)); do
        if [[ $(sacct --noheader --parsable2 --allocations --jobs="$id" --format=user,account,state) == 'alice|physics|COMPLETED' ]]; then break; fi
        sleep 0.5
    done
    sacct --noheader --parsable2 --jobs="$id" --format=jobid,user,account,state,exitcode
    [[ $(sacct --noheader --parsable2 --allocations --jobs="$id" --format=user,account,state) == 'alice|physics|COMPLETED' ]] || fail "sacct: $(sacct --jobs="$id")"
}
# is_run_by UNIT FOLDER: the service's program lies there
is_run_by() {
    local command
    command=$(systemctl show --property=ExecStart --value "$1")
    [[ $command == *"path=$2/"* ]] || fail "$1 is $command, not of $2"
    systemctl --quiet is-active "$1" || fail "$1 does not run"
}

unpack() {
    mkdir -p "$1"
    tar -xf "${2:-/test/slurm-24.11-gcc14.2.0-software.tar.gz}" -C "$1"
}
unpack /opt/slurm/one
one=/opt/slurm/one/data/slurm_assets/slurm_install.sh
snapshot >/tmp/clean

# --- what it refuses ---------------------------------------------------------------------------------------------------
run "$one" --help
says '^  --full-init '
refused 2 'what is this host to be' "$one"
refused 2 'unknown option: --password' "$one" --full-init --password x
refused 2 'one host is one of them' "$one" --full-init --head-node-init
refused 2 'lower case' "$one" --full-init --cluster-name 'A B'
refused 2 'its value is missing' "$one" --full-init --cluster-name
refused 2 "no host's name" "$one" --compute-node-init --controller 'a;b'
refused 2 'needs --controller' "$one" --compute-node-init
refused 2 'starts nothing in an image' "$one" --full-init --start-services --root /
refused 1 'must run as root' setpriv --reuid=65534 --regid=65534 --clear-groups "$one" --full-init
refused 1 'there is no /etc/munge/munge.key' "$one" --compute-node-init --controller head
refused 1 'no services are set up here' "$one" --start-services
refused 1 'no password' "$one" --print-sql
unpack "/opt/a b"
refused 1 'has blanks' "/opt/a b/data/slurm_assets/slurm_install.sh" --full-init
ln -s "/opt/a b" /opt/linked
run /opt/linked/data/slurm_assets/slurm_install.sh --full-init --dry-run
says 'in /opt/linked$'
chmod g+w /opt/slurm/one/view
refused 1 'can be written to by others' "$one" --full-init
chmod g-w /opt/slurm/one/view
chown daemon /opt/slurm/one
refused 1 'belongs to daemon' "$one" --full-init
run "$one" --full-init --dry-run --trust-owner daemon
chown root /opt/slurm/one
mv /opt/linked/view/lib/slurm /opt/linked/view/lib/away
mkdir /opt/linked/view/lib/slurm
refused 1 'no plugin accounting_storage_mysql' /opt/linked/data/slurm_assets/slurm_install.sh --full-init --accounting
mv /opt/linked/view/sbin/munged /opt/linked/view/sbin/away
refused 1 'the package is not whole' /opt/linked/data/slurm_assets/slurm_install.sh --full-init
rm -r "/opt/a b" /opt/linked
snapshot | diff /tmp/clean - || fail "refusals left something"
step "what cannot be done is refused, with what to do, and changes nothing"

# --- dry run, first run, second run --------------------------------------------------------------------------------------
unchanged_by "$one" --full-init --without-cgroup --accounting --dry-run
says '^would *make user slurm (64030)'
says 'nothing was changed'
step "--dry-run changes nothing"

run "$one" --init-only --without-cgroup --cluster-name test
systemctl --quiet is-enabled slurmctld 2>/dev/null && fail "--init-only enabled something"
is_mode /etc/munge/munge.key 'munge:munge 400'
[[ $(stat -c %s /etc/munge/munge.key) -eq 128 ]] || fail "the munge key has not 1024 bits"
is_mode /etc/munge 'munge:munge 700'
is_mode /etc/slurm 'root:root 755'
is_mode /etc/slurm/slurm.conf 'root:root 644'
is_mode /etc/slurm/jwt_hs256.key 'slurm:slurm 600'
is_mode /var/spool/slurmctld 'slurm:slurm 700'
is_mode /var/spool/slurmd 'root:root 755'
[[ $(id -u slurm) -eq 64030 ]] || fail "the user slurm has another number"
grep -q '^ClusterName=test$' /etc/slurm/slurm.conf || fail "ClusterName"
grep -q '^NodeName=node1 CPUs=' /etc/slurm/slurm.conf || fail "NodeName"
if grep -e '@' -e '^%' /etc/slurm/*.conf /etc/default/slurm /etc/systemd/system/slurm*.service; then fail "a template was not filled in"; fi
unchanged_by "$one" --init-only --without-cgroup --cluster-name test
says '^nothing to change'
for unit in munged slurmctld slurmd slurmrestd; do
    systemd-analyze --man=no verify "/etc/systemd/system/$unit.service" >/tmp/out 2>&1 || fail "systemd-analyze verify $unit"
    if grep "$unit" /tmp/out; then fail "systemd-analyze verify has words about $unit"; fi
done
step "--init-only makes users, folders, keys, configuration, units; again: not a byte or time changes; systemd-analyze verify is silent"

run "$one" --full-init
says '^started *munged.service'
bash -lc 'command -v srun' >/tmp/out || fail "profile.d"
says '^/opt/slurm/one/view/bin/srun$'
PATH=/opt/slurm/one/view/bin:$PATH
job_runs
[[ $(readlink "/proc/$(systemctl show --property MainPID --value slurmctld)/exe") == /opt/slurm/one/view/sbin/slurmctld ]] || fail "another slurmctld runs"
unchanged_by "$one" --full-init
says '^nothing to change'
# The option of the first run was taken from what is there.
grep -q '^ProctrackType=proctrack/linuxproc' /etc/slurm/slurm.conf || fail "ProctrackType"
# Restarting slurmd does not end jobs.
id=$(sbatch --parsable --output=/tmp/job.out --wrap='sleep 6; echo survived')
sleep 2
systemctl restart slurmd
for ((turn = 0; turn < 40; turn++)); do
    if grep -qs survived /tmp/job.out; then break; fi
    sleep 0.5
done
grep -q survived /tmp/job.out || fail "a job did not survive a restart of slurmd: $(scontrol show job "$id")"
step "--full-init starts munged, slurmctld, slurmd; a job runs, one survives a restart of slurmd; again: nothing changes"

systemctl start slurmrestd
sleep 2
systemctl --quiet is-active slurmrestd || fail "slurmrestd: $(journalctl -u slurmrestd --no-pager -n 5)"
scontrol token username=root lifespan=60 >/tmp/token
[[ $(cat /tmp/token) == SLURM_JWT=* ]] || fail "no token"
exec 3<>/dev/tcp/127.0.0.1/6820
printf 'GET /openapi HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-SLURM-USER-NAME: root\r\nX-SLURM-USER-TOKEN: %s\r\n\r\n' "$(cut -d= -f2- /tmp/token)" >&3
IFS= read -r -t 20 line <&3
exec 3>&-
[[ $line == 'HTTP/1.1 200'* ]] || fail "slurmrestd answers $line"
systemctl stop slurmrestd
step "slurmrestd answers a token"

# --- what is the site's stays the site's ----------------------------------------------------------------------------------
echo '# mine' >>/etc/slurm/slurm.conf
sum=$(sha256sum /etc/slurm/slurm.conf)
unchanged_by "$one" --full-init
says 'kept .*/etc/slurm/slurm.conf: changed by hand'
run "$one" --init-only --cluster-name other
says '/etc/slurm/slurm.conf: yours; .*slurm.conf.new'
grep -q '^ClusterName=other' /etc/slurm/slurm.conf.new || fail "slurm.conf.new"
[[ $(sha256sum /etc/slurm/slurm.conf) == "$sum" ]] || fail "slurm.conf was overwritten"
unchanged_by "$one" --init-only --cluster-name other
key=$(sha256sum /etc/munge/munge.key)
head -c 128 /dev/urandom >/tmp/key
refused 1 'never overwritten' "$one" --full-init --munge-key /tmp/key
[[ $(sha256sum /etc/munge/munge.key) == "$key" ]] || fail "the munge key was overwritten"
step "changed configuration is kept, news go to .new; the munge key is never overwritten"

# --- another package ---------------------------------------------------------------------------------------------------
unpack /opt/slurm/two
echo '# local' >>/etc/systemd/system/slurmd.service
two=/opt/slurm/two/data/slurm_assets/slurm_install.sh
run "$two" --full-init
says '^replaced *.*/slurmctld.service'
says '/etc/systemd/system/slurmd.service: yours'
grep -q /opt/slurm/two/ /etc/systemd/system/slurmctld.service || fail "slurmctld.service is the old one"
mv /etc/systemd/system/slurmd.service.new /etc/systemd/system/slurmd.service
systemctl daemon-reload
systemctl restart slurmctld slurmd
job_runs
run "$two" --full-init
unchanged_by "$two" --full-init
step "a newer package replaces what nobody changed, and its daemons run"

# --- taking it away ------------------------------------------------------------------------------------------------------
unchanged_by "$two" --uninstall --dry-run
run "$two" --uninstall
says 'kept .*/etc/slurm/slurm.conf: it was changed'
systemctl --quiet is-active slurmctld && fail "slurmctld runs after --uninstall"
[[ $(sha256sum /etc/munge/munge.key) == "$key" ]] || fail "--uninstall touched the munge key"
[[ -n $(ls -A /var/spool/slurmctld) ]] || fail "--uninstall emptied the spool"
rm -r /opt/slurm/two
# What is left, by name, beside what was there before.
snapshot | cut -d ' ' -f 1 | grep '^/' | sort -u >/tmp/left
cut -d ' ' -f 1 /tmp/clean | grep '^/' | sort -u | comm -13 - /tmp/left >/tmp/more
cat >/tmp/expected <<'LIST'
/etc/group-
/etc/gshadow-
/etc/munge
/etc/munge/munge.key
/etc/passwd-
/etc/shadow-
/etc/slurm
/etc/slurm/jwt_hs256.key
/etc/slurm/slurm.conf
/var/lib/munge
/var/log/munge
/var/log/slurm
LIST
grep -v '^/etc/\(passwd\|group\|shadow\|gshadow\)-$' /tmp/more | diff <(grep -v -- '-$' /tmp/expected) - || fail "--uninstall left or took something else"
[[ -d /var/spool/slurmctld ]] || fail "--uninstall took the spool"
unchanged_by "$one" --uninstall
says 'lists nothing'
step "--uninstall takes what was made; keys, changed files, logs and spool stay"

# Whoever wants it all gone:
wipe() {
    userdel slurm
    userdel munge
    userdel slurmrestd
    rm -rf /etc/munge /etc/slurm /etc/default/slurm /var/spool/slurm* /var/log/slurm /var/log/munge /var/lib/munge /run/munge /run/slurm*
}
wipe

# --- an image ------------------------------------------------------------------------------------------------------------
mkdir -p /var/tmp/image/etc /var/tmp/image/usr/sbin /var/tmp/image/usr/bin /var/tmp/image/var /var/tmp/image/run
for file in passwd group shadow gshadow; do cp -p /etc/$file /var/tmp/image/etc/; done
# Authorities as Red Hat keeps them.
mkdir -p /var/tmp/image/etc/pki/{tls/certs,ca-trust/extracted/pem}
: >/var/tmp/image/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem
ln -s /etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem /var/tmp/image/etc/pki/tls/certs/ca-bundle.crt
refused 1 'is not in the image' "$one" --full-init --root /var/tmp/image
unpack /var/tmp/image/opt/slurm
in_image=/var/tmp/image/opt/slurm/data/slurm_assets/slurm_install.sh
refused 1 'the image has no name yet' "$in_image" --full-init --root /var/tmp/image
refused 1 'the same' "$in_image" --compute-node-init --controller head --root /var/tmp/image
unchanged_by "$in_image" --compute-node-init --controller head --munge-key /tmp/key --root /var/tmp/image
[[ -L /var/tmp/image/etc/systemd/system/multi-user.target.wants/slurmd.service ]] || fail "slurmd is not enabled in the image"
grep -q '^ExecStart=/opt/slurm/view/sbin/slurmd ' /var/tmp/image/etc/systemd/system/slurmd.service || fail "the image's units name another folder"
grep -q '^SLURMD_OPTIONS=-Z --conf-server head$' /var/tmp/image/etc/default/slurm || fail "SLURMD_OPTIONS"
grep -q '^SSL_CERT_FILE=/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem$' /var/tmp/image/etc/default/slurm || fail "SSL_CERT_FILE"
cmp /tmp/key /var/tmp/image/etc/munge/munge.key
[[ $(stat -c %u /var/tmp/image/etc/munge/munge.key) -eq $(awk -F: '$1 == "munge" { print $3 }' /var/tmp/image/etc/passwd) ]] || fail "the key's owner in the image"
[[ ! -e /var/tmp/image/etc/slurm/slurm.conf && ! -e /var/tmp/image/etc/systemd/system/slurmctld.service ]] || fail "a node has a controller's files"
find /var/tmp/image -printf '%p %m %u %s %T@\n' | sort >/tmp/image
run "$in_image" --compute-node-init --controller head --munge-key /tmp/key --root /var/tmp/image
find /var/tmp/image -printf '%p %m %u %s %T@\n' | sort | diff /tmp/image - || fail "a second run changed the image"
rm -r /var/tmp/image
step "--root sets up an image and leaves the host alone"

# --- without systemd's tools ---------------------------------------------------------------------------------------------
mv /usr/bin/systemd-sysusers /usr/bin/away
refused 1 "the number is the user daemon's" "$one" --head-node-init --without-cgroup --slurm-uid 1 --munge-key /tmp/key
run "$one" --head-node-init --without-cgroup --slurm-uid 4242 --munge-key /tmp/key
mv /usr/bin/away /usr/bin/systemd-sysusers
[[ $(id -u slurm) -eq 4242 && $(getent passwd slurm | cut -d: -f7) == /usr/sbin/nologin ]] || fail "useradd: $(getent passwd slurm)"
systemctl --quiet is-active slurmctld && fail "--head-node-init started something"
refused 1 'with the number 4242, and --slurm-uid asks for 4343' "$one" --head-node-init --without-cgroup --slurm-uid 4343
run "$one" --head-node-init --without-cgroup
says '^note .*has the number 4242'
# A controller, and a node that names itself; here both are this host.
run "$one" --start-services
says '^started *slurmctld.service'
run "$one" --compute-node-init --controller node1
mv /etc/default/slurm.new /etc/default/slurm
run "$one" --start-services
says '^started *slurmd.service'
job_runs
[[ $(scontrol show node node1) == *DYNAMIC* ]] || fail "the node is not one that named itself"
run "$one" --uninstall
wipe
step "--head-node-init, useradd, --compute-node-init: a node that names itself runs a job"

# --- the guide, word for word: accounting with MariaDB ---------------------------------------------------------------------
rm -rf /opt/slurm
mkdir /root/guide
cp /test/slurm-*.tar.gz /root/guide/
for block in /test/guide-*.sh; do
    (cd /root/guide && bash "$block" </dev/null) >/tmp/out 2>&1 || fail "the block $(basename "$block") of docs/install.md: $(cat "$block")"
done
one=$(echo /opt/slurm/*/data/slurm_assets/slurm_install.sh)
PATH=${one%/data/*}/view/bin:$PATH
is_mode /etc/slurm/slurmdbd.conf 'slurm:slurm 600'
systemd-analyze --man=no verify /etc/systemd/system/slurmdbd.service >/tmp/out 2>&1 || fail "systemd-analyze verify slurmdbd"
if grep slurmdbd /tmp/out; then fail "systemd-analyze verify has words about slurmdbd"; fi
unchanged_by "$one" --full-init --accounting --init-database --without-cgroup
says '^nothing to change'
[[ $(sacctmgr --noheader --parsable2 show user alice format=user,defaultaccount) == 'alice|physics' ]] || fail "sacctmgr show user: $(sacctmgr show user)"
sacct_shows
# What slurmdbd says of a database that is not set as it asks. (Before the guide restarts MariaDB it did.)
grep -q 'recommended values' /var/log/slurm/slurmdbd.log || fail "slurmdbd had no complaint about MariaDB's own settings: does the next check see any?"
: >/var/log/slurm/slurmdbd.log
systemctl restart slurmdbd
for ((turn = 0; turn < 60; turn++)); do
    if grep -q 'slurmdbd version .* started' /var/log/slurm/slurmdbd.log; then break; fi
    sleep 0.5
done
grep -q 'slurmdbd version .* started' /var/log/slurm/slurmdbd.log || fail "slurmdbd was not restarted"
systemctl --quiet is-active slurmdbd || fail "slurmdbd does not run"
if grep -i -e 'not recommended' -e 'recommended values' -e ' error: ' /var/log/slurm/slurmdbd.log; then fail "slurmdbd complains"; fi
step "the guide's blocks ran; slurmdbd, MariaDB, sacctmgr; sacct shows the job; slurmdbd has no complaint"

# The password is nowhere but in slurmdbd.conf, and on no command line.
password=$(sed -n 's/^StoragePass=//p' /etc/slurm/slurmdbd.conf)
[[ ${#password} -eq 48 ]] || fail "the password that was made up"
if grep -r -l -F "$password" /etc /var/log /opt /run /var/lib/slurm-factory 2>/dev/null | grep -v '^/etc/slurm/slurmdbd.conf$'; then fail "the password is in another file"; fi
mariadb -e "DROP USER 'slurm'@'localhost'"
strace -f -s 4096 -e trace=execve -o /tmp/trace "$one" --full-init --accounting --init-database >/tmp/out 2>&1 || fail "--init-database again"
says '^made *database slurm_acct_db'
if grep -F "$password" /tmp/trace /tmp/out; then fail "the password was on a command line or printed"; fi
grep -c execve /tmp/trace >/dev/null || fail "strace saw nothing"
mariadb -e "DROP USER 'slurm'@'localhost'"
"$one" --print-sql 2>/dev/null | mariadb || fail "the database does not take what --print-sql prints"
unchanged_by "$one" --full-init --accounting --init-database
printf 'a new-One.1\n' >/tmp/password
refused 1 'has signs' "$one" --full-init --db-password-file /tmp/password
# Uninstalled and set up again, with a password from a file: the accounts are still there.
run "$one" --uninstall
printf 'another-One.1\n' >/tmp/password
run "$one" --full-init --accounting --init-database --without-cgroup --db-password-file /tmp/password
[[ $(sacctmgr --noheader --parsable2 show user alice format=user) == alice ]] || fail "accounting data did not survive --uninstall"
[[ $(sacct --noheader --parsable2 --allocations --jobs="$id" --format=user) == alice ]] || fail "jobs did not survive --uninstall"
run "$one" --uninstall
wipe
step "no password on a command line or in another file; accounting data survives --uninstall"

# --- the distribution's munge ----------------------------------------------------------------------------------------------
cp /test/munge.service /usr/lib/systemd/system/
run "$one" --init-only --without-cgroup
says 'munge.service of its own'
[[ ! -e /etc/systemd/system/munged.service ]] || fail "two munged"
run "$one" --uninstall
rm /usr/lib/systemd/system/munge.service
wipe
step "a munge.service of the distribution is used"

# --- a package of slurm-factory ------------------------------------------------------------------------------------------
if [[ -e /test/real-package.tar.gz ]]; then
    unpack /opt/real /test/real-package.tar.gz
    rm -r /opt/real/data/slurm_assets/*
    unpack /opt/real /test/assets.tar.gz
    # Nothing of Debian's Slurm is there to help.
    rm -rf /opt/slurm /usr/lib/*/slurm-wlm /usr/sbin/slurmstepd
    real=/opt/real/data/slurm_assets/slurm_install.sh
    accounting=()
    if [[ -e /opt/real/view/lib/slurm/accounting_storage_mysql.so ]]; then
        # The cluster of the guide, whose accounts are in the database.
        accounting=(--accounting --init-database --db-password-file /tmp/password --cluster-name hpc)
    fi
    run "$real" --full-init --without-cgroup "${accounting[@]}"
    PATH=/opt/real/view/bin:$PATH
    job_runs
    [[ $(scontrol show config | sed -n 's/^PluginDir *= //p') == /opt/real/view/lib/slurm ]] || fail "PluginDir"
    if ((${#accounting[@]} > 0)); then
        # The database is the one that Debian's slurmdbd, of the same release, left.
        is_run_by slurmdbd /opt/real/view
        [[ $(sacctmgr --noheader --parsable2 show user alice format=user,defaultaccount) == 'alice|physics' ]] || fail "sacctmgr show user: $(sacctmgr show user)"
        sacct_shows
        step "slurmdbd of a package of slurm-factory writes to MariaDB; sacct shows the job"
    fi
    unchanged_by "$real" --full-init "${accounting[@]}"
    says '^nothing to change'
    sinfo --version
    run "$real" --uninstall
    step "the same with a package of slurm-factory"
fi
echo "assets: ok"
