"""Beginning with another's weights, through the command line: imported ones, what is said, and what is refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from dist_alexnet.__main__ import run
from dist_alexnet.config import config_from, load_config, to_yaml
from dist_alexnet.doctor.board import open_board
from dist_alexnet.doctor.data import job
from dist_alexnet.doctor.site import Site
from dist_alexnet.environment import World
from dist_alexnet.errors import CheckpointError
from dist_alexnet.network.weights.safe import write_safetensors
from dist_alexnet.network.weights.state import Weights
from tests.network.weights.drawn import drawn
from tests.ranks.harness import tensors
from tests.ranks.pictures import CLASSES, write_shards
from tests.servers.s3 import MISSING, WHY, Store, forget_clients

pytest.importorskip("safetensors")

NEW = "finetune.new_layers=[fc8]"


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    write_shards(folder)
    return folder


@pytest.fixture
def config(tmp_path: Path, shards: Path) -> Path:
    """Two steps of a narrow net; run.dir is `runs` beside it."""
    values = {
        "run": {"name": "tuned", "dir": str(tmp_path / "runs"), "steps": 2},
        "data": {
            "train": f"{shards}/train.index.json",
            "batch_size": 8,
            "workers": 0,
            "image_size": 64,
            "resize": 72,
            "bad_samples": {"max_fraction": 0.2},
        },
        "network": {"num_classes": CLASSES, "width": 0.125},
        "log": {"wandb": {"mode": "disabled"}},
    }
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(config_from(values, "the test")))
    return path


@pytest.fixture
def imported(tmp_path: Path) -> tuple[Path, Weights]:
    """A checkpoint of seven classes, by `import`."""
    weights, file, to = drawn("alexnet-2012", 0.125, 64), tmp_path / "net.safetensors", tmp_path / "imported"
    write_safetensors(weights, file)
    assert run(["import", str(file), "--format", "safetensors", "--to", str(to)]) == 0
    return to, weights


def refused(capsys: pytest.CaptureFixture[str], config: Path, *words: str) -> str:
    """The one line that `train` gives."""
    capsys.readouterr()
    assert run(["train", str(config), *words]) == 2
    shown = capsys.readouterr()
    (line,) = shown.err.strip().splitlines()
    assert shown.out == ""
    return line


def test_imported_weights_are_trained_on(
    config: Path, imported: tuple[Path, Weights], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, weights = imported
    asked = [str(config), f"finetune.from={folder}", NEW]
    assert run(["train", *asked, "--dry-run"]) == 0
    assert f"begins     with {folder}, step 0; new layers: fc8" in capsys.readouterr().out
    runs = config.parent / "runs"
    assert not runs.exists()
    assert run(["train", *asked, "run.steps=0", "run.name=begun"]) == 0
    assert run(["train", *asked]) == 0
    told = capsys.readouterr().out
    assert f"begins with {folder}, step 0: conv1, conv2, conv3, conv4, conv5, fc6, fc7\n" in told
    assert "begins anew: fc8; left there: none\n" in told
    begun, tuned = tensors(runs / "begun"), tensors(runs / "tuned")
    for name, values in weights.tensors.items():
        if not name.startswith("fc8"):
            assert torch.equal(begun[f"{name}/weight"], values.view(-1)), name
    assert not torch.equal(begun["conv1.weight/weight"], tuned["conv1.weight/weight"])


def test_the_run_goes_on_in_another_folder_without_its_source(
    config: Path, imported: tuple[Path, Weights], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its checkpoints know what it began with, too."""
    folder, _ = imported
    asked = ["train", str(config), f"finetune.from={folder}", NEW]
    assert run(asked) == 0
    folder.rename(tmp_path / "elsewhere")
    other = [*asked, "run.name=other", "run.steps=3"]
    assert "imported holds no committed checkpoint" in refused(capsys, config, *other[2:])
    assert run([*other, "--resume", str(tmp_path / "runs" / "tuned")]) == 0
    assert json.loads((tmp_path / "runs" / "other" / "finetune.json").read_text())["checkpoint"] == str(folder)
    assert run([*asked, "run.steps=3", "--dry-run"]) == 0
    assert run([*asked, "run.steps=3"]) == 0
    one, other_one = tensors(tmp_path / "runs" / "tuned"), tensors(tmp_path / "runs" / "other")
    assert all(torch.equal(one[name], other_one[name]) for name in one)
    (tmp_path / "runs" / "tuned" / "finetune.json").write_text("{")
    assert "finetune.json is not what a run wrote" in refused(capsys, config, *asked[2:])


def test_another_machine_goes_on_while_the_source_trains_on(
    config: Path, imported: tuple[Path, Weights], tmp_path: Path
) -> None:
    """With checkpoint.url and a run folder of its own: the run's checkpoints say with which step it began."""
    folder, _ = imported
    asked = ["train", str(config), f"finetune.from={folder}", NEW, f"checkpoint.url={tmp_path / 'far'}"]
    assert run(asked) == 0
    began = json.loads((tmp_path / "runs" / "tuned" / "finetune.json").read_text())
    shutil.rmtree(tmp_path / "runs")
    folder.rename(tmp_path / "elsewhere")
    assert run([*asked, "run.steps=3"]) == 0
    assert json.loads((tmp_path / "runs" / "tuned" / "finetune.json").read_text()) == began


def test_doctor_looks_at_the_source(config: Path, imported: tuple[Path, Weights]) -> None:
    folder, _ = imported
    world = World(0, 1, 0, 1, "bare")
    asked = [f"finetune.from={folder}", NEW]
    found = job(Site(world, "here", open_board(world), lambda: load_config(config, asked)))
    assert f"begins with {folder}" in found.found
    assert "what the run begins with (digest)" in found.alike
    with pytest.raises(CheckpointError, match=r"name fc8 in finetune\.new_layers"):
        job(Site(world, "here", open_board(world), lambda: load_config(config, asked[:1])))


def test_a_beginning_that_is_gone_or_another(
    config: Path, imported: tuple[Path, Weights], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a run that has no checkpoint of its own: it takes what it took, or says why not."""
    folder, _ = imported
    asked = [f"finetune.from={folder}", NEW]
    assert run(["train", str(config), *asked]) == 0
    before = tensors(tmp_path / "runs" / "tuned")
    shutil.rmtree(tmp_path / "runs" / "tuned" / "checkpoints")
    folder.rename(tmp_path / "kept")
    assert f"begins with {folder}, which cannot be taken" in refused(capsys, config, *asked)
    write_safetensors(drawn("net-148", 0.125, 64), tmp_path / "other.safetensors")
    assert run(["import", str(tmp_path / "other.safetensors"), "--format", "safetensors", "--to", str(folder)]) == 0
    assert f"begins with {folder}, which is another checkpoint by now" in refused(capsys, config, *asked)
    shutil.rmtree(folder)
    (tmp_path / "kept").rename(folder)
    assert run(["train", str(config), *asked]) == 0
    after = tensors(tmp_path / "runs" / "tuned")
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.skipif(bool(MISSING), reason=WHY)
def test_from_an_object_store(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import s3fs

    server = Store()
    try:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        forget_clients()
        s3fs.S3FileSystem().mkdir("bucket")
        url = "s3://bucket/pretrained"
        assert run(["train", str(config), "run.name=pretrained", "run.steps=1", f"checkpoint.url={url}"]) == 0
        assert run(["train", str(config), f"finetune.from={url}", NEW, "run.steps=0"]) == 0
        forget_clients()
    finally:
        server.stop()
    record = json.loads((config.parent / "runs" / "tuned" / "finetune.json").read_text())
    assert record["checkpoint"] == f"{url}/step-00000001/g0001"
    assert run(["train", str(config), f"finetune.from={url}", NEW, "run.steps=1"]) == 0, "without the store"


WRONG = [
    ((), ["fc8.weight is 7 x 512, expected 5 x 512; name fc8 in finetune.new_layers"]),
    (
        ("network.name=net-146",),
        ["conv6.weight is missing, expected 32 x 32 x 3 x 3 (nor does fc8)", "name conv6, fc8 in"],
    ),
    (("network.width=0.25", NEW), ["conv1.weight is 12 x 3 x 11 x 11, expected 24 x 3 x 11 x 11"]),
    (("network.name=alexnet-bn", NEW), ["bn1.weight is missing", "name bn1, bn2, bn3, bn4, bn5 in"]),
    (("finetune.new_layers=[fc9]",), ["names layer fc9, expected one of conv1, conv2"]),
]


@pytest.mark.parametrize(("overrides", "says"), WRONG, ids=[" ".join(over) or "none" for over, _ in WRONG])
def test_what_does_not_fit_is_refused(
    config: Path,
    imported: tuple[Path, Weights],
    capsys: pytest.CaptureFixture[str],
    overrides: tuple[str, ...],
    says: list[str],
) -> None:
    folder, _ = imported
    for dry in ([], ["--dry-run"]):
        line = refused(capsys, config, f"finetune.from={folder}", *overrides, *dry)
        assert all(words in line for words in says), line
    assert not (config.parent / "runs").exists()


def test_what_is_no_source_is_refused(
    config: Path, imported: tuple[Path, Weights], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder, _ = imported
    asked = f"finetune.from={folder}"
    assert "finetune.from is not set" in refused(capsys, config, NEW)
    assert "nowhere holds no committed checkpoint" in refused(capsys, config, f"finetune.from={tmp_path}/nowhere", NEW)
    assert "begin a new run with it by finetune.from" in refused(
        capsys, config, "run.name=other", "--resume", str(folder)
    )
    for url in ("pipe:cat", "ftp://host/run"):
        assert url.partition(":")[0] in refused(capsys, config, f"finetune.from={url}", NEW)
    said = refused(capsys, config, "finetune.from=s3://user:hunter2@bucket/run", NEW)
    assert "hunter2" not in said
    assert "finetune.from: the URL s3://bucket/run has a user" in said
    (folder / "COMMIT").rename(folder / "kept")
    assert "imported holds no committed checkpoint" in refused(capsys, config, asked, NEW)
    (folder / "kept").rename(folder / "COMMIT")
    (victim,) = folder.glob("*.distcp")
    whole = victim.read_bytes()
    victim.write_bytes(whole[:-7] + bytes([whole[-7] ^ 1]) + whole[-6:])
    for dry in ([], ["--dry-run"]):
        assert f"{victim} has another sha256 than COMMIT says" in refused(capsys, config, asked, NEW, *dry)
    assert not (tmp_path / "runs" / "tuned").exists(), "a damaged source must not claim the run folder"
    victim.write_bytes(whole)
    assert run(["train", str(config), asked, NEW, "run.steps=0"]) == 0
