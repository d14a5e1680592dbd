#!/usr/bin/env bash
# Trains on the hosts of a hostfile, by ssh: the same as `python -m launch hosts`, whose --help has the options.
#
#   launch/hosts.sh HOSTFILE CONFIG [KEY=VALUE ...]
#
# HOSTFILE: a line a host, `name slots=N`, N ranks there; as the deepspeed launcher reads it.
# TERM, INT, HUP, USR1 or USR2 asks the run to stop: it saves and ends. A second one ends it at once.
# Exit code: 0 done, 75 stopped on request (start it again), 2 your input is wrong, 1 anything else.
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python=${PYTHON:-$here/../.venv/bin/python}
command -v "$python" >/dev/null || python=python3
PYTHONSAFEPATH=1 exec "$python" -m launch hosts "$@"
