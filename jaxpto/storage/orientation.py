"""The standard orientation of a cell, which lengths and angles define: a along x, b in the xy plane."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Shaped


def standard_orientation(
    cells: Float[np.ndarray, "*batch 3 3"],
) -> tuple[Float[np.ndarray, "*batch 3 3"], Float[np.ndarray, "*batch 3 3"]]:
    """Split cells into a lower triangle with positive diagonal and a rotation, cell = lower @ rotation (float64).

    A row vector in the laboratory is the one in standard orientation times the rotation. Where a cell is in standard
    orientation already, `lower` is the cell itself and the rotation exactly the identity. For a left-handed cell, which
    no rotation can bring there, the last element of the diagonal is negative.

    Args:
        cells: [..., 3, 3] rows are the lattice vectors.
    """
    cells = np.asarray(cells, np.float64)
    positive = np.ones(cells.shape[:-1])
    positive[..., 2] = np.where(np.linalg.det(cells) < 0.0, -1.0, 1.0)
    # cell^T = Q U with an upper triangle U, hence cell = U^T Q^T; the signs of U's rows are free
    orthogonal, upper = np.linalg.qr(np.swapaxes(cells, -1, -2))
    signs = positive * np.where(np.diagonal(upper, axis1=-2, axis2=-1) < 0.0, -1.0, 1.0)
    lower = np.swapaxes(upper * signs[..., :, None], -1, -2)
    rotation = np.swapaxes(orthogonal * signs[..., None, :], -1, -2)
    diagonal = np.diagonal(cells, axis1=-2, axis2=-1) * positive
    already = ((np.triu(cells, 1) == 0.0).all(axis=(-2, -1)) & (diagonal > 0.0).all(axis=-1))[..., None, None]
    return np.where(already, cells, lower), np.where(already, np.eye(3), rotation)


def to_standard(frames: Mapping[str, Shaped[np.ndarray, "f ..."]]) -> dict[str, Shaped[np.ndarray, "f ..."]]:
    """Turn frames into standard orientation and add the "rotation" [f, 3, 3] that turns them back.

    Frames in standard orientation stay as they are, bit for bit.

    Args:
        frames: "position" [f, n, 3], "cell" [f, 3, 3] and other arrays: shape [f, 3] means vectors, [f, 3, 3] tensors,
            any other shape scalars.
    """
    lower, rotation = standard_orientation(np.asarray(frames["cell"]))
    turned = turn({name: values for name, values in frames.items() if name != "cell"}, np.swapaxes(rotation, -1, -2))
    return turned | {"cell": lower.astype(np.asarray(frames["cell"]).dtype), "rotation": rotation}


def turn(
    frames: Mapping[str, Shaped[np.ndarray, "f ..."]], rotation: Float[np.ndarray, "f 3 3"]
) -> dict[str, Shaped[np.ndarray, "f ..."]]:
    """Multiply every vector of the frames by its frame's rotation R: x R, tensors R^T T R, cells (rows) h R.

    Args:
        frames: "position" [f, n, 3], "cell" [f, 3, 3] and other arrays, as in `to_standard`.
        rotation: [f, 3, 3].
    """
    moved = (rotation != np.eye(3)).any(axis=(-2, -1))
    if not moved.any():
        return dict(frames)
    turns = rotation[moved]
    found = {}
    for name, given in frames.items():
        values = found[name] = np.asarray(given)
        shape = (3,) if name in ("position", "cell") else values.shape[1:]  # of what one multiplication turns
        if shape not in ((3,), (3, 3)):
            continue
        new = np.asarray(values[moved], np.float64)
        new = np.einsum("f...a,fab->f...b", new, turns)
        if shape == (3, 3):
            new = np.swapaxes(turns, -1, -2) @ new
        found[name] = values.copy()
        found[name][moved] = new
    return found
