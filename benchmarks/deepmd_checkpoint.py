"""Make a compressed DeepPot-SE of about the size of `perovskite` with DeePMD-kit, for timing only.

Runs in the environment of DeePMD-kit; `benchmarks.speed` calls it, because no such model is in a package. It is trained
for a moment on a harmonic PbTiO3, so that short runs hold together; its physics is of no use.

    python deepmd_checkpoint.py FOLDER       # writes FOLDER/graph.pb and FOLDER/compressed.pb
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from calculator_timing import lead_titanate

FRAMES, STEPS, STIFFNESS = 40, 300, 5.0  # eV/Angstrom^2 of each atom about its site
ELEMENTS = ["Pb", "Ti", "O"]


def write_data(folder: Path) -> None:
    """Frames of atoms bound to their sites by springs, as DeePMD-kit's npy files."""
    atoms = lead_titanate((2, 2, 2))
    sites, generator = atoms.get_positions(), np.random.default_rng(0)
    moved = 0.1 * generator.normal(size=(FRAMES, *sites.shape))
    moved -= moved.mean(axis=1, keepdims=True)
    (folder / "set.000").mkdir(parents=True, exist_ok=True)
    arrays = {
        "coord": sites + moved,
        "box": np.broadcast_to(atoms.cell.array, (FRAMES, 3, 3)),
        "energy": 0.5 * STIFFNESS * (moved**2).sum(axis=(1, 2)),
        "force": -STIFFNESS * moved,
    }
    for name, values in arrays.items():
        np.save(folder / "set.000" / f"{name}.npy", values.reshape(FRAMES, -1) if name != "energy" else values)
    types = [ELEMENTS.index(symbol) for symbol in atoms.get_chemical_symbols()]
    (folder / "type.raw").write_text("\n".join(map(str, types)) + "\n")
    (folder / "type_map.raw").write_text("\n".join(ELEMENTS) + "\n")


def settings(data: Path) -> dict:
    """Input of `dp train`: widths chosen for about 120,000 parameters."""
    return {
        "model": {
            "type_map": ELEMENTS,
            "descriptor": {
                "type": "se_e2_a", "rcut": 6.0, "rcut_smth": 0.5, "sel": [30, 30, 90], "neuron": [10, 20, 40],
                "axis_neuron": 8, "resnet_dt": False, "seed": 1, "type_one_side": True, "precision": "float32",
            },
            "fitting_net": {"neuron": [80, 80, 80], "resnet_dt": True, "seed": 1, "precision": "float32"},
        },
        "learning_rate": {"type": "exp", "start_lr": 0.002, "stop_lr": 0.0002, "decay_steps": 100},
        "loss": {"start_pref_e": 0.02, "limit_pref_e": 1, "start_pref_f": 1000, "limit_pref_f": 1},
        "training": {
            "training_data": {"systems": [str(data)], "batch_size": 1}, "numb_steps": STEPS, "seed": 1,
            "disp_file": "lcurve.out", "disp_freq": 100, "save_freq": STEPS,
        },
    }  # fmt: skip


def main() -> None:
    folder = Path(sys.argv[1]).absolute()
    write_data(folder / "data")
    (folder / "input.json").write_text(json.dumps(settings(folder / "data"), indent=1))
    dp = [str(Path(sys.executable).with_name("dp")), "--tf"]
    subprocess.run([*dp, "train", "input.json"], cwd=folder, check=True)
    subprocess.run([*dp, "freeze", "-o", "graph.pb"], cwd=folder, check=True)
    subprocess.run([*dp, "compress", "-i", "graph.pb", "-o", "compressed.pb"], cwd=folder, check=True)


if __name__ == "__main__":
    main()
