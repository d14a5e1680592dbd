#!/usr/bin/env bash
# A real Slurm cluster of several nodes on one Linux machine, for tests.
#
#   cluster.sh up [N]           start a controller ("head") and N nodes n1..nN (default 2);
#                                does nothing if just that is up and whole already
#   cluster.sh down             stop everything that `up` started
#   cluster.sh status           what runs, sinfo, squeue; exit status 1 if the cluster is not whole
#   cluster.sh exec CMD ...     run CMD on the head, as on a login node: sbatch, srun, pytest ...
#   cluster.sh on NODE CMD ...  run CMD on a node, as ssh would (outside any job)
#   cluster.sh wait JOB [SEC]   wait until a job has ended for good and print its state
#                                (exit status: 0 COMPLETED, 1 any other end, 2 not ended after SEC)
#
# Faults, for tests of what a job does about them:
#   cluster.sh crash NODE       the node loses power: every process on it dies at once
#   cluster.sh boot NODE        start a crashed node, or one whose slurmd was killed, again
#   cluster.sh kill-slurmd NODE only the node's slurmd dies; its jobs go on
#   cluster.sh cut NODE         pull its network cable; `heal NODE` plugs it in again
#   cluster.sh ctl stop|start   stop or start slurmctld
#
# How it works. The head and each node have their own network, mount, host name and IPC namespaces,
# and each node its own PIDs too: n1 has its own IP address, its own /etc/hosts, /dev/shm and process
# table, and killing its first process kills all of it. One bridge, inside the head's network
# namespace, joins them; nothing of it is visible from the machine's own network, nor can the cluster
# reach any other network. Files are shared, as on a cluster with one file system for all; only
# /dev/shm and $CLUSTER_DIR/scratch are a node's own (scratch outlives a crash).
# CPUs, memory and GPUs are declared, not measured: a 2-core machine plays 4-GPU nodes. GPUs are made
# up: Slurm hands them out and sets CUDA_VISIBLE_DEVICES, but there is none to use.
#
# Needs Linux, root (in a container: CAP_SYS_ADMIN and CAP_NET_ADMIN), and Debian's or Ubuntu's
#   apt-get install -y --no-install-recommends slurmctld slurmd slurm-client munge iproute2
# (tried with Debian 12's Slurm 22.05).
# No systemd, no cgroups, no accounting data base; nothing in /etc is changed and no port of the
# machine is used, so that several clusters, each with its own CLUSTER_DIR, can run side by side.
#
# Settings (environment):
#   CLUSTER_DIR     state folder, at most 60 characters; default: cluster-UID in /tmp
# and, read by `up` only:
#   CLUSTER_CPUS    CPUs to declare for each node (32)
#   CLUSTER_MEM     memory to declare for each node, in MB (256000)
#   CLUSTER_GPUS    GPUs to declare for each node (4; 0: none)
#   CLUSTER_SHOW    folders, with : between, that ordinary users must reach although a folder above them is closed
#                       (a Python under /root); inside the cluster that folder then holds nothing else
#   CLUSTER_EXTRA   lines to add at the end of slurm.conf; they win over the ones above them
set -euo pipefail

SELF=$(readlink -f -- "${BASH_SOURCE[0]}")
STATE=${CLUSTER_DIR:-/tmp/cluster-$(id -u)}
[[ $STATE = /* ]] || STATE=$PWD/$STATE
NET=10.77.0                     # the cluster's own network: seen inside its namespaces only
export PATH=$PATH:/usr/sbin:/sbin
export SLURM_CONF=$STATE/etc/slurm.conf

die() { echo "cluster: $*" >&2; exit 1; }
log() { echo "cluster: $*" >&2; }

# --- Processes. A file in $STATE/run holds "PID START", START being the kernel's start time of that
# process, so that a number used again for somebody else's process is never taken for ours.

start_time() { # PID -> clock ticks since boot; fails if there is no such process, or only a zombie
  local stat
  { read -r stat <"/proc/$1/stat"; } 2>/dev/null || return 1
  # shellcheck disable=SC2086   # split into fields, after the name, which may hold blanks
  set -- ${stat##*) }           # $1 is field 3 of proc(5), the state; ${20} is field 22, the start time
  [[ $1 != [ZX] ]] && echo "${20}"
}
keep() { # NAME PID
  local start
  start=$(start_time "$2") && echo "$2 $start" >"$STATE/run/$1"
}
pid_of() { # NAME -> PID, if that very process is alive
  local pid start
  { read -r pid start <"$STATE/run/$1"; } 2>/dev/null || return 1
  [[ $(start_time "$pid") = "$start" ]] && echo "$pid"
}
stop() { # NAME SIGNAL: end one process of ours, with KILL if it is still there after 5 s
  local pid i
  if pid=$(pid_of "$1"); then
    kill -s "$2" "$pid" 2>/dev/null || true
    for ((i = 0; i < 50; i++)); do pid_of "$1" >/dev/null || break; sleep 0.1; done
    if pid=$(pid_of "$1"); then kill -s KILL "$pid" 2>/dev/null || true; fi
  fi
  rm -f "$STATE/run/$1"
}
start() { # NAME CMD ...: start CMD cut loose from this shell, with none of its files open
  local i bg
  rm -f "$STATE/run/$1"
  CLUSTER_DIR=$STATE setsid "$SELF" run_ "$@" </dev/null >>"$STATE/log/$1.out" 2>&1 9>&- & bg=$!
  disown "$bg"
  for ((i = 0; i < 200; i++)); do
    if pid_of "$1" >/dev/null; then return; fi
    kill -0 "$bg" 2>/dev/null || break
    sleep 0.05
  done
  cat "$STATE/log/$1.out" >&2
  log "$1 did not start"
  return 1
}
run() { # NAME CMD ...: note this process as NAME, then become CMD
  keep "$1" $$
  exec "${@:2}"
}
enter() { # head|NODE CMD ...: become CMD, inside its namespaces
  local name=$1 pid ns=(--net --mount --uts --ipc); shift
  pid=$(pid_of "$name") || die "$name is not running"
  if [[ $name != head ]]; then ns+=(--pid); fi
  exec nsenter --target "$pid" "${ns[@]}" --wd="$PWD" "$@"
}
in_net() { # head|NODE CMD ...: run one of this machine's programs in its network
  local pid; pid=$(pid_of "$1") || die "$1 is not running"
  nsenter --target "$pid" --net "${@:2}"
}
check_node() { [[ ${1:-} = n* && -d $STATE/nodes/$1 ]] || die "no such node: ${1:-(none given)}"; }

# --- The first process of the head and of each node, inside its new namespaces

init() { # NAME IP
  local name=$1 pid
  read -r pid _ </proc/self/stat        # the machine's /proc still: our PID as the machine sees it
  keep "$name" "$pid"
  if [[ $name != head ]]; then
    mount -t proc proc /proc
    mount -t tmpfs -o mode=1777 tmpfs /dev/shm
    mount --bind "$STATE/nodes/$name/scratch" "$STATE/scratch"
  fi
  mount -t sysfs sysfs /sys             # for /sys/class/net, which shows its mounter's network
  echo "$name" >/proc/sys/kernel/hostname
  show
  mount --bind "$STATE/etc/hosts" /etc/hosts
  if [[ -e /etc/resolv.conf ]]; then mount --bind "$STATE/etc/resolv.conf" /etc/resolv.conf; fi
  ip link set lo up
  if [[ $name = head ]]; then
    ip link add br0 type bridge
    ip addr add "$2/24" dev br0
    ip link set br0 up
  fi
  : >"$STATE/run/$name.ready"
  [[ $name != head ]] || exec sleep infinity
  # PID 1 of a node also takes in the processes that lost their parent, as bash does while it waits
  while :; do sleep 86400 & wait $! || true; done
}

show() { # open the way to the folders of CLUSTER_SHOW, in this mount namespace
  local path above number=0
  local -a shown
  local -A closed=()
  IFS=: read -r -a shown <<<"${CLUSTER_SHOW:-}"
  for path in "${shown[@]}"; do         # held aside before anything is covered
    mkdir -p "$STATE/shown/$number"
    mount --bind "$path" "$STATE/shown/$number"
    number=$((number + 1))
    for above in $(ancestors "$path"); do
      if [[ $(stat -c %A "$above") != *[xt] ]]; then closed[$above]=1; break; fi
    done
  done
  for above in "${!closed[@]}"; do mount -t tmpfs -o mode=755 tmpfs "$above"; done
  number=0
  for path in "${shown[@]}"; do
    mkdir -p "$path"
    mount --move "$STATE/shown/$number" "$path"
    number=$((number + 1))
  done
}
ancestors() { # PATH -> the folders above it, outermost first
  if [[ $1 != / ]]; then ancestors "$(dirname "$1")"; dirname "$1"; fi
}

new_namespaces() { # NAME IP
  local name=$1 i
  rm -f "$STATE/run/$name"{,.ready}
  if [[ $name = head ]]; then
    start head unshare --net --mount --uts --ipc "$SELF" init_ "$@"
  else                                  # unshare waits for the node's first process
    start "$name.unshare" unshare --net --mount --uts --ipc --pid --fork --kill-child "$SELF" init_ "$@"
  fi
  for ((i = 0; i < 200; i++)); do
    if [[ -e $STATE/run/$name.ready ]]; then return; fi
    if ((i > 20)) && ! pid_of "$name" >/dev/null; then break; fi
    sleep 0.05
  done
  cat "$STATE/log/$name"*.out >&2
  log "no namespaces for $name: not root, or a container without CAP_SYS_ADMIN and CAP_NET_ADMIN?"
  return 1
}

# --- The parts of the cluster

write_conf() { # N
  local n=$1 gpus=${CLUSTER_GPUS:-4} gres='' i
  { echo "127.0.0.1 localhost"
    echo "$NET.254 head"
    for ((i = 1; i <= n; i++)); do echo "$NET.$i n$i"; done
  } >"$STATE/etc/hosts"
  echo "# no name server" >"$STATE/etc/resolv.conf"
  # No cgroup is used; but unless one kind is named, slurmd looks for what /sys/fs/cgroup has
  echo "CgroupPlugin=cgroup/v1" >"$STATE/etc/cgroup.conf"
  : >"$STATE/etc/gres.conf"
  if ((gpus > 0)); then
    gres=" Gres=gpu:$gpus"
    for ((i = 0; i < gpus; i++)); do mknod "$STATE/etc/gpu$i" c 1 3; done # must be devices: like /dev/null
    echo "Name=gpu File=$STATE/etc/gpu[0-$((gpus - 1))]" >"$STATE/etc/gres.conf"
  fi
  cat >"$STATE/etc/slurm.conf" <<EOF
ClusterName=local
SlurmctldHost=head
SlurmUser=root
# Job numbers go on from one cluster to the next, so that no job finds another's files
FirstJobId=$(($(date +%s) % 10000000))
AuthType=auth/munge
# cred_expire is also how long a requeued job waits before it may start again (Slurm's default: 120 s)
AuthInfo=socket=$STATE/munge.socket,cred_expire=5
StateSaveLocation=$STATE/ctld
SlurmdSpoolDir=$STATE/nodes/%n/spool
SlurmctldPidFile=$STATE/ctld/pid
SlurmdPidFile=$STATE/nodes/%n/slurmd.pid
SlurmctldLogFile=$STATE/log/slurmctld.log
SlurmdLogFile=$STATE/log/%n.slurmd.log
MailProg=/bin/true
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc=$STATE/log/jobcomp.log
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
GresTypes=gpu
ReturnToService=2
JobRequeue=1
MinJobAge=3600
# Shorter than on a real cluster (300 and 30 s), so that tests need not wait
SlurmdTimeout=15
KillWait=5
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=2,sched_interval=2,sched_min_interval=0
# A job in "urgent" takes the nodes of jobs in "main": those get their --signal, or else SIGTERM, go on
# for GraceTime, and return to the queue
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
NodeName=n[1-$n] CPUs=${CLUSTER_CPUS:-32} RealMemory=${CLUSTER_MEM:-256000} TmpDisk=100000$gres State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES PriorityTier=1 GraceTime=10 DefaultTime=10 MaxTime=INFINITE State=UP
PartitionName=urgent Nodes=ALL PriorityTier=10 PreemptMode=OFF DefaultTime=10 MaxTime=INFINITE State=UP
${CLUSTER_EXTRA:-}
EOF
}

start_munged() {
  (umask 077; mkdir "$STATE/munge"; head -c 128 /dev/urandom >"$STATE/munge/key")
  start munged munged --foreground --socket="$STATE/munge.socket" \
    --key-file="$STATE/munge/key" --pid-file="$STATE/munge/pid" \
    --log-file="$STATE/munge/log" --seed-file="$STATE/munge/seed"
}
start_ctld() { start slurmctld "$SELF" enter_ head slurmctld -D; }
start_node() { # NAME
  local name=$1 ip=$NET.${1#n} pid
  mkdir -p "$STATE/nodes/$name/spool"
  if [[ ! -d $STATE/nodes/$name/scratch ]]; then mkdir -m 1777 "$STATE/nodes/$name/scratch"; fi
  if ! pid_of "$name" >/dev/null; then
    in_net head ip link delete "$name" 2>/dev/null || true # a crashed node's, if the kernel still has it
    new_namespaces "$name" "$ip"
    pid=$(pid_of "$name")
    in_net head ip link add "$name" type veth peer name eth0 netns "$pid"
    in_net head ip link set "$name" master br0 up
    in_net "$name" ip addr add "$ip/24" dev eth0
    in_net "$name" ip link set eth0 up
  fi
  if ! pid_of "$name.slurmd" >/dev/null; then
    # The PID noted is nsenter's, which waits for slurmd, its child in the node's PID namespace
    start "$name.slurmd" "$SELF" enter_ "$name" slurmd -D -N "$name"
  fi
}
crash() { # NAME
  stop "$1" KILL
  stop "$1.unshare" KILL                # these two end by themselves by now, if they had begun to wait
  stop "$1.slurmd" KILL
}
kill_slurmd() { # NAME
  local name=$1 pid
  pid=$(pid_of "$name") || die "$name is not running"
  # slurmd.pid holds its PID as the node sees it, and all PIDs that the node sees are the node's
  nsenter --target "$pid" --pid --mount kill -s KILL "$(<"$STATE/nodes/$name/slurmd.pid")"
  stop "$name.slurmd" KILL
}

# --- Commands

parts() { # the names in $STATE/run of all that should be running
  local dir
  printf '%s\n' munged head slurmctld
  for dir in "$STATE"/nodes/*/; do
    dir=${dir%/}; printf '%s\n' "${dir##*/}" "${dir##*/}.slurmd"
  done
}

up() {
  local n=${1:-2} i p have=0 cmd
  [[ $n =~ ^[1-9][0-9]?$ ]] || die "up: 1 to 99 nodes, not $n"
  ((${#STATE} <= 60)) || die "CLUSTER_DIR is longer than 60 characters, too long for the sockets in it: $STATE"
  ((EUID == 0)) || die "up: must be root, to make namespaces with networks of their own"
  for cmd in slurmctld slurmd sinfo munged ip unshare nsenter; do
    command -v "$cmd" >/dev/null || die "no $cmd: see the top of $SELF for what to install"
  done
  if [[ -d $STATE/nodes ]]; then have=$(find "$STATE/nodes" -mindepth 1 -maxdepth 1 | wc -l); fi
  if ((have == n)) && status >/dev/null 2>&1; then log "already up with $n nodes"; return; fi
  down
  rm -rf "${STATE:?}/log"
  mkdir -p "$STATE"/{run,log,etc,ctld,nodes,scratch,shown}
  chmod 755 "$STATE"
  trap 'log "up failed; logs in $STATE/log"; down' EXIT
  write_conf "$n"
  start_munged
  new_namespaces head "$NET.254"
  for ((i = 0; i < 50; i++)); do [[ -S $STATE/munge.socket ]] && break; sleep 0.1; done
  start_ctld
  for ((i = 1; i <= n; i++)); do start_node "n$i"; done
  for ((i = 0; i < 150; i++)); do
    if [[ $("$SELF" exec sinfo --noheader --Node --partition=main --format=%T 2>/dev/null | grep -cx idle) = "$n" ]]; then
      trap - EXIT
      log "up: nodes $("$SELF" exec sinfo --noheader --partition=main --format=%N)"
      return
    fi
    for p in $(parts); do
      if ! pid_of "$p" >/dev/null; then
        tail -n 20 "$STATE/log/$p".{out,log} >&2 2>/dev/null || true
        die "$p has ended"
      fi
    done
    sleep 0.2
  done
  tail -n 20 "$STATE"/log/*.{out,log} >&2
  die "the nodes are not all idle after 30 s"
}

down() {
  local dir name was=0
  if [[ -d $STATE/run ]]; then was=1; fi
  for dir in "$STATE"/nodes/*/; do      # all that runs on a node dies with its first process
    [[ -d $dir ]] || continue
    name=${dir%/}; name=${name##*/}
    crash "$name"
  done
  stop slurmctld TERM
  stop munged TERM
  stop head KILL
  rm -rf -- "${STATE:?}"/{run,etc,ctld,nodes,scratch,shown,munge,munge.socket*}
  if ((was)); then log "down (its logs stay in $STATE/log until the next up)"; fi
}

status() {
  local p pid bad=0
  if [[ ! -d $STATE/run ]]; then echo "cluster is down"; return 1; fi
  for p in $(parts); do
    if pid=$(pid_of "$p"); then echo "$p: PID $pid"; else echo "$p: not running"; bad=1; fi
  done
  if ! pid_of slurmctld >/dev/null; then return 1; fi
  timeout 20 "$SELF" exec sinfo || bad=1
  timeout 20 "$SELF" exec squeue || bad=1
  return "$bad"
}

wait_job() { # JOB [SECONDS]
  [[ ${1:-} =~ ^[0-9]+(_[0-9]+)?$ ]] || die "wait: no job number: ${1:-}"
  local job=$1 end=$((SECONDS + ${2:-600})) s=''
  while ((SECONDS < end)); do
    s=$("$SELF" exec scontrol --oneliner show job "$job" 2>&1) || true
    [[ $s != *"Invalid job id"* ]] || die "wait: no job $job"
    # an array has a state for each task
    s=$(grep -o '\bJobState=[A-Z_]*' <<<"$s" | cut -d= -f2 | sort -u | paste -sd' ') || true
    case $s in
      '' | *PENDING* | *RUNNING* | *COMPLETING* | *CONFIGURING* | *SUSPENDED* | *REQUEUE* | *STOPPED*) sleep 0.5 ;;
      *) echo "$s"; [[ $s = COMPLETED ]]; return ;;
    esac
  done
  echo "${s:-UNKNOWN}"
  return 2
}

cmd=${1:-help}
if (($#)); then shift; fi
case $cmd in
  init_) init "$@" ;;                   # these three are for this script's own use
  run_) run "$@" ;;
  enter_) enter "$@" ;;
  up | down)
    mkdir -p "$STATE"
    exec 9>"$STATE/lock"
    flock 9                             # one at a time
    "$cmd" "$@" ;;
  status) status ;;
  exec) (($#)) || die "exec CMD ..."; enter head "$@" ;;
  on) check_node "${1:-}"; (($# > 1)) || die "on NODE CMD ..."; enter "$@" ;;
  wait) wait_job "$@" ;;
  crash) check_node "${1:-}"; crash "$1" ;;
  boot) check_node "${1:-}"; start_node "$1" ;;
  kill-slurmd) check_node "${1:-}"; kill_slurmd "$1" ;;
  cut) check_node "${1:-}"; in_net head ip link set "$1" down ;;
  heal) check_node "${1:-}"; in_net head ip link set "$1" up ;;
  ctl)
    [[ -d $STATE/run ]] || die "not up"
    case ${1:-} in
      stop) stop slurmctld TERM ;;
      start) pid_of slurmctld >/dev/null || start_ctld ;;
      *) die "ctl stop|start" ;;
    esac ;;
  help | -h | --help) sed -n '2,/^set -euo/{s/^# \{0,1\}//p}' "$SELF" ;;
  *) die "unknown command $cmd; see: $0 help" ;;
esac
