"""Time training steps of one program on one frame of rattled PbTiO3, on one core; prints one line of JSON.

A step is the loss of energy, forces and stress, its gradient in all trained parameters, and an update by Adam, in
float32. The graph or neighbour list is made once, as trainers do. Runs in the environment of the program;
`benchmarks.training_speed` calls it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import sys
import time
import types
from collections.abc import Callable
from typing import Any

import ase
import numpy as np
from ase.calculators.singlepoint import SinglePointCalculator
from calculator_timing import lead_titanate

LEARNING_RATE = 1e-6  # the steps are to be alike
GPA = 160.21766208  # in an eV/Angstrom^3
Step = Callable[[], float]


def labels(atoms: ase.Atoms) -> tuple[float, np.ndarray, np.ndarray]:
    """Any energy, forces and stress of the usual size."""
    forces = np.cos(np.arange(3.0 * len(atoms)).reshape(-1, 3))
    return -6.5 * len(atoms), forces - forces.mean(axis=0), np.diag([0.01, 0.02, -0.01])


def jaxpto(arguments: argparse.Namespace, atoms: ase.Atoms) -> Step:
    import jax
    import jax.numpy as jnp
    import optax

    from jaxpto import neighbors
    from jaxpto.console.command import set_up_jax
    from jaxpto.devices.compiled import WIDE
    from jaxpto.models.catalogue import load_potential
    from jaxpto.system import from_ase

    set_up_jax("float32")
    potential, system = load_potential(arguments.model), from_ase(atoms)
    # without empty places in the list, as the trainer makes it
    found = neighbors.build(system, potential.allocate([system], 0.0, headroom=1.0))
    energy, forces, stress = (jnp.asarray(label, jnp.float32) for label in labels(atoms))
    optimizer = optax.adam(LEARNING_RATE)

    def loss(params: Any, found: neighbors.Neighbors) -> jax.Array:
        prediction = potential.replace(params=params).evaluate(system, found)
        return (
            ((prediction.energy - energy) / len(atoms)) ** 2
            + jnp.mean((prediction.forces - forces) ** 2)
            + 0.1 * GPA**2 * jnp.mean((prediction.stress - stress) ** 2)
        )

    def update(params: Any, state: Any, found: neighbors.Neighbors) -> tuple[Any, Any, jax.Array]:
        value, gradient = jax.value_and_grad(loss)(params, found)
        changes, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, changes), state, value

    compiled = jax.jit(update, donate_argnums=(0, 1), compiler_options=WIDE)
    params = jax.tree.map(jnp.array, potential.params)
    held = [params, optimizer.init(params)]

    def step() -> float:
        *held[:], value = compiled(*held, found)
        jax.block_until_ready(held)
        return float(value)

    return step


def chgnet(arguments: argparse.Namespace, atoms: ase.Atoms) -> Step:
    import torch
    from chgnet.model import CHGNet
    from chgnet.trainer import Trainer
    from pymatgen.io.ase import AseAtomsAdaptor

    network = CHGNet.load(model_name=arguments.model.removeprefix("chgnet-"), use_device="cpu")
    trainer = Trainer(
        model=network, targets="efs", optimizer="Adam", criterion="MSE", learning_rate=LEARNING_RATE, use_device="cpu"
    )
    graph = network.graph_converter(AseAtomsAdaptor.get_structure(atoms))
    energy, forces, stress = labels(atoms)
    single = lambda x: torch.tensor(x, dtype=torch.float32)  # noqa: E731
    targets = {"e": single([energy / len(atoms)]), "f": [single(forces)], "s": [single(GPA * stress)]}
    return lambda: trainer._train([([graph], targets)], 0, "epoch")["e"]


def sevennet(arguments: argparse.Namespace, atoms: ase.Atoms) -> Step:
    from sevenn.atom_graph_data import AtomGraphData
    from sevenn.train.dataload import atoms_to_graph
    from sevenn.train.trainer import Trainer
    from torch_geometric.loader import DataLoader

    settings, _, _ = Trainer.args_from_checkpoint(arguments.model)
    trainer = Trainer(**settings | {"device": "cpu", "optimizer_args": {"lr": LEARNING_RATE}})
    energy, forces, stress = labels(atoms)
    voigt = stress[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]
    labelled = atoms.copy()
    labelled.calc = SinglePointCalculator(labelled, energy=energy, forces=forces, stress=voigt)
    graph = AtomGraphData.from_numpy_dict(atoms_to_graph(labelled, trainer.model.cutoff, y_from_calc=True))
    (batch,) = DataLoader([graph], batch_size=1)

    def step() -> float:
        trainer.run_one_epoch([batch.clone()], is_train=True)
        return 0.0

    return step


def m3gnet(arguments: argparse.Namespace, atoms: ase.Atoms) -> Step:
    os.environ["MATGL_BACKEND"] = "DGL"
    os.environ["DGLBACKEND"] = "pytorch"
    # DGL's data loading is built for older versions of PyTorch and fails to import; nothing here needs it
    sys.modules["dgl.graphbolt"] = types.ModuleType("dgl.graphbolt")
    import matgl
    import torch
    from matgl.ext.ase import PESCalculator

    potential = matgl.load_model(arguments.checkpoint).train()
    graph, lattice, state = PESCalculator(potential).graph_converter.get_graph(atoms)
    energy, forces, stress = (torch.tensor(x, dtype=torch.float32) for x in labels(atoms))
    # what matgl's PotentialLightningModule does in a step, without Lightning
    optimizer = torch.optim.Adam(potential.parameters(), lr=LEARNING_RATE)

    def step() -> float:
        found = potential(g=graph.clone(), lat=lattice, state_attr=state)
        squares = torch.nn.functional.mse_loss
        loss = squares(found[0] / len(atoms), energy / len(atoms)) + squares(found[1], forces)
        loss = loss + 0.1 * squares(found[2], GPA * stress)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return float(loss)

    return step


def mace(arguments: argparse.Namespace, atoms: ase.Atoms) -> Step:
    os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"  # e3nn 0.4.4 reads its constants as a pickle
    import torch
    from mace import data
    from mace.modules import WeightedEnergyForcesStressLoss
    from mace.tools import AtomicNumberTable, torch_geometric
    from mace.tools.train import take_step

    network = torch.load(arguments.checkpoint, map_location="cpu", weights_only=False).float()
    labelled = atoms.copy()
    labelled.info["REF_energy"], labelled.arrays["REF_forces"], labelled.info["REF_stress"] = labels(atoms)
    configuration = data.config_from_atoms(labelled, key_specification=data.KeySpecification.from_defaults())
    elements = AtomicNumberTable(network.atomic_numbers.tolist())
    graph = data.AtomicData.from_config(configuration, elements, cutoff=float(network.r_max))
    (batch,) = torch_geometric.dataloader.DataLoader([graph], batch_size=1)
    loss = WeightedEnergyForcesStressLoss(1.0, 1.0, 0.1 * GPA**2)
    optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)
    wanted = {"forces": True, "virials": False, "stress": True}
    return lambda: float(take_step(network, loss, batch, optimizer, None, wanted, None, torch.device("cpu"))[0])


FACTORIES = {f.__name__: f for f in (jaxpto, chgnet, sevennet, m3gnet, mace)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("factory", choices=FACTORIES)
    parser.add_argument("--model", required=True)
    parser.add_argument("--checkpoint", default="")
    parser.add_argument("--repeats", type=int, nargs=3, default=(2, 2, 2))
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--core", type=int, default=0)
    arguments = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {arguments.core})
    atoms = lead_titanate(tuple(arguments.repeats))
    step = FACTORIES[arguments.factory](arguments, atoms)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    wall, processor, losses = [], [], []
    for _ in range(1 + arguments.steps):
        wall.append(time.perf_counter())
        processor.append(time.process_time())
        losses.append(step())
    wall.append(time.perf_counter())
    processor.append(time.process_time())
    assert np.isfinite(losses).all(), losses
    first, *rest = (after - before for before, after in itertools.pairwise(wall))
    result = {
        "atoms": len(atoms),
        "first_step_s": first,
        "wall_s": rest,
        "processor_s": [after - before for before, after in itertools.pairwise(processor)][1:],
        "peak_memory_MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "losses": losses,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
