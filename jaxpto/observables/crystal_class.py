"""Which of the seven crystal systems a distorted cube is in, from its strain and polarization with their errors.

The 48 operations of the cube (m-3m) are signed permutations of its axes. Those that leave the strain and the
polarization as they are, within the tolerances, make up the symmetry of the averaged structure as far as a lattice and
a vector can tell; its rotation axes name the system.
"""

from __future__ import annotations

import functools
import itertools
from typing import Literal

import numpy as np
from jaxtyping import Float

System = Literal["cubic", "tetragonal", "orthorhombic", "rhombohedral", "monoclinic", "triclinic"]


def crystal_system(
    strain: Float[np.ndarray, "3 3"],
    strain_tolerance: Float[np.ndarray, "3 3"],
    polarization: Float[np.ndarray, 3],
    polarization_tolerance: Float[np.ndarray, 3],
) -> System:
    """System of the largest group of operations of the cube that keep strain and polarization within the tolerances.

    An operation keeps them if no component moves by more than the tolerances of the two components that it exchanges,
    added in quadrature.

    Args:
        strain: [3, 3] symmetric, along the pseudo-cubic axes.
        strain_tolerance: [3, 3] symmetric.
        polarization: [3] along the same axes, any unit; zeros where there is none.
        polarization_tolerance: [3] in the same unit.
    """
    operations = _operations()

    def off(operation: np.ndarray) -> float:
        size = np.abs(operation)
        moved = np.abs(operation @ strain @ operation.T - strain)
        allowed = np.hypot(strain_tolerance, size @ strain_tolerance @ size.T)
        turned = np.abs(operation @ polarization - polarization)
        bound = np.hypot(polarization_tolerance, size @ polarization_tolerance)
        return float(max((moved - allowed).max(), (turned - bound).max()))

    kept = frozenset(k for k, operation in enumerate(operations) if off(operation) <= 0.0)
    largest = next(group for group in _subgroups() if group <= kept)  # at last the identity alone, which moves nothing
    return _system_of(largest)


def _system_of(group: frozenset[int]) -> System:
    proper = {tuple(np.rint(np.linalg.det(op) * op).astype(int).ravel().tolist()) for op in _operations()[list(group)]}
    traces = [sum(op[::4]) for op in proper]
    threefold, fourfold, twofold = traces.count(0) // 2, traces.count(1) // 2, traces.count(-1)
    if threefold == 4:
        return "cubic"
    if threefold:
        return "rhombohedral"
    if fourfold:
        return "tetragonal"
    return "orthorhombic" if twofold == 3 else "monoclinic" if twofold else "triclinic"


@functools.cache
def _operations() -> np.ndarray:
    """[48, 3, 3] signed permutations."""
    matrices = [
        np.eye(3)[list(order)] * np.array(signs)[:, None]
        for order in itertools.permutations(range(3))
        for signs in itertools.product((1.0, -1.0), repeat=3)
    ]
    return np.array(matrices)


@functools.cache
def _subgroups() -> list[frozenset[int]]:
    """All 98 subgroups of m-3m as sets of indices of `_operations`, the largest first."""
    operations = _operations().astype(int)
    index = {operation.tobytes(): k for k, operation in enumerate(operations)}
    product = np.array([[index[(a @ b).tobytes()] for b in operations] for a in operations])

    def generated(seed: frozenset[int]) -> frozenset[int]:
        members = seed
        while True:
            listed = list(members)
            larger = members | set(product[np.ix_(listed, listed)].ravel().tolist())
            if larger == members:
                return members
            members = frozenset(larger)

    cyclic = {generated(frozenset([k])) for k in range(48)}
    found, fresh = set(cyclic), set(cyclic)
    while fresh:
        fresh = {generated(group | other) for group in fresh for other in cyclic} - found
        found |= fresh
    return sorted(found, key=lambda group: (-len(group), sorted(group)))
