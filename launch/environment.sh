# What the environment of every rank has, whoever starts it. Sourced; what is set already stays.

export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} # ranks and their loader processes share the cores
export PYTHONFAULTHANDLER=${PYTHONFAULTHANDLER:-1}
export PYTHONUNBUFFERED=${PYTHONUNBUFFERED:-1} # a log that is read while it grows
# A file of the current folder must not stand in for a module; what runs is the project that is installed, or PYTHONPATH.
export PYTHONSAFEPATH=1
# Ranks that torchrun starts again would find the addresses of the dead ones in the agents' store, and wait for them.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
export NCCL_DEBUG=${NCCL_DEBUG:-WARN}
# When a collective of NCCL times out, say which one each rank stood in.
export TORCH_NCCL_DUMP_ON_TIMEOUT=${TORCH_NCCL_DUMP_ON_TIMEOUT:-1}
export TORCH_FR_BUFFER_SIZE=${TORCH_FR_BUFFER_SIZE:-2000}

# Where a host's own name stands for 127.x (Debian's installer writes 127.0.1.1), gloo would give that address to the
# other hosts. Then it is told the interface on which the way to host $1 begins.
choose_interface() {
    case "$(getent ahostsv4 "$(hostname)" | head -n 1)" in
        127.* | "") ;;
        *) return 0 ;;
    esac
    if [ -n "${GLOO_SOCKET_IFNAME:-}" ] || ! command -v ip >/dev/null; then return 0; fi
    local address interface
    address=$(getent ahostsv4 "$1" | awk 'NR == 1 { print $1 }')
    case "$address" in
        127.* | "") # $1 is this host: the default way, or any
            interface=$({
                ip -o -4 route show default | sed 's/.* dev \([^ ]*\).*/\1/'
                ip -o -4 address show scope global | awk '{ print $2 }'
            } | head -n 1)
            ;;
        *) interface=$(ip -o -4 route get "$address" | sed -n '1s/.* dev \([^ ]*\).*/\1/p') ;;
    esac
    if [ -n "$interface" ]; then export GLOO_SOCKET_IFNAME=$interface; fi
}
