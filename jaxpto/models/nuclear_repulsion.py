"""Screened repulsion of nuclei: Ziegler, Biersack & Littmark, The Stopping and Range of Ions in Matter (1985)."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxpto.models.perovskite_moments import blocks_of
from jaxpto.neighbors import Layout

COULOMB = 14.399645  # eV Angstrom, e^2 / (4 pi epsilon_0), with the digits of NEP_CPU
SCREENING = 2.134563  # 1/Angstrom: 1 / (0.8854 Bohr radii)
TERMS = ((0.18175, 3.1998), (0.50986, 0.94229), (0.28022, 0.4029), (0.02817, 0.20162))


def nuclear_repulsion(
    layout: Layout, own: Float[Array, "n t"], distance: Float[Array, "n s"], inner: float, outer: float
) -> Float[Array, " n"]:
    """Half of the repulsion that each atom feels, eV: 1/2 sum_j (e^2 Z_i Z_j / r) phi(r / a) f(r).

    phi is a sum of four exponentials, 1 / a = 2.1346 (Z_i^0.23 + Z_j^0.23) / Angstrom, and f falls from 1 at `inner` to
    0 at `outer` as a cosine.

    Args:
        layout: the layout of the neighbour list, by species.
        own: one-hot species of each atom.
        distance: lengths of the edges, Angstrom; slots sorted into blocks by species.
        inner, outer: where the repulsion begins to fade and where it ends, Angstrom.
    """
    charges = [float(z) for z in layout.species]
    powers = [z**0.23 for z in charges]
    mine, my_power = own @ jnp.asarray(charges, own.dtype), own @ jnp.asarray(powers, own.dtype)
    total = jnp.zeros_like(mine)
    for t, block in enumerate(blocks_of(layout.slots)):
        r = distance[:, block]
        near = r < outer
        r = jnp.where(near, r, outer)  # far away the derivative of the cosine would be that of another period
        x = r * (SCREENING * (my_power + powers[t]))[:, None]
        phi = sum(a * jnp.exp(-b * x) for a, b in TERMS)
        fade = jnp.cos((0.5 * jnp.pi / (outer - inner)) * jnp.maximum(r - inner, 0.0)) ** 2
        pairs = COULOMB * charges[t] * mine[:, None] / r * phi * fade
        total = total + 0.5 * jnp.where(near, pairs, 0.0).sum(axis=1)
    return total
