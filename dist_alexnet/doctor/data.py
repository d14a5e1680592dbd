"""The job on this world: whether it is legal, goes on where the run stands, and has its shards."""

from collections.abc import Sequence
from functools import partial

import numpy as np

from dist_alexnet.config import Data
from dist_alexnet.data.decode import DecodeFault, decode_crop
from dist_alexnet.data.view import centre_views
from dist_alexnet.doctor.finding import Finding
from dist_alexnet.doctor.site import Site
from shards.index import ShardIndex
from shards.reader import ShardReader
from shards.storage import NoRanges


def job(site: Site) -> Finding:
    """Config, indexes, network and layout fit this world."""
    found = site.job
    layout, val = found.layout, f"{len(found.val)} images" if found.val is not None else "none"
    told = (
        f"{layout.data} data x {layout.replicas} replicas x {layout.columns} columns; {found.total_steps} steps of "
        f"{site.config.data.batch_size} images; train {len(found.train)} images in {len(found.train.shards)} shards, "
        f"val {val}"
    )
    if site.ranks != site.world.world_size:
        told = f"as {site.ranks} ranks (--world-size says how many): {told}"
    digests = {"the training set (digest)": found.train.digest[:12]}
    if found.source is not None:
        told += f"; begins with {found.source.folder}"
        digests["what the run begins with (digest)"] = found.source.digest[:12]
    if found.val is not None:
        digests["the validation set (digest)"] = found.val.digest[:12]
    return Finding("ok", told, alike=digests)


def shards(site: Site) -> Finding:
    """Shards can be read from this host, and their first pictures decode. The ranks of a host share them out."""
    opened, bad = 0, list[str]()
    for index in (site.job.train, site.job.val):
        if index is None:
            continue
        chosen = _spread(len(index.shards), site.shards)[site.world.local_rank :: site.world.local_world_size]
        opened += len(chosen)
        undecodable = [fault for shard in chosen if (fault := _first_sample(index, shard, site.config.data))]
        if len(undecodable) > site.config.data.bad_samples.max_fraction * len(index):
            return Finding(
                "FAIL",
                f"{len(undecodable)} of {len(chosen)} first pictures do not decode ({undecodable[0]}), more bad "
                f"ones than data.bad_samples.max_fraction allows in {len(index)}",
                "look at them with dist-alexnet shards ls, and build or fetch the set again",
            )
        bad += undecodable
    if bad:
        told = f"{len(bad)} of {opened} first pictures do not decode: {bad[0]}"
        return Finding("warning", told, "count them with dist-alexnet shards verify")
    return Finding("ok", f"{opened} shards opened, the first picture of each is as indexed and decodes")


def _spread(shards: int, wanted: int) -> Sequence[int]:
    """Numbers of up to `wanted` shards, evenly over the set, first and last among them; 0: of all."""
    if wanted == 0 or wanted >= shards:
        return range(shards)
    return sorted({round(at) for at in np.linspace(0, shards - 1, wanted)})


def _first_sample(index: ShardIndex, shard: int, data: Data) -> str:
    """What is wrong with the first picture of a shard, empty where nothing is. Raises StorageFault."""
    if index.shards[shard].samples == 0:
        return ""
    reader = ShardReader(index)  # without the cache, which this must not fill
    try:
        (sample,) = reader.read([int(index.samples_per_shard[:shard].sum())])
    except NoRanges:
        if data.cache.dir is None:
            raise
        return ""  # it was reached, and with a cache whole files will do
    try:
        decode_crop(sample.jpeg, partial(centre_views(1, data).box, 0), data.image_size, data.decoder)
    except DecodeFault as fault:
        return f"{sample.key} in {sample.url}: {fault}"
    finally:
        reader.close()
    return ""
