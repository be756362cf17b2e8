"""Time one ASE calculator on rattled PbTiO3 in this process, on one core; prints one line of JSON.

Runs in the environment of the calculator, so that it needs nothing but ASE and numpy besides. `benchmarks.originals`
calls it; every call moves the atoms, so that nothing can be kept, and asks for energy, forces and stress.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import time
import types
from typing import Any

import ase
import numpy as np


def jaxpto(arguments: argparse.Namespace) -> Any:
    from jaxpto.calculator import JaxptoCalculator
    from jaxpto.console.command import set_up_jax

    set_up_jax("float32")
    return JaxptoCalculator(arguments.model, dtype="float32")


def chgnet(arguments: argparse.Namespace) -> Any:
    from chgnet.model import CHGNet, CHGNetCalculator

    version = arguments.model.removeprefix("chgnet-")
    network = CHGNet.load(model_name=version, use_device=arguments.device)
    return CHGNetCalculator(network, use_device=arguments.device)


def m3gnet(arguments: argparse.Namespace) -> Any:
    os.environ["MATGL_BACKEND"] = "DGL"
    os.environ["DGLBACKEND"] = "pytorch"
    # DGL's data loading is built for older versions of PyTorch and fails to import; nothing here needs it
    sys.modules["dgl.graphbolt"] = types.ModuleType("dgl.graphbolt")
    import matgl
    from matgl.ext.ase import PESCalculator

    return PESCalculator(matgl.load_model(arguments.checkpoint))


def gptff(arguments: argparse.Namespace) -> Any:
    sys.path.insert(0, arguments.source)
    from gptff.model.mpredict import ASECalculator

    return ASECalculator(arguments.checkpoint, arguments.device)


def sevennet(arguments: argparse.Namespace) -> Any:
    from sevenn.calculator import SevenNetCalculator

    return SevenNetCalculator(arguments.model, device=arguments.device)


def mace(arguments: argparse.Namespace) -> Any:
    os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"  # e3nn 0.4.4 reads its constants as a pickle
    from mace.calculators import MACECalculator

    head = "omat_pbe" if arguments.model.startswith("mace-mh-") else None  # of several; see `stand_ins.MACE_HEADS`
    return MACECalculator(model_paths=arguments.checkpoint, device=arguments.device, default_dtype="float32", head=head)


def mattersim(arguments: argparse.Namespace) -> Any:
    from mattersim.forcefield import MatterSimCalculator

    return MatterSimCalculator.from_checkpoint(arguments.checkpoint, device=arguments.device)


def orb(arguments: argparse.Namespace) -> Any:
    from orb_models.forcefield import pretrained
    from orb_models.forcefield.calculator import ORBCalculator

    published = arguments.model.removesuffix("-seeded")
    load = pretrained.ORB_PRETRAINED_MODELS[published]
    network = load(weights_path=arguments.checkpoint, device=arguments.device, precision="float32-high")
    return ORBCalculator(network, device=arguments.device)


def deepmd(arguments: argparse.Namespace) -> Any:
    os.environ |= {"DP_INTRA_OP_PARALLELISM_THREADS": "1", "DP_INTER_OP_PARALLELISM_THREADS": "1"}
    from deepmd.calculator import DP

    return DP(model=arguments.checkpoint)


def nep(arguments: argparse.Namespace) -> Any:
    from calorine.calculators import CPUNEP

    return CPUNEP(arguments.checkpoint)


FACTORIES = {f.__name__: f for f in (jaxpto, chgnet, m3gnet, gptff, sevennet, mace, mattersim, orb, deepmd, nep)}


def lead_titanate(repeats: tuple[int, int, int]) -> ase.Atoms:
    """Rattled tetragonal PbTiO3."""
    places = [[0, 0, 0], [0.5, 0.5, 0.54], [0.5, 0.5, 0.11], [0.5, 0, 0.62], [0, 0.5, 0.62]]
    atoms = ase.Atoms("PbTiO3", scaled_positions=places, cell=[3.89, 3.89, 4.16], pbc=True).repeat(repeats)
    atoms.rattle(0.05, seed=0)
    return atoms


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("factory", choices=FACTORIES)
    parser.add_argument("--model", required=True)
    parser.add_argument("--checkpoint", default="")
    parser.add_argument("--source", default="", help="folder of the program, where it is in no package")
    parser.add_argument("--repeats", type=int, nargs=3, required=True)
    parser.add_argument("--calls", type=int, default=3)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--core", type=int, default=0)
    arguments = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {arguments.core})
    atoms = lead_titanate(tuple(arguments.repeats))
    atoms.calc = FACTORIES[arguments.factory](arguments)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)

    def call() -> tuple[float, float]:
        """Wall and processor seconds."""
        wall, processor = time.perf_counter(), time.process_time()
        energy, forces, stress = atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress()
        assert np.isfinite([energy, *forces.ravel(), *stress]).all()
        return time.perf_counter() - wall, time.process_time() - processor

    first, _ = call()
    generator = np.random.default_rng(1)
    times = []
    for _ in range(arguments.calls):
        atoms.positions += 0.001 * generator.normal(size=atoms.positions.shape)
        times.append(call())
    result = {
        "atoms": len(atoms),
        "first_call_s": first,
        "wall_s": [wall for wall, _ in times],
        "processor_s": [processor for _, processor in times],
        "peak_memory_MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "energy_eV": float(atoms.get_potential_energy()),
        "largest_force_eV_per_A": float(np.abs(atoms.get_forces()).max()),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
