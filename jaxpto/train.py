"""COMMAND `python -m jaxpto.train`: train a model on energies, forces and virials, or fine-tune one.

With `--match` a model is tuned to measured averages on top of its loss on the data.
"""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import jax
import numpy as np
from ase.data import chemical_symbols

from jaxpto.console import terminal
from jaxpto.console.command import configure_devices, leave, run_command
from jaxpto.errors import InputError
from jaxpto.models.catalogue import load_potential
from jaxpto.models.committee import Committee, load_committee, save_calibration, save_committee
from jaxpto.models.folder import save_potential
from jaxpto.models.suitability import check_supports
from jaxpto.potential import Potential
from jaxpto.reporting.provenance import fingerprint, provenance
from jaxpto.reporting.result import PAGE_FILE
from jaxpto.storage.identity import digest_of, make_identity
from jaxpto.storage.lock import one_run
from jaxpto.training import matching, matching_output
from jaxpto.training.calibration import calibrate, sentences
from jaxpto.training.checkpoint import previous_of
from jaxpto.training.config import FREE, FREE_MATCHING, TrainConfig, check, describe_settings
from jaxpto.training.ensembles import Plan
from jaxpto.training.matching_options import plan_of
from jaxpto.training.output import write_training_report
from jaxpto.training.progress import describe_data
from jaxpto.training.setup import Task, set_up
from jaxpto.training.targets import parse_targets
from jaxpto.training.trainer import checkpoint_of, optimize
from jaxpto.training.validation import Validation, make_validation


def run(config: TrainConfig) -> Potential:
    """Train, writing model and checkpoint at every validation; returns the model that did best.

    A checkpoint is written every `checkpoint_every` seconds too, and at an interrupt. A resumed run ends with the
    weights of an uninterrupted one, bit for bit.

    Raises:
        InputError: settings, folder, data, model or checkpoint are refused.
        FloatingPointError: the training diverged.
    """
    check(config)
    with one_run(config.out):
        resumed = goes_on(config)
        return match(config, resumed) if config.match else _train(config, resumed)


def goes_on(config: TrainConfig) -> bool:
    """Whether `out` holds a checkpoint to go on with; without `resume` it must be empty.

    Raises:
        InputError: a file, a folder in use, or one that holds other things but no checkpoint.
    """
    out, stored = config.out, config.out / matching.CHECKPOINT if config.match else checkpoint_of(config.out)
    inside = [path for path in out.iterdir() if not path.name.startswith(".")] if out.exists() else []
    if not config.resume and inside:
        raise InputError(f"{out}: not empty; choose another --out, or --resume to go on with it")
    if stored.exists() or previous_of(stored).exists():
        return True
    if inside:
        raise InputError(
            f"--resume: {out} holds {inside[0].name} but no {stored.name} to go on with; restore that file, or choose "
            "another --out"
        )
    if config.resume:
        print(f"nothing in {out} to go on with: begins")
    return False


def _begin(config: TrainConfig) -> Task:
    """Read everything, and say what was read."""
    task = set_up(config)
    for line in (*describe_data(task.trajectories), *task.remarks):
        print(line, flush=True)
    return task


def _train(config: TrainConfig, resumed: bool) -> Potential:
    task = _begin(config)
    config.out.mkdir(parents=True, exist_ok=True)

    def save_model(params: Any, progress: dict[str, Any], found: Validation) -> None:
        header = describe(config, task, found.errors, progress)
        if task.members > 1:
            save_committee(Committee(params, task.model, config.out.name), config.out, header)
        else:
            save_potential(Potential(params, task.model, config.out.name), config.out, header)

    devices = training_devices()
    _, progress = optimize(config, task, identity_of(config, task), devices, save_model, resumed=resumed)
    best, committee = load_potential(config.out), load_committee(config.out)
    found = make_validation(task, devices)(best.params if committee is None else committee.params)
    facts = {
        "steps": progress["step"],
        "seconds": round(progress["seconds"]),
        "training": list(task.remarks),
        "frames": {frames.name: len(frames) for frames in task.trajectories},
    }
    settings, deviations = describe_settings(config, task.settled), None
    if committee is not None:
        deviations = calibrate(task, committee, devices)
        save_calibration(config.out, deviations[0])
        for line in sentences(deviations[0]):
            print(line, flush=True)
    write_training_report(config.out, progress["history"], found.parities, settings, facts, deviations)
    print(f"report: {config.out / PAGE_FILE}", flush=True)
    return best


def training_devices() -> list[jax.Device]:
    """All accelerators, or one CPU device: it computes several frames at a time by itself."""
    found = jax.local_devices()
    return found[:1] if found[0].platform == "cpu" else found


def identity_of(config: TrainConfig, task: Task, plan: Plan | None = None) -> dict[str, Any]:
    """The identity that a checkpoint must share to be continued; see `make_identity`."""
    settings = {k: v for k, v in describe_settings(config, task.settled).items() if k not in FREE}
    if "matching" in settings:
        settings["matching"] = {k: v for k, v in settings["matching"].items() if k not in FREE_MATCHING}
    initial = None if config.initial is None else fingerprint(load_potential(config.initial))
    digests = {"initial model": initial}
    if task.members > 1 and config.initial is not None:
        whole = load_committee(config.initial)
        digests["committee of the initial model"] = None if whole is None else fingerprint(whole)
    if plan is not None:
        atoms = plan.atoms
        digests["structure of the simulations"] = digest_of(
            atoms.numbers, atoms.positions, atoms.cell.array, atoms.get_masses()
        )
    return make_identity(settings, [(frames.name, frames.digest) for frames in task.trajectories], digests)


def match(config: TrainConfig, resumed: bool) -> Potential:
    """Tune the initial model to `config.match`, writing model, history and checkpoint in every iteration.

    Raises:
        InputError: `set_up`, `plan_of` or `matching.match_averages` refuses data, settings or checkpoint.
        FloatingPointError: the tuning diverged, or a simulation with it.
    """
    settled = dataclasses.replace(config.matching, supercell=config.matching.repeats)
    config = dataclasses.replace(config, matching=settled)
    targets, options, console = parse_targets(config.match), config.matching, terminal.console(TrainConfig)
    configure_devices()
    plan = plan_of(options, targets, config.seed)
    check_supports(load_potential(config.initial or ""), plan.atoms, options.structure)
    for note in plan.notes:
        console.print(note)
    task = _begin(config)
    problem = matching.Problem(
        task.model, task.recipe, task.parametrization, task.groups, config.weights, targets, options, plan, config.seed,
        identity_of(config, task, plan),
    )  # fmt: skip
    validate = make_validation(task, training_devices())
    settings = describe_settings(config, task.settled) | provenance()
    config.out.mkdir(parents=True, exist_ok=True)
    began = time.time()
    errors: dict[str, dict[str, float | None]] = {}

    def force_error(raw: Any) -> float:
        errors.update(validate(problem.potential(raw).params).errors)
        return (
            float(np.sqrt(np.mean([(1e-3 * (e["forces"] or 0.0)) ** 2 for e in errors.values()]))) if errors else np.nan
        )

    def save(at: matching.Position) -> None:
        progress = {"step": at.iteration, "seconds": time.time() - began}
        potential = dataclasses.replace(problem.potential(at.raw), name=config.out.name)
        save_potential(potential, config.out, describe(config, task, errors, progress))
        matching_output.write_history(config.out, targets, at.rows, settings)

    at = matching.match_averages(problem, config.out, force_error, save, resume=resumed, console=console)
    matching_output.write_figure(config.out, targets, at.rows)
    matching_output.print_matching(targets, at.rows, at.met, config.out, console)
    return load_potential(config.out)


def describe(
    config: TrainConfig, task: Task, errors: dict[str, dict[str, float | None]], progress: dict[str, Any]
) -> dict[str, Any]:
    """What `model.json` says about a training."""
    initial = None if config.initial is None else load_potential(config.initial)
    return {
        "source": config.source,
        "reference_energies_eV": {chemical_symbols[z]: e for z, e in task.reference.items() if e},
        "training": {
            "data": {frames.name: frames.digest for frames in task.trajectories},
            "initial": None if initial is None else {"name": initial.name, "digest": fingerprint(initial)},
            "config": describe_settings(config, task.settled),
            "steps_done": progress["step"],
            "seconds": round(progress["seconds"]),
            "validation_rmse_meV": errors,
        },
    }


def main() -> int:
    """Run the command; returns its exit code."""
    return run_command("jaxpto.train", TrainConfig, run)


if __name__ == "__main__":
    leave(main())
