#!/usr/bin/env bash
# Sets up and runs the tests. Arguments go to pytest; --all also runs the tests that take minutes.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
launch/setup.sh

chosen=(-m "not long")
passed_on=()
for argument in "$@"; do
    if [ "$argument" = --all ]; then chosen=(); else passed_on+=("$argument"); fi
done

export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} # many small processes, few cores
export WANDB_MODE=offline                    # no test talks to a service, whatever keys there are
exec .venv/bin/python -m pytest ${chosen[@]+"${chosen[@]}"} ${passed_on[@]+"${passed_on[@]}"}
