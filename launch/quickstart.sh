#!/usr/bin/env bash
# From a fresh clone to a trained AlexNet: sets up, makes shards of real pictures, trains on two ranks with one column of
# the network each, evaluates, and says where to look. A second time it goes on where it stands.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
launch/setup.sh

python=.venv/bin/python
config=configs/quickstart.yaml
run=runs/quickstart
export OMP_NUM_THREADS=1

ranks=2
layout=""
what="data parallel"
hidden=""
other="2 -m dist_alexnet train $config parallel.columns=1 run.name=quickstart-data"
if command -v nvidia-smi >/dev/null; then
    gpus=$($python -c 'import torch; print(torch.cuda.device_count())')
    if [ "$gpus" = 1 ]; then
        ranks=1
        layout=" parallel.columns=1" # both columns on the one GPU
        what="one column a rank, on two processes of the CPU"
        other="2 -m dist_alexnet train $config run.name=quickstart-columns"
        hidden="CUDA_VISIBLE_DEVICES= "
    fi
fi
torchrun="$python -m torch.distributed.run --standalone --nproc-per-node"
train="-m dist_alexnet train $config$layout"

echo "== shards: 5,000 handwritten digits as WebDataset tars"
.venv/bin/dist-alexnet shards build bundled digits --to data/digits

echo "== train: $ranks rank(s), $config$layout"
rm -f $run/outcome.json
$torchrun $ranks $train
# torchrun hides how its ranks ended, so they write it down
code=$($python - $run/outcome.json <<'PY'
import json, pathlib, sys
file = pathlib.Path(sys.argv[1])
print(json.loads(file.read_text())["code"] if file.exists() else 2)
PY
)
[ "$code" = 0 ] || exit "$code"

echo "== evaluate: $run on the validation digits"
.venv/bin/dist-alexnet evaluate $run --shards data/digits/val.index.json --json $run/evaluation.json

read -r accuracy images more < <($python - $run/evaluation.json $config <<'PY'
import json, pathlib, sys
from dist_alexnet.config import load_config
result = json.loads(pathlib.Path(sys.argv[1]).read_text())
print(f"{result['top1']:.4f}", result["images"], f"{(load_config(sys.argv[2]).run.epochs or 0) + 2:g}")
PY
)
cat <<END

validation accuracy   $accuracy (top-1, $images digits that training never saw; chance is 0.1)
run folder            $PWD/$run

Try next, in $PWD:
  look at it: filters, predictions, what is taken for what
    .venv/bin/dist-alexnet report $run
  watch it in the terminal
    $python -m wandb leet $run/wandb
  resume it, for two more epochs
    OMP_NUM_THREADS=1 $torchrun $ranks $train run.epochs=$more
  run it with another layout, $what
    ${hidden}OMP_NUM_THREADS=1 $torchrun $other
END
