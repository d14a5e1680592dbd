"""What the ranks of a torchrun start do, one case after the other. Run by tests/ranks/harness.py."""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from dist_alexnet.__main__ import leave
from dist_alexnet.checkpoint import flat, store
from dist_alexnet.config import Config, load_config
from dist_alexnet.environment import read_world
from dist_alexnet.evaluate import evaluate_checkpoint
from dist_alexnet.job import make_job
from dist_alexnet.network.build import ColumnNetwork
from dist_alexnet.parallel.mesh import make_mesh
from dist_alexnet.parallel.start import distributed
from dist_alexnet.train import _Run, train


def save_again(config: Config, name: str, extra: dict[str, Any]) -> None:
    """Load a run's newest checkpoint on this layout, and save it at once under another name."""
    run = _Run(config, torch.device("cpu"), "auto")
    run.job = make_job(config, dist.get_world_size())
    run.prepare()
    step = run.take_up()
    assert step > 0
    to = Path(config.run.dir) / name
    parts = run.engine.fragments_to_save()
    store.save(to, parts, step=step, generation=1, layout={}, versions={}, state={"config": {}})


def float64(config: Config, name: str, extra: dict[str, Any]) -> None:
    """Loss and every gradient of one batch in float64, each rank holding only its part; put together by rank 0."""
    job = make_job(config, dist.get_world_size())
    mesh = make_mesh(job.layout, "cpu")
    module = ColumnNetwork(job.network, mesh, config.run.seed).double()
    images, replicas = config.data.batch_size, job.layout.replicas
    random = torch.Generator().manual_seed(1)
    x_BCHW = (
        torch.rand(images, 3, config.data.image_size, config.data.image_size, generator=random).double() * 255 - 120
    )
    label_B, weight_B = torch.arange(images) % config.network.num_classes, torch.ones(images)
    weight_B[3] = 0
    parts = [torch.arange(images).chunk(job.layout.data)[mesh.place.data_rank].chunk(replicas)[mesh.place.replica]]
    own = parts[0]
    loss_B, ahead_B, weights = module(x_BCHW[own], label_B[own], weight_B[own], own + 1000)
    ((loss_B * weights).sum() / images).backward()
    held, whole = [], {}
    for tensor in job.network.tensors:
        grad = module.parameter_of(tensor).grad
        assert grad is not None
        dist.all_reduce(grad, group=mesh.data)
        held.append(grad.numel())
        gathered: list[Any] = [None] * dist.get_world_size()
        rows = store_rows(tensor, mesh.place)
        dist.all_gather_object(gathered, (rows.start, grad))
        if mesh.place.rank == 0:
            full = torch.full(tensor.shape, torch.nan, dtype=torch.float64)
            for start, part in gathered:
                full[start : start + len(part)] = part
            assert not full.isnan().any()
            whole[tensor.name] = full
    counts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(counts, (sum(held), sum(p.numel() * p.element_size() for p in module.parameters())))
    total = torch.stack([(loss_B.detach() * weights).sum(), (ahead_B * weights).sum()])
    dist.all_reduce(total, group=mesh.data)
    if mesh.place.rank == 0:
        torch.save(
            {"loss": total[0], "ahead": total[1], "grads": whole, "held": counts}, Path(config.run.dir) / f"{name}.pt"
        )


def store_rows(tensor: Any, place: Any) -> range:
    from dist_alexnet.parallel.layout import owned_rows

    return owned_rows(tensor, place)


def evaluated(config: Config, name: str, extra: dict[str, Any]) -> None:
    """Evaluate a checkpoint on this world."""
    result = evaluate_checkpoint(Path(extra["checkpoint"]), config.data.val or "")
    if dist.get_rank() == 0:
        (Path(config.run.dir) / f"{name}.json").write_text(json.dumps(result.as_dict()))


def killed_in_save(config: Config, name: str, extra: dict[str, Any]) -> None:
    """Train, but rank `extra["rank"]` is killed in the save of step `extra["step"]`: in its data, or before COMMIT."""
    if extra["where"] == "data":
        write = flat.FlatWriter.write_data

        def torn(writer: Any, plan: Any, planner: Any) -> Any:
            done = write(writer, plan, planner)
            if f"step-{extra['step']:08d}" in str(writer.path) and dist.get_rank() == extra["rank"]:
                for path in Path(writer.path).glob(f"__{dist.get_rank()}_*"):
                    os.truncate(path, path.stat().st_size // 2)
                os.kill(os.getpid(), signal.SIGKILL)
            return done

        flat.FlatWriter.write_data = torn  # type: ignore[method-assign]
    else:
        write_durably = store.write_durably

        def never(path: Path, data: bytes) -> None:
            if path.name == store.COMMIT and f"step-{extra['step']:08d}" in str(path):
                os.kill(os.getpid(), signal.SIGKILL)
            write_durably(path, data)

        store.write_durably = never
    train(config)


KINDS = {
    "train": lambda config, name, extra: train(config, **extra),
    "save_again": save_again,
    "float64": float64,
    "evaluated": evaluated,
    "killed_in_save": killed_in_save,
}


def main(config: str, listed: str) -> None:
    with distributed(read_world()):
        for case in json.loads(Path(listed).read_text()):
            overrides = list(case["overrides"])
            if not any(override.startswith("run.name=") for override in overrides):
                overrides.append(f"run.name={case['name']}")
            KINDS[case["kind"]](load_config(config, overrides), case["name"], case["extra"])
            dist.barrier()


if __name__ == "__main__":
    main(*sys.argv[1:])
    leave(0)
