#!/usr/bin/env bash
# One host's part of a run over a hostfile: launch/hosts.py starts it by ssh, in the folder of the run.
#
# stdin: settings for launch/torchrun.sh, KEY=VALUE a line, and an empty line; then one word a line: the name of a signal
# to pass on, `end` to end all at once, or nothing, to say that the other end is still there. Where it is not, because it
# was killed or the network is down, nobody could stop the ranks any more: they are asked to save and end, then ended.
set -uo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
silence_s=60 # the other end says something every 5 s
saving_s=120 # that a run left alone has for its last checkpoint

settings=()
while IFS= read -r setting && [ -n "$setting" ]; do settings+=("$setting"); done
if [ ${#settings[@]} = 0 ]; then echo "error: no settings on stdin: start a run with launch/hosts.sh" >&2; exit 2; fi
exec 3<&0
mark=ON_HOST=$$.$(date +%s%N) # in the environment of all that is started here

# In a session of its own, and with readers that outlive the connection: a rank must not die of a line that nobody takes.
# Settings may hold secrets, so they are never arguments of a command.
(
    export "${settings[@]}" "$mark"
    exec setsid "$here/torchrun.sh" "$@"
) </dev/null 3<&- > >(exec tee -p /dev/null) 2> >(exec tee -p /dev/null >&2) &
run=$!

# Ranks and their loaders are in sessions of their own, too.
end_all() {
    local _ pid
    grep -lzs "^$mark\$" /proc/[0-9]*/environ | while IFS=/ read -r _ _ pid _; do
        kill -KILL "$pid" 2>/dev/null
    done
}

listen() {
    local word waited=0
    while IFS= read -r -t "$silence_s" -u 3 word; do
        case "$word" in
            TERM | INT | HUP | USR1 | USR2) kill -s "$word" "$run" ;;
            end) end_all ;;
        esac
    done
    kill -TERM "$run"
    while kill -0 "$run" && [ $((waited++)) -lt "$saving_s" ]; do sleep 1; done
    end_all
}
listen 2>/dev/null &
listener=$!
exec 3<&-

wait "$run" 2>/dev/null # a kill is told of there
code=$?
end_all # what the run may have left behind
kill "$listener" 2>/dev/null
exit "$code"
