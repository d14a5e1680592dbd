"""torchvision's state_dict is the state of preset `torchvision`, and gives the same logits."""

from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from dist_alexnet.errors import WeightsError
from dist_alexnet.network import build
from dist_alexnet.network.weights.state import Weights
from dist_alexnet.network.weights.torchvision import MEAN, read_torchvision, write_torchvision
from dist_alexnet.parallel.mesh import Mesh
from tests.network.weights.drawn import CLASSES, drawn, logits_of, pictures


class Theirs(nn.Module):
    """AlexNet with torchvision's modules in torchvision's places, from its documentation."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(3, 64, 11, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2)),
            *(nn.Conv2d(64, 192, 5, 1, 2), nn.ReLU(), nn.MaxPool2d(3, 2)),
            *(nn.Conv2d(192, 384, 3, 1, 1), nn.ReLU()),
            *(nn.Conv2d(384, 256, 3, 1, 1), nn.ReLU()),
            *(nn.Conv2d(256, 256, 3, 1, 1), nn.ReLU(), nn.MaxPool2d(3, 2)),
        )
        self.avgpool = nn.AdaptiveAvgPool2d((6, 6))
        self.classifier = nn.Sequential(
            *(nn.Dropout(0.5), nn.Linear(256 * 6 * 6, 4096), nn.ReLU()),
            *(nn.Dropout(0.5), nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, classes)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.avgpool(self.features(x)).flatten(1))  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def full() -> Weights:
    """At full size: there is no other torchvision."""
    return drawn("torchvision", 1, 224)


def test_keys_bits_and_logits(full: Weights, tmp_path: Path, alone: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    write_torchvision(full, tmp_path / "alexnet.pth")
    theirs = Theirs(CLASSES).eval()
    theirs.load_state_dict(torch.load(tmp_path / "alexnet.pth", weights_only=True), strict=True)

    torch.save(theirs.state_dict(), tmp_path / "back.pth")
    back = read_torchvision(tmp_path / "back.pth")
    assert list(back.tensors) == list(full.tensors)
    assert all(torch.equal(back.tensors[key], value) for key, value in full.tensors.items())
    assert back.num_classes == CLASSES
    assert back.pixels == {"image_size": 224, "resize": 256, "mean": list(MEAN)}

    # Theirs sees 0-1 minus mean, over deviation; ours 0-255 minus mean, and divides by itself.
    monkeypatch.setattr(build, "initial_rows", lambda seed, one, rows: torch.zeros(len(rows), *one.tensor.shape[1:]))
    x = pictures(2, 224)
    std = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    with torch.no_grad():
        expected = theirs(x / 255 / std)
    assert (logits_of(back, alone, x) - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert expected.std(0).min() > 1e-3


def test_an_old_file_is_read_too(tmp_path: Path) -> None:
    """torchvision's files of 2017 are of torch's form before zip."""
    weights = drawn("torchvision", 1, 224)
    write_torchvision(weights, tmp_path / "new.pth")
    state = torch.load(tmp_path / "new.pth", weights_only=True)
    torch.save(OrderedDict(state), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    old = read_torchvision(tmp_path / "old.pth")
    assert all(torch.equal(old.tensors[key], value) for key, value in weights.tensors.items())


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        (("alexnet-2012", 1, 224), r"columns 2 against 1; pixel_std .*filters 48 against 64; and \d+ more"),
        (("one-tower-2014", 1, 224), r"pixel_std .*layer 1 \(conv1\): pad 0 against 2; .*; and \d+ more"),
        (("torchvision", 0.5, 224), r"network\.width 0\.5 against 1"),
        (("torchvision", 1, 230), r"data\.image_size 230 against 224"),
    ],
)
def test_another_net_is_refused_naming_what_differs(
    weights: tuple[str, float, int], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.network.weights.drawn.drawn_state", lambda network: {})
    with pytest.raises(WeightsError, match=said) as error:
        write_torchvision(drawn(*weights), tmp_path / "x.pth")
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_dropout_scaled_at_test_is_another_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights of 2012's convention would be twice too large in torchvision; the rate itself does not matter."""
    monkeypatch.setattr("tests.network.weights.drawn.drawn_state", lambda network: {})
    weights = drawn("torchvision", 1, 224)
    layers = [
        layer.model_copy(update={"scale": "test"}) if layer.kind == "dropout" else layer
        for layer in weights.spec.layers
    ]
    other = replace(weights, spec=weights.spec.model_copy(update={"layers": tuple(layers)}))
    with pytest.raises(WeightsError, match=r"drop6.*scale test against training"):
        write_torchvision(other, tmp_path / "x.pth")


def test_what_is_not_a_state_dict(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    for content in (b"", b"PK\x03\x04 torn", b"text"):
        path.write_bytes(content)
        with pytest.raises(WeightsError, match="cannot be read as torch tensors") as error:
            read_torchvision(path)
        assert "\n" not in str(error.value)
    torch.save({"epoch": 3, "state_dict": {}}, path)
    with pytest.raises(WeightsError, match=r"something else than named tensors.*state_dict\(\) alone"):
        read_torchvision(path)
    torch.save({"classifier.6.weight": torch.zeros(3, 4096), "fc.bias": torch.zeros(3)}, path)
    with pytest.raises(WeightsError, match=r"lacks features\.0\.weight, .* also holds fc\.bias"):
        read_torchvision(path)
    torch.save({"fc.bias": torch.zeros(3)}, path)
    with pytest.raises(WeightsError, match=r"holds none for classifier\.6\.weight"):
        read_torchvision(path)


class Evil:
    """Writes a file where somebody unpickles it."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return (Path.touch, (self.mark,))


def test_nothing_of_the_files_author_runs(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    torch.save({"features.0.weight": Evil(mark)}, tmp_path / "evil.pth")
    torch.load(tmp_path / "evil.pth", weights_only=False)
    assert mark.exists()  # the file does what it should, elsewhere
    mark.unlink()
    with pytest.raises(WeightsError, match="cannot be read as torch tensors"):
        read_torchvision(tmp_path / "evil.pth")
    assert not mark.exists()
