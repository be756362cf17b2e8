"""Make a model with DeePMD-kit, for timing only.

Runs in the environment of DeePMD-kit; `benchmarks.stand_ins` calls it, because no such model is in a package. Its
statistics are those of the data of `deepmd_data.py`, its physics is of no use: se_e2_a is trained for two minutes, so
that short runs hold together, and unipero for a few steps, which hardly move its seeded parameters.

    python deepmd_checkpoint.py FOLDER {se_e2_a,unipero}     # with FOLDER/data; writes FOLDER/graph.pb

and, of se_e2_a, FOLDER/compressed.pb: `dp compress` does not take UniPero's architecture.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A model to make.

    Attributes:
        model: that section of the input of `dp train`.
        steps: of the training.
        first_rate: of learning.
        compress: whether its embedding networks become tables.
    """

    model: dict[str, Any]
    steps: int
    first_rate: float
    compress: bool


SINGLE = {"precision": "float32"}
RECIPES = {
    # DeepPot-SE with widths chosen for about 120,000 parameters, as many as `perovskite` has
    "se_e2_a": Recipe(
        model={
            "type_map": ["Pb", "Ti", "O"],
            "descriptor": {
                "type": "se_e2_a", "rcut": 6.0, "rcut_smth": 0.5, "sel": [30, 30, 90], "neuron": [10, 20, 40],
                "axis_neuron": 8, "resnet_dt": False, "seed": 1, "type_one_side": True, **SINGLE,
            },
            "fitting_net": {"neuron": [80, 80, 80], "resnet_dt": True, "seed": 1, **SINGLE},
        },
        steps=2000,
        first_rate=0.005,
        compress=True,
    ),
    # DPA-1 with the hyperparameters of UniPero, but for the precision, which is double by default
    "unipero": Recipe(
        model={
            "type_map": ["Ba", "Pb", "Ca", "Sr", "Bi", "K", "Na", "Hf", "Ti", "Zr", "Nb", "Mg", "In", "Zn", "O"],
            "descriptor": {
                "type": "se_atten", "rcut": 6.0, "rcut_smth": 0.5, "sel": 88, "neuron": [25, 50, 100],
                "axis_neuron": 16, "resnet_dt": False, "attn": 128, "attn_layer": 2, "attn_mask": False,
                "attn_dotr": True, "seed": 1, **SINGLE,
            },
            "type_embedding": {"neuron": [2, 4, 8], "resnet_dt": False, "seed": 1, **SINGLE},
            "fitting_net": {"neuron": [240, 240, 240], "resnet_dt": True, "seed": 1, **SINGLE},
        },
        steps=10,
        first_rate=0.001,
        compress=False,
    ),
}  # fmt: skip


def settings(recipe: Recipe, data: Path) -> dict[str, Any]:
    """Input of `dp train`."""
    every = max(1, recipe.steps // 20)  # checkpoints are written at steps that are displayed
    rates = {"start_lr": recipe.first_rate, "stop_lr": 0.04 * recipe.first_rate}
    return {
        "model": recipe.model,
        "learning_rate": {"type": "exp", "decay_steps": every, **rates},
        "loss": {
            "start_pref_e": 0.02, "limit_pref_e": 1, "start_pref_f": 1000, "limit_pref_f": 10,
            "start_pref_v": 0.02, "limit_pref_v": 1,
        },
        "training": {
            "training_data": {"systems": [str(data)], "batch_size": 1}, "numb_steps": recipe.steps, "seed": 1,
            "disp_file": "lcurve.out", "disp_freq": every, "save_freq": recipe.steps,
        },
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("recipe", choices=RECIPES)
    arguments = parser.parse_args()
    folder, recipe = arguments.folder.absolute(), RECIPES[arguments.recipe]
    (folder / "input.json").write_text(json.dumps(settings(recipe, folder / "data"), indent=1))
    on_processor = os.environ | {"CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "3"}

    def dp(*words: str) -> None:
        command = [str(Path(sys.executable).with_name("dp")), "--tf", *words]
        subprocess.run(command, cwd=folder, check=True, env=on_processor)

    dp("train", "input.json")
    dp("freeze", "-o", "graph.pb")
    if recipe.compress:
        dp("compress", "-i", "graph.pb", "-o", "compressed.pb")


if __name__ == "__main__":
    main()
