"""The hash: golden values, NumPy and torch alike, and that it scatters."""

import numpy as np
import torch

from shards.hashing import below, hash64, hash_words, open_interval, stream_key, unit_interval

GOLDEN_WORDS = [4488718540338716652, 6053605108016452531, 190370106212274913]
GOLDEN_ONE = -8990005041381537404


def test_golden_values() -> None:
    """Frozen: a change here is another run for everybody who has one going."""
    words = hash64(1, "golden", np.arange(3), np.array([0, 1, 1000]))
    assert words.tolist() == GOLDEN_WORDS
    assert int(hash64(-5, "golden", np.array(2**40), 7)) == GOLDEN_ONE


def test_torch_and_numpy_give_the_same_words() -> None:
    positions, units = np.arange(-3, 50)[:, None] * 10**14, np.arange(40)[None, :]
    key = stream_key(11, "dropout/fc6")
    ours = hash_words(key, positions, units)
    theirs = hash_words(key, torch.from_numpy(positions), torch.from_numpy(units))
    assert np.array_equal(ours, theirs.numpy())
    assert np.array_equal(unit_interval(ours), unit_interval(theirs).numpy())


def test_it_scatters() -> None:
    words = hash64(3, "scatter", np.arange(400)[:, None], np.arange(500)[None, :])
    uniform = unit_interval(words) / 2**53
    assert abs(uniform.mean() - 0.5) < 0.003
    assert abs(uniform.var() - 1 / 12) < 0.001
    assert abs(np.corrcoef(uniform[:, 0], uniform[:, 1])[0, 1]) < 0.15
    assert abs(np.corrcoef(uniform[0], uniform[1])[0, 1]) < 0.15
    assert len(np.unique(words)) == words.size


def test_streams_and_seeds_differ() -> None:
    a = hash64(3, "one", np.arange(100))
    assert not np.isin(a, hash64(3, "two", np.arange(100))).any()
    assert not np.isin(a, hash64(4, "one", np.arange(100))).any()


def test_below_is_even() -> None:
    drawn = below(hash64(0, "crop", np.arange(33_000)), 33)
    counts = np.bincount(drawn, minlength=33)
    assert drawn.min() == 0
    assert drawn.max() == 32
    assert counts.min() > 850
    assert counts.max() < 1150


def test_the_open_interval_is_symmetric_and_never_reaches_its_ends() -> None:
    extreme = open_interval(np.array([0, -1, 2**63 - 1, -(2**63)], dtype=np.int64))
    assert extreme.tolist() == [1, 2**53 - 1, 2**52 - 1, 2**52 + 1]
    words = hash64(3, "open", np.arange(100_000))
    inside = open_interval(words) / 2**53
    assert 0 < inside.min() < inside.max() < 1
    assert abs(inside.mean() - 0.5) < 0.005
    assert np.array_equal(open_interval(words), open_interval(torch.from_numpy(words)).numpy())
