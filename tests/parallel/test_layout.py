"""Which rank sits where, and that every row of every tensor has its owners."""

import itertools

import pytest

from dist_alexnet.errors import LayoutError
from dist_alexnet.parallel.layout import Layout, LogicalTensor, Place, owned_rows

LAYOUTS = [Layout(*sizes) for sizes in itertools.product((1, 2, 3), (1, 2, 3, 4), (1, 2))]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_places_are_all_different_and_come_back(layout: Layout) -> None:
    places = [Place(layout, rank) for rank in range(layout.world_size)]
    assert len(places) == layout.data * layout.replicas * layout.columns
    seen = {(place.data_rank, place.replica, place.column) for place in places}
    assert seen == set(itertools.product(range(layout.data), range(layout.replicas), range(layout.columns)))
    for place in places:
        assert (place.data_rank * layout.replicas + place.replica) * layout.columns + place.column == place.rank
        assert place.model_rank == place.rank - place.data_rank * layout.group_ranks


def test_columns_are_neighbours() -> None:
    layout = Layout(data=2, replicas=2, columns=2)
    assert [Place(layout, rank).column for rank in range(8)] == [0, 1] * 4
    assert [Place(layout, rank).replica for rank in range(8)] == [0, 0, 1, 1] * 2
    assert [Place(layout, rank).data_rank for rank in range(8)] == [0] * 4 + [1] * 4


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("rows", [8, 10, 13, 1000, 1001])
def test_every_group_owns_every_row_of_a_fully_connected_layer_once(layout: Layout, rows: int) -> None:
    tensor = LogicalTensor("fc8.weight", (rows, 7), "group")
    for data_rank in range(layout.data):
        places = [Place(layout, data_rank * layout.group_ranks + rank) for rank in range(layout.group_ranks)]
        owned = sorted((owned_rows(tensor, place) for place in places), key=lambda own: own.start)
        assert [row for own in owned for row in own] == list(range(rows))
        assert max(map(len, owned)) - min(map(len, owned)) <= 1


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_column_owns_its_filters_on_every_replica(layout: Layout) -> None:
    tensor = LogicalTensor("conv1.weight", (96, 3, 11, 11), "column")
    for rank in range(layout.world_size):
        place = Place(layout, rank)
        filters = 96 // layout.columns
        assert owned_rows(tensor, place) == range(place.column * filters, (place.column + 1) * filters)


def test_rows_are_column_major() -> None:
    """A column's rows are together, so that a layer that reads only its own column finds them there."""
    layout = Layout(replicas=3, columns=2)
    tensor = LogicalTensor("fc6.weight", (12, 5), "group")
    owned = {(place.column, place.replica): owned_rows(tensor, place) for place in map(Place, [layout] * 6, range(6))}
    assert [list(owned[column, replica]) for column in (0, 1) for replica in (0, 1, 2)] == [
        [0, 1],
        [2, 3],
        [4, 5],
        [6, 7],
        [8, 9],
        [10, 11],
    ]


def test_classes_that_do_not_divide() -> None:
    def lengths(rows: int, layout: Layout) -> list[int]:
        tensor = LogicalTensor("fc8.bias", (rows,), "group")
        return [len(owned_rows(tensor, Place(layout, rank))) for rank in range(layout.world_size)]

    assert sorted(lengths(10, Layout(replicas=2, columns=2))) == [2, 2, 3, 3]
    assert sorted(lengths(1000, Layout(replicas=3))) == [333, 333, 334]
    assert lengths(4, Layout(replicas=2, columns=2)) == [1, 1, 1, 1]


def test_a_rank_without_a_row_is_refused() -> None:
    for rows, layout in ((3, Layout(replicas=2, columns=2)), (1, Layout(replicas=2))):
        for rank in range(layout.world_size):  # on every rank alike
            with pytest.raises(LayoutError, match=rf"^fc8\.bias has {rows} rows, expected at least one for each of "):
                owned_rows(LogicalTensor("fc8.bias", (rows,), "group"), Place(layout, rank))


def test_filters_that_do_not_halve_are_refused() -> None:
    with pytest.raises(LayoutError, match=r"^conv1\.bias has 7 rows, expected a multiple of 2 columns"):
        owned_rows(LogicalTensor("conv1.bias", (7,), "column"), Place(Layout(columns=2), 0))


def test_sizes() -> None:
    assert (Layout(2, 3, 2).group_ranks, Layout(2, 3, 2).world_size) == (6, 12)
    tensor = LogicalTensor("conv2.weight", (256, 48, 5, 5), "column")
    assert (tensor.elements, tensor.row_elements) == (307_200, 1200)
    assert LogicalTensor("conv2.bias", (256,), "column").row_elements == 1
