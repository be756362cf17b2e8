"""Derivatives of ensemble averages by reweighting against finite differences, with error bars.

    python -m benchmarks.reweighting [--steps 5000] [--replicas 8]

PbTiO3 is sampled at constant pressure with the shipped model: twice as it is (two seeds), and with its parameters moved
either way along two directions. For each direction, and for the temperature, the table holds

1. the derivative from the first ensemble, by automatic differentiation of the reweighted average,
2. the central difference of averages reweighted from the second ensemble, which shares no frame with the first,
3. the central difference of averages of ensembles sampled anew with the moved parameters or temperatures,

with jackknife errors over the replicas. The transition is where tetragonal and cubic configurations are equally likely.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

OBSERVABLES = ("c_over_a", "a", "c", "volume", "polarization")
TETRAGONAL_FROM = 1.025  # c/a from which on a configuration counts as tetragonal


def directions(params: dict, elements: tuple[int, ...]) -> dict:
    """Two directions in the space of parameters: the size of the learned energy, and the Ti-O pair term."""
    import jax.numpy as jnp

    still = {name: jnp.zeros_like(leaf) for name, leaf in params.items()}
    readout = still | {name: params[name] for name in ("pair", "weight3", "linear", "offset")}
    titanium, oxygen = elements.index(22), elements.index(8)
    mask = jnp.zeros_like(params["pair"]).at[titanium, oxygen].set(1.0).at[oxygen, titanium].set(1.0)
    return {"scale of the energy": readout, "scale of the Ti-O pair term": still | {"pair": mask * params["pair"]}}


def average(values, before, after, kelvin0: float, kelvin: float):
    """Reweighted average of values [n, ...], written again in numpy; energies [n] before and after, eV."""
    import numpy as np

    from jaxpto.units import BOLTZMANN

    exponent = (after - before) / kelvin + (before - before.mean()) * (1.0 / kelvin - 1.0 / kelvin0)
    weights = np.exp((exponent.min() - exponent) / BOLTZMANN)
    return weights @ values / weights.sum()


def transition(ordered, before, after, kelvin0: float) -> float:
    """Temperature at which tetragonal frames carry half of the weight, by bisection."""
    low, high = 0.6 * kelvin0, 1.5 * kelvin0
    for _ in range(40):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if average(ordered, before, after, kelvin0, middle) > 0.5 else (low, middle)
    return 0.5 * (low + high)


def slope_of_transition(ordered, energies, slopes, kelvin: float) -> float:
    """(d dG/dp) / dS between tetragonal and cubic frames reweighted to Tc; energies and dU/dp [n]."""
    import numpy as np

    tc = transition(ordered, energies, energies, kelvin)
    both = np.stack([slopes, energies], axis=1)
    means = [
        average(mine[:, None] * both, energies, energies, kelvin, tc) / average(mine, energies, energies, kelvin, tc)
        for mine in (ordered, 1.0 - ordered)
    ]
    change, heat = means[1] - means[0]
    return change * tc / heat


def with_error(estimate, *arrays):
    """Estimate from arrays [replicas, samples, ...], and its jackknife error over the replicas."""
    import numpy as np

    join = lambda rows: [a[rows].reshape(-1, *a.shape[2:]) for a in arrays]  # noqa: E731
    everyone = np.arange(len(arrays[0]))
    parts = np.array([estimate(*join(np.delete(everyone, r))) for r in everyone])
    return np.asarray(estimate(*join(everyone))), np.sqrt((len(parts) - 1) * parts.var(axis=0))


def measure(arguments: argparse.Namespace) -> dict:
    """All rows of the table."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from jaxpto.catalogue import load_potential
    from jaxpto.command import configure_devices, set_up_jax
    from jaxpto.config import SweepConfig
    from jaxpto.system import System, from_ase
    from jaxpto.thermodynamics import reweighting
    from jaxpto.thermodynamics.mbar import effective_samples
    from jaxpto.training.deviation import double
    from jaxpto.training.ensembles import at_rest, make_plan, simulate
    from jaxpto.training.targets import observe
    from jaxpto.units import BOLTZMANN

    set_up_jax("float64")
    configure_devices(arguments.cores)
    settings = SweepConfig(
        supercell=tuple(arguments.supercell), steps=arguments.steps, replicas=arguments.replicas,
        sample_every=arguments.every, equilibration=0.2,
    )  # fmt: skip
    cold, hot, gap = arguments.kelvin, arguments.near_transition, arguments.gap
    conditions = [(cold, 0.0), (cold - gap, 0.0), (cold + gap, 0.0), (hot, 0.0)]
    plan = make_plan(settings, conditions)
    shipped = load_potential("perovskite", np.float32)
    layout = shipped.allocate([jax.tree.map(lambda leaf: leaf[0], at_rest(plan))], 0.3, headroom=1.3)
    atoms = from_ase(plan.atoms, np.float64)
    params = double(shipped.params)
    small = None

    def at(params: dict):
        return shipped.replace(params=params)

    def sample(params: dict, seed: int):
        nonlocal layout
        began = time.time()
        single = jax.tree.map(lambda leaf: leaf.astype(np.float32), params)
        key = jax.random.PRNGKey(seed)
        frames, layout = simulate(plan, at(single), at_rest(plan), layout, key, lambda step: None)
        print(f"sampled ensemble {seed} in {time.time() - began:.0f} s", flush=True)
        return frames

    def systems(frames, s: int) -> System:
        spread = lambda leaf: jnp.tile(leaf[None], (plan.frames, *[1] * leaf.ndim))  # noqa: E731
        positions, cells = (jnp.asarray(x[s], np.float64) for x in (frames.positions, frames.cells))
        return System(positions, cells, spread(atoms.numbers), spread(atoms.masses))

    def by_replica(values) -> np.ndarray:
        return np.asarray(values, np.float64).reshape(plan.replicas, plan.samples, *np.shape(values)[1:])

    def seen(frames, s: int) -> np.ndarray:
        found = observe(frames.cells[s], frames.polarizations[s], plan.repeats)
        return by_replica(np.stack([found[name] for name in OBSERVABLES], axis=1))

    def ordered(frames, s: int) -> np.ndarray:
        return by_replica(
            observe(frames.cells[s], frames.polarizations[s], plan.repeats)["c_over_a"] >= TETRAGONAL_FROM
        )

    compiled = jax.jit(lambda params, systems: reweighting.measure(at(params), systems, small).energies)

    def energies(params: dict, frames, s: int) -> np.ndarray:
        return by_replica(compiled(params, systems(frames, s)))

    def moved(direction: dict, step: float) -> dict:
        return jax.tree.map(lambda p, d: p + step * d, params, direction)

    first, second = sample(params, 1), sample(params, 2)
    found = [reweighting.record(at(params), systems(first, s), conditions[s][0], layout=small) for s in (0, 3)]
    small = found[-1][1]
    recorded = [ensemble for ensemble, _ in found]
    before = {(name, s): energies(params, f, s) for name, f in (("one", first), ("two", second)) for s in (0, 3)}
    rows = []

    def add(quantity: str, parameter: str, *columns) -> None:
        roads = ("reweighting", "reweighted_difference", "resampled_difference")
        row = {"quantity": quantity, "parameter": parameter}
        for road, (value, error) in zip(roads, columns, strict=True):
            row |= {road: float(value), f"{road}_error": float(error)}
        rows.append(row)

    def gradients(direction: dict, step: float, plus, minus) -> None:
        """All averages along one direction of the parameters."""
        name = next(key for key, value in ways.items() if value is direction)

        def averages(s):
            here = jax.tree.map(lambda p, d: p + s * d, params, direction)
            moving = reweighting.measure(at(here), recorded[0].systems, small).energies
            weights = reweighting.weights(recorded[0], moving, cold, 0.0)
            return reweighting.average(weights, jnp.asarray(seen(first, 0).reshape(plan.frames, -1)))

        automatic = np.asarray(jax.jit(jax.jacrev(averages))(jnp.asarray(0.0)))
        slopes = {
            s: (energies(moved(direction, 1e-4 * step), first, s) - energies(moved(direction, -1e-4 * step), first, s))
            / (2e-4 * step)
            for s in (0, 3)
        }

        def covariance(values, slope):
            return -((values * slope[:, None]).mean(0) - values.mean(0) * slope.mean()) / (BOLTZMANN * cold)

        formula, formula_error = with_error(covariance, seen(first, 0), slopes[0])
        largest = np.abs(automatic - formula).max() / np.abs(formula).max()
        print(f"{name}: automatic derivative and covariance formula differ by {largest:.1e} at most", flush=True)
        up, down = (energies(moved(direction, sign * step), second, 0) for sign in (1, -1))

        def reweighted(values, before, up, down):
            return (average(values, before, up, cold, cold) - average(values, before, down, cold, cold)) / (2 * step)

        two = with_error(reweighted, seen(second, 0), before["two", 0], up, down)
        three = difference(seen(plus, 0), seen(minus, 0), 2 * step)
        for k, observable in enumerate(OBSERVABLES):
            columns = [(road[0][k], road[1][k]) for road in ((automatic, formula_error), two, three)]
            add(observable, name, *columns)

        def critical(s):
            here = jax.tree.map(lambda p, d: p + s * d, params, direction)
            moving = reweighting.measure(at(here), recorded[1].systems, small).energies
            phases = [
                jax.tree.map(lambda leaf, m=m: leaf[m] if leaf.ndim else leaf, recorded[1]) for m in (mask, ~mask)
            ]
            offset = np.log(mask.sum() / (~mask).sum())
            return reweighting.transition_temperature(*phases, (moving[mask], moving[~mask]), 0.0, offset)

        mask = ordered(first, 3).reshape(-1) > 0.5
        automatic = jax.jit(jax.grad(critical))(jnp.asarray(0.0))
        _, error = with_error(lambda *a: slope_of_transition(*a, hot), ordered(first, 3), before["one", 3], slopes[3])
        up, down = (energies(moved(direction, sign * step), second, 3) for sign in (1, -1))
        two = with_error(
            lambda p, b, u, d: (transition(p, b, u, hot) - transition(p, b, d, hot)) / (2 * step),
            ordered(second, 3), before["two", 3], up, down,
        )  # fmt: skip
        ends = []
        for sign, frames in ((1, plus), (-1, minus)):
            own = energies(moved(direction, sign * step), frames, 3)
            ends.append(with_error(lambda p, e: transition(p, e, e, hot), ordered(frames, 3), own))
        three = (ends[0][0] - ends[1][0]) / (2 * step), np.hypot(ends[0][1], ends[1][1]) / (2 * step)
        add("Tc", name, (automatic, error), two, three)

    def difference(plus, minus, width: float):
        (high, high_error), (low, low_error) = (with_error(lambda v: v.mean(0), x) for x in (plus, minus))
        return (high - low) / width, np.hypot(high_error, low_error) / width

    def in_temperature() -> None:
        values = jnp.asarray(seen(first, 0).reshape(plan.frames, -1))

        def averages(kelvin):
            weights = reweighting.weights(recorded[0], recorded[0].energies, kelvin, 0.0)
            return reweighting.average(weights, values)

        automatic = np.asarray(jax.jit(jax.jacfwd(averages))(jnp.asarray(cold)))

        def formula(values, e):
            return ((values * e[:, None]).mean(0) - values.mean(0) * e.mean()) / (BOLTZMANN * cold**2)

        _, error = with_error(formula, seen(first, 0), before["one", 0])
        two = with_error(
            lambda v, e: (average(v, e, e, cold, cold + gap / 2) - average(v, e, e, cold, cold - gap / 2)) / gap,
            seen(second, 0), before["two", 0],
        )  # fmt: skip
        # the moved temperatures of both ensembles, which are equals here
        high, low = (np.concatenate([seen(first, s), seen(second, s)]) for s in (2, 1))
        three = difference(high, low, 2 * gap)
        for k, observable in enumerate(OBSERVABLES):
            add(observable, "T", *[(road[0][k], road[1][k]) for road in ((automatic, error), two, three)])

    in_temperature()
    ways = directions(params, shipped.elements)
    steps = {}
    for number, (name, direction) in enumerate(ways.items()):
        shift = (energies(moved(direction, 1e-4), first, 0) - before["one", 0]) / 1e-4
        steps[name] = step = arguments.kicks * BOLTZMANN * cold / shift.std()
        plus, minus = sample(moved(direction, step), 10 + 2 * number), sample(moved(direction, -step), 11 + 2 * number)
        gradients(direction, step, plus, minus)
    other = compiled(
        moved(ways["scale of the Ti-O pair term"], steps["scale of the Ti-O pair term"]), recorded[0].systems
    )
    fraction = effective_samples(reweighting.weights(recorded[0], other, cold, 0.0)) / plan.frames
    return {
        "rows": rows, "steps": steps, "frames": plan.frames, "effective_fraction": float(fraction),
        "atoms": len(plan.atoms), "conditions_K": [kelvin for kelvin, _ in conditions],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--supercell", type=int, nargs=3, default=(2, 2, 2))
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--replicas", type=int, default=8)
    parser.add_argument("--every", type=int, default=25, help="steps between two frames")
    parser.add_argument("--kelvin", type=float, default=200.0, help="of the averages")
    parser.add_argument("--gap", type=float, default=20.0, help="K, to the temperatures on either side")
    parser.add_argument("--near-transition", type=float, default=320.0, help="K, of the two phases")
    parser.add_argument("--kicks", type=float, default=0.7, help="step along a direction: deviation of its dU, in kT")
    parser.add_argument("--cores", type=int, default=1)
    parser.add_argument("--out", default="benchmarks/results/reweighting.json")
    arguments = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.cores])
    began = time.time()
    result = measure(arguments)

    from jaxpto.provenance import provenance

    document = provenance() | {"settings": vars(arguments), "seconds": time.time() - began} | result
    document["command"] = "python -m benchmarks.reweighting " + " ".join(sys.argv[1:])
    Path(arguments.out).write_text(json.dumps(document, indent=1) + "\n")
    print(f"{'d':>14s} / {'d':28s} {'reweighting':>22s} {'reweighted difference':>24s} {'sampled anew':>24s}")
    for row in result["rows"]:
        cells = [
            f"{row[road]:11.4g} +/- {row[f'{road}_error']:7.2g}"
            for road in ("reweighting", "reweighted_difference", "resampled_difference")
        ]
        print(f"{row['quantity']:>14s} / {row['parameter']:28s} " + "  ".join(cells))


if __name__ == "__main__":
    main()
