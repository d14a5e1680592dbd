"""Every key of metrics.jsonl: its unit, what it means, and the section of the page where it is shown.

One table for the dashboard, the report and the documentation. A name that ends in `/*` stands for one key a tensor of
the network: `norm/weight/*` for `norm/weight/conv1.weight`, `norm/weight/conv1.bias` and so on.
"""

from dataclasses import dataclass
from typing import Literal, get_args

Section = Literal["training", "validation", "optimizer", "speed", "data", "machine"]
SECTIONS: tuple[Section, ...] = get_args(Section)  # in the order in which a reader asks

AXES = {
    "step": "optimizer steps done",
    "samples": "training pictures seen: steps times the global batch",
    "epoch": "passes over the training set",
}


@dataclass(frozen=True)
class Key:
    """One key, or one family of keys.

    always: in every line of training, or of validation (norms: unless log.norms is off); others only where due.
    """

    name: str
    unit: str  # "" where it is a plain number
    section: Section
    meaning: str
    always: bool = True

    @property
    def prefix(self) -> str | None:
        """What the keys of a family begin with; None where this is one key."""
        return self.name[:-1] if self.name.endswith("/*") else None

    def holds(self, name: str) -> bool:
        """Whether `name` is this key, or one of this family."""
        return name == self.name if self.prefix is None else name.startswith(self.prefix)


KEYS: tuple[Key, ...] = (
    Key("train/loss", "", "training", "sum(weight * loss) / batch_size, mean of the steps since the last line"),
    Key("train/top1", "", "training", "part of the pictures whose class was the most likely one, with dropout on"),
    Key("train/top5", "", "training", "part of the pictures whose class was among the five most likely ones"),
    Key("train/dropped_steps", "steps", "training", "left out so far, by fp16 or by divergence.action: skip", False),
    Key("val/loss", "", "validation", "mean over the pictures of the validation set that decode"),
    Key("val/top1", "", "validation", "part of the validation set; a picture that does not decode counts as wrong"),
    Key("val/top5", "", "validation", "the same, among the five most likely classes"),
    Key("val/bad_images", "pictures", "validation", "of the validation set that did not decode"),
    Key("optim/lr", "", "optimizer", "learning rate of the weights in this step"),
    Key("optim/lr/*", "", "optimizer", "rate of a tensor where it is not the network's multiple of optim/lr", False),
    Key("optim/loss_scale", "", "optimizer", "what the loss is multiplied with; fp16 only", False),
    Key("optim/update_ratio/*", "", "optimizer", "L2 norm of what the step changed in a tensor, over its own norm"),
    Key("norm/gradient", "", "optimizer", "L2 norm of the gradient of the whole batch, before clipping"),
    Key("norm/gradient/*", "", "optimizer", "the same, of one tensor"),
    Key("norm/weight", "", "optimizer", "L2 norm of all learned tensors after the step"),
    Key("norm/weight/*", "", "optimizer", "the same, of one tensor"),
    Key("speed/images_per_s", "pictures/s", "speed", "of all ranks together, without evaluating and saving"),
    Key("speed/images_per_s_per_device", "pictures/s", "speed", "the same, over the number of ranks"),
    Key("speed/mfu", "", "speed", "6 * multiplications of one forward * pictures/s, over the devices' peak", False),
    Key("time/step_p50_s", "s", "speed", "median step since the last line, of the rank where it is longest"),
    Key("time/step_p95_s", "s", "speed", "95th percentile of the steps, of the rank where it is longest"),
    Key("time/step_max_s", "s", "speed", "the longest step of any rank since the last line"),
    Key("time/load_s", "s", "speed", "a step's time waiting for pictures, mean over ranks"),
    Key("time/forward_s", "s", "speed", "a step's forward on the host, mean over ranks"),
    Key("time/backward_s", "s", "speed", "a step's backward on the host, mean over ranks"),
    Key("time/reduce_s", "s", "speed", "a step's sum of gradients over ranks, waiting for them too, mean over ranks"),
    Key("time/step_s", "s", "speed", "a step's update alone, mean over ranks"),
    Key("time/load_max_s", "s", "speed", "time/load_s of the rank where it is longest"),
    Key("time/forward_max_s", "s", "speed", "time/forward_s of the rank where it is longest"),
    Key("time/slowest_rank", "rank", "speed", "the rank that is slower than the others, where one is", False),
    Key("data/wait_s", "s", "data", "a step's time in which rank 0 waited for its loader"),
    Key("data/fetch_s", "s", "data", "loader time of a step to read the files' bytes, over all workers of a rank"),
    Key("data/decode_s", "s", "data", "loader time of a step to decode and crop, over all workers of a rank"),
    Key("data/transfer_s", "s", "data", "a step's copies from host to GPU, which run beside the training", False),
    Key("data/bad_samples", "pictures", "data", "that did not decode, since the start of the run"),
    Key("memory/device_peak_bytes", "bytes", "machine", "most that tensors took on a GPU, the fullest rank's", False),
    Key("memory/host_rss_bytes", "bytes", "machine", "resident memory of the largest rank, without loaders", False),
    Key("wire/bytes_per_step", "bytes", "machine", "sent by each rank in a step; computed, not counted"),
)


def key_of(name: str) -> Key | None:
    """The entry of a key that stands in a line of metrics; None for one that is not in the table."""
    return next((key for key in KEYS if key.holds(name)), None)


def in_section(section: Section) -> tuple[Key, ...]:
    """The keys of a section, in the table's order."""
    return tuple(key for key in KEYS if key.section == section)
