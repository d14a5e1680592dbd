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
test=(.venv/bin/python -m pytest ${chosen[@]+"${chosen[@]}"})
if [ ${#passed_on[@]} -gt 0 ]; then
    exec "${test[@]}" "${passed_on[@]}"
fi

# Slurm's tests mostly wait for Slurm's timers: beside the others they take no time of their own.
beside=$(mktemp)
"${test[@]}" -p no:cacheprovider tests/slurm >"$beside" 2>&1 &
trap 'kill $! 2>/dev/null || true; rm -f "$beside"' EXIT
code=0
"${test[@]}" tests --ignore tests/slurm || code=$?
wait $! || code=$?
echo "== tests/slurm, which ran beside them"
cat "$beside"
exit $code
