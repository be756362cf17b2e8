"""Where a result came from: versions, device and git state, for `config.json`."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import pathlib
import platform
import subprocess
import sys
from typing import Any

import jax
import numpy as np

from jaxpto._version import __version__
from jaxpto.models.committee import Committee
from jaxpto.models.former_fields import text_of
from jaxpto.potential import Potential

PACKAGES = ("jax", "jaxlib", "jax-md", "flax", "orbax-checkpoint", "ase", "phonopy", "spglib", "numpy", "h5py")


def versions() -> dict[str, str]:
    """Versions of Python, jaxpto and the packages it computes with."""
    found = {"python": platform.python_version(), "jaxpto": __version__}
    return found | {name: importlib.metadata.version(name) for name in PACKAGES}


def fingerprint(potential: Potential | Committee) -> str:
    """Digest of a model's architecture and parameters, or of a whole committee's; its name does not count."""
    digest = hashlib.sha256(text_of(potential.model).encode())
    for leaf in jax.tree.leaves(potential.params):
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()[:16]


def hardware() -> dict[str, Any]:
    """Processor, cores and JAX devices in use."""
    devices = jax.local_devices()
    return {
        "platform": devices[0].platform,
        "device_kind": devices[0].device_kind,
        "n_devices": len(devices),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    }


def _processor() -> str:
    """Model name of the processor where the system tells it."""
    try:
        for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def git_state() -> dict[str, Any]:
    """Commit of the checkout jaxpto runs from and whether it has uncommitted changes; None for an installed package."""
    root = pathlib.Path(__file__).resolve().parents[2]

    def git(*arguments: str) -> str | None:
        try:
            answer = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return answer.stdout.strip() if answer.returncode == 0 else None

    if not (root / ".git").exists():
        return {"commit": None, "modified": None}
    status = git("status", "--porcelain", "--untracked-files=no")
    return {"commit": git("rev-parse", "HEAD"), "modified": None if status is None else bool(status)}


def provenance() -> dict[str, Any]:
    """Everything above plus the command line."""
    return {
        "command": " ".join([f"python -m {_module()}", *sys.argv[1:]]),
        "versions": versions(),
        "hardware": hardware(),
        "git": git_state(),
    }


def _module() -> str:
    """Dotted name of the command that runs, `jaxpto` when it is called from Python."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    ours = ("jaxpto", "converters", "benchmarks")
    return spec.name.removesuffix(".__main__") if spec is not None and spec.name.startswith(ours) else "jaxpto"
