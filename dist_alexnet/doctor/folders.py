"""The folders that a run shares: the same for all ranks, and writable. Probes are files that are taken away again."""

import json
import secrets
import time
from contextlib import suppress
from pathlib import Path

from dist_alexnet.doctor.finding import Finding
from dist_alexnet.doctor.site import Site, standing_above
from dist_alexnet.run_folder import check_identity
from shards import storage
from shards.errors import InputError, StorageFault

SHARED_S = 8.0  # after which another host must see what this one has written: network folders keep old listings


def run_folder(site: Site) -> Finding:
    """Rank 0 writes a file that all others read; each rank writes one. Whatever run lies there is left as it is."""
    folder = site.config.run_folder.absolute()
    above = [folder, *folder.parents]
    if site.world.rank > 0:
        return _beside_rank_0(site, above)
    depth, token = 0, ""
    try:
        there = standing_above(folder)
        _check_run(site, folder)
        depth, token = above.index(there), secrets.token_hex(8)
        _write(there / f".doctor-{token}", token)
        site.board.put("token", [depth, token])
        others = range(1, site.world.world_size)
        site.board.of_all(others, "token read", SHARED_S + 2)  # who says nothing is told of by its own answer
    except BaseException:
        site.board.put("token", None)
        raise
    finally:
        with suppress(OSError):
            (above[depth] / f".doctor-{token}").unlink(missing_ok=True)
    where = f"{folder}" if depth == 0 else f"{folder}, to be made in {there}"
    return Finding("ok", f"{where}: shared by all ranks, writable")


def _beside_rank_0(site: Site, above: list[Path]) -> Finding:
    told = site.board.of(0, "token", SHARED_S)
    if told is None:
        return Finding("ok", "not looked at: it failed on rank 0")
    try:
        depth, token = told
        return _as_rank_0_sees_it(site, above[min(depth, len(above) - 1)], token)
    finally:
        site.board.put("token read", True)


def _as_rank_0_sees_it(site: Site, folder: Path, token: str) -> Finding:
    probe, until_s = folder / f".doctor-{token}", time.monotonic() + SHARED_S
    while not _reads(probe, token):
        if time.monotonic() > until_s:
            return Finding(
                "FAIL",
                f"{folder} is not the folder that rank 0 has by this name",
                "set run.dir to a folder on a file system that all hosts share",
            )
        time.sleep(0.2)
    mine = folder / f".doctor-{token}-{site.world.rank}"
    try:
        _write(mine, token)
    finally:
        with suppress(OSError):
            mine.unlink(missing_ok=True)
    return Finding("ok", "shared")


def _check_run(site: Site, folder: Path) -> None:
    """Raise RunFolderError where the folder holds another run."""
    if (folder / "identity.json").exists():
        known = json.loads((folder / "identity.json").read_text())
        check_identity(known, site.job.identity, f"run folder {folder}")


def _reads(probe: Path, token: str) -> bool:
    with suppress(OSError):
        list(probe.parent.iterdir())  # makes network folders look again
        return probe.read_text() == token
    return False


def _write(probe: Path, token: str) -> None:
    """Raises InputError."""
    try:
        probe.write_text(token)
    except OSError as error:
        raise InputError(
            f"{probe.parent} cannot be written: {error.strerror}; give run.dir a folder of yours"
        ) from error


def checkpoint_url(site: Site) -> Finding:
    """An object can be written where checkpoints go, read again, and taken away."""
    url = site.config.checkpoint.url
    if url is None:
        return Finding("ok", "not set: checkpoints lie in the run folder")
    local = storage.local_path(url)
    folder = url if local is None else str(standing_above(local))
    token = secrets.token_hex(8)
    probe = storage.join(folder, f".doctor-{token}")
    began_s = time.monotonic()
    try:
        storage.write_atomic(probe, token.encode())
        found = storage.read_all(probe)
    except (InputError, StorageFault) as error:
        return Finding("FAIL", str(error), "give this host the right to write there, or set another checkpoint.url")
    finally:
        with suppress(InputError, StorageFault):
            storage.remove(probe)
    if found != token.encode():
        return Finding("FAIL", f"{storage.shown(url)} gave other bytes than were written", "use other storage")
    took_s = time.monotonic() - began_s
    return Finding("ok", f"{storage.shown(url)}: written, read and removed in {took_s:.1f} s")
