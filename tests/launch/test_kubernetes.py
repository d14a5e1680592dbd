"""What can be known of launch/kubernetes without a cluster. Under a second."""

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

FOLDER = Path(__file__).parents[2] / "launch" / "kubernetes"

# The fields that are used, as the references of PyTorchJob and of Kubernetes' PodSpec have them; "*": a list's members.
RESOURCES = {"cpu": str, "memory": str, "nvidia.com/gpu": str}
CONTAINER = {
    "name": str,
    "image": str,
    "command": {"*": str},
    "args": {"*": str},
    "env": {
        "*": {
            "name": str,
            "value": str,
            "valueFrom": {"secretKeyRef": {"name": str, "key": str, "optional": bool}},
        }
    },
    "ports": {"*": {"name": str, "containerPort": int}},
    "resources": {"requests": RESOURCES, "limits": RESOURCES},
    "volumeMounts": {"*": {"name": str, "mountPath": str, "readOnly": bool}},
}
VOLUME = {
    "name": str,
    "configMap": {"name": str},
    "persistentVolumeClaim": {"claimName": str, "readOnly": bool},
    "emptyDir": {"medium": str, "sizeLimit": str},
}
POD = {"terminationGracePeriodSeconds": int, "containers": {"*": CONTAINER}, "volumes": {"*": VOLUME}}
REPLICAS = {"replicas": int, "restartPolicy": str, "template": {"spec": POD}}
FIELDS: dict[str, Any] = {
    "apiVersion": str,
    "kind": str,
    "metadata": {"name": str},
    "spec": {
        "runPolicy": {"cleanPodPolicy": str, "backoffLimit": int},
        "pytorchReplicaSpecs": {"Master": REPLICAS, "Worker": REPLICAS},
    },
}


def check(value: Any, known: Any, where: str = "") -> None:
    if isinstance(known, type):
        assert type(value) is known, f"{where} is {value!r}"
    elif isinstance(value, list):
        for number, member in enumerate(value):
            check(member, known["*"], f"{where}[{number}]")
    else:
        for key, member in value.items():
            assert key in known, f"{where}.{key}"
            check(member, known[key], f"{where}.{key}")


@pytest.fixture
def job() -> Any:
    return yaml.safe_load((FOLDER / "pytorchjob.yaml").read_text())


def test_the_manifest_has_known_fields_of_the_right_kind(job: Any) -> None:
    check(job, FIELDS)
    assert (job["apiVersion"], job["kind"]) == ("kubeflow.org/v1", "PyTorchJob")


def test_its_numbers_fit_each_other_and_nothing_in_it_is_secret(job: Any) -> None:
    specs = job["spec"]["pytorchReplicaSpecs"]
    pods = [spec["template"]["spec"] for spec in specs.values()]
    assert specs["Master"]["replicas"] == 1
    assert {spec["restartPolicy"] for spec in specs.values()} == {"ExitCode"}
    for pod in pods:
        (container,) = pod["containers"]
        assert container["name"] == "pytorch"  # the operator gives its settings to no other
        env = {one["name"]: one for one in container["env"]}
        assert int(env["NNODES"]["value"]) == sum(spec["replicas"] for spec in specs.values())
        assert env["NPROC_PER_NODE"]["value"] == container["resources"]["limits"]["nvidia.com/gpu"]
        assert "value" not in env["WANDB_API_KEY"]
        assert pod["terminationGracePeriodSeconds"] >= 120
        mounts = {one["mountPath"]: one["name"] for one in container["volumeMounts"]}
        volumes = {one["name"]: one for one in pod["volumes"]}
        assert volumes.keys() == set(mounts.values())
        assert volumes[mounts["/dev/shm"]]["emptyDir"]["medium"] == "Memory"
        assert "persistentVolumeClaim" in volumes[mounts["/runs"]]
        (script,) = container["command"]
        assert (FOLDER / Path(script).name).is_file()


def entry(folder: Path, script: str, **settings: str) -> "subprocess.Popen[str]":
    """entry.sh with a script in place of launch/torchrun.sh."""
    stand_in = folder / "torchrun.sh"
    stand_in.write_text(f"#!/usr/bin/env bash\n{script}\n")
    stand_in.chmod(0o755)
    of_operator = {"MASTER_ADDR": "alexnet-master-0", "MASTER_PORT": "23456", "RANK": "1", "WORLD_SIZE": "2"}
    env = {**os.environ, **of_operator, "PET_NNODES": "2", "TORCHRUN": str(stand_in), **settings}
    return subprocess.Popen(
        [FOLDER / "entry.sh", "config.yaml", "a=b c"],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(("code", "expected"), [(0, 0), (2, 2), (75, 138), (1, 138), (137, 138)])
def test_what_can_go_on_ends_with_a_code_that_the_operator_retries(code: int, expected: int, tmp_path: Path) -> None:
    process = entry(tmp_path, f"exit {code}")
    process.communicate(timeout=20)
    assert process.returncode == expected


def test_a_pod_tells_torchrun_where_to_meet_and_hides_what_is_of_pods(tmp_path: Path) -> None:
    script = 'echo "$1|$2|$RDZV_ENDPOINT|$NODE_RANK|${RANK-none}|${WORLD_SIZE-none}|${PET_NNODES-none}"'
    out, err = entry(tmp_path, script).communicate(timeout=20)
    assert out == "config.yaml|a=b c|alexnet-master-0:23456|1|none|none|none\n", err


def test_without_an_operator_it_says_so(tmp_path: Path) -> None:
    process = entry(tmp_path, "exit 0", MASTER_ADDR="")
    _, err = process.communicate(timeout=20)
    assert process.returncode not in (0, 138)
    assert "start this as a PyTorchJob" in err


def test_term_reaches_the_run_and_its_end_is_waited_for(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    process = entry(
        tmp_path, f"trap 'echo saving; sleep 0.3; exit 75' TERM\ntouch {ready}\nwhile :; do sleep 0.1; done"
    )
    until_s = time.monotonic() + 20
    while not ready.exists():
        assert time.monotonic() < until_s
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=20)
    assert "saving" in out
    assert "exit code 75" in err
    assert process.returncode == 138
