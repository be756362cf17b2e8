"""Make a compressed DeepPot-SE of about the size of `perovskite` with DeePMD-kit, for timing only.

Runs in the environment of DeePMD-kit; `benchmarks.speed` calls it, because no such model is in a package. It is trained
for two minutes on the data of `deepmd_data.py`, so that short runs hold together; its physics is of no use.

    python deepmd_checkpoint.py FOLDER       # with FOLDER/data; writes FOLDER/graph.pb and FOLDER/compressed.pb
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

STEPS = 2000
ELEMENTS = ["Pb", "Ti", "O"]


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
        "learning_rate": {"type": "exp", "start_lr": 0.005, "stop_lr": 0.0002, "decay_steps": 100},
        "loss": {
            "start_pref_e": 0.02, "limit_pref_e": 1, "start_pref_f": 1000, "limit_pref_f": 10,
            "start_pref_v": 0.02, "limit_pref_v": 1,
        },
        "training": {
            "training_data": {"systems": [str(data)], "batch_size": 1}, "numb_steps": STEPS, "seed": 1,
            "disp_file": "lcurve.out", "disp_freq": 100, "save_freq": STEPS,
        },
    }  # fmt: skip


def main() -> None:
    folder = Path(sys.argv[1]).absolute()
    (folder / "input.json").write_text(json.dumps(settings(folder / "data"), indent=1))
    dp = [str(Path(sys.executable).with_name("dp")), "--tf"]
    subprocess.run([*dp, "train", "input.json"], cwd=folder, check=True)
    subprocess.run([*dp, "freeze", "-o", "graph.pb"], cwd=folder, check=True)
    subprocess.run([*dp, "compress", "-i", "graph.pb", "-o", "compressed.pb"], cwd=folder, check=True)


if __name__ == "__main__":
    main()
