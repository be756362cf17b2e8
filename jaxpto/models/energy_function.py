"""Any JAX function of positions, cell and neighbour list as a potential."""

from __future__ import annotations

import dataclasses
import enum
import functools
import hashlib
import inspect
import textwrap
import types
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import ase
import ase.data
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxpto.errors import InputError
from jaxpto.model_interface import Prediction
from jaxpto.models.check import LONGEST_CUTOFF
from jaxpto.neighbors import Neighbors, build, edge_vectors, heights
from jaxpto.neighbors.search import inverse
from jaxpto.potential import Potential, virial_tensor
from jaxpto.system import System, from_ase, volume

EnergyFn = Callable[[Any, System, Neighbors], Float[Array, ""]]
"""Energy in eV of (params, system, neighbors), differentiable in positions and cell."""
_TOLERANCE = 1e-5  # relative, and eV an atom: far above rounding, far below an edge beyond the cutoff
_LONGER = 0.5  # Angstrom
_build = jax.jit(build, static_argnames="layout")


@jax.jit
def _energy(potential: Potential, system: System, neighbors: Neighbors) -> Array:
    return potential.energy(system, neighbors)


@dataclasses.dataclass(frozen=True)
class EnergyFunction:
    """A model made of a function; forces and stress are its derivatives in positions and strain.

    Attributes:
        function: maps (params, system, neighbors) to the energy in eV.
        digest: what tells this function from others when a run goes on; part of `repr`.
        elements: atomic numbers it may be asked about.
        cutoff: Angstrom; edges beyond it and empty slots must not change the energy.
        least_height: smallest height of a cell it is right for, Angstrom; in lower ones its energy is NaN.
    """

    by_species: ClassVar[bool] = False
    conservative: ClassVar[bool | None] = True
    usual_skin: ClassVar[float] = 0.3

    function: EnergyFn = dataclasses.field(repr=False)
    digest: str
    elements: tuple[int, ...]
    cutoff: float
    least_height: float = 0.0

    def energy(self, params: Any, system: System, neighbors: Neighbors, vectors: Float[Array, "e 3"]) -> Array:
        """Energy of one system, eV; the function takes its edge vectors from positions and cell itself.

        Raises:
            InputError: the function gives no single number.
        """
        energy = jnp.asarray(self.function(params, system, neighbors), system.positions.dtype)
        if energy.shape != ():
            raise InputError(f"the energy function gives an array {list(energy.shape)}; sum it up to one number")
        if not self.least_height:
            return energy
        lowest = 1.0 / jnp.sqrt(jnp.max(jnp.sum(inverse(jax.lax.stop_gradient(system.cell)) ** 2, axis=0)))
        return energy * jnp.where(lowest < self.least_height, jnp.nan, jnp.ones_like(energy))

    def predict(self, params: Any, system: System, neighbors: Neighbors) -> Prediction:
        """Energy, forces and stress of one system from a single backward pass.

        A strain moves positions and cell alike, so that with the lattice vectors a_k
        stress = (1/V) [sum_i r_i (x) dE/dr_i + sum_k a_k (x) dE/da_k].
        """

        def energy(positions: Array, cell: Array) -> Array:
            moved = dataclasses.replace(system, positions=positions, cell=cell)
            return self.energy(params, moved, neighbors, jnp.zeros((0, 3), positions.dtype))

        value, (by_position, by_cell) = jax.value_and_grad(energy, argnums=(0, 1))(system.positions, system.cell)
        total = virial_tensor(system.positions, by_position) + virial_tensor(system.cell, by_cell)
        return Prediction(value, -by_position, (total + total.T) / (2.0 * volume(system.cell)))


@dataclasses.dataclass(frozen=True)
class DenseEnergyFunction(EnergyFunction):
    """The same for a function that wants a dense neighbour list."""

    by_species: ClassVar[bool] = True


def potential_from_energy(
    energy: EnergyFn,
    params: Any = None,
    *,
    cutoff: float,
    name: str,
    elements: Sequence[str] | None = None,
) -> Potential:
    """A potential with the energy of a JAX function: forces, stress, Hessian, batched dynamics and all else follow.

    The list holds every directed edge shorter than cutoff + skin, each pair twice; empty slots hold vectors that are
    longer. An energy of `edge_vectors(system, neighbors)` that is 0 from the cutoff on needs no mask.

    Runs that are resumed compare the source text of the function, the values it has captured (closures, defaults,
    `functools.partial`) and `params`. Global variables that it reads are not compared: put numbers into `params`.

    Args:
        energy: maps (params, system, neighbors) to the energy in eV; it depends on positions and cell through
            `edge_vectors(system, neighbors)` or directly, is twice differentiable in both, and 0 beyond the cutoff.
        params: pytree of arrays or numbers, given to `energy` in the precision of the run.
        cutoff: Angstrom.
        name: what to call the potential.
        elements: chemical symbols it may be asked about; by default all.

    Raises:
        InputError: cutoff that is not a length up to 20 Angstrom, or an unknown element.
    """
    return function_potential(energy, params, cutoff=cutoff, name=name, elements=elements, identity=energy)


def function_potential(
    energy: EnergyFn,
    params: Any,
    *,
    cutoff: float,
    name: str,
    elements: Sequence[str] | None,
    identity: Any,
    dense: bool = False,
    least_height: float = 0.0,
) -> Potential:
    """The same for adapters of foreign functions.

    Args:
        energy, params, cutoff, name, elements: as for `potential_from_energy`.
        identity: what the digest is taken of: a function, or a tuple of functions and settings.
        dense: whether the neighbour list is the matrix [n, slots] of senders, in place of a packed one.
        least_height: as in `EnergyFunction`.

    Raises:
        InputError: as for `potential_from_energy`.
    """
    if not 0.0 < cutoff <= LONGEST_CUTOFF:
        raise InputError(f"potential {name}: cutoff {cutoff} A; give a length above 0 and up to {LONGEST_CUTOFF:g} A")
    known = ase.data.atomic_numbers
    if unknown := [symbol for symbol in elements or () if known.get(symbol, 0) < 1]:
        raise InputError(f"potential {name}: there is no element '{unknown[0]}'; give chemical symbols")
    numbers = tuple(range(1, 119)) if elements is None else tuple(known[symbol] for symbol in elements)
    digest = hashlib.sha256(_described(identity).encode()).hexdigest()[:16]
    kind = DenseEnergyFunction if dense else EnergyFunction
    model = kind(energy, digest, numbers, float(cutoff), float(least_height))
    # numbers as they are written: they are rounded to the precision of a run, not before
    return Potential(
        jax.tree.map(lambda leaf: leaf if isinstance(leaf, jax.Array) else np.asarray(leaf), params), model, name
    )


def check_height(potential: Potential, atoms: ase.Atoms, where: str) -> None:
    """Refuse a cell that is too narrow for the model.

    Raises:
        InputError: with the height and the remedy.
    """
    if isinstance(potential.model, EnergyFunction):
        least, lowest = potential.model.least_height, float(heights(atoms.cell.array).min())
        if lowest < least:
            raise InputError(
                f"{where}: the cell is {lowest:.4g} A wide, and {potential.name} sees only the nearest image "
                f"of an atom, which takes twice its cutoff, {least:g} A; repeat the cell (`supercell`)"
            )


def probe(potential: Potential, atoms: ase.Atoms, where: str = "structure") -> None:
    """Try a function on a structure, so that what is wrong with it is said before it is compiled; others pass.

    Raises:
        InputError: the function raises something, gives no finite number, depends on edges beyond its cutoff or on
            empty slots, or changes when an atom is moved by a lattice vector.
    """
    if not isinstance(potential.model, EnergyFunction):
        return
    dtype = np.dtype(jnp.result_type(float))
    system = from_ase(atoms, dtype)
    layout = potential.allocate([system], _LONGER)
    longer = _build(system, layout)
    reached = jnp.sum(edge_vectors(system, longer) ** 2, axis=-1) < potential.cutoff**2
    n = len(atoms)
    shorter = dataclasses.replace(
        longer,
        senders=jnp.where(reached, longer.senders, n),
        packed_receivers=jnp.where(reached, longer.packed_receivers, n) if layout.edges else longer.packed_receivers,
    )
    energy = _tried(potential, system, shorter, where)
    if not np.isfinite(energy):
        raise InputError(f"{where}: the energy of {potential.name} is {energy}; check the function and the structure")

    def differs(other: float) -> bool:
        return not abs(other - energy) <= _TOLERANCE * (abs(energy) + n)

    beyond = _tried(potential, system, longer, where)
    if differs(beyond):
        raise InputError(
            f"{where}: the energy of {potential.name} is {energy:.6g} eV with a neighbour list up to its cutoff and "
            f"{beyond:.6g} eV with one {_LONGER:g} A longer; make it 0 from the cutoff ({potential.cutoff:g} A) on, "
            "where empty slots of the list lie too"
        )
    elsewhere = atoms.copy()
    elsewhere.positions[0] += atoms.cell.array.sum(axis=0)
    system = from_ase(elsewhere, dtype)
    moved = _tried(potential, system, _build(system, layout), where)
    if differs(moved):
        raise InputError(
            f"{where}: the energy of {potential.name} is {energy:.6g} eV, and {moved:.6g} eV with an atom moved by "
            "lattice vectors, so that it is not periodic; take distances from edge_vectors(system, neighbors)"
        )


def _tried(potential: Potential, system: System, neighbors: Neighbors, where: str) -> float:
    try:
        return float(_energy(potential, system, neighbors))
    except InputError:
        raise
    except Exception as error:  # foreign code: whatever it raises belongs to the function
        line = (str(error).strip().splitlines() or ["no message"])[0][:200]
        raise InputError(f"{where}: energy function {potential.name}: {type(error).__name__}: {line}") from error


def _described(value: Any, within: tuple[int, ...] = ()) -> str:
    """A text, the same in every process, of a function and of what it has captured."""
    if id(value) in within:
        return "..."
    inner = functools.partial(_described, within=(*within, id(value)))
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    if value is None or isinstance(value, bool | int | float | complex | str | bytes):
        return repr(value)
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        array = np.asarray(value)
        return f"{array.dtype} {array.shape} {hashlib.sha256(array.tobytes()).hexdigest()}"
    if isinstance(value, type | types.BuiltinFunctionType | types.ModuleType):
        return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', value.__name__)}"
    if isinstance(value, enum.Enum):
        return f"{kind}.{value.name}"
    if isinstance(value, dict):
        return f"{{{', '.join(sorted(f'{inner(key)}: {inner(one)}' for key, one in value.items()))}}}"
    if isinstance(value, tuple | list):
        return f"[{', '.join(inner(one) for one in value)}]"
    if isinstance(value, set | frozenset):
        return f"[{', '.join(sorted(inner(one) for one in value))}]"
    if isinstance(value, functools.partial):
        return inner((value.func, value.args, value.keywords))
    if isinstance(value, types.MethodType):
        return inner((value.__func__, value.__self__))
    if isinstance(value, types.FunctionType):
        return inner(
            (_source(value.__code__), value.__defaults__, value.__kwdefaults__, *map(_content, value.__closure__ or ()))
        )
    if (wrapped := getattr(value, "__wrapped__", None)) is not None:  # jax.jit
        return inner((wrapped,))
    return f"{kind} {inner(getattr(value, '__dict__', {}))}"


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not assigned yet
        return None


def _source(code: types.CodeType) -> str:
    """Text of a function, or its instructions where it was not read from a file or a notebook."""
    try:
        return textwrap.dedent(inspect.getsource(code)).strip()
    except (OSError, TypeError):
        return (
            f"{code.co_code.hex()} {code.co_names} {[c for c in code.co_consts if not isinstance(c, types.CodeType)]}"
        )
