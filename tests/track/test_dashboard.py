"""The workspace as wandb-workspaces makes it, without a service; and what is sent, with a stand-in of it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dist_alexnet.config import Config, to_yaml
from dist_alexnet.track.dashboard import PICTURES, SECTIONS, dashboard_spec, save_dashboard
from dist_alexnet.track.keys import KEYS
from shards.errors import InputError
from tests.track.one_start import KEY
from tests.track.stand_in import stand_in

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # wandb-workspaces' own
DOCS = Path(__file__).parents[2] / "docs" / "watching.md"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "config.yaml").write_text(to_yaml(Config()))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    return tmp_path


def panels(spec: dict[str, Any]) -> list[dict[str, Any]]:
    return [panel for section in spec["spec"]["section"]["panelBankConfig"]["sections"] for panel in section["panels"]]


def test_every_key_that_a_run_writes_has_a_panel_and_every_panel_a_key(run: Path) -> None:
    spec = dashboard_spec(run, entity="me", project="mine")
    assert (spec["entity"], spec["project"]) == ("me", "mine")
    shown = set()
    for panel in (one["config"] for one in panels(spec) if one["viewType"] == "Run History Line Plot"):
        plain, family = set(panel.get("metrics", [])), re.compile(panel.get("metricRegex", "$."))
        assert plain <= {key.name for key in KEYS}
        # a family is recognised by any key of it, and takes nothing else
        matched = {key.name for key in KEYS if family.match(key.name.replace("*", "conv1.weight"))}
        assert bool(plain) != bool(matched)
        assert matched == {name for name in matched if name.endswith("/*")}
        shown |= plain | matched
    assert shown == {key.name for key in KEYS}
    media = [key for one in panels(spec) if one["viewType"] == "Media Browser" for key in one["config"]["mediaKeys"]]
    assert media == [f"pictures/{name}" for name in PICTURES]


def test_the_page_explains_each_panel() -> None:
    text = DOCS.read_text()
    titles = [panel.title for section in SECTIONS.values() for panel in section]
    assert len(set(titles)) == len(titles)
    assert [title for title in titles if f"| {title} |" not in text] == []


def test_what_is_missing_is_said_in_one_sentence(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"no API key of W&B.*or give --json FILE"):
        save_dashboard(run)
    with pytest.raises(InputError, match=r"no config\.yaml"):
        dashboard_spec(tmp_path / "none")
    monkeypatch.setitem(sys.modules, "wandb_workspaces.workspaces", None)
    monkeypatch.setitem(sys.modules, "wandb_workspaces.reports.v2", None)
    with pytest.raises(InputError, match=r"pip install 'dist-alexnet\[dashboard\]'"):
        dashboard_spec(run)


def test_it_is_saved_and_written_by_the_command(run: Path) -> None:
    with stand_in() as service:
        done = _command(run, service.url)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith(f"made {service.url}/somebody/dist-alexnet?nw=")
        (view,) = service.views
        assert (view["entityName"], view["displayName"]) == ("somebody", "dist_alexnet")
        sent = {"spec": json.loads(view["spec"])}
    assert [one["config"] for one in panels(sent)] == [one["config"] for one in panels(dashboard_spec(run))]
    done = _command(run, "http://127.0.0.1:1", f"--json={run / 'spec.json'}")
    assert (done.returncode, done.stderr) == (0, "")
    written = json.loads((run / "spec.json").read_text())
    assert [one["config"] for one in panels(written)] == [one["config"] for one in panels(sent)]


def _command(run: Path, url: str, *asked: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "dist_alexnet", "track", "dashboard", str(run), *asked],
        env={**os.environ, "WANDB_API_KEY": KEY, "WANDB_BASE_URL": url},
        capture_output=True,
        text=True,
        timeout=60,
    )
