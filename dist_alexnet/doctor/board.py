"""How the ranks tell each other what they find: plain JSON in the store of their launcher.

A store needs one connection to one host. So a rank can still be heard where collectives, which connect every rank with
every other, do not start or hang.
"""

import json
import time
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch.distributed import HashStore  # type: ignore[attr-defined]
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from dist_alexnet.environment import World, prepare_rendezvous
from dist_alexnet.errors import LayoutError

MEET_S = 60.0
LONGEST_PAUSE_S = 0.05


class Board:
    """Names and values that all ranks see. `store` is also where a process group can be started from."""

    def __init__(self, store: Store, rank: int) -> None:
        self.store, self._rank = store, rank

    def put(self, name: str, value: Any) -> None:
        """Say something under a name of one's own."""
        self.store.set(f"{name}/{self._rank}", json.dumps(value))

    def of(self, rank: int, name: str, wait_s: float) -> Any:
        """What `rank` has put there, waiting for it. Raises TimeoutError."""
        key, until_s, pause_s = f"{name}/{rank}", time.monotonic() + wait_s, 0.001
        while not self.store.check([key]):  # the store's own waiting would tell of it on stderr
            if time.monotonic() > until_s:
                raise TimeoutError(f"rank {rank} said nothing for {wait_s:.0f} s")
            time.sleep(pause_s)
            pause_s = min(1.5 * pause_s, LONGEST_PAUSE_S)
        return json.loads(self.store.get(key))

    def of_all(self, ranks: Iterable[int], name: str, wait_s: float) -> dict[int, Any]:
        """What each of the ranks has put there; those that say nothing are left out. The first silence costs wait_s."""
        found = {}
        for rank in ranks:
            try:
                found[rank] = self.of(rank, name, wait_s)
            except TimeoutError:
                wait_s = 0.0
        return found


def open_board(world: World) -> Board:
    """Meet the other ranks. Raises LayoutError on a rank that cannot."""
    if world.world_size == 1:
        return Board(HashStore(), 0)
    prepare_rendezvous(world)
    try:
        store, _, _ = next(rendezvous("env://", world.rank, world.world_size, timeout=timedelta(seconds=MEET_S)))
    except (dist.DistError, OSError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise LayoutError(
            f"rank {world.rank} did not meet the other {world.world_size - 1} ranks at the host of rank 0 within "
            f"{MEET_S:.0f} s ({reason}): start all ranks, and look whether that host's port can be reached"
        ) from error
    return Board(PrefixStore("doctor", store), world.rank)
