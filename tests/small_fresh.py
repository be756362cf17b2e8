"""Small models as training begins with them, and the structures from which their statistics are taken."""

from __future__ import annotations

import fnmatch
from typing import Any

import ase
import jax
import numpy as np

from jaxpto import neighbors
from jaxpto.models.fresh import fresh_model
from jaxpto.neighbors import Neighbors
from jaxpto.potential import Potential
from jaxpto.system import System, from_ase

FORCE_SCALE = 0.8
SETTINGS: dict[str, dict[str, str]] = {
    "perovskite": {"cutoff": "4.0", "radial": "5", "channels": "4", "quartic": "2", "hidden": "6"},
    "chgnet": {"cutoff": "4.0", "angle_cutoff": "2.5", "features": "6", "layers": "3"},
    "m3gnet": {"cutoff": "4.0", "three_body_cutoff": "3.0", "features": "6", "blocks": "1"},
    "gptff": {"cutoff": "4.0", "angle_cutoff": "2.5", "features": "6", "blocks": "1", "attention": "true"},
    "sevennet": {"cutoff": "4.0", "channels": "6/6,4/6"},
    "mace": {"cutoff": "4.0", "channels": "4", "highest_edge": "2"},
    "nep": {
        "cutoff": "4.5", "angular_cutoff": "4.0", "radial": "4", "angular": "3", "radial_basis": "5",
        "angular_basis": "4", "hidden": "6",
    },
    "tensornet": {"cutoff": "4.0", "features": "6", "blocks": "1"},
    "deeppot_se": {"cutoff": "4.0", "axis": "3", "embedding_widths": "4,8", "fitting_widths": "6,6"},
}  # fmt: skip


def rattled(atoms: ase.Atoms, number: int, amplitude: float = 0.05) -> list[ase.Atoms]:
    """Copies with random displacements, Angstrom."""
    copies = []
    for seed in range(number):
        copies.append(atoms.copy())
        copies[-1].rattle(amplitude, seed=seed)
    return copies


def with_neighbors(potential: Potential, structures: list[ase.Atoms]) -> list[tuple[System, Neighbors]]:
    """Systems of one composition with their neighbour lists, in one layout."""
    systems = [from_ase(atoms, np.float64) for atoms in structures]
    layout = potential.allocate(systems, 0.3)
    return [(system, neighbors.build(system, layout)) for system in systems]


def lively(potential: Potential) -> Potential:
    """The same with noise on every weight: no term is silent, and forces are as large as those of a trained model.

    Frequencies are not moved: close to the cutoff, the fast sines of others would hide how smoothly an energy vanishes.
    """
    generator, kept = np.random.default_rng(0), constants_of(potential)

    def moved(path: tuple[Any, ...], leaf: np.ndarray) -> np.ndarray:
        name, noise = name_of(path), 0.4 * generator.normal(size=leaf.shape)
        return leaf if name in kept or name.startswith("frequencies") else leaf + noise

    return potential.replace(params=jax.tree_util.tree_map_with_path(moved, potential.params))


def name_of(path: tuple[Any, ...]) -> str:
    """Name of a parameter in files."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def named(params: object) -> dict[str, np.ndarray]:
    """Parameters by their names in files."""
    return {name_of(path): np.asarray(leaf) for path, leaf in jax.tree.leaves_with_path(params)}


def constants_of(potential: Potential) -> set[str]:
    """Names of the parameters that training leaves as they are."""
    names = named(potential.params)
    return {name for pattern in potential.model.constants for name in fnmatch.filter(names, pattern)}


def small_fresh(architecture: str, atoms: ase.Atoms) -> tuple[Potential, list[tuple[System, Neighbors]]]:
    """A small model with its first parameters, and the samples that these were made for."""
    structures = rattled(atoms, 4)
    systems = [from_ase(one, np.float64) for one in structures]
    elements = tuple(sorted(set(atoms.numbers.tolist())))
    model = fresh_model(architecture, elements, SETTINGS[architecture], systems)
    samples = with_neighbors(Potential({}, model, architecture), structures)
    return Potential(model.initialize(jax.random.key(0), samples, FORCE_SCALE), model, architecture), samples
