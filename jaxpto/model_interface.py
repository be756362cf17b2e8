"""What a class must have to be a force field of jaxpto: `Model`, and the further protocols it may follow.

A model is a frozen dataclass. Its fields are the hyperparameters, which `model.json` stores; what is true of every
instance stands in class attributes (`ClassVar`). Parameters are no part of it: every method takes them first, so that
they can be differentiated, cast and trained. All methods are pure functions that JAX can trace.

`jaxpto/models/lennard_jones.py` is the smallest example; docs/models.md says how to add a model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Protocol, runtime_checkable

from flax import struct
from jaxtyping import Array, Float, Int

from jaxpto.neighbors import Layout, Neighbors
from jaxpto.system import Leaf, System


@struct.dataclass
class Prediction:
    """Energy [] eV, forces [n, 3] eV/Angstrom, stress [3, 3] eV/Angstrom^3 (positive in tension) of one system."""

    energy: Float[Leaf, "*batch"]
    forces: Float[Leaf, "*batch n 3"]
    stress: Float[Leaf, "*batch 3 3"]


EvaluateFn = Callable[[System, Neighbors], Prediction]
"""Energy, forces and stress of one system; `Potential.evaluate` is one, any function with this signature will do."""


@runtime_checkable
class Model(Protocol):
    """The interface of every model: three facts of the class, two hyperparameters and a pure energy function.

    Attributes:
        by_species: True for a dense neighbour list whose slots are sorted by the neighbour's species, so that a slot's
            species is known when the program is compiled; False for a packed list of edges, without empty slots.
        conservative: whether forces and stress are derivatives of the energy; None where nobody knows.
        usual_skin: reach of the neighbour list beyond the cutoff where the user asks for none, Angstrom: 0.3; or 0.1
            where angles are built from the edges, because those of edges in the skin then cost more than a new list.
    """

    by_species: ClassVar[bool]
    conservative: ClassVar[bool | None]
    usual_skin: ClassVar[float]

    @property
    def elements(self) -> tuple[int, ...]:
        """Atomic numbers the model knows."""
        ...

    @property
    def cutoff(self) -> float:
        """Longest edge that counts, Angstrom."""
        ...

    def energy(
        self, params: Any, system: System, neighbors: Neighbors, vectors: Float[Array, "e 3"]
    ) -> Float[Array, ""]:
        """Energy of one system, eV; forces and stress are its derivatives in the edge vectors.

        Args:
            params: the model's pytree of parameters; dicts of arrays, so that they can be saved.
            system: atomic numbers and masses. Positions and cell must enter through `vectors` alone, but for those of
                a `ReciprocalModel`.
            neighbors: the edges in the layout that `by_species` asks for; those beyond the cutoff and empty slots
                (sender n) must count for nothing.
            vectors: [e, 3] Angstrom, from the receiver of each edge to its sender.
        """
        ...


@runtime_checkable
class DirectModel(Protocol):
    """A model that gives forces and stress itself, in place of the derivatives of its energy."""

    def predict(self, params: Any, system: System, neighbors: Neighbors) -> Prediction:
        """Energy, forces and stress of one system."""
        ...


@runtime_checkable
class AngularModel(Protocol):
    """A model that needs the list of angles, `Neighbors.angles`."""

    @property
    def angle_cutoff(self) -> float:
        """Longest bond that angles are made of, Angstrom."""
        ...


@runtime_checkable
class NearModel(Protocol):
    """A model, `by_species`, of which a part reaches less far: those edges come first in each block of slots.

    The model finds their slots with `near_slots`; of a list without them, all.
    """

    @property
    def near_cutoff(self) -> float:
        """Reach of that part, Angstrom; 0 where it is not worth a sorted list."""
        ...


@runtime_checkable
class ReciprocalModel(Protocol):
    """A model with a sum over wave vectors: its energy depends on positions and cell beside the edge vectors.

    The box of wave vectors is `Layout.waves`; in a cell that has outgrown it the energy must be NaN.
    """

    @property
    def wave_cutoff(self) -> float:
        """Longest wave vector that counts, 1/Angstrom; 0 where there is no sum."""
        ...


@runtime_checkable
class SiteModel(Protocol):
    """A model that predicts quantities of single atoms besides their forces.

    Attributes:
        site_quantities: their names, as ASE has them: "energies" (eV), "magmoms" (Bohr magnetons), "charges" (e) [n],
            "born_effective_charges" (e) [n, 3, 3], first index: polarization, second: displacement.
    """

    site_quantities: ClassVar[tuple[str, ...]]

    def site_properties(
        self, params: Any, system: System, neighbors: Neighbors, vectors: Float[Array, "e 3"]
    ) -> dict[str, Array]:
        """Values [n] or [n, 3, 3] of each of these quantities; arguments as for `Model.energy`."""
        ...


@runtime_checkable
class PolarizableModel(Protocol):
    """A model with Born charges of its own (see `SiteModel`) that knows how electrons screen them."""

    def dielectric(self, params: Any) -> Float[Array, "3 3"]:
        """Dielectric tensor with the ions held in place, epsilon_infinity."""
        ...


@runtime_checkable
class SelectiveModel(Protocol):
    """A model whose training data never held some of its elements together."""

    @property
    def strangers(self) -> tuple[tuple[int, int], ...]:
        """Pairs of atomic numbers; a structure with both is refused."""
        ...


@runtime_checkable
class BoundedModel(Protocol):
    """A model that counts only the nearest neighbours of an atom with many."""

    @property
    def neighbor_bounds(self) -> tuple[tuple[tuple[int, ...], int], ...]:
        """Groups of atomic numbers, and how many neighbours from each group an atom can have."""
        ...


@runtime_checkable
class LocalModel(Protocol):
    """A model with dense lists whose energy is a sum over atoms, each a function of its own edges alone.

    It can be evaluated a few atoms at a time, and by several devices with some of the atoms each.
    """

    def atoms_at_a_time(self, n: int, layout: Layout) -> Int[Array, "i m"] | None:
        """Which of n atoms to evaluate at a time, where the edges of all would not fit the caches; None: all at once.

        Each atom once, in slices of one length; indices from n on are padding.
        """
        ...

    def local_energies(
        self, layout: Layout, params: Any, vectors: Float[Array, "m s 3"], numbers: Int[Array, " m"]
    ) -> Float[Array, " m"]:
        """Energies of some atoms, eV, from their edge vectors and atomic numbers."""
        ...


@runtime_checkable
class ShapedModel(Protocol):
    """A model whose hyperparameters decide the shapes of all its parameters, which are compared on loading."""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every parameter, by its name."""
        ...


@runtime_checkable
class TableModel(Protocol):
    """A model some of whose parameters are tables with a row for each element, whose lengths are checked on loading."""

    @property
    def tables(self) -> dict[str, tuple[int, ...]]:
        """Names ("layers/*/skip/*", as of files) and the smallest lengths of their first axes.

        -n stands for n or 1, where one row may serve all elements.
        """
        ...


@runtime_checkable
class ModelWithConstants(Protocol):
    """A model some of whose parameters are no weights but references, scales and statistics of its data.

    Attributes:
        constants: patterns of their names ("references", "layers/*/mean", as of files); training leaves them alone.
    """

    constants: ClassVar[tuple[str, ...]]


@runtime_checkable
class TrainableModel(Protocol):
    """A model that can be trained from nothing."""

    def initialize(self, key: Array, samples: Sequence[tuple[System, Neighbors]], force_scale: float) -> Any:
        """Random parameters to begin with, nested dicts of float32 arrays; reference energies are zero.

        Args:
            key: a random key of JAX.
            samples: systems of the training data with their neighbour lists, in the layout that the model asks for;
                statistics are taken from these.
            force_scale: root mean square of the forces of the training data, eV/Angstrom.

        Raises:
            ValueError: hyperparameters that say how many parameters there are were left open.
        """
        ...


BORN_CHARGES = "born_effective_charges"


def predicts(model: Model, quantity: str) -> bool:
    """Whether a model predicts this quantity of single atoms; see `SiteModel`."""
    return isinstance(model, SiteModel) and quantity in model.site_quantities


def caveat(conservative: bool | None) -> str:
    """What is said of a model whose forces are not, or not known to be, derivatives of its energy; "" of others."""
    if conservative:
        return ""
    return f"forces are not {'known to be ' if conservative is None else ''}derivatives of its energy"
