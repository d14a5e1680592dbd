"""Half precision and memory formats: what they may change, and what not."""

import gc
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from dist_alexnet.network.build import Arithmetic
from dist_alexnet.parallel.collectives import ColumnsUnderWay
from dist_alexnet.parallel.layout import Layout
from tests.ranks.graded import Question, apart, graded
from tests.ranks.pool import RankPool
from tests.ranks.test_presets import question

CUT = [Layout(columns=2, replicas=2), Layout(replicas=4), Layout(data=2, columns=2)]
ROUNDING = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}


@pytest.fixture(scope="module")
def pools(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RankPool, RankPool]]:
    folder = tmp_path_factory.mktemp("arithmetic")
    with RankPool(1, folder) as one, RankPool(4, folder) as four:
        yield one, four


def asked(arithmetic: Arithmetic, double: bool = False) -> Question:
    return replace(question("alexnet-2012"), arithmetic=arithmetic, double=double)


@pytest.mark.parametrize("sent", ROUNDING)
def test_half_precision_on_the_wire_is_one_function_on_every_layout(
    pools: tuple[RankPool, RankPool], sent: torch.dtype
) -> None:
    """Forward rounds what is exchanged, also where nothing crosses; backward rounds once each part that is sent."""
    one, four = pools
    in_full = one.ask(graded, asked(Arithmetic(), double=True), Layout())[0]
    rounded = one.ask(graded, asked(Arithmetic(exchange=sent), double=True), Layout())[0]
    assert ROUNDING[sent] / 100 < abs(rounded["loss"] - in_full["loss"]) / in_full["loss"] < ROUNDING[sent]
    for layout in CUT:
        here = four.ask(graded, asked(Arithmetic(exchange=sent), double=True), layout)[0]
        assert here["loss"] == pytest.approx(rounded["loss"], rel=1e-12)
        for name, grad in rounded["tensors"].items():
            norm = np.linalg.norm(here["tensors"][name] - grad) / np.linalg.norm(grad)
            assert norm < 2 * ROUNDING[sent], (layout, name)


def test_gradients_too_small_for_half_precision_are_not_lost_on_the_wire(pools: tuple[RankPool, RankPool]) -> None:
    """fp16 ends at 6e-8; the loss here is of 2**20 images, so every gradient lies below."""
    one, four = pools
    few = replace(asked(Arithmetic(exchange=torch.float16), double=True), loss_scale=2.0**-20)
    rounded, here = one.ask(graded, few, Layout())[0], four.ask(graded, few, CUT[0])[0]
    for name, grad in rounded["tensors"].items():
        assert 0 < np.abs(grad).max() < 1e-5
        assert np.linalg.norm(here["tensors"][name] - grad) < 2 * 2**-11 * np.linalg.norm(grad), name


@pytest.mark.parametrize("dtype", ROUNDING)
def test_half_precision_products(pools: tuple[RankPool, RankPool], dtype: torch.dtype) -> None:
    one, four = pools
    full = one.ask(graded, asked(Arithmetic()), Layout())[0]
    half = one.ask(graded, asked(Arithmetic(compute_dtype=dtype)), Layout())[0]
    assert 0 < abs(half["loss"] - full["loss"]) / full["loss"] < 4 * ROUNDING[dtype]
    for layout in CUT:
        here = four.ask(graded, asked(Arithmetic(compute_dtype=dtype)), layout)[0]
        assert here["loss"] == pytest.approx(half["loss"], rel=4 * ROUNDING[dtype]), layout


@pytest.mark.parametrize("sent", [None, *ROUNDING])
def test_a_convolution_that_begins_before_the_other_column_arrives(
    pools: tuple[RankPool, RankPool], sent: torch.dtype | None
) -> None:
    one, four = pools
    expected = one.ask(graded, asked(Arithmetic(exchange=sent), double=True), Layout())[0]
    for layout in (Layout(columns=2, replicas=2), Layout(data=2, columns=2)):
        here = four.ask(graded, asked(Arithmetic(exchange=sent, overlap=True), double=True), layout)[0]
        assert here["loss"] == pytest.approx(expected["loss"], rel=1e-12)
        for name, grad in expected["tensors"].items():
            norm = np.linalg.norm(here["tensors"][name] - grad) / np.linalg.norm(grad)
            assert norm < (1e-9 if sent is None else 2 * ROUNDING[sent]), (layout, name)


def left_behind(question: Question, layout: Layout) -> int:
    """How many exchanges of columns outlive a forward and backward: each would hold activations."""
    gc.collect()
    gc.disable()
    graded(question, layout)
    left = sum(isinstance(one, ColumnsUnderWay) for one in gc.get_objects())
    gc.enable()
    return left


def test_what_travelled_is_freed_after_backward(pools: tuple[RankPool, RankPool]) -> None:
    """Without waiting for Python to look for cycles, which on a GPU would be many steps' activations."""
    assert pools[1].ask(left_behind, asked(Arithmetic(overlap=True)), Layout(data=2, columns=2)) == [0] * 4


@pytest.mark.parametrize("preset", ["alexnet-2012", "alexnet-bn", "torchvision", "cifar-11pct"])
def test_the_memory_format_of_activations_changes_nothing(pools: tuple[RankPool, RankPool], preset: str) -> None:
    one, four = pools
    plain = question(preset)
    last = replace(plain, arithmetic=Arithmetic(channels_last=True))
    expected = one.ask(graded, plain, Layout())[0]
    assert apart(one.ask(graded, last, Layout())[0], expected) < 1e-9
    assert apart(four.ask(graded, last, Layout(replicas=4))[0], expected) < 1e-9
