"""The convolution by cuEquivariance: the polynomial of its kernel, run on the CPU by the package's own plain JAX.

The package takes plain JAX in place of the kernel where there is no GPU, and warns that it does.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import ase
import jax
import jax.numpy as jnp
import model_contract as contract
import numpy as np
import pytest

from converters import mace, sevennet
from converters.pickles import CheckpointError
from converters.sources import find_checkpoint
from jaxpto import neighbors
from jaxpto.devices.sharding import atom_mesh, divisible, sharded
from jaxpto.model_interface import Prediction
from jaxpto.models import convolution, fused_convolution
from jaxpto.models import sevennet as sevennet_model
from jaxpto.models.couplings import coupling_paths
from jaxpto.models.equivariant import wigner_3j
from jaxpto.models.sevennet import SevenNet
from jaxpto.potential import Potential
from jaxpto.system import System, from_ase, stack

pytestmark = pytest.mark.filterwarnings("ignore:Method 'uniform_1d' requires CUDA:UserWarning")


# plain JAX in place of the kernel takes long to compile: few channels, and few couplings
SMALL = SevenNet((8, 22, 38, 82), 3.6, ((4,), (4, 2), (4,)), 1, "polynomial", 6.0)


@pytest.fixture(scope="module")
def small() -> Potential:
    """A network with random parameters."""
    generator = np.random.default_rng(0)

    def maps(inputs: Sequence[int], outputs: Sequence[int]) -> dict[str, np.ndarray]:
        pairs = enumerate(zip(outputs, inputs, strict=False))
        return {str(order): generator.normal(size=pair) / pair[1] ** 0.5 for order, pair in pairs}

    layers = {}
    for t, (inputs, outputs) in enumerate(itertools.pairwise(SMALL.channels)):
        paths = coupling_paths(len(inputs) - 1, SMALL.highest, len(outputs) - 1, parity=False)
        gated = (sum(outputs), *outputs[1:])
        summed = convolution.Convolution(sevennet_model.radial_weights, paths, inputs, SMALL.highest).summed_channels
        layers[str(t)] = {
            "before": maps(inputs, inputs),
            "connection": maps(inputs, gated),
            "after": maps(summed, gated),
            "radial": maps((8, 16), (16, sum(inputs[path.features] for path in paths))),
        }
    params = {
        "embedding": generator.normal(size=(4, 4)),
        "frequencies": np.arange(1, 9) * np.pi / SMALL.cutoff,
        "layers": layers,
        "readout": generator.normal(size=4),
        "scale": np.ones(4),
        "shift": generator.normal(size=4),
    }
    return contract.cast(Potential(params, SMALL, "small"), np.float64)


def _run(function: Callable, fused: bool, monkeypatch: pytest.MonkeyPatch, *arguments: Any) -> Any:
    """What a function gives by the polynomial, or by block passes; it is traced anew each time."""
    monkeypatch.setattr(fused_convolution, "available", lambda layout: fused)
    return jax.device_get(jax.jit(lambda *arguments: function(*arguments))(*arguments))


def _evaluate(potential: Potential, system: System, found: neighbors.Neighbors) -> Prediction:
    return potential.evaluate(system, found)


def test_same_numbers(small: Potential, crystal: ase.Atoms, monkeypatch: pytest.MonkeyPatch) -> None:
    """With many empty edges, in two slices."""
    system, layout = from_ase(crystal, np.float64), contract.layout_of(small, crystal)
    expected = _run(_evaluate, False, monkeypatch, small, system, neighbors.build(system, layout))
    assert np.abs(expected.forces).max() > 0.01
    more = neighbors.build(system, dataclasses.replace(layout, edges=2 * layout.edges - 1))
    monkeypatch.setattr(fused_convolution, "EDGES", layout.edges)
    found = _run(_evaluate, True, monkeypatch, small, system, more)
    contract.assert_same(found, expected, 1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["7net-0", "7net-l3i5", "mace-mp-0b-medium"])
def test_same_numbers_of_checkpoints(
    name: str, shared: pathlib.Path, crystal: ase.Atoms, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Published weights, and a reduced model of MACE's architecture."""
    reduced = shared / "weights/fixtures/mace_mp0b_reduced.model"
    try:
        checkpoint = find_checkpoint(name, reduced if name == mace.NAME else None)
    except CheckpointError as error:
        pytest.skip(f"no published weights: {error}")
    converter = mace if name == mace.NAME else sevennet
    potential = contract.cast(converter.convert(checkpoint, name), np.float64)
    system = from_ase(crystal, np.float64)
    edges = neighbors.build(system, contract.layout_of(potential, crystal))
    expected = _run(_evaluate, False, monkeypatch, potential, system, edges)
    assert np.abs(expected.forces).max() > 0.01
    contract.assert_same(_run(_evaluate, True, monkeypatch, potential, system, edges), expected, 1e-10)


def test_replicas_under_vmap(small: Potential, crystal: ase.Atoms, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each replica has its own list of edges."""
    images = [crystal.copy() for _ in range(3)]
    for seed, image in enumerate(images):
        image.rattle(0.3, seed=seed)
    singles = [from_ase(image, np.float64) for image in images]
    layout = small.allocate(singles, contract.SKIN)

    def together(potential: Potential, systems: System) -> Prediction:
        return jax.vmap(lambda s: potential.evaluate(s, neighbors.build(s, layout)))(systems)

    expected = _run(together, False, monkeypatch, small, stack(singles))
    assert np.ptp(expected.energy) > 0.01
    contract.assert_same(_run(together, True, monkeypatch, small, stack(singles)), expected, 1e-10)


@pytest.mark.slow
def test_derivatives_of_forces(small: Potential, crystal: ase.Atoms, monkeypatch: pytest.MonkeyPatch) -> None:
    """In parameters, as training takes them, and in positions, forwards and backwards."""
    system = from_ase(crystal, np.float64)
    found = neighbors.build(system, contract.layout_of(small, crystal))

    def force(params: Any, positions: jax.Array) -> jax.Array:
        return small.replace(params=params).evaluate(system.replace(positions=positions), found).forces[1, 2]

    gradients = jax.grad(force, (0, 1))
    expected = _run(gradients, False, monkeypatch, small.params, system.positions)
    backwards = _run(gradients, True, monkeypatch, small.params, system.positions)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-10), backwards, expected)
    forwards = jax.jacfwd(force, 1)
    np.testing.assert_allclose(
        _run(forwards, True, monkeypatch, small.params, system.positions), expected[1], rtol=1e-9, atol=1e-10
    )


def test_polynomial_is_a_tensor_product() -> None:
    """Against the sum over all m with 3j symbols, edge by edge and path by path."""
    generator = np.random.default_rng(0)
    channels, paths = (6, 2, 4), coupling_paths(2, 3, 2, parity=False)
    polynomial = fused_convolution.coupled_channels(paths, channels, 3)
    widths = [channels[path.features] for path in paths]
    features = [generator.normal(size=(4, 2 * order + 1, c)) for order, c in enumerate(channels)]
    weights, harmonics = generator.normal(size=(9, sum(widths))), generator.normal(size=(9, 16))
    weights[6:] = 0.0
    senders, receivers = np.asarray([0, 2, 3, 1, 0, 0, 4, 4, 4]), np.asarray([0, 0, 1, 1, 1, 3, 4, 4, 4])
    expected = [np.zeros((4, 2 * order + 1, 0)) for order in range(3)]
    for path, weight in zip(paths, np.split(weights, np.cumsum(widths)[:-1], axis=-1), strict=True):
        symbols = (2 * path.result + 1) ** 0.5 * wigner_3j(*path)
        y = harmonics[:, path.harmonics**2 : (path.harmonics + 1) ** 2]
        summed = np.zeros((4, 2 * path.result + 1, channels[path.features]))
        for e in range(6):
            summed[receivers[e]] += np.einsum(
                "u,ijk,iu,j->ku", weight[e], symbols, features[path.features][senders[e]], y[e]
            )
        expected[path.result] = np.concatenate([expected[path.result], summed], axis=2)

    @jax.jit
    def sums(weights: jax.Array, harmonics: jax.Array) -> jax.Array:
        table, streams = convolution.joined([jnp.asarray(x) for x in features]), {"w": weights, "harmonics": harmonics}
        ends = jnp.asarray(senders), jnp.asarray(receivers)
        return fused_convolution.fused_sums(polynomial, lambda s: s["w"], table, *ends, streams)

    found = convolution.split(sums(jnp.asarray(weights), jnp.asarray(harmonics)), [x.shape[2] for x in expected])
    for order in range(3):
        np.testing.assert_allclose(found[order], expected[order], atol=1e-12)


@pytest.mark.parametrize(
    ("platform", "missing", "expected"),
    [
        ("gpu", None, True),
        ("gpu", "cuequivariance_jax", False),
        ("gpu", "cuequivariance_ops_jax", False),
        ("cpu", None, False),
    ],
)
def test_when_it_is_chosen(
    platform: str, missing: str | None, expected: bool, crystal: ase.Atoms, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = neighbors.allocate([from_ase(crystal)], 4.0, 0.0, packed=True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else object())
    assert fused_convolution.available(dataclasses.replace(layout, platform=platform)) is expected


def test_devices_that_share_a_replica_do_without(crystal: ase.Atoms, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    system = from_ase(crystal)
    layout = neighbors.allocate([system], 4.0, 0.0, packed=True)
    edges = neighbors.build(system, divisible(dataclasses.replace(layout, platform="gpu"), 2))
    devices = jax.devices()
    found = {}

    def evaluate(system: System, edges: neighbors.Neighbors) -> Prediction:
        found[edges.layout.devices] = fused_convolution.available(edges.layout)
        return Prediction(system.positions.sum(), system.positions, system.cell)

    for count in (1, 2):
        jax.eval_shape(sharded(evaluate, atom_mesh(devices[:count])), system, edges)
    assert found == {1: True, 2: False}
