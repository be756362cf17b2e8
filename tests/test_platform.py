"""Where arrays live decides between the algorithms of processors and accelerators; both give the same numbers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpto.devices.sequential import sequential_over_replicas
from jaxpto.model_interface import Prediction
from jaxpto.models.lennard_jones import lennard_jones
from jaxpto.models.perovskite import Perovskite, initialize
from jaxpto.neighbors import Neighbors, build, refresh
from jaxpto.platform import default_platform, local_devices, platform_of
from jaxpto.potential import Potential
from jaxpto.storage.checkpoint import layout_from_json, layout_to_json
from jaxpto.structures import builtin_structure
from jaxpto.system import System, from_ase, stack


@pytest.fixture(scope="module")
def shaken() -> list[System]:
    images = []
    for seed in range(2):
        images.append(builtin_structure("PbTiO3-tetragonal").repeat((2, 1, 1)))
        images[-1].rattle(0.05, seed=seed)
    return [from_ase(image, np.float64) for image in images]


def test_a_layout_is_for_the_devices_that_compute() -> None:
    device = jax.devices()[0]
    with jax.default_device(device):
        assert default_platform() == device.platform
        assert local_devices() == jax.local_devices()
    arrays = {"host": np.zeros(3), "new": jnp.zeros(3)}
    assert platform_of(arrays) == default_platform()
    assert platform_of(arrays | {"put": jax.device_put(np.zeros(3), device)}) == device.platform
    assert jax.jit(lambda x: jnp.full(3, platform_of(x) == default_platform()))(jnp.zeros(3)).all()


def test_a_checkpoint_leaves_the_devices_open(shaken: list[System]) -> None:
    layout = lennard_jones(["Pb"], [0.1], [2.3], 6.0, 5.0).allocate(shaken, 0.3)
    assert layout.platform == default_platform()
    elsewhere = dataclasses.replace(layout, platform="elsewhere", devices=4)
    assert layout_from_json(layout_to_json(elsewhere)) == layout


def both_ways(potential: Potential, shaken: list[System]) -> list[tuple[Neighbors, Prediction, str]]:
    """Lists after one was renewed, predictions and lowered program: a processor's way, and an accelerator's."""
    found = []
    for platform in ("cpu", "gpu"):
        layout = dataclasses.replace(potential.allocate(shaken, 0.3), platform=platform)

        def run(potential: Potential, before: System, systems: System, layout=layout) -> tuple[Neighbors, Prediction]:
            lists = jax.vmap(lambda system: build(system, layout))(before)
            lists = refresh(systems, lists, jnp.ones(2, bool))
            return lists, jax.vmap(sequential_over_replicas(potential.evaluate))(systems, lists)

        before = stack(shaken)
        moved = before.positions.at[1, 0].add(0.6)
        arguments = potential, before, dataclasses.replace(before, positions=moved)
        arrays, structure = jax.tree.flatten(arguments)
        program = jax.jit(lambda *arrays, run=run, structure=structure: run(*jax.tree.unflatten(structure, arrays)))
        lowered = program.lower(*arrays)
        found.append((*jax.device_get(lowered.compile()(*arrays)), lowered.as_text()))
    return found


def test_both_ways_give_the_same_numbers(shaken: list[System]) -> None:
    model = Perovskite((8, 22, 82), cutoff=2.5, radial=3, channels=2, quartic=1, hidden=4)
    params = initialize(model, jax.random.key(0), np.float64)
    leaves, structure = jax.tree.flatten(params)  # its last layer is zero, and so are its forces
    random = np.random.default_rng(0)
    leaves = [leaf + 0.3 * random.normal(size=leaf.shape) for leaf in leaves]
    small = Potential(jax.tree.unflatten(structure, leaves), model, "small")
    (lists, expected, loops), (others, found, together) = both_ways(small, shaken)
    assert (lists.layout.platform, others.layout.platform) == ("cpu", "gpu")
    assert not np.array_equal(lists.reference_positions[1], shaken[1].positions), "no list was renewed"
    jax.tree.map(np.testing.assert_array_equal, jax.tree.leaves(lists), jax.tree.leaves(others))
    assert np.abs(expected.forces).max() > 0.0
    for name in ("energy", "forces", "stress"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-9, atol=1e-11)
    assert loops.count("stablehlo.while") > together.count("stablehlo.while")
