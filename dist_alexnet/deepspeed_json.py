"""The DeepSpeed settings that follow from a config. Users never write this JSON by hand."""

from typing import Any

from dist_alexnet.config import Config, batches_on

BUCKET_ELEMENTS = 1 << 24  # 64 MiB of fp32: DeepSpeed's default of 5e8 takes 2 GB a rank for a net of 244 MB


def deepspeed_json(config: Config, world_size: int) -> dict[str, Any]:
    """The JSON for `deepspeed.initialize` on `world_size` ranks. Raises LayoutError where the batch does not fit.

    Precision is not in it: weights, gradients and optimizer state are fp32 for DeepSpeed, and the network runs its
    convolutions and products under autocast itself, so that a checkpoint crosses precisions.
    """
    batches = batches_on(config, world_size)
    return {
        "train_batch_size": config.data.batch_size,
        "train_micro_batch_size_per_gpu": batches.micro_batch,  # of one model group, as the mpu tells it
        "gradient_accumulation_steps": batches.accumulation,
        # Always written: left out, 0.19.8 clips at 1.0.
        "gradient_clipping": config.optimizer.clip_norm,
        "zero_optimization": {
            "stage": config.parallel.zero_stage,
            "reduce_bucket_size": BUCKET_ELEMENTS,
            "allgather_bucket_size": BUCKET_ELEMENTS,
            "overlap_comm": False,  # its side stream beside our collectives has never been tried
        },
        "zero_allow_untested_optimizer": True,  # ours are not on its list
        "zero_force_ds_cpu_optimizer": False,  # or it would ask for a compiled Adam
        "steps_per_print": 2**31 - 1,  # it prints nothing; metrics are ours
        "wall_clock_breakdown": False,
    }
