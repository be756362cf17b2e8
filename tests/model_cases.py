"""A model of every architecture, with the structures and the laws of the contract that it is held to.

A new architecture gets an entry here: without one, `test_models.py` fails.
"""

from __future__ import annotations

import dataclasses
import pathlib
import tempfile
from collections.abc import Callable

import ase
import jax
import jax.numpy as jnp
import nep_files
import numpy as np
from crystals import four_species, noble_gases, titanate
from small_fresh import SETTINGS, lively
from small_sevennet import SMALL, stored_state

from converters import deepmd, mace, mattersim, nep, orb, sevennet
from converters.sources import find_checkpoint
from jaxpto.models.fresh import fresh_model
from jaxpto.models.lennard_jones import lennard_jones
from jaxpto.models.perovskite import Perovskite, initialize
from jaxpto.potential import Potential


@dataclasses.dataclass(frozen=True)
class ModelCase:
    """One architecture in the contract.

    Attributes:
        make: gives a model with its parameters, small ones where there are any; takes the folder of reference data.
        crystal: a small crystal without symmetry, of elements that the model knows.
        lone: atomic number of an atom that is put into an empty box.
        tiny: atomic number and edge in Angstrom of a cell of one atom.
        pair: two atomic numbers whose bond is stretched through the cutoff.
        slow: laws that hold and take long: they wait for the slow tests.
        broken: laws that do not hold, and why.
    """

    make: Callable[[pathlib.Path], Potential]
    crystal: Callable[[], ase.Atoms]
    lone: int = 22
    tiny: tuple[int, float] = (82, 3.2)
    pair: tuple[int, int] = (22, 8)
    slow: frozenset[str] = frozenset()
    broken: dict[str, str] = dataclasses.field(default_factory=dict)


def random_perovskite(shared: pathlib.Path | None = None) -> Potential:
    """Every parameter random, so that no term is silent."""
    model = Perovskite((8, 22, 38, 82), radial=6, channels=5, quartic=3, hidden=7)
    params = initialize(model, jax.random.key(0), np.float64)
    keys = jax.random.split(jax.random.key(1), len(params))
    params = {
        name: value + 0.1 * jax.random.normal(key, value.shape, np.float64)
        for (name, value), key in zip(sorted(params.items()), keys, strict=True)
    }
    wall = jnp.asarray(1.9 + 0.1 * np.add.outer(np.arange(4), np.arange(4)))
    return Potential(params | {"wall": wall, "trusted": 1.1 * wall}, model, "random")


def random_sevennet(shared: pathlib.Path | None = None) -> Potential:
    """The published ones take long to compile."""
    params = sevennet.parameters(stored_state(), SMALL, by_result=False)
    return Potential(jax.tree.map(jnp.asarray, params), SMALL, "small")


def _fresh(architecture: str) -> Callable[[pathlib.Path], Potential]:
    """A small one, not yet trained; files of their own compare the published ones with the originals."""

    def make(shared: pathlib.Path) -> Potential:
        model = fresh_model(architecture, (8, 22, 38, 82), SETTINGS[architecture], ())
        return lively(Potential(model.initialize(jax.random.key(0), (), 1.0), model, architecture))

    return make


def _seeded_qnep(shared: pathlib.Path) -> Potential:
    """Nobody has published one that knows these elements."""
    with tempfile.TemporaryDirectory() as folder:
        path = nep_files.write(pathlib.Path(folder, "nep.txt"), nep_files.HEADERS["nep4_zbl_charge1"])
        return nep.convert(path, "seeded")


def _noble(shared: pathlib.Path) -> Potential:
    return lennard_jones(["Ar", "Kr"], [0.01, 0.014], [3.4, 3.65], cutoff=6.0, onset=5.0)


def _of_file(convert: Callable[..., Potential], name: str, *file: str) -> Callable[[pathlib.Path], Potential]:
    """The published model of this name, from a file in the reference data, or wherever its converter finds it."""
    return lambda shared: convert(find_checkpoint(name, shared.joinpath("weights", *file) if file else None), name)


def _deepmd(file: str) -> Callable[[pathlib.Path], Potential]:
    return lambda shared: deepmd.convert(deepmd.read_model(shared / "weights" / "fixtures" / file), file)


def _orb(file: str, version: orb.Version) -> Callable[[pathlib.Path], Potential]:
    def make(shared: pathlib.Path) -> Potential:
        checkpoint = find_checkpoint(f"orb-{version}", shared / "weights" / "fixtures" / file)
        return orb.convert(checkpoint, f"orb-{version}", version)

    return make


def _mattersim(shared: pathlib.Path) -> Potential:
    """A seeded one, as `benchmarks/mattersim_reference.py` makes it."""
    path = pathlib.Path(__file__).parent / "references" / "mattersim_v1.pth"
    return mattersim.convert(find_checkpoint(mattersim.NAME, path), mattersim.NAME)


TINY_CELLS = frozenset({"isolated_atom", "one_atom_cell"})
LARGER = frozenset({"extensivity", "batch", "capacity"})
NOT_INVARIANT = "the network is not equivariant"
CASES = {
    "chgnet": ModelCase(
        _fresh("chgnet"),
        four_species,
        slow=TINY_CELLS | LARGER | {"smooth_at_cutoff"} - {"capacity"},
    ),
    "deeppot_se": ModelCase(_deepmd("se_e2_a.pb"), titanate, tiny=(82, 3.9), slow=LARGER),
    "dpa1": ModelCase(
        _deepmd("unipero_reduced.pb"),
        titanate,
        tiny=(82, 3.9),
        slow=LARGER,
        broken={"smooth_at_cutoff": "a neighbour takes part in the attention fully up to the cutoff"},
    ),
    "gptff": ModelCase(
        _fresh("gptff"),
        four_species,
        slow=LARGER,
        broken={
            "extensivity": "the readout is not linear, and atoms attend to all others",
            "isolated_atom": "as extensivity",
            "one_atom_cell": "as extensivity",
            "smooth_at_cutoff": "terms do not vanish at the cutoff",
        },
    ),
    "lennard_jones": ModelCase(_noble, noble_gases, lone=18, tiny=(36, 4.2), pair=(18, 36)),
    "m3gnet": ModelCase(
        _fresh("m3gnet"),
        four_species,
        slow=TINY_CELLS | LARGER - {"capacity"},
        broken={"smooth_at_cutoff": "the radial functions reach zero at the cutoff with a slope"},
    ),
    "mace": ModelCase(
        _of_file(mace.convert, mace.NAME, "fixtures", "mace_mp0b_reduced.model"),
        four_species,
        slow=TINY_CELLS | LARGER | {"smooth_at_cutoff"},
    ),
    "mattersim": ModelCase(_mattersim, four_species, pair=(82, 8), slow=TINY_CELLS | LARGER | {"smooth_at_cutoff"}),
    "nep": ModelCase(
        _fresh("nep"),
        four_species,
        pair=(82, 8),
        slow=LARGER - {"capacity"},
        broken={"smooth_at_cutoff": "second derivatives jump where the cosine ends"},
    ),
    "qnep": ModelCase(
        _seeded_qnep,
        four_species,
        pair=(82, 8),
        slow=LARGER - {"capacity", "extensivity"},
        broken={"smooth_at_cutoff": "both sums over charges end with a small jump"},
    ),
    "orb_conservative": ModelCase(
        _orb("orb_v3_conservative_reduced.ckpt", "v3-conservative-inf-omat"),
        four_species,
        slow=TINY_CELLS | LARGER | {"smooth_at_cutoff"},
        broken={
            "rotation": NOT_INVARIANT,
            "extensivity": "the repulsion of nuclei is a mean over atoms",
        },
    ),
    "orb_direct": ModelCase(
        _orb("orb_v2_reduced.ckpt", "v2"),
        four_species,
        slow=LARGER - {"extensivity"},
        broken={
            "rotation": NOT_INVARIANT,
            "forces_are_gradients": "forces are predicted",
            "isolated_atom": "each atom keeps the mean force of the training data",
            "one_atom_cell": "as isolated_atom",
        },
    ),
    "perovskite": ModelCase(random_perovskite, four_species, pair=(82, 8)),
    "tensornet": ModelCase(
        _fresh("tensornet"), four_species, pair=(82, 8), slow=TINY_CELLS | LARGER - {"capacity"},
        broken={"smooth_at_cutoff": "second derivatives jump where the cosine ends"},
    ),
    "sevennet": ModelCase(
        random_sevennet, four_species, pair=(82, 8), slow=TINY_CELLS | LARGER - {"capacity"}
    ),
}  # fmt: skip
