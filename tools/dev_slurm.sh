#!/usr/bin/env bash
# Run a real SLURM on one Debian machine, for development and tests. Its two nodes, n1 and n2, are two slurmd on this
# host, and it has accounting (sacct). As root:
#
#   tools/dev_slurm.sh up        install Debian's packages where they are missing, and start; may be repeated
#   tools/dev_slurm.sh status    show what runs, and the nodes
#   tools/dev_slurm.sh down      stop everything, and forget the jobs
#
# Do not use it on a machine that others use.
set -euo pipefail

STATE=/var/lib/dev-slurm
CONF=/etc/slurm/slurm.conf
MARK="# written by tools/dev_slurm.sh"
NODES=(n1 n2)

die() { echo "dev_slurm: error: $*" >&2; exit 1; }

ready() { # ready SECONDS COMMAND...: wait until it succeeds
    local end=$((SECONDS + $1)); shift
    until "$@" >/dev/null 2>&1; do
        [ "$SECONDS" -lt "$end" ] || return 1
        sleep 0.2
    done
}

packages() {
    local missing=()
    for package in slurm-wlm munge slurmdbd mariadb-server; do
        dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q "install ok installed" || missing+=("$package")
    done
    [ ${#missing[@]} -eq 0 ] && return
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq || die "apt-get update failed: SLURM cannot be installed here"
    # Services must not start by themselves: this script starts them with its own settings.
    printf '#!/bin/sh\nexit 101\n' > /usr/sbin/policy-rc.d && chmod +x /usr/sbin/policy-rc.d
    apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null || { rm -f /usr/sbin/policy-rc.d; die "apt-get install ${missing[*]} failed"; }
    rm -f /usr/sbin/policy-rc.d
}

configure() {
    if [ -f "$CONF" ] && ! grep -q "$MARK" "$CONF"; then
        die "$CONF exists and is not mine: this machine has a SLURM already"
    fi
    local cpus memory host
    cpus=$(nproc); memory=$(($(awk '/MemTotal/ {print int($2 / 1024)}' /proc/meminfo) * 8 / 10)); host=$(hostname)
    mkdir -p /etc/slurm "$STATE"/{ctld,log,run} "$STATE"/d-n1 "$STATE"/d-n2
    cat > "$CONF" <<CONF
$MARK
ClusterName=dev
SlurmctldHost=$host(127.0.0.1)
AuthType=auth/munge
# A requeued job waits as long as a credential lives: two minutes by default.
AuthInfo=cred_expire=10
SlurmUser=root
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
MpiDefault=none
SlurmctldPort=17000
StateSaveLocation=$STATE/ctld
SlurmdSpoolDir=$STATE/d-%n
SlurmctldPidFile=$STATE/run/slurmctld.pid
SlurmdPidFile=$STATE/run/slurmd-%n.pid
SlurmctldLogFile=$STATE/log/slurmctld.log
SlurmdLogFile=$STATE/log/slurmd-%n.log
SlurmctldTimeout=10
SlurmdTimeout=20
KillWait=10
MinJobAge=3600
OverTimeLimit=0
EnforcePartLimits=ALL
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1,sched_min_interval=0
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
NodeName=n1 NodeHostname=$host NodeAddr=127.0.0.1 Port=17001 CPUs=$cpus RealMemory=$memory State=UNKNOWN
NodeName=n2 NodeHostname=$host NodeAddr=127.0.0.1 Port=17002 CPUs=$cpus RealMemory=$memory State=UNKNOWN
PartitionName=dev Nodes=n1,n2 Default=YES MaxTime=60 State=UP OverSubscribe=NO GraceTime=30
PartitionName=urgent Nodes=n1,n2 MaxTime=60 State=UP OverSubscribe=NO PriorityTier=10 PreemptMode=OFF
CONF
    cat > /etc/slurm/slurmdbd.conf <<CONF
$MARK
AuthType=auth/munge
DbdHost=$host
DbdAddr=127.0.0.1
SlurmUser=root
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm_acct_db
LogFile=$STATE/log/slurmdbd.log
PidFile=$STATE/run/slurmdbd.pid
CONF
    chmod 600 /etc/slurm/slurmdbd.conf
}

up() {
    [ "$(id -u)" = 0 ] || die "needs root"
    packages
    configure
    if ! munge -n 2>/dev/null | unmunge >/dev/null 2>&1; then
        [ -s /etc/munge/munge.key ] || { dd if=/dev/urandom of=/etc/munge/munge.key bs=1024 count=1 status=none; chown munge: /etc/munge/munge.key; chmod 400 /etc/munge/munge.key; }
        mkdir -p /run/munge && chown munge: /run/munge
        runuser -u munge -- /usr/sbin/munged --force
        ready 10 sh -c 'munge -n | unmunge' || die "munged does not answer"
    fi
    if ! mariadb-admin ping >/dev/null 2>&1; then
        mkdir -p /run/mysqld && chown mysql: /run/mysqld
        nohup mariadbd-safe --skip-networking --innodb-buffer-pool-size=64M >"$STATE/log/mariadb.log" 2>&1 &
        ready 60 mariadb-admin ping || die "MariaDB does not start: $STATE/log/mariadb.log"
    fi
    mariadb -e "CREATE DATABASE IF NOT EXISTS slurm_acct_db;
        CREATE USER IF NOT EXISTS slurm@localhost IDENTIFIED BY 'slurm';
        GRANT ALL ON slurm_acct_db.* TO slurm@localhost;"
    pgrep -x slurmdbd >/dev/null || slurmdbd
    ready 30 sacctmgr -n list cluster || die "slurmdbd does not answer: $STATE/log/slurmdbd.log"
    sacctmgr -n list cluster format=cluster | grep -qw dev || sacctmgr -i add cluster dev >/dev/null
    pgrep -x slurmctld >/dev/null || slurmctld
    ready 30 scontrol ping || die "slurmctld does not answer: $STATE/log/slurmctld.log"
    for node in "${NODES[@]}"; do
        pgrep -f "slurmd -N $node\$" >/dev/null || slurmd -N "$node"
    done
    ready 60 sh -c '[ "$(sinfo -h -N -p dev -t idle,alloc,mix -o %N | sort -u | wc -l)" = 2 ]' || {
        scontrol update nodename=n1,n2 state=resume 2>/dev/null || true
        ready 30 sh -c '[ "$(sinfo -h -N -p dev -t idle,alloc,mix -o %N | sort -u | wc -l)" = 2 ]' || die "the nodes do not come up: $STATE/log"
    }
    status
}

down() {
    [ "$(id -u)" = 0 ] || die "needs root"
    scancel --full -u root 2>/dev/null || true
    pkill -x slurmd || true
    pkill -x slurmstepd || true
    pkill -x slurmctld || true
    pkill -x slurmdbd || true
    mariadb-admin shutdown 2>/dev/null || true
    pkill -x munged || true
    ready 20 sh -c '! pgrep -x "slurmd|slurmctld|slurmdbd|munged" ' || die "something does not stop"
    rm -rf "$STATE"
    if [ -f "$CONF" ] && grep -q "$MARK" "$CONF"; then rm -f "$CONF" /etc/slurm/slurmdbd.conf; fi
    echo "down"
}

status() {
    for daemon in munged mariadbd slurmdbd slurmctld slurmd; do
        printf '%-10s %s\n' "$daemon" "$(pgrep -xc "$daemon" || true) running"
    done
    sinfo -N -p dev 2>/dev/null || echo "no SLURM is up"
}

case "${1:-}" in
    up | down | status) "$1" ;;
    *) sed -n '2,10s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac
