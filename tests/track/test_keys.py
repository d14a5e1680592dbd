"""The table of keys: each key is in it once, and is found by its name."""

from dist_alexnet.track.keys import AXES, KEYS, SECTIONS, in_section, key_of


def test_names_are_unlike_and_each_has_a_section() -> None:
    names = [key.name for key in KEYS]
    assert len(set(names)) == len(names)
    assert sorted(name for section in SECTIONS for name in (key.name for key in in_section(section))) == sorted(names)
    assert not set(AXES) & set(names)


def test_a_key_is_found_by_its_name_and_a_family_by_its_members() -> None:
    assert all(key_of(key.name) is key for key in KEYS if key.prefix is None)
    found = {
        name: key_of(name) for name in ("norm/weight", "norm/weight/conv1.weight", "optim/lr", "optim/lr/fc8.bias")
    }
    assert {name: key and key.name for name, key in found.items()} == {
        "norm/weight": "norm/weight",
        "norm/weight/conv1.weight": "norm/weight/*",
        "optim/lr": "optim/lr",
        "optim/lr/fc8.bias": "optim/lr/*",
    }


def test_what_is_not_in_the_table_is_not_found() -> None:
    assert [key_of(name) for name in ("loss", "norm", "norm/weights", "train/loss/conv1.weight")] == [None] * 4


def test_units_are_where_names_promise_them() -> None:
    for key in KEYS:
        for ending, unit in (("_s", "s"), ("_bytes", "bytes"), ("_per_s", "pictures/s")):
            if key.name.endswith(ending) and not (ending == "_s" and key.name.endswith("_per_s")):
                assert key.unit == unit, key.name
