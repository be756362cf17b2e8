"""Derivatives of ensemble averages by reweighting against finite differences, with error bars.

    python -m benchmarks.reweighting [--steps 3200] [--replicas 10]

PbTiO3 is sampled at constant pressure with the shipped model: twice as it is (two seeds), and with its parameters moved
either way along two directions. For each direction, and for the temperature, the table holds

1. the derivative from the first ensemble, by automatic differentiation of the reweighted average,
2. the central difference of averages reweighted from the second ensemble, which shares no frame with the first,
3. the central difference of averages of ensembles sampled anew with the moved parameters or temperatures,

with jackknife errors over the replicas. Tc is where frames with c/a of `TETRAGONAL_FROM` and more are as likely as the
others: a temperature that is exactly defined in a cell of any size, though no sharp transition happens in a small one.
Two rows are known beforehand: a factor of the whole energy does what 1 / T does, so that d<O>/ds = -T d<O>/dT and
dTc/ds = Tc.
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


def agreement(rows: list[dict]) -> dict:
    """How far both differences lie from the derivative by reweighting, in combined errors, over all rows."""
    import numpy as np

    apart = {}
    for road in ("reweighted_difference", "resampled_difference"):
        gaps = np.array([row[road] - row["reweighting"] for row in rows])
        errors = np.array([np.hypot(row[f"{road}_error"], row["reweighting_error"]) for row in rows])
        apart[road] = np.abs(gaps) / errors
    relative = np.array([abs(row["reweighting_error"] / row["reweighting"]) for row in rows])
    return {
        "within one error": f"{sum(int((x < 1).sum()) for x in apart.values())} of {2 * len(rows)}",
        "within two errors": f"{sum(int((x < 2).sum()) for x in apart.values())} of {2 * len(rows)}",
        "largest, in errors": float(max(x.max() for x in apart.values())),
        "median relative error of the derivatives": float(np.median(relative)),
    }


def measure(arguments: argparse.Namespace) -> dict:
    """All rows of the table."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from jaxpto.console.command import configure_devices, set_up_jax
    from jaxpto.free_energy.estimators import reweighting
    from jaxpto.free_energy.estimators.mbar import effective_samples
    from jaxpto.md.config import SweepConfig
    from jaxpto.models.catalogue import load_potential
    from jaxpto.system import System, from_ase
    from jaxpto.training.deviation import double
    from jaxpto.training.ensembles import Frames, Plan, at_rest, make_plan, simulate
    from jaxpto.training.targets import observe
    from jaxpto.units import BOLTZMANN

    set_up_jax("float64")
    configure_devices(arguments.cores)
    settings = SweepConfig(
        supercell=tuple(arguments.supercell), steps=arguments.steps, replicas=arguments.replicas,
        sample_every=arguments.every, equilibration=0.25,
    )  # fmt: skip
    cold, hot, gap = arguments.kelvin, arguments.near_transition, arguments.gap
    kelvins = (cold, cold - gap, cold + gap, hot)
    plan, two_only = (make_plan(settings, [(kelvin, 0.0) for kelvin in some]) for some in (kelvins, (cold, hot)))
    shipped = load_potential("perovskite", np.float32)
    layout = shipped.allocate([jax.tree.map(lambda leaf: leaf[0], at_rest(plan))], 0.3, headroom=1.3)
    atoms = from_ase(plan.atoms, np.float64)
    params = double(shipped.params)
    small = None

    def at(params: dict):
        return shipped.replace(params=params)

    def sample(plan: Plan, params: dict, seed: int) -> dict[float, Frames]:
        """An ensemble of frames at each temperature of the plan."""
        nonlocal layout
        began = time.time()
        single = jax.tree.map(lambda leaf: leaf.astype(np.float32), params)
        key = jax.random.PRNGKey(seed)
        frames, layout = simulate(plan, at(single), at_rest(plan), layout, key, lambda step: None)
        print(f"sampled ensemble {seed} in {time.time() - began:.0f} s", flush=True)
        parts = (frames.positions, frames.cells, frames.polarizations)
        return {kelvin: Frames(*(x[s] for x in parts)) for s, (kelvin, _) in enumerate(plan.conditions)}

    def systems(frames: Frames) -> System:
        spread = lambda leaf: jnp.tile(leaf[None], (plan.frames, *[1] * leaf.ndim))  # noqa: E731
        positions, cells = (jnp.asarray(x, np.float64) for x in (frames.positions, frames.cells))
        return System(positions, cells, spread(atoms.numbers), spread(atoms.masses))

    def by_replica(values) -> np.ndarray:
        return np.asarray(values, np.float64).reshape(plan.replicas, plan.samples, *np.shape(values)[1:])

    def seen(frames: Frames) -> np.ndarray:
        found = observe(frames.cells, frames.polarizations, plan.unit)
        return by_replica(np.stack([found[name] for name in OBSERVABLES], axis=1))

    def ordered(frames: Frames) -> np.ndarray:
        return by_replica(observe(frames.cells, frames.polarizations, plan.unit)["c_over_a"] >= TETRAGONAL_FROM)

    compiled = jax.jit(lambda params, systems: reweighting.measure(at(params), systems, small).energies)

    def energies(params: dict, frames: Frames) -> np.ndarray:
        return by_replica(compiled(params, systems(frames)))

    def moved(direction: dict, step: float) -> dict:
        return jax.tree.map(lambda p, d: p + step * d, params, direction)

    first, second = sample(plan, params, 1), sample(two_only, params, 2)
    recorded = {}
    for kelvin in (cold, hot):
        recorded[kelvin], small = reweighting.record(at(params), systems(first[kelvin]), kelvin, layout=small)
    before = {
        (name, kelvin): energies(params, frames[kelvin])
        for name, frames in (("one", first), ("two", second))
        for kelvin in (cold, hot)
    }
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
            moving = reweighting.measure(at(here), recorded[cold].systems, small).energies
            weights = reweighting.weights(recorded[cold], moving, cold, 0.0)
            return reweighting.average(weights, jnp.asarray(seen(first[cold]).reshape(plan.frames, -1)))

        automatic = np.asarray(jax.jit(jax.jacrev(averages))(jnp.asarray(0.0)))
        nudged = [moved(direction, sign * 1e-4 * step) for sign in (1, -1)]
        slopes = {
            kelvin: (energies(nudged[0], first[kelvin]) - energies(nudged[1], first[kelvin])) / (2e-4 * step)
            for kelvin in (cold, hot)
        }

        def covariance(values, slope):
            return -((values * slope[:, None]).mean(0) - values.mean(0) * slope.mean()) / (BOLTZMANN * cold)

        formula, formula_error = with_error(covariance, seen(first[cold]), slopes[cold])
        largest = np.abs(automatic - formula).max() / np.abs(formula).max()
        print(f"{name}: automatic derivative and covariance formula differ by {largest:.1e} at most", flush=True)
        up, down = (energies(moved(direction, sign * step), second[cold]) for sign in (1, -1))

        def reweighted(values, before, up, down):
            return (average(values, before, up, cold, cold) - average(values, before, down, cold, cold)) / (2 * step)

        two = with_error(reweighted, seen(second[cold]), before["two", cold], up, down)
        three = difference(seen(plus[cold]), seen(minus[cold]), 2 * step)
        for k, observable in enumerate(OBSERVABLES):
            columns = [(road[0][k], road[1][k]) for road in ((automatic, formula_error), two, three)]
            add(observable, name, *columns)

        def critical(s):
            here = jax.tree.map(lambda p, d: p + s * d, params, direction)
            moving = reweighting.measure(at(here), recorded[hot].systems, small).energies
            phases = [
                jax.tree.map(lambda leaf, m=m: leaf[m] if leaf.ndim else leaf, recorded[hot]) for m in (mask, ~mask)
            ]
            offset = np.log(mask.sum() / (~mask).sum())
            return reweighting.transition_temperature(*phases, (moving[mask], moving[~mask]), 0.0, offset)

        mask = ordered(first[hot]).reshape(-1) > 0.5
        automatic = jax.jit(jax.grad(critical))(jnp.asarray(0.0))
        _, error = with_error(
            lambda *a: slope_of_transition(*a, hot), ordered(first[hot]), before["one", hot], slopes[hot]
        )
        up, down = (energies(moved(direction, sign * step), second[hot]) for sign in (1, -1))
        two = with_error(
            lambda p, b, u, d: (transition(p, b, u, hot) - transition(p, b, d, hot)) / (2 * step),
            ordered(second[hot]), before["two", hot], up, down,
        )  # fmt: skip
        ends = []
        for sign, frames in ((1, plus), (-1, minus)):
            own = energies(moved(direction, sign * step), frames[hot])
            ends.append(with_error(lambda p, e: transition(p, e, e, hot), ordered(frames[hot]), own))
        three = (ends[0][0] - ends[1][0]) / (2 * step), np.hypot(ends[0][1], ends[1][1]) / (2 * step)
        add("Tc", name, (automatic, error), two, three)

    def difference(plus, minus, width: float):
        (high, high_error), (low, low_error) = (with_error(lambda v: v.mean(0), x) for x in (plus, minus))
        return (high - low) / width, np.hypot(high_error, low_error) / width

    def in_temperature() -> None:
        values = jnp.asarray(seen(first[cold]).reshape(plan.frames, -1))

        def averages(kelvin):
            weights = reweighting.weights(recorded[cold], recorded[cold].energies, kelvin, 0.0)
            return reweighting.average(weights, values)

        automatic = np.asarray(jax.jit(jax.jacfwd(averages))(jnp.asarray(cold)))

        def formula(values, e):
            return ((values * e[:, None]).mean(0) - values.mean(0) * e.mean()) / (BOLTZMANN * cold**2)

        _, error = with_error(formula, seen(first[cold]), before["one", cold])
        two = with_error(
            lambda v, e: (average(v, e, e, cold, cold + gap / 2) - average(v, e, e, cold, cold - gap / 2)) / gap,
            seen(second[cold]), before["two", cold],
        )  # fmt: skip
        high, low = seen(first[cold + gap]), seen(first[cold - gap])
        three = difference(high, low, 2 * gap)
        for k, observable in enumerate(OBSERVABLES):
            add(observable, "T", *[(road[0][k], road[1][k]) for road in ((automatic, error), two, three)])

    in_temperature()
    ways = directions(params, shipped.elements)
    steps = {}
    for number, (name, direction) in enumerate(ways.items()):
        shift = (energies(moved(direction, 1e-4), first[cold]) - before["one", cold]) / 1e-4
        steps[name] = step = arguments.kicks[number] * BOLTZMANN * cold / shift.std()
        seeds = 10 + 2 * number, 11 + 2 * number
        plus, minus = (
            sample(two_only, moved(direction, s), seed) for s, seed in zip((step, -step), seeds, strict=True)
        )
        gradients(direction, step, plus, minus)
    other = compiled(
        moved(ways["scale of the Ti-O pair term"], steps["scale of the Ti-O pair term"]), recorded[cold].systems
    )
    fraction = effective_samples(reweighting.weights(recorded[cold], other, cold, 0.0)) / plan.frames
    tc = with_error(lambda p, e: transition(p, e, e, hot), ordered(first[hot]), before["one", hot])
    return {
        "rows": rows, "steps": steps, "frames": plan.frames, "effective_fraction": float(fraction),
        "atoms": len(plan.atoms), "conditions_K": kelvins, "Tc_K": [float(x) for x in tc],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--supercell", type=int, nargs=3, default=(2, 2, 2))
    parser.add_argument("--steps", type=int, default=3200)
    parser.add_argument("--replicas", type=int, default=10)
    parser.add_argument("--every", type=int, default=25, help="steps between two frames")
    parser.add_argument("--kelvin", type=float, default=200.0, help="of the averages")
    parser.add_argument("--gap", type=float, default=20.0, help="K, to the temperatures on either side")
    parser.add_argument("--near-transition", type=float, default=375.0, help="K, of the two phases")
    parser.add_argument(
        "--kicks", type=float, nargs=2, default=(1.0, 0.5), help="step along each direction: deviation of its dU, in kT"
    )
    parser.add_argument("--cores", type=int, default=1)
    parser.add_argument("--out", default="benchmarks/results/reweighting.json")
    arguments = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.cores])
    began = time.time()
    result = measure(arguments)

    from jaxpto.reporting.provenance import provenance

    document = provenance() | {"settings": vars(arguments), "seconds": time.time() - began} | result
    document["command"] = "python -m benchmarks.reweighting " + " ".join(sys.argv[1:])
    document["agreement"] = agreement(result["rows"])
    Path(arguments.out).write_text(json.dumps(document, indent=1) + "\n")
    print(f"{'d':>14s} / {'d':28s} {'reweighting':>22s} {'reweighted difference':>24s} {'sampled anew':>24s}")
    for row in result["rows"]:
        cells = [
            f"{row[road]:11.4g} +/- {row[f'{road}_error']:7.2g}"
            for road in ("reweighting", "reweighted_difference", "resampled_difference")
        ]
        print(f"{row['quantity']:>14s} / {row['parameter']:28s} " + "  ".join(cells))
    for name, value in document["agreement"].items():
        print(f"{name}: {value}")


if __name__ == "__main__":
    main()
