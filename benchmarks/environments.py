"""Environments of the programs that jaxpto is measured against, made from the package index when they are needed."""

from __future__ import annotations

import dataclasses
import subprocess
import venv
from pathlib import Path

TORCH = "torch==2.13.0"
FOLDER = Path.home() / ".cache" / "jaxpto" / "originals"


@dataclasses.dataclass(frozen=True)
class Original:
    """How to get and call an original program.

    Attributes:
        factory: name of the function in calculator_timing.py, and of the environment.
        packages: what to install.
        without_dependencies: what to install after that without its dependencies.
    """

    factory: str
    packages: tuple[str, ...]
    without_dependencies: tuple[str, ...] = ()


DEEPMD_KIT = Original("deepmd", ("deepmd-kit[cpu]==3.2.0", "ase"))
# by the family of a model
ORIGINALS = {
    "chgnet": Original("chgnet", (TORCH, "chgnet==0.4.2")),
    "m3gnet": Original("m3gnet", (TORCH, "dgl==2.1.0", "ase", "pymatgen"), ("matgl==2.0.4",)),
    "gptff": Original("gptff", (TORCH, "ase", "pymatgen", "cython", "setuptools", "psutil", "tqdm")),
    "7net": Original("sevennet", (TORCH, "sevenn==0.13.0")),
    "mace": Original("mace", (TORCH, "mace-torch==0.3.16")),
    "orb": Original("orb", (TORCH, "orb-models==0.5.5")),
    "mattersim": Original(
        "mattersim",
        (
            *(
                TORCH,
                "ase",
                "pymatgen",
                "e3nn==0.5.6",
                "torch_geometric",
                "torch_runstats",
                "torch-ema",
                "torchmetrics",
            ),
            *("loguru", "deprecated", "scikit-learn", "opt_einsum_fx", "requests"),
        ),
        ("mattersim==1.2.3",),
    ),
    "nep89": Original("nep", ("calorine==4.1", "ase")),
    "deepmd": DEEPMD_KIT,
    "unipero": DEEPMD_KIT,
}
TORCH_SIM = Original(
    "torchsim", (TORCH, "torch-sim-atomistic==0.3.0", "sevenn==0.11.2")
)  # the sevenn that its wrapper knows


def family(model: str) -> str:
    """The part of a model's name that says which program it belongs to."""
    return model.split("-")[0]


def python_of(original: Original, folder: Path) -> Path:
    """Interpreter of an original's environment, which is made if it is not there."""
    place = folder / original.factory
    python, stamp = place / "bin" / "python", place / ".complete"
    if not stamp.exists():
        print(f"making the environment of {original.factory} in {place} ...", flush=True)
        venv.create(place, with_pip=True, clear=True)
        install = [python, "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
        subprocess.run([*install, *original.packages], check=True)
        if original.without_dependencies:
            subprocess.run([*install, "--no-deps", *original.without_dependencies], check=True)
        stamp.touch()
    return python
