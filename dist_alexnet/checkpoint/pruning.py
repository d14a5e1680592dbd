"""Which checkpoints stay."""

from dist_alexnet.checkpoint.commit import COMMIT
from dist_alexnet.checkpoint.finding import Run, committed_in, generation_of, generations_in, root_of, step_of, steps_in
from dist_alexnet.checkpoint.store import is_whole


def prune(
    run: Run,
    keep: int,
    step: int | None = None,
    every_steps: int | None = None,
    spared: int | None = None,
    whole_only: bool = False,
    generation: int | None = None,
) -> list[int]:
    """After the save of `step`, remove what lies before the newest `keep` committed steps up to it (rank 0 calls).

    Multiples of `every_steps` and the step `spared` stay where they are committed. Steps beyond `step` are of an
    earlier start that went further; this one will come to them (None: all steps count). whole_only: count only those
    whose files are as promised. generation: of the start that asks; what later ones wrote is not counted and not
    touched, so one that wakes late takes nothing from its successor. Returns the steps of which something was removed.
    Raises StorageFault.
    """
    root = root_of(run)
    found = [path for path in committed_in(root) if generation is None or generation_of(path) <= generation]
    steps = {step_of(path) for path in found if not whole_only or is_whole(path)}
    newest = sorted(number for number in steps if step is None or number <= step)[-keep:]
    stay = {number for number in steps if number == spared or (every_steps and number % every_steps == 0)}
    removed = []
    for at in steps_in(root) if newest else []:
        number = int(at.name.removeprefix("step-"))
        if number >= newest[0] or number in stay:
            continue
        old = [path for path in generations_in(at) if generation is None or generation_of(path) <= generation]
        for folder in old:
            folder.clear(first=COMMIT)  # from here on it is no checkpoint, whatever happens to the rest
        at.drop()
        if old:
            removed.append(number)
    return sorted(removed)
