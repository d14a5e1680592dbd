#!/usr/bin/env bash
# Trains under torchrun, on this host alone or on many, with the same command on each.
#
#   launch/torchrun.sh CONFIG [KEY=VALUE ...]
#   NNODES=2 RDZV_ENDPOINT=host1:29500 launch/torchrun.sh CONFIG [KEY=VALUE ...]     # on host1 and on host2
#
# Settings (environment):
#   NPROC_PER_NODE   ranks on this host: as many as it has GPUs, or one on the CPU
#   NNODES           hosts (1)
#   RDZV_ENDPOINT    host:port where they meet: one of them, and a port that is free there
#   RDZV_ID          name of this meeting, the same on all hosts (dist-alexnet)
#   NODE_RANK        0 on the host of RDZV_ENDPOINT, where its name there is not the host's own
#   MAX_RESTARTS     how often ranks are started again when one dies (0)
#   COMMAND          train, or doctor: look at hosts and data with all ranks, and train nothing (train)
#   PYTHON           the Python to use (that of .venv)
#
# TERM, INT, HUP, USR1 or USR2 asks the run to stop: it saves and ends. A second one ends it at once.
# Exit code: 0 done, 75 stopped on request (start it again), 2 your input is wrong, 1 anything else.
set -uo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

fail() { echo "error: $*" >&2; exit 2; }

[ $# -gt 0 ] || fail "no config given: launch/torchrun.sh CONFIG [KEY=VALUE ...]"
command=${COMMAND:-train} nnodes=${NNODES:-1}
if [ "$nnodes" != 1 ] && [ -z "${RDZV_ENDPOINT:-}" ]; then
    fail "NNODES is $nnodes and RDZV_ENDPOINT is not set: give host:port of one of the hosts, the same on all of them"
fi
python=${PYTHON:-$here/../.venv/bin/python}
command -v "$python" >/dev/null || python=python3
source "$here/environment.sh"

# a mistake in the config is said here, once, before anything starts
run=$("$python" -m launch folder "$@") || exit

if [ "$nnodes" = 1 ] && [ -z "${RDZV_ENDPOINT:-}" ]; then
    meeting=(--standalone)
else
    choose_interface "${RDZV_ENDPOINT%:*}"
    meeting=("--nnodes=$nnodes" --rdzv-backend=c10d "--rdzv-endpoint=$RDZV_ENDPOINT" "--rdzv-id=${RDZV_ID:-dist-alexnet}")
    case "${NODE_RANK:-}" in
        "") ;;
        0) meeting+=(--rdzv-conf=is_host=true) ;;
        *) meeting+=(--rdzv-conf=is_host=false) ;;
    esac
fi

# torchrun itself, but: ranks that all end with 2 (the user's mistake) make it end with 2, and without a traceback. Of
# signals it answers to QUIT only, where torch lets us say so; the others are the ranks'.
agent='
import sys
import torch
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import get_args_parser, main

ranks, *arguments = sys.argv[1:]
options = [f"--nproc-per-node={ranks or max(1, torch.cuda.device_count())}"]
if "--signals-to-handle" in get_args_parser().format_help():
    options.append("--signals-to-handle=SIGQUIT")
try:
    main([*options, *arguments])
except ChildFailedError as error:
    rank, failure = error.get_first_failure()
    if failure.exitcode == 2:
        sys.exit(2)
    sys.exit(f"error: rank {rank} was the first to fail, with exit code {failure.exitcode} (negative: a signal)")
'

stamp() { stat -c '%i %z' "$run/outcome.json" 2>/dev/null; } # changes whenever the file is written
before=$(stamp)

asked=0
ask() {
    asked=$((asked + 1))
    # Slurm signals all processes of a step: the ranks have heard it. Not so of what is typed under `srun --pty`.
    if [ -n "${SLURM_STEP_ID:-}" ] && ! [ -t 0 ]; then return; fi
    if [ $asked = 1 ] && [ "$command" = train ]; then # the run in a doctor's folder may be under way elsewhere
        echo "asked to stop ($1): the run saves and ends; once more to end it at once" >&2
        keep_asking &
    else
        kill -QUIT "$agent_pid"
    fi
}
# The start of a run takes the file away: it may have been there for the start before.
keep_asking() {
    while kill -0 "$agent_pid" 2>/dev/null; do
        [ ! -d "$run" ] || touch "$run/stop"
        sleep 2
    done
}
for signal in TERM INT HUP USR1 USR2; do trap "ask $signal" $signal; done

# Ignored from here on, ranks included, until a rank listens itself: none dies of a signal while it is starting.
(
    trap '' TERM INT HUP USR1 USR2
    exec "$python" -c "$agent" "${NPROC_PER_NODE:-}" "${meeting[@]}" "--max-restarts=${MAX_RESTARTS:-0}" \
        -m dist_alexnet "$command" "$@"
) &
agent_pid=$!
while true; do # a signal wakes `wait`, too
    heard=$asked
    wait "$agent_pid"
    code=$?
    if [ "$asked" = "$heard" ] || [ $code -le 128 ]; then break; fi
done

# torchrun ends with 0 after a stop and with 1 after any failure; the run's folder says more, if it says anything new
after=$(stamp)
if [ "$command" = train ] && [ -n "$after" ] && [ "$after" != "$before" ]; then
    said=$(sed -n 's/.*"code": \([0-9]\{1,3\}\).*/\1/p' "$run/outcome.json")
    code=${said:-$code}
fi
exit "$code"
