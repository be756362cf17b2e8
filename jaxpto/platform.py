"""On what kind of device arrays are computed with: the only place that asks JAX.

Algorithms differ between processors and accelerators (slices that fit a cache, or everything at once). The kind is
settled on the host, where a neighbour `Layout` is made, and travels in that layout to all that is compiled.
"""

from __future__ import annotations

from typing import Any

import jax
from jax.core import Tracer


def default_platform() -> str:
    """The kind of device ("cpu", "gpu", "tpu") on which JAX puts new arrays; `jax.default_device` changes it."""
    return _default_device().platform


def platform_of(tree: Any) -> str:
    """The kind of device on which JAX computes with the concrete arrays of a tree.

    That is where arrays have been put on purpose (`jax.device_put`), and otherwise the default.
    """
    for leaf in jax.tree.leaves(tree):
        if isinstance(leaf, jax.Array) and not isinstance(leaf, Tracer) and leaf.committed:
            return next(iter(leaf.devices())).platform
    return default_platform()


def local_devices() -> list[jax.Device]:
    """The devices of this process that are of the default kind."""
    return jax.local_devices(backend=default_platform())


def _default_device() -> jax.Device:
    chosen = jax.config.jax_default_device  # ty: ignore[missing-attribute]
    return chosen if isinstance(chosen, jax.Device) else jax.local_devices(backend=chosen)[0]
