"""Which shards a rank waits for in a step, as the watchdog names them."""

from pathlib import Path

import pytest

from dist_alexnet.config import Batches, config_from
from dist_alexnet.data.loader import Share, shards_read, training_batches
from dist_alexnet.data.statistics import statistics_for
from shards.index import read_index
from shards.reader import ShardReader
from tests.ranks.pictures import CLASSES, write_shards


@pytest.mark.parametrize("share", [Share(), Share(data_rank=1, data_ranks=2), Share(replica=1, replicas=2)])
def test_they_are_those_of_the_pictures_that_come(tmp_path: Path, share: Share) -> None:
    write_shards(tmp_path)
    index = read_index(str(tmp_path / "train.index.json"))
    url_of = {sample.key: sample.url for sample in ShardReader(index).read(range(len(index)))}
    data = {"train": index.folder, "batch_size": 12, "workers": 0, "resize": 72, "image_size": 64, "lanes": 4}
    config = config_from({"data": data, "network": {"num_classes": CLASSES}}, "the test")
    whole = 12 // share.data_ranks
    batches = Batches(data_ranks=share.data_ranks, micro_batch=whole // 2, accumulation=2)
    micros = list(
        training_batches(index, config, batches, share, range(3), statistics_for(config.data), pin_memory=False)
    )
    for step in range(3):
        keys = [key for batch in micros[2 * step : 2 * step + 2] for key in batch.keys]
        assert len(keys) == whole // share.replicas
        assert shards_read(index, config, batches, share, step) == sorted({url_of[key] for key in keys})
