#!/usr/bin/env bash
# What a pod of pytorchjob.yaml runs: launch/torchrun.sh, told by the training operator which pod it is.
#
#   entry.sh CONFIG [KEY=VALUE ...]
#
# Settings: those of launch/torchrun.sh, of which the operator gives MASTER_ADDR, MASTER_PORT and RANK (of the pod).
# Kubernetes sends TERM before it takes a pod away: the run saves and ends.
# Exit code: 0 done; 2 your input is wrong; 138 for all that can go on: saved on request, or broken off. Under
# restartPolicy ExitCode the operator makes a pod again from 128 on, and takes smaller codes for final.
set -uo pipefail
torchrun=${TORCHRUN:-$(dirname "${BASH_SOURCE[0]}")/../torchrun.sh}

: "${MASTER_ADDR:?error: not set, start this as a PyTorchJob with a Master}" "${MASTER_PORT:?}" "${RANK:?}"
export RDZV_ENDPOINT=$MASTER_ADDR:$MASTER_PORT NODE_RANK=${PET_NODE_RANK:-$RANK}
unset MASTER_ADDR MASTER_PORT RANK WORLD_SIZE # of pods; torchrun gives each rank its own
for setting in "${!PET_@}"; do unset "$setting"; done # torchrun reads them, too

asked=0
for signal in TERM INT USR1; do trap "asked=\$((asked + 1)); kill -s $signal \$run" $signal; done
"$torchrun" "$@" &
run=$!
while true; do # a signal wakes `wait`, too
    heard=$asked
    wait "$run"
    code=$?
    if [ "$asked" = "$heard" ] || [ $code -le 128 ]; then break; fi
done
case $code in
    0 | 2) exit $code ;;
    *) echo "exit code $code: the pod is made again, and the run goes on from its checkpoint" >&2; exit 138 ;;
esac
