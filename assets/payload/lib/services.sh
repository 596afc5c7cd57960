# shellcheck shell=bash
#
# Users, keys, configuration, services and database: what slurm_install.sh does with facts.sh by way of act.sh. Sourced.
# shellcheck disable=SC2154  # options and facts

# The database's password: given, or what slurmdbd.conf has, or made up.
need_password() {
    local given='' known
    [[ ${features[accounting]} == yes && ${features[ctld]} == yes ]] || return 0
    known=$(conf_value /etc/slurm/slurmdbd.conf StoragePass)
    if [[ $password_file == - ]]; then
        [[ -t 0 ]] || die "--db-password-file - asks at the terminal, and there is none" "give a file"
        read -r -s -p "Password of the database user ${values[DB_USER]}: " given && echo
    elif [[ -n $password_file ]]; then
        [[ -r $password_file ]] || die "cannot read $password_file" "name a file that holds the password in its first line"
        IFS= read -r given <"$password_file" || [[ -n $given ]] || die "$password_file is empty" "write the password into its first line"
    fi
    given=${given:-${known:-$(head -c 24 /dev/urandom | od -An -v -tx1 | tr -d ' \n')}}
    [[ $given =~ ^[A-Za-z0-9._~!%^*+:,=-]+$ ]] ||
        die "the database password has signs that slurmdbd.conf or SQL reads as something else" "take letters, digits and . _ ~ ! % ^ * + : , = -"
    values[DB_PASSWORD]=$given
}

print_sql() {
    accounting=yes features[accounting]=yes features[ctld]=yes
    [[ -f $root/etc/slurm/slurmdbd.conf || -n $password_file ]] ||
        die "there is no /etc/slurm/slurmdbd.conf yet, and so no password" "run --full-init or --head-node-init with --accounting first"
    need_password
    fill sql/accounting.sql
}

make_users() {
    local text kind name number comment home missing=()
    text=$(fill system/sysusers.conf)
    put_file own /etc/sysusers.d/slurm-factory.conf 0644 root root <<<"$text"
    while read -r kind name number comment; do
        [[ $kind == u ]] || continue
        if [[ -n $(number_of passwd "$name") ]]; then
            as_it_is
            continue
        fi
        missing+=("$name")
        did made "user $name$([[ $number == - ]] || echo " ($number)")"
        home=${comment##* }
        comment=${comment#\"}
        [[ $dry == yes ]] || command -v systemd-sysusers >/dev/null || make_user "$name" "$number" "${comment%%\"*}" "$home"
    done <<<"$text"
    ((${#missing[@]})) && [[ $dry == no ]] && command -v systemd-sysusers >/dev/null || return 0
    systemd-sysusers ${root:+--root="$root"} - <<<"$text" || die "systemd-sysusers could not make ${missing[*]}" "see its words above"
    for name in "${missing[@]}"; do
        [[ -n $(number_of passwd "$name") ]] || die "systemd-sysusers made no user $name" "make it by hand: useradd --system $name"
    done
    [[ " ${missing[*]} " != *' slurm '* ]] || tell_number
}

# Before anything is changed. A user's number is compared between nodes: one that was asked for and cannot be had stops, one that
# was not is told.
need_number() {
    local number other
    number=$(number_of passwd slurm)
    if [[ -z $number ]]; then
        other=$(name_of passwd "$slurm_uid")
        [[ -z $other || $uid_asked == no ]] ||
            die "--slurm-uid $slurm_uid: the number is the user $other's" "take one that is free on every node"
        return 0
    fi
    [[ $number != "$slurm_uid" ]] || return 0
    [[ $uid_asked == no ]] ||
        die "the user slurm is there with the number $number, and --slurm-uid asks for $slurm_uid; a user's number is never changed here" \
            "stop its processes, usermod -u $slurm_uid slurm, and give it its files again; or leave --slurm-uid out"
    tell_number
}

tell_number() {
    local number
    number=$(number_of passwd slurm)
    [[ $number == "$slurm_uid" ]] || say note "the user slurm has the number $number: it must be the same on every node (--slurm-uid)"
}

# The list is tmpfiles.d's own: one list, with systemd and without.
make_folders() {
    local text kind path mode user group
    text=$(fill system/tmpfiles.conf)
    while read -r kind path mode user group _; do
        [[ $kind == d ]] || continue
        # What is in an image's /run is gone when it starts; tmpfiles.d makes it then.
        [[ -z $root || $path != /run/* ]] || continue
        put_folder "$path" "$mode" "$user" "$group"
    done <<<"$text"
    put_file own /etc/tmpfiles.d/slurm-factory.conf 0644 root root <<<"$text"
}

key=/etc/munge/munge.key

# Before anything is changed: is there a key, where one is needed?
need_key() {
    if [[ -n $munge_key ]]; then
        [[ -s $munge_key ]] || die "cannot read the munge key $munge_key" "copy $key of the controller to here"
        if [[ -e $root$key ]] && ! cmp -s -- "$munge_key" "$root$key"; then
            die "$key is there and is another than $munge_key; it is never overwritten" "move it away if this host is to have the other"
        fi
    elif [[ $mode == compute-node-init && ! -e $root$key ]]; then
        die "there is no $key: a node and its controller must have the same" "copy it from $controller to a file of root's, and name it with --munge-key"
    fi
}

make_keys() {
    if [[ -n $munge_key ]]; then
        put_key $key munge munge 0400 "$munge_key" 1048576
    else
        # 1024 bits, as mungekey takes.
        put_key $key munge munge 0400 /dev/urandom 128
    fi
    if [[ ${features[ctld]} == yes && ${features[jwt]} == yes ]]; then
        put_key /etc/slurm/jwt_hs256.key slurm slurm 0600 /dev/urandom 32
    fi
}

write_configuration() {
    if [[ ${features[ctld]} == yes ]]; then
        put_template config config/slurm.conf /etc/slurm/slurm.conf 0644 root root
        put_template config config/cgroup.conf /etc/slurm/cgroup.conf 0644 root root
        if [[ ${features[gpu]} == yes ]]; then put_template config config/gres.conf /etc/slurm/gres.conf 0644 root root; fi
        if [[ ${features[accounting]} == yes ]]; then put_template secret config/slurmdbd.conf /etc/slurm/slurmdbd.conf 0600 slurm slurm; fi
        # One that a dry run would write has the lines.
        if [[ ${features[accounting]} == yes && -e $root/etc/slurm/slurm.conf && $(conf_value /etc/slurm/slurm.conf AccountingStorageType) != accounting_storage/slurmdbd ]]; then
            say note "slurm.conf does not send its accounts to slurmdbd: take over the lines AccountingStorage* of slurm.conf.new"
        fi
    fi
    put_template config config/defaults /etc/default/slurm 0644 root root
    put_template own system/profile.sh /etc/profile.d/slurm-factory.sh 0644 root root
}

# munged, unless the distribution's munge is there: one host, one munged.
munge_unit() {
    local folder
    for folder in /etc/systemd/system /usr/lib/systemd/system /lib/systemd/system; do
        if [[ -f $root$folder/munge.service ]]; then
            echo munge
            return
        fi
    done
    echo munged
}

write_units() {
    local unit
    for unit in "$(munge_unit)" "${daemons[@]}"; do
        if [[ $unit == munge ]]; then
            as_it_is
            say note "this host has a munge.service of its own: it is used, and the package's munged is not"
        else
            put_template own "systemd/$unit.service" "$unit_folder/$unit.service" 0644 root root
        fi
    done
    if [[ ${features[ctld]} == yes && ${features[restd]} == yes && ${features[jwt]} == yes ]]; then
        put_template own systemd/slurmrestd.service "$unit_folder/slurmrestd.service" 0644 root root
    fi
}

enable_services() {
    local unit
    command -v systemctl >/dev/null || {
        say 'not enabled' "there is no systemctl on this host"
        return 0
    }
    for unit in "$(munge_unit)" "${daemons[@]}"; do
        if systemctl ${root:+--root="$root"} --quiet is-enabled "$unit.service" 2>/dev/null; then
            as_it_is
            continue
        fi
        did enabled "$unit.service"
        [[ $dry == no ]] || continue
        systemctl ${root:+--root="$root"} --quiet enable "$unit.service" || die "systemctl could not enable $unit.service" "see its words above"
        remember enabled - "$unit.service"
    done
}

start_services() {
    local unit known=()
    [[ $systemd == yes ]] || die "no systemd runs here, so nothing can be started by it" "start the daemons by the lines ExecStart of $unit_folder/{munged,slurmctld,slurmd}.service"
    for unit in "$(munge_unit)" slurmdbd slurmctld slurmd; do
        [[ ($dry == yes && -n $mode) || -f $unit_folder/$unit.service || $unit == munge ]] || continue
        [[ -z $mode || $unit == munge* || " ${daemons[*]} " == *" $unit "* ]] || continue
        known+=("$unit")
    done
    ((${#known[@]} > 1)) || die "no services are set up here" "run with --full-init, --head-node-init or --compute-node-init first"
    [[ $dry == yes ]] || systemctl daemon-reload
    for unit in "${known[@]}"; do
        if systemctl --quiet is-active "$unit.service"; then
            as_it_is
            continue
        fi
        did started "$unit.service"
        [[ $dry == no ]] || continue
        systemctl start "$unit.service" || true
        stays_up "$unit" || {
            journalctl --quiet --no-pager --lines=10 --unit="$unit.service" >&2 || true
            die "$unit.service does not run" "its last words are above; journalctl -u $unit has the rest"
        }
    done
}

# A daemon that does not like its configuration ends a moment after systemd took it for started; one that waits for another
# is started again. Up is who was found running three times in a row.
stays_up() {
    local turn seen=0
    for ((turn = 0; turn < 30; turn++)); do
        sleep 1
        if systemctl --quiet is-active "$1.service"; then
            seen=$((seen + 1))
            ((seen < 3)) || return 0
        else
            seen=0
        fi
    done
    return 1
}

stop_and_disable() {
    local path unit
    for path in "${record_order[@]}"; do
        [[ ${recorded[$path]} == enabled$'\t'* ]] || continue
        did disabled "$path"
        [[ $dry == no ]] || continue
        systemctl ${root:+--root="$root"} --quiet disable "$path" || die "systemctl could not disable $path" "see its words above"
    done
    [[ $systemd == yes ]] || return 0
    for unit in slurmd slurmctld slurmdbd slurmrestd munged; do
        [[ -n ${recorded[$unit_folder/$unit.service]:-} ]] || continue
        systemctl --quiet is-active "$unit.service" || continue
        did stopped "$unit.service"
        [[ $dry == yes ]] || systemctl stop "$unit.service" || die "systemctl could not stop $unit.service" "stop it by hand and run this again"
    done
    [[ $dry == yes ]] || systemctl daemon-reload
}

# As the administrator of the server on this host, by its socket: nothing is typed, no password is on a command line.
init_database() {
    local client folder
    [[ ${values[DB_HOST]} == localhost ]] || die "--init-database reaches the server on this host only" "on ${values[DB_HOST]}: slurm_install.sh --print-sql | mariadb"
    client=$(command -v mariadb || command -v mysql) || die "there is no mariadb client on this host" "install the distribution's mariadb-server"
    for folder in /etc/mysql/mariadb.conf.d /etc/my.cnf.d /etc/mysql/conf.d; do
        [[ -d $folder ]] || continue
        put_template own sql/mariadb.cnf $folder/60-slurm.cnf 0644 root root
        break
    done
    if [[ $dry == yes ]]; then
        did made "database ${values[DB_NAME]} and user ${values[DB_USER]}"
        return 0
    fi
    # The user can log in and sees its database: nothing to do.
    if "$client" --defaults-extra-file=<(printf '[client]\npassword="%s"\n' "${values[DB_PASSWORD]}") --user="${values[DB_USER]}" \
        --execute='SELECT 1' "${values[DB_NAME]}" >/dev/null 2>&1; then
        as_it_is
        return 0
    fi
    fill sql/accounting.sql | "$client" || die "the database refused" "is MariaDB running? As its administrator: slurm_install.sh --print-sql | $client"
    did made "database ${values[DB_NAME]} and user ${values[DB_USER]}"
    say note "restart MariaDB, so that it reads what slurmdbd asks of it ($folder/60-slurm.cnf)"
}
