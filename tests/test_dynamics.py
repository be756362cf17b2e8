"""The batched loop: independence of replicas, failures, overflow, chunks, devices."""

import dataclasses
import itertools
from collections.abc import Callable

import ase.build
import jax
import numpy as np
import pytest

from jaxpto import units
from jaxpto.md import initial, loop, preparation
from jaxpto.md.batch import Batch, Schedule
from jaxpto.md.config import SweepConfig
from jaxpto.md.health import Limits
from jaxpto.models.lennard_jones import lennard_jones
from jaxpto.observables.observable import Sample, general_observables
from jaxpto.potential import Potential
from jaxpto.system import from_ase

TEMPERATURES = (20.0, 40.0, 60.0)
LIMITS = Limits()


def argon() -> ase.Atoms:
    atoms = ase.build.bulk("Ar", "fcc", a=5.3, cubic=True).repeat((2, 2, 2))
    atoms.rattle(0.02, seed=1)
    return atoms


def argon_potential() -> Potential:
    return lennard_jones(["Ar"], [0.0103], [3.40], cutoff=6.0, onset=5.0, dtype=np.float64)


def make(ensemble="npt", temperatures=TEMPERATURES, steps=60, sample_every=10, per_chunk=2, timestep=4.0) -> Batch:
    config = SweepConfig(
        temperatures=temperatures,
        steps=steps,
        ensemble=ensemble,
        dtype="float64",
        timestep=timestep,
        seed=3,
        mask="full",
    )
    atoms, method = argon(), preparation.method_of(config)
    return Batch(
        potential=argon_potential(),
        atoms=atoms,
        temperatures=np.asarray(temperatures),
        start=preparation.start_of(config, atoms, np.asarray(temperatures)),
        method=method,
        schedule=Schedule(steps, sample_every, per_chunk),
        limits=LIMITS,
        observables=general_observables(method),
        timestep=timestep,
        skin=0.4,
    )


def begin(setup: Batch, headroom: float = 3.0):
    """The start, with one capacity unless a test needs another, so that tests share programs."""
    system = from_ase(setup.atoms, np.float64)
    layout = setup.potential.allocate([system], 0.4, headroom)
    return initial.begin(setup, layout)[:2]


def ticking(seconds: float) -> Callable[[], float]:
    """A clock for which every chunk takes so long."""
    return itertools.count(0.0, seconds).__next__


def go(setup: Batch, states, watch, devices=1, chunk_seconds: float = 0.0) -> tuple[Sample, list[loop.Chunk]]:
    """Run to the end: samples [samples, replicas, ...] and the chunks."""
    mesh = loop.replica_mesh(len(setup.temperatures), jax.local_devices()[:devices])
    states, watch = loop.pad_replicas(states, watch, mesh)
    chunks = list(loop.run(setup, states, watch, 1, mesh, clock=ticking(chunk_seconds)))
    samples = jax.tree.map(
        lambda *parts: np.concatenate(parts)[:, : len(setup.temperatures)], *[c.samples for c in chunks]
    )
    return samples, chunks


def equal(first: Sample, second: Sample) -> bool:
    return all(
        np.array_equal(a, b, equal_nan=True)
        for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True)
    )


@pytest.fixture(scope="module", params=["npt", "nvt"])
def reference(request):
    setup = make(request.param)
    samples, _ = go(setup, *begin(setup))
    return setup, samples


def test_steps_and_samples_are_counted(reference):
    _, samples = reference
    assert samples.step.tolist() == [[10 * k] * 3 for k in range(1, 7)]
    assert samples.valid.all()


def test_a_last_interval_may_be_short():
    setup = make(steps=25)
    samples, _ = go(setup, *begin(setup))
    assert samples.step[:, 0].tolist() == [10, 20, 25]


def lengths(chunks: list[loop.Chunk]) -> list[int]:
    return [len(chunk.samples.step) for chunk in chunks]


def test_chunks_grow_to_what_fits_into_some_seconds_and_change_no_number():
    """The clock of `go` says how long a chunk took; one has room for 20 samples here."""
    setup = make("nvt", steps=60, sample_every=2, per_chunk=20)
    found = {}
    for seconds in (0.0, 2.0, 60.0):
        found[seconds], chunks = go(setup, *begin(setup), chunk_seconds=seconds)
        assert [chunk.first_sample for chunk in chunks] == [1, *(1 + np.cumsum(lengths(chunks)[:-1]))]
        assert (
            lengths(chunks)
            == {
                0.0: [1, 4, 16, 9],  # at most four times as many as before
                2.0: [1, 2, 5, 12, 10],  # five seconds hold 2.5 times as many as two do
                60.0: [1] * 30,
            }[seconds]
        )
    assert equal(found[0.0], found[60.0])
    assert equal(found[2.0], found[60.0])


def test_chunk_length_changes_no_number(reference):
    """Also where chunks have room for two samples at most."""
    setup, samples = reference
    again, chunks = go(setup, *begin(setup), chunk_seconds=60.0)
    assert lengths(chunks) == [1] * 6
    assert lengths(go(setup, *begin(setup))[1]) == [1, 2, 2, 1]
    assert equal(again, samples)


def test_a_batch_of_three_is_three_singles(reference):
    setup, samples = reference
    states, watch = begin(setup)
    for replica, temperature in enumerate(setup.temperatures):
        single = dataclasses.replace(setup, temperatures=np.asarray([temperature]))
        mine = jax.tree.map(lambda x, r=replica: x[r : r + 1], (states, watch))
        alone, _ = go(single, *mine)
        np.testing.assert_allclose(alone.positions[:, 0], samples.positions[:, replica], rtol=0, atol=1e-9)
        np.testing.assert_allclose(alone.cell[:, 0], samples.cell[:, replica], rtol=0, atol=1e-9)


def test_two_devices_and_a_padded_batch_give_the_same(reference):
    setup, samples = reference
    assert len(jax.local_devices()) == 2  # as conftest.py sets it
    spread, _ = go(setup, *begin(setup), devices=2)
    np.testing.assert_allclose(spread.positions, samples.positions, rtol=0, atol=1e-9)
    assert spread.valid.shape == samples.valid.shape


def test_noise_of_replicas_is_not_correlated():
    setup = make("nvt", temperatures=(50.0, 50.0 + 1e-9))
    states, _ = begin(setup)
    first, second = np.asarray(states.momenta).reshape(2, -1)
    correlation = np.corrcoef(first, second)[0, 1]
    assert abs(correlation) < 4.0 / np.sqrt(first.size)
    samples, _ = go(setup, *begin(setup))
    moved = samples.positions - samples.positions[:1]
    correlation = np.corrcoef(moved[-1, 0].ravel(), moved[-1, 1].ravel())[0, 1]
    assert abs(correlation) < 5.0 / np.sqrt(moved[-1, 0].size)


def spoil(states, replica: int, factor: float):
    """Give one replica far too much kinetic energy."""
    return states.replace(momenta=states.momenta.at[replica].multiply(factor))


@pytest.mark.parametrize(("factor", "reason"), [(8.0, {2, 3, 4}), (np.nan, {1})], ids=["exploding", "not finite"])
def test_a_lost_replica_is_frozen_and_the_others_do_not_notice(reference, factor, reason):
    setup, _ = reference
    states, watch = begin(setup)
    healthy, _ = go(setup, states, watch)
    lost, chunks = go(setup, spoil(states, 1, factor), watch)
    last = chunks[-1]
    assert np.asarray(last.watch.alive).tolist() == [True, False, True]
    assert int(last.watch.reason[1]) in reason
    assert 0 <= int(last.watch.failed_step[1]) <= 60
    assert not lost.valid[-1, 1]
    assert lost.valid[:, [0, 2]].all()
    others = jax.tree.map(lambda x: x[:, [0, 2]], (healthy, lost))
    assert equal(*others)
    # the state kept of the lost replica is the last good one
    kept = np.asarray(last.states.system.positions[1])
    assert np.isfinite(kept).all()


def test_heat_makes_argon_melt():
    setup = make("nvt", temperatures=(20.0, 600.0), steps=1500, sample_every=50, per_chunk=30)
    setup = dataclasses.replace(setup, limits=Limits(lindemann=0.3))
    _, chunks = go(setup, *begin(setup))
    assert np.asarray(chunks[-1].watch.alive).tolist() == [True, False]
    assert "molten" in setup.limits.describe(int(chunks[-1].watch.reason[1]))


def test_a_rigid_drift_is_not_melting():
    setup = make("nve", temperatures=(20.0,), steps=400, sample_every=100, per_chunk=4)
    states, watch = begin(setup)
    mass = np.asarray(states.system.masses[0])
    states = states.replace(momenta=states.momenta + 0.02 / units.FEMTOSECOND * 0.5 * mass[None, :, None])
    samples, chunks = go(dataclasses.replace(setup, limits=Limits(hot=1e9)), states, watch)
    assert np.linalg.norm(samples.positions[-1, 0].mean(0) - samples.positions[0, 0].mean(0)) > 3.0
    assert bool(chunks[-1].watch.alive[0])


def test_overflow_is_redone_with_a_larger_list_and_the_same_numbers_whatever_the_chunks():
    """To rounding those of a list that never overflows; bit for bit those of other chunks, as of a busier machine."""
    setup = make(temperatures=(20.0, 80.0), steps=60, sample_every=2, per_chunk=20)
    roomy, _ = go(setup, *begin(setup))
    ends = []
    for seconds in (0.0, 2.0, 60.0):
        samples, chunks = go(setup, *begin(setup, headroom=1.0), chunk_seconds=seconds)
        grown = [chunk.first_sample for chunk in chunks if chunk.regrown]
        ends.append((samples, chunks[-1].states, grown))
    assert max(ends[0][2], default=0) > 1, "enlarged for the first sample or never: nothing was tested"
    np.testing.assert_allclose(ends[0][0].positions, roomy.positions, rtol=0, atol=1e-8)
    for samples, states, grown in ends[1:]:
        assert grown == ends[0][2]
        assert equal(samples, ends[0][0])
        assert equal(states, ends[0][1])


def test_looking_for_the_sample_that_overflows_costs_one_chunk_more(monkeypatch):
    """A program that overflows at a given sample, whatever the list."""
    setup = make("nve", temperatures=(20.0,), steps=400, sample_every=2, per_chunk=64)
    calls, whole = [], loop.compile_advance

    def counted(*arguments):
        advance = whole(*arguments)

        def attempt(potential, states, watch, observables, n_samples, last_step):
            calls.append(n_samples)
            before = int(states.step[0]) // 2
            states, watch, samples = advance(potential, states, watch, observables, n_samples, last_step)
            tight = before < 40 <= before + n_samples and calls.count(0) == 0
            if tight and n_samples == 1:
                calls.append(0)
            overflow = states.neighbors.overflow | tight
            states = states.replace(neighbors=dataclasses.replace(states.neighbors, overflow=overflow))
            return states, watch, samples

        return attempt

    monkeypatch.setattr(loop, "compile_advance", counted)
    _, chunks = go(setup, *begin(setup))
    assert [chunk.first_sample for chunk in chunks if chunk.regrown] == [40]
    assert sum(calls) <= 200 + 2 * 64


def test_overflow_without_end_freezes_only_its_replica():
    setup = make("nve", temperatures=(20.0, 30.0), steps=40)
    states, watch = begin(setup, headroom=1.5)
    crushed = states.system.cell.at[1].multiply(0.35)
    inner = states.system.positions.at[1].multiply(0.35)
    states = states.replace(system=states.system.replace(cell=crushed, positions=inner))
    setup = dataclasses.replace(setup, limits=Limits(regrows=1))
    _, chunks = go(setup, states, watch)
    assert np.asarray(chunks[-1].watch.alive).tolist() == [True, False]
