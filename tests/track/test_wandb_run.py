"""Real W&B, offline: without an account and without a network."""

import math
from pathlib import Path
from typing import Any

import pytest

from dist_alexnet.config import Wandb
from dist_alexnet.track import session
from dist_alexnet.track.session import Card
from dist_alexnet.track.wandb_start import cleaned, start_wandb, start_wandb_node, wandb_identity
from tests.track.one_start import Asked, history, loss, offline_files, records, start


def test_the_newest_file_of_a_run_that_was_killed_and_rolled_back_holds_each_step_once(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    start(Asked(str(folder), last=30, kill=True), home=tmp_path / "home", check=False)
    asked = Asked(str(folder), "auto", generation=2, stands_on=1, first=20, last=45, rolled_back_at=40,
                  rolled_back_to=30, pictures=True, step_s=0.05)  # fmt: skip
    done = start(asked, home=tmp_path / "home")
    assert done.stderr == ""
    run_id = (folder / "wandb" / "run-id.txt").read_text().strip()
    assert {file.name for file in offline_files(folder)} == {f"run-{run_id}.wandb"}
    lines = records(offline_files(folder)[-1])
    rows = [line["history"]["item"] for line in lines if line["type"] == "history"]
    assert [row["_step"] for row in rows] == [row["step"] for row in rows] == list(range(1, 46))
    assert [row["samples"] for row in rows] == [64 * step for step in range(1, 46)]
    generations = [1] * 20 + [2] * 10 + [3] * 15
    assert [row["train/loss"] for row in rows] == pytest.approx([loss(i + 1, g) for i, g in enumerate(generations)])
    assert all(math.isnan(float(row["val/top1"])) == (row["step"] % 10 == 0) for row in rows if "val/top1" in row)
    assert [row["step"] for row in rows if "val/top1" in row] == [10, 20, 30, 40]
    assert [row["step"] for row in rows if "pictures/filters._type" in row][-1:] == [40]
    config = _config(lines)
    assert (config["generation"], config["resumed_step"]) == (3, 30)
    assert config["data"] == {"batch_size": 64, "train": "https://host/x.tar"}
    axis = [line["metric"] for line in lines if line["type"] == "metric"]
    assert any(metric.get("glob_name") == "*" and metric.get("step_metric") == "step" for metric in axis)


def test_artifacts_are_references_and_code_if_asked(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text("run: {}\n")
    asked = {"save_code": True, "tags": ["a", "b"], "group": "g", "notes": "n", "job_type": "j"}
    done = start(Asked(str(folder), last=2, settings=asked, alert="it has ended"), home=tmp_path / "home")
    assert done.stderr == ""
    lines = records(offline_files(folder)[0])
    run = next(line["run"] for line in lines if line["type"] == "run")
    assert (run["tags"], run["run_group"], run["notes"], run["job_type"]) == (["a", "b"], "g", "n", "j")
    (code,) = [line["artifact"] for line in lines if line["type"] == "artifact"]
    names = {entry["path"] for entry in code["manifest"]["contents"]}
    assert {"config.yaml", "dist_alexnet/train.py", "shards/order.py"} <= names
    assert not [name for name in names if name.startswith(("tests", ".git"))]
    assert [line["alert"]["text"] for line in lines if line["type"] == "alert"] == ["it has ended"]


def test_disabled_does_not_import_wandb(tmp_path: Path) -> None:
    done = start(Asked(str(tmp_path / "run"), "disabled"), home=tmp_path / "home")
    assert (done.stderr, '"imported": false' in done.stdout) == ("", True)
    assert not (tmp_path / "run" / "wandb").exists()


def test_online_without_a_key_is_offline_and_asks_nothing(tmp_path: Path) -> None:
    done = start(Asked(str(tmp_path / "run"), "online", exit_code=75), home=tmp_path / "home")
    assert done.stderr.splitlines() == ["W&B: no API key (WANDB_API_KEY or ~/.netrc), so this run is logged offline"]
    (file,) = offline_files(tmp_path / "run")
    assert [row["step"] for row in history(file)] == list(range(1, 11))


@pytest.mark.parametrize("broken", ["folder", "file"])
def test_an_id_that_cannot_be_written_or_read_stops_nothing(tmp_path: Path, capsys: Any, broken: str) -> None:
    path = tmp_path / "run" / "wandb" / "run-id.txt"
    if broken == "folder":
        (tmp_path / "run").write_text("a file where the folder should be")
    else:
        path.mkdir(parents=True)
    assert wandb_identity(Wandb(mode="offline"), tmp_path / "run", None) is None
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("W&B: ")
    assert line.endswith("this run is not shown there")


def test_the_identity_is_one_over_all_starts_and_follows_the_checkpoint(tmp_path: Path) -> None:
    settings = Wandb(mode="offline")
    first = wandb_identity(settings, tmp_path / "a", None)
    assert first is not None
    assert wandb_identity(settings, tmp_path / "a", "of-a-checkpoint") == first
    assert wandb_identity(settings, tmp_path / "b", first) == first  # the folder was lost, its checkpoint was not
    assert wandb_identity(settings, tmp_path / "c", None) != first
    (tmp_path / "a" / "wandb" / "run-id.txt").write_text("")  # killed between creating and writing
    second = wandb_identity(settings, tmp_path / "a", None)
    assert second not in (None, "", first)
    assert wandb_identity(settings, tmp_path / "a", None) == second
    assert wandb_identity(Wandb(mode="disabled"), tmp_path / "d", None) is None


def test_what_is_sent_of_a_config_holds_no_secret() -> None:
    url = "s3://user:password@bucket/train.tar?X-Amz-Signature=abc"
    config = {"data": {"train": url, "exclude": (url, "a.tar")}, "steps": 3, "dir": "runs/a?b"}
    assert cleaned(config) == {
        "data": {"train": "s3://bucket/train.tar", "exclude": ["s3://bucket/train.tar", "a.tar"]},
        "steps": 3,
        "dir": "runs/a?b",
    }


def test_other_nodes_only_write_where_the_run_is_online_and_nodes_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)

    def node(**settings: Any) -> object:
        asked = Wandb.model_validate(settings)
        return start_wandb_node(asked, run_folder=tmp_path, run_name="digits", run_id="abc", host="there")

    assert node(mode="online") is None
    assert node(mode="online", system_metrics="nodes") is None  # no key
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    assert node(mode="offline", system_metrics="nodes") is None
    none = start_wandb(Wandb(mode="online"), run_folder=tmp_path, run_name="digits", run_id=None, config=dict,
                       generation=1, step=0, host="here")  # fmt: skip
    assert none is None


def test_rank_0_alone_sends_alerts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every rank's tracker is told, and a node's rank has a session of its own."""
    settings, sent = Wandb.model_validate({"mode": "online", "system_metrics": "nodes"}), list[str]()

    class Session:
        first_step, is_offline = 0, False

        def say(self, facts: object) -> None: ...

        def alert(self, title: str, text: str) -> None:
            sent.append(title)

        def finish(self, exit_code: int) -> None: ...

    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setattr(session, "open_session", lambda *_, **__: Session())
    there = start_wandb_node(settings, run_folder=tmp_path, run_name="digits", run_id="abc", host="there")
    here = start_wandb(settings, run_folder=tmp_path, run_name="digits", run_id="abc", config=dict, generation=1,
                       step=0, host="here")  # fmt: skip
    for run, name in ((there, "there"), (here, "here")):
        assert run is not None
        run.alert(name, "it has ended")
        run.finish(1)
    assert sent == ["here"]


def test_another_node_writes_beside_the_first_under_its_own_name(tmp_path: Path) -> None:
    import wandb

    card = Card("id", "name", tmp_path, "project", label="there", primary=False, command_is_public=False)
    settings = session.settings_of(wandb, card)
    assert (settings.x_primary, settings.x_update_finish_state, settings.x_label) == (False, False, "there")
    assert (settings.x_disable_meta, settings.console, settings.disable_git) == (True, "off", True)


def _config(lines: list[dict[str, Any]]) -> dict[str, Any]:
    config: dict[str, Any] = {}
    for line in lines:
        config |= line.get(line["type"], {}).get("config", {}).get("update", {}) if line["type"] == "run" else {}
        config |= line["config"]["update"] if line["type"] == "config" else {}
    return config
