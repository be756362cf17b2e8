"""What a batch will cost: seconds a step, and the memory of the process, measured on a few steps of its own program."""

from __future__ import annotations

import dataclasses
import time

import jax
import numpy as np

from jaxpto.devices.host_memory import peak_memory, reset_peak_memory
from jaxpto.md.batch import Batch
from jaxpto.md.initial import begin, first_layout
from jaxpto.md.loop import compile_advance, pad_replicas, replica_mesh

MOST_SAMPLES = 50  # of one timed call


@dataclasses.dataclass(frozen=True)
class StepTime:
    """The cost of a batch.

    Attributes:
        seconds: time of a step of all replicas.
        compilation: seconds until the first step is done.
        memory: peak of the process meanwhile, GiB.
        steps: that were timed.
    """

    seconds: float
    compilation: float
    memory: float
    steps: int


def time_steps(batch: Batch, seconds: float = 1.0) -> StepTime:
    """Time steps of a batch, with the program that will run it and from where it starts.

    Args:
        batch: the replicas.
        seconds: least time of the steps that count; one step is enough where it takes longer, and no more are taken
            than the batch will take.
    """
    reset_peak_memory()
    began = time.perf_counter()
    mesh = replica_mesh(len(batch.temperatures), batch.usable_devices(), batch.devices_per_replica)
    states, watch, _ = begin(batch, first_layout(batch))
    states, watch = pad_replicas(states, watch, mesh)
    schedule = batch.schedule
    advance = compile_advance(batch.method, schedule.sample_every, schedule.samples_per_chunk, batch.limits, mesh)
    most = min(schedule.sample_every * min(schedule.samples_per_chunk, MOST_SAMPLES), schedule.steps)

    def walk(steps: int) -> tuple[int, float]:
        """Take steps from the start in one call; tells how many it were until all replicas were lost, and seconds."""
        samples = -(-steps // schedule.sample_every)
        started = time.perf_counter()
        _, after, _ = jax.block_until_ready(advance(batch.potential, states, watch, batch.observables, samples, steps))
        lost_at = np.where(after.alive, steps, after.failed_step)
        return max(1, int(lost_at.max())), time.perf_counter() - started

    walk(1)
    compilation = time.perf_counter() - began
    steps, took = walk(1)
    asked = 1
    while took < seconds and asked < most and steps == asked:
        asked = min(most, max(2 * asked, int(1.2 * seconds * asked / max(took, 1e-6))))
        steps, took = walk(asked)
    return StepTime(took / steps, compilation, peak_memory(), steps)
