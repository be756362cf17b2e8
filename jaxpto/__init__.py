"""jaxpto: batched, flexible-cell molecular dynamics with foundational force fields in JAX.

Everything that a script or a notebook needs is here (`dir(jaxpto)`). A name is imported from its module when it is
first used, so that `import jaxpto` is quick and does not start JAX.

`run_NAME(NAMEConfig(...))` does what the command `python -m jaxpto.NAME` does.
"""

import importlib
from typing import TYPE_CHECKING, Any

import jaxlib.version as _jaxlib_version

if _jaxlib_version.__version__ == "0.10.2":
    raise ImportError(
        "jaxlib 0.10.2 silently returns wrong numbers for batched reductions on CPU; "
        "jaxpto does not start on it. Remedy: pip install 'jax!=0.10.2' 'jaxlib!=0.10.2'"
    )

from jaxpto._version import __version__

if TYPE_CHECKING:
    from jaxpto.calculator import JaxptoCalculator
    from jaxpto.devices.sharding import atom_mesh, sharded
    from jaxpto.distil import run as run_distil
    from jaxpto.distillation.config import DistilConfig
    from jaxpto.errors import InputError
    from jaxpto.evaluate import EvaluateConfig, evaluate_frames
    from jaxpto.evaluate import run as run_evaluate
    from jaxpto.free_energy.command import run as run_free_energy
    from jaxpto.free_energy.config import (
        FreeEnergyConfig,
        HarmonicOptions,
        LandauOptions,
        QuasiharmonicOptions,
        SwitchingOptions,
    )
    from jaxpto.free_energy.estimators import mbar
    from jaxpto.free_energy.estimators.samples import EnthalpySamples
    from jaxpto.free_energy.estimators.transition import phase_bracket
    from jaxpto.free_energy.ladder.analysis import analyse_ladder
    from jaxpto.free_energy.ladder.thermodynamics import thermodynamics
    from jaxpto.integrators.external_stress import hydrostatic_stress
    from jaxpto.integrators.npt_parrinello_rahman import npt_parrinello_rahman
    from jaxpto.integrators.nve import nve
    from jaxpto.integrators.nvt_langevin import nvt_langevin
    from jaxpto.integrators.state import Integrator, MDState
    from jaxpto.lattice_dynamics.hessian import force_constants
    from jaxpto.md.config import SweepConfig
    from jaxpto.model_interface import Prediction
    from jaxpto.models.catalogue import list_models, load_potential
    from jaxpto.models.energy_function import potential_from_energy
    from jaxpto.models.folder import save_potential
    from jaxpto.models.jax_md import potential_from_jax_md
    from jaxpto.neighbors import Layout, Neighbors, allocate, build, edge_vectors, grow, needs_rebuild, refresh
    from jaxpto.observables.observable import Observable
    from jaxpto.phonons import PhononsConfig
    from jaxpto.phonons import run as run_phonons
    from jaxpto.potential import Potential
    from jaxpto.pto.config import PtoTestConfig
    from jaxpto.pto_test import run as run_pto_test
    from jaxpto.relax import RelaxConfig
    from jaxpto.relax import run as run_relax
    from jaxpto.relaxation.batched import relax_batched
    from jaxpto.relaxation.target import Target
    from jaxpto.relaxation.with_ase import relax_with_ase
    from jaxpto.storage.trajectory import read_trajectory
    from jaxpto.structures import builtin_structure, make_supercell, read_structure
    from jaxpto.sweep import run as run_sweep
    from jaxpto.system import System, from_ase, stack, to_ase
    from jaxpto.train import TrainConfig
    from jaxpto.train import run as run_train

# where each name is: module:attribute, or a module
_PLACES = {
    "DistilConfig": "jaxpto.distillation.config:DistilConfig",
    "EnthalpySamples": "jaxpto.free_energy.estimators.samples:EnthalpySamples",
    "EvaluateConfig": "jaxpto.evaluate:EvaluateConfig",
    "FreeEnergyConfig": "jaxpto.free_energy.config:FreeEnergyConfig",
    "HarmonicOptions": "jaxpto.free_energy.config:HarmonicOptions",
    "InputError": "jaxpto.errors:InputError",
    "Integrator": "jaxpto.integrators.state:Integrator",
    "JaxptoCalculator": "jaxpto.calculator:JaxptoCalculator",
    "LandauOptions": "jaxpto.free_energy.config:LandauOptions",
    "Layout": "jaxpto.neighbors:Layout",
    "MDState": "jaxpto.integrators.state:MDState",
    "Neighbors": "jaxpto.neighbors:Neighbors",
    "Observable": "jaxpto.observables.observable:Observable",
    "PhononsConfig": "jaxpto.phonons:PhononsConfig",
    "Potential": "jaxpto.potential:Potential",
    "Prediction": "jaxpto.model_interface:Prediction",
    "PtoTestConfig": "jaxpto.pto.config:PtoTestConfig",
    "QuasiharmonicOptions": "jaxpto.free_energy.config:QuasiharmonicOptions",
    "RelaxConfig": "jaxpto.relax:RelaxConfig",
    "SweepConfig": "jaxpto.md.config:SweepConfig",
    "SwitchingOptions": "jaxpto.free_energy.config:SwitchingOptions",
    "System": "jaxpto.system:System",
    "Target": "jaxpto.relaxation.target:Target",
    "TrainConfig": "jaxpto.train:TrainConfig",
    "allocate": "jaxpto.neighbors:allocate",
    "analyse_ladder": "jaxpto.free_energy.ladder.analysis:analyse_ladder",
    "atom_mesh": "jaxpto.devices.sharding:atom_mesh",
    "build": "jaxpto.neighbors:build",
    "builtin_structure": "jaxpto.structures:builtin_structure",
    "edge_vectors": "jaxpto.neighbors:edge_vectors",
    "evaluate_frames": "jaxpto.evaluate:evaluate_frames",
    "force_constants": "jaxpto.lattice_dynamics.hessian:force_constants",
    "from_ase": "jaxpto.system:from_ase",
    "grow": "jaxpto.neighbors:grow",
    "hydrostatic_stress": "jaxpto.integrators.external_stress:hydrostatic_stress",
    "list_models": "jaxpto.models.catalogue:list_models",
    "load_potential": "jaxpto.models.catalogue:load_potential",
    "make_supercell": "jaxpto.structures:make_supercell",
    "mbar": "jaxpto.free_energy.estimators.mbar",
    "needs_rebuild": "jaxpto.neighbors:needs_rebuild",
    "npt_parrinello_rahman": "jaxpto.integrators.npt_parrinello_rahman:npt_parrinello_rahman",
    "nve": "jaxpto.integrators.nve:nve",
    "nvt_langevin": "jaxpto.integrators.nvt_langevin:nvt_langevin",
    "phase_bracket": "jaxpto.free_energy.estimators.transition:phase_bracket",
    "potential_from_energy": "jaxpto.models.energy_function:potential_from_energy",
    "potential_from_jax_md": "jaxpto.models.jax_md:potential_from_jax_md",
    "read_structure": "jaxpto.structures:read_structure",
    "read_trajectory": "jaxpto.storage.trajectory:read_trajectory",
    "refresh": "jaxpto.neighbors:refresh",
    "relax_batched": "jaxpto.relaxation.batched:relax_batched",
    "relax_with_ase": "jaxpto.relaxation.with_ase:relax_with_ase",
    "run_distil": "jaxpto.distil:run",
    "run_evaluate": "jaxpto.evaluate:run",
    "run_free_energy": "jaxpto.free_energy.command:run",
    "run_phonons": "jaxpto.phonons:run",
    "run_pto_test": "jaxpto.pto_test:run",
    "run_relax": "jaxpto.relax:run",
    "run_sweep": "jaxpto.sweep:run",
    "run_train": "jaxpto.train:run",
    "save_potential": "jaxpto.models.folder:save_potential",
    "sharded": "jaxpto.devices.sharding:sharded",
    "stack": "jaxpto.system:stack",
    "thermodynamics": "jaxpto.free_energy.ladder.thermodynamics:thermodynamics",
    "to_ase": "jaxpto.system:to_ase",
}

__all__ = ["__version__", *_PLACES]


def __getattr__(name: str) -> Any:
    """A public name, imported from where it is."""
    if name not in _PLACES:
        raise AttributeError(f"module 'jaxpto' has no attribute '{name}'")
    module, _, attribute = _PLACES[name].partition(":")
    found = importlib.import_module(module)
    found = getattr(found, attribute) if attribute else found
    globals()[name] = found  # the next time it is there
    return found


def __dir__() -> list[str]:
    """The public names."""
    return sorted(__all__)
