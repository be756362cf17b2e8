"""Loss and its parameter gradients by an original program's own autograd, in float64; prints one line of JSON.

Runs in the environment of the original, so that it needs nothing but PyTorch, ASE and numpy besides.
`benchmarks.loss_gradients` calls it.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
from collections.abc import Callable
from typing import Any

import ase
import numpy as np
import torch

ENERGY, FORCES, STRESS = 0.05, 0.2, 0.01  # eV/atom, eV/Angstrom and eV/Angstrom^3: errors of the labels, and scales
Predict = Callable[[], tuple[torch.Tensor, torch.Tensor, torch.Tensor, float]]


def structure() -> ase.Atoms:
    """Strained, rattled PbTiO3, its elements interleaved."""
    places = [[0.5, 0.5, 0.11], [0, 0, 0], [0.5, 0, 0.62], [0.5, 0.5, 0.54], [0, 0.5, 0.62]]
    cell = [[3.93, 0.06, 0.02], [0.03, 3.86, -0.05], [-0.04, 0.08, 4.19]]
    atoms = ase.Atoms("OPbOTiO", scaled_positions=places, cell=cell, pbc=True)
    atoms.rattle(0.08, seed=3)
    atoms.positions = atoms.positions.round(4)
    return atoms


def chgnet(model: str, checkpoint: str, atoms: ase.Atoms) -> tuple[torch.nn.Module, Predict]:
    import chgnet.graph.converter
    import chgnet.model.model
    from pymatgen.io.ase import AseAtomsAdaptor

    chgnet.graph.converter.TORCH_DTYPE = chgnet.model.model.TORCH_DTYPE = torch.float64
    network = chgnet.model.model.CHGNet.load(
        model_name=model.removeprefix("chgnet-"), use_device="cpu", verbose=False
    ).double()
    references = network.composition_model
    references.is_intensive = False
    counts = references._assemble_graphs  # in float32, which is exact for numbers of atoms

    def fractions(graphs: list[Any]) -> torch.Tensor:
        return counts(graphs).double() / len(atoms)

    references._assemble_graphs = fractions
    graph = network.graph_converter(AseAtomsAdaptor.get_structure(atoms))

    def predict() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, float]:
        found = network([graph], task="efs")
        constant = len(atoms) * float(references([graph])[0])
        return len(atoms) * found["e"][0], found["f"][0], found["s"][0] / 160.21766208, constant

    return network, predict


def sevennet(model: str, checkpoint: str, atoms: ase.Atoms) -> tuple[torch.nn.Module, Predict]:
    import sevenn.util
    from e3nn.o3 import wigner_3j
    from sevenn.atom_graph_data import AtomGraphData
    from sevenn.train.dataload import unlabeled_atoms_to_graph

    sevenn.util.dtype_correct.__defaults__ = (torch.float64, torch.int64)  # of the graph
    stored = sevenn.util.load_checkpoint(model)
    torch.set_default_dtype(torch.float32)  # of the checkpoint, whose 3j symbols are compared with today's
    network = stored.build_model().double()
    torch.set_default_dtype(torch.float64)

    def ones_in_double(module: torch.nn.Module, given: Any, data: dict[str, torch.Tensor]) -> None:
        for key in ("x", "node_attr"):
            data[key] = data[key].double()

    network.onehot_idx_to_onehot.register_forward_hook(ones_in_double)
    network.set_is_batch_data(False)
    network.train()  # otherwise forces cannot be differentiated
    for name, table in network.named_buffers():
        if "_w3j_" in name:  # the checkpoint has them in single precision
            exact = wigner_3j(*map(int, name.split("_")[-3:]))
            assert torch.allclose(table, exact, atol=1e-6), name
            table.copy_(exact)

    def predict() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, float]:
        graph = unlabeled_atoms_to_graph(atoms, stored.config["cutoff"])
        found = network(AtomGraphData.from_numpy_dict(graph))
        xx, yy, zz, xy, yz, zx = -found["inferred_stress"].reshape(6)
        stress = torch.stack([xx, xy, zx, xy, yy, yz, zx, yz, zz]).reshape(3, 3)
        species = [stored.config["_type_map"][number] for number in atoms.numbers.tolist()]
        constant = float(network.rescale_atomic_energy.shift[species].sum())
        return found["inferred_total_energy"].reshape(()), found["inferred_force"], stress, constant

    return network, predict


def mace(model: str, checkpoint: str, atoms: ase.Atoms) -> tuple[torch.nn.Module, Predict]:
    from mace import data
    from mace.tools import AtomicNumberTable, torch_geometric

    network = torch.load(checkpoint, map_location="cpu", weights_only=False).double()
    elements = AtomicNumberTable(network.atomic_numbers.tolist())
    graph = data.AtomicData.from_config(data.config_from_atoms(atoms), elements, cutoff=float(network.r_max))
    (batch,) = torch_geometric.dataloader.DataLoader([graph], batch_size=1)

    def predict() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, float]:
        found = network(batch.to_dict(), training=True, compute_stress=True)
        constant = float(network.atomic_energies_fn(batch["node_attrs"]).sum())
        return found["energy"][0], found["forces"], found["stress"][0], constant

    return network, predict


FACTORIES = {function.__name__: function for function in (chgnet, sevennet, mace)}


def direction(shape: tuple[int, ...]) -> np.ndarray:
    """cos(0.7 k + 0.3) of the index k of each element, the last axis running fastest."""
    return np.cos(0.7 * np.arange(int(np.prod(shape))) + 0.3).reshape(shape)


def labels(energy: float, forces: np.ndarray, stress: np.ndarray) -> dict[str, Any]:
    """Predictions with errors of the size of the scales, rounded."""
    errors = np.cos(1.3 * np.arange(forces.size) + 0.5).reshape(forces.shape)
    strained = np.array([[0.7, -0.3, 0.5], [-0.3, -0.9, 0.2], [0.5, 0.2, 0.4]])
    return {
        "energy_eV": round(energy + ENERGY * len(forces), 3),
        "forces_eV_per_A": (forces + FORCES * errors).round(3).tolist(),
        "stress_eV_per_A3": (0.5 * (stress + stress.T) + STRESS * strained).round(4).tolist(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("factory", choices=FACTORIES)
    parser.add_argument("--model", required=True)
    parser.add_argument("--checkpoint", default="")
    parser.add_argument("--packages", nargs="+", required=True, help="packages whose versions are noted")
    arguments = parser.parse_args()
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    atoms = structure()
    network, predict = FACTORIES[arguments.factory](arguments.model, arguments.checkpoint, atoms)
    for parameter in network.parameters():
        parameter.requires_grad_(True)
    energy, forces, stress, constant = predict()
    target = labels(*(x.detach().numpy() for x in (energy, forces, stress)))
    differences = [
        (energy - target["energy_eV"]) / len(atoms),
        forces - torch.tensor(target["forces_eV_per_A"]),
        stress - torch.tensor(target["stress_eV_per_A3"]),
    ]
    terms = [torch.mean((x / scale) ** 2) for x, scale in zip(differences, (ENERGY, FORCES, STRESS), strict=True)]
    loss = sum(terms)
    parameters = {name: parameter for name, parameter in network.named_parameters() if parameter.numel()}
    gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    precision = {str(x.dtype) for x in (*parameters.values(), energy, forces, stress)}
    assert precision == {"torch.float64"}, precision
    tensors = {}
    for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True):
        values = np.zeros(parameter.shape) if gradient is None else gradient.numpy()
        tensors[name] = {
            "shape": list(values.shape),
            "norm": float(np.linalg.norm(values)),
            "along_direction": float(np.sum(values * direction(values.shape))),
        }
    result = {
        "versions": {name: importlib.metadata.version(name) for name in arguments.packages},
        "dtype": "float64",
        "structure": {
            "numbers": atoms.numbers.tolist(),
            "positions_A": atoms.positions.tolist(),
            "cell_A": atoms.cell.array.tolist(),
        },
        "labels": target,
        "scales": {"energy_eV_per_atom": ENERGY, "forces_eV_per_A": FORCES, "stress_eV_per_A3": STRESS},
        "prediction": {
            "energy_eV": float(energy),
            "energy_without_references_eV": float(energy) - constant,
            "forces_eV_per_A": forces.tolist(),
            "stress_eV_per_A3": stress.tolist(),
        },
        "loss": float(loss),
        "terms": dict(zip(("energy", "forces", "stress"), map(float, terms), strict=True)),
        "tensors": tensors,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"  # e3nn 0.4.4 reads its constants as a pickle
    main()
