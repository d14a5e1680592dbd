"""What runs on each host: the config it reads, the packages, the code, what a killed compilation left."""

import hashlib
import importlib.metadata
import platform
import subprocess
import time
from pathlib import Path

from dist_alexnet.config import to_yaml
from dist_alexnet.data.decode import decoder_here, decoder_identity
from dist_alexnet.doctor.finding import Finding
from dist_alexnet.doctor.site import Site
from dist_alexnet.environment import torch_extensions_dir

PACKAGES = ("torch", "deepspeed", "dist-alexnet", "numpy", "pillow")
STALE_S = 600.0  # nothing compiles for longer
PROJECT = Path(__file__).parents[2]


def config(site: Site) -> Finding:
    """The config is right in itself, and the same on all ranks."""
    digest = hashlib.sha256(to_yaml(site.config).encode()).hexdigest()[:12]
    run = site.config.run
    return Finding("ok", f"run {run.name} in {run.dir}", alike={"the config (sha256)": digest})


def versions(site: Site) -> Finding:
    """Packages, code and decoder: what decides about results is the same everywhere."""
    found = {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES}
    missing = [name for name in PACKAGES if found[name] == "none"]
    alike = {**found, "the code (sha256 of its files)": _code(), "the picture decoder": decoder_identity()}
    if missing:
        return Finding("FAIL", f"{', '.join(missing)} not installed", "run launch/setup.sh on this host", alike)
    told = ", ".join(f"{name} {version}" for name, version in found.items())
    return Finding("ok", f"{told}; {_commit()}; JPEGs by {decoder_here(site.config.data.decoder)}", alike=alike)


def extension_lock(site: Site) -> Finding:
    """A compilation that was killed leaves a lock on which the next one waits for ever."""
    folder = torch_extensions_dir()
    locks = [lock for pattern in ("*/lock", "*/*/lock") for lock in sorted(folder.glob(pattern))]
    stale = [str(lock) for lock in locks if time.time() - lock.stat().st_mtime > STALE_S]
    if stale:
        told = f"a killed compilation left {', '.join(stale)}: whatever compiles that operator again waits for ever"
        return Finding("warning", told, f"rm {' '.join(stale)}")
    return Finding("ok", f"{folder} holds {len(locks) or 'no'} lock{'s' if len(locks) > 1 else ''}")


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def _code() -> str:
    """Of the files that Python runs, so that an edit on one host shows."""
    digest = hashlib.sha256()
    for package in ("dist_alexnet", "shards"):
        for file in sorted((PROJECT / package).rglob("*.py")):
            digest.update(str(file.relative_to(PROJECT)).encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:12]


def _commit() -> str:
    """Of the checkout, where there is one and git can say."""
    git = ["git", "-C", str(PROJECT), "-c", "core.fsmonitor=false"]
    try:
        commit = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, timeout=5)
        changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", "dist_alexnet", "shards"], timeout=5)
    except (OSError, subprocess.SubprocessError):
        return "no git checkout"
    if commit.returncode:
        return "no git checkout"
    return f"commit {commit.stdout.strip()}{', with changes' if changed.returncode else ''}"
