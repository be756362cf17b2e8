"""Energies, forces and stress of an M3GNet by matgl 2.0.4 in float64, with triplets numbered as they were meant.

Runs in the environment of `benchmarks.environments` that has matgl and DGL:

    python benchmarks/m3gnet_reference.py FOLDER_OF_THE_MODEL STRUCTURES.extxyz OUT.json [NAME ...]

The released program numbers triplets by the list of edges within the three-body cutoff and applies the numbers to the
list of all edges. Both results are stored: `released`, and with the numbers translated (`float64`).
"""

from __future__ import annotations

import json
import os
import sys
import types
from pathlib import Path

os.environ["MATGL_BACKEND"] = "DGL"
os.environ["DGLBACKEND"] = "pytorch"
# DGL's data loading is built for older versions of PyTorch and fails to import; nothing here needs it
sys.modules["dgl.graphbolt"] = types.ModuleType("dgl.graphbolt")

import ase.io  # noqa: E402
import matgl  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402

matgl.set_default_dtype("float", 64)
torch.set_default_dtype(torch.float64)

from matgl.ext.ase import PESCalculator  # noqa: E402
from matgl.layers._three_body import ThreeBodyInteractions  # noqa: E402

GIGAPASCAL = 1.0 / 160.21766208  # eV/Angstrom^3, matgl's number
RELEASED = ThreeBodyInteractions.forward


def as_meant(self, graph, line_graph, three_basis, three_cutoff, node_feat, edge_feat):
    """The sum over triplets, each at the edges that its lengths and its angle belong to."""
    within = torch.nonzero(graph.edata["bond_dist"] <= self.three_body_cutoff)[:, 0]
    receiving, supplying = (within[part.long()] for part in line_graph.edges())
    third_atoms = graph.edges()[1][supplying].long()
    terms = three_basis * self.update_network_atom(node_feat)[third_atoms]
    terms = terms * (three_cutoff[receiving] * three_cutoff[supplying])[:, None]
    sums = torch.zeros(graph.num_edges(), terms.shape[1], dtype=terms.dtype).index_add(0, receiving, terms)
    return edge_feat + self.update_network_bond(sums)


def results(folder: Path, structures: list, forward) -> list[dict]:
    """Energy (eV), forces (eV/A) and stress (eV/A^3, positive in tension) of each structure."""
    ThreeBodyInteractions.forward = forward
    potential = matgl.load_model(str(folder)).double()
    cutoff = json.loads((folder / "model.json").read_text())["kwargs"]["model"]["init_args"]["threebody_cutoff"]
    for module in potential.modules():
        if isinstance(module, ThreeBodyInteractions):
            module.three_body_cutoff = cutoff
    found = []
    for atoms in structures:
        atoms = atoms.copy()
        atoms.calc = PESCalculator(potential, stress_weight=GIGAPASCAL)
        found.append(
            {
                "energy": float(atoms.get_potential_energy()),
                "forces": np.asarray(atoms.get_forces(), np.float64).tolist(),
                "stress": np.asarray(atoms.get_stress(voigt=False), np.float64).tolist(),
            }
        )
    return found


def main() -> None:
    folder, source, out = map(Path, sys.argv[1:4])
    names = sys.argv[4:]
    structures = [atoms for atoms in ase.io.read(source, ":") if not names or atoms.info["name"] in names]
    meant, released = (results(folder, structures, forward) for forward in (as_meant, RELEASED))
    document = {
        "model": folder.name,
        "package": f"matgl {matgl.__version__}, torch {torch.__version__}, float64",
        "structures": [
            {
                "name": atoms.info["name"],
                "numbers": atoms.numbers.tolist(),
                "positions": atoms.positions.tolist(),
                "cell": atoms.cell.array.tolist(),
                "float64": one,
                "released": other,
            }
            for atoms, one, other in zip(structures, meant, released, strict=True)
        ],
    }
    out.write_text(json.dumps(document) + "\n")
    for one in document["structures"]:
        energies = [one[kind]["energy"] for kind in ("float64", "released")]
        forces = [np.asarray(one[kind]["forces"]) for kind in ("float64", "released")]
        print(f"{one['name']:32s} {energies[0]:14.6f} eV; released {energies[1] - energies[0]:+.1e} eV, forces "
              f"{np.abs(forces[1] - forces[0]).max():.1e} eV/A")  # fmt: skip


if __name__ == "__main__":
    main()
