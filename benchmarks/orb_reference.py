"""A small seeded ORB version 3 direct, and its energies by orb-models in float64.

Runs in the environment of `benchmarks.environments` that has orb-models:

    python benchmarks/orb_reference.py CHECKPOINT.ckpt STRUCTURES.extxyz OUT.json {20,120} [--width 16]

Writes the checkpoint, in float32 as published ones are, and the results with that many neighbours.
"""

from __future__ import annotations

import argparse
import json
from importlib.metadata import version as version_of
from pathlib import Path

import ase.io
import numpy as np
import torch
from orb_checkpoint import seeded
from orb_models.forcefield import atomic_system


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("structures", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("neighbors", type=int)
    parser.add_argument("--width", type=int, default=16)
    arguments = parser.parse_args()
    width = arguments.width
    sizes = dict.fromkeys(("latent_dim", "base_mlp_hidden_dim", "head_mlp_hidden_dim"), width)
    model = seeded("v3_direct", sizes=sizes | {"num_message_passing_steps": 2})
    torch.save(model.state_dict(), arguments.checkpoint)
    model = model.double().eval()
    config = atomic_system.SystemConfig(radius=6.0, max_num_neighbors=arguments.neighbors)
    found = []
    for atoms in ase.io.read(arguments.structures, ":"):
        graph = atomic_system.ase_atoms_to_atom_graphs(
            atoms, config, output_dtype=torch.float64, graph_construction_dtype=torch.float64
        )
        out = {name: value.detach().numpy() for name, value in model.predict(graph).items()}
        xx, yy, zz, yz, xz, xy = out["stress"][0]
        results = {
            "energy": float(out["energy"][0]),
            "forces": np.asarray(out["forces"], np.float64).tolist(),
            "stress": [[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]],
        }
        structure = {
            "name": atoms.info["name"],
            "numbers": atoms.numbers.tolist(),
            "positions": atoms.positions.tolist(),
            "cell": atoms.cell.array.tolist(),
        }
        print(f"{structure['name']:12s} {results['energy']:14.6f} eV")
        found.append(structure | {"float64": results})
    package = f"orb-models {version_of('orb-models')}, torch {torch.__version__}, float64"
    document = {"model": "v3_direct", "neighbors": arguments.neighbors, "package": package, "structures": found}
    arguments.out.write_text(json.dumps(document) + "\n")


if __name__ == "__main__":
    main()
