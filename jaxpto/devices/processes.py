"""The processes that share a run: their numbers, and the few bytes per chunk that they exchange.

Replicas are independent, so every process runs its own replicas on its own devices. What the processes must agree on
(larger neighbour lists, when to save, when to end) goes through the key-value store of JAX's coordination service,
which also notices when a process dies. Devices take part in no collective operation that could hang.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import itertools
import os
import subprocess
import sys
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np

from jaxpto.errors import InputError

Tree = TypeVar("Tree")
_ENDED = "jaxpto/ended"
_PATIENCE_MS = 1000  # between two looks at whether another process has ended
_FORMS = "slurm, auto or HOST:PORT,N,I (process I of N, 0 to N - 1; HOST is where process 0 runs)"


class OtherProcessError(RuntimeError):
    """Raised in every process of a run when one of them has ended; the message says in one line which one and why."""


@dataclasses.dataclass(frozen=True)
class Processes:
    """This process among all processes of a run; by default the only one, which exchanges nothing.

    Attributes:
        index: number of this process, from 0.
        count: number of processes.
    """

    index: int = 0
    count: int = 1
    _rounds: Iterator[int] = dataclasses.field(default_factory=itertools.count, repr=False, compare=False)

    @property
    def first(self) -> bool:
        """Whether this process is the one that prints, and writes the files of the whole run."""
        return self.index == 0

    def own(self, n: int) -> slice:
        """The share of n replicas that this process runs; shares differ by at most one replica."""
        return slice(n * self.index // self.count, n * (self.index + 1) // self.count)

    def gather(self, value: bytes) -> list[bytes]:
        """The values of all processes, in their order; waits for every process.

        Raises:
            OtherProcessError: one of them has ended.
        """
        if self.count == 1:
            return [value]
        turn = next(self._rounds)
        _store().key_value_set_bytes(_key(turn, self.index), value)
        values = [value if other == self.index else _read(_key(turn, other)) for other in range(self.count)]
        if turn:  # whoever has come to this turn has read all of the last one
            _store().key_value_delete(_key(turn - 1, self.index))
        return values

    def join(self, tree: Tree) -> Tree:
        """The pytrees of arrays of all processes, joined along the first axis; waits for every process.

        Raises:
            OtherProcessError: one of them has ended.
        """
        return tree if self.count == 1 else _joined([_unpacked(part, tree) for part in self.gather(_packed(tree))])

    def collect(self, tree: Tree) -> Tree | None:
        """Like `join`, for large data: only the first process gets the result; the others send theirs and get None.

        Raises:
            OtherProcessError: one of them has ended.
        """
        if self.count == 1:
            return tree
        turn = next(self._rounds)
        if not self.first:
            _store().key_value_set_bytes(_key(turn, self.index), _packed(tree))
            return None
        parts = [tree]
        for other in range(1, self.count):
            parts.append(_unpacked(_read(_key(turn, other)), tree))
            _store().key_value_delete(_key(turn, other))
        return _joined(parts)

    def any(self, flag: bool | np.bool_) -> bool:
        """Whether the flag is set in any process; waits for every process."""
        return bool(self.join(np.asarray([flag])).any())

    @contextlib.contextmanager
    def telling(self) -> Generator[None]:
        """Tell the other processes when an exception ends this one, so that they end with a line that says why."""
        try:
            yield
        except BaseException as error:
            if self.count > 1 and not isinstance(error, OtherProcessError):
                said = "interrupted" if isinstance(error, KeyboardInterrupt) else str(error) or type(error).__name__
                with contextlib.suppress(jax.errors.JaxRuntimeError):
                    _store().key_value_set(_ENDED, f"process {self.index} of {self.count} ended: {said}", True)
            raise


def connect(asked: str | None, timeout: int) -> Processes:
    """Join the processes of a run through `jax.distributed`; call it before the first JAX operation.

    Args:
        asked: "slurm" for the tasks of a Slurm step; "auto" for whatever `jax.distributed.initialize` detects (Slurm,
            Open MPI, Kubernetes); "HOST:PORT,N,I" for process I of N, process 0 of which listens at that address; None
            for a single process.
        timeout: seconds without a sign of life after which a process counts as lost.

    Raises:
        InputError: `asked` has no such form, nothing is detected, or process 0 cannot listen at the address.
    """
    if asked is None:
        return Processes()
    arguments = _arguments(asked)
    if not jax.distributed.is_initialized():
        _explain_aborts()
        # It would take SIGTERM away from the process, which is how clusters end one.
        jax.config.update("jax_enable_preemption_service", False)
        jax.config.update("jax_cpu_collectives_implementation", None)  # nothing is computed together
        try:
            jax.distributed.initialize(**arguments, heartbeat_timeout_seconds=timeout)
        except (ValueError, RuntimeError) as error:
            reason = str(error).partition("\n")[0]
            raise InputError(f"`distributed={asked}`: {reason}; give {_FORMS}") from None
    state = _state()
    return _this_process(state.process_id, state.num_processes)


@functools.cache
def _this_process(index: int, count: int) -> Processes:
    """One object for all runs of a process, for they count their exchanges together."""
    return Processes(index, count)


def _arguments(asked: str) -> dict[str, Any]:
    """The arguments for `jax.distributed.initialize`."""
    if asked == "auto":
        return {}
    if asked == "slurm":
        if "SLURM_PROCID" not in os.environ:
            raise InputError("`distributed=slurm`: this is no task of Slurm (SLURM_PROCID is not set); start with srun")
        return {"cluster_detection_method": "slurm"}
    address, *numbers = asked.split(",")
    host, _, port = address.rpartition(":")
    if not (host and port.isdecimal() and len(numbers) == 2 and all(number.isdecimal() for number in numbers)):
        raise InputError(f"`distributed={asked}`: give {_FORMS}")
    count, index = map(int, numbers)
    if index >= count:
        raise InputError(f"`distributed={asked}`: process {index} of {count}; the last one is {count - 1}")
    # without `local_device_ids` JAX would look for a cluster to take them from
    return {
        "coordinator_address": address,
        "num_processes": count,
        "process_id": index,
        "cluster_detection_method": "deactivate",
    }


def _explain_aborts() -> None:
    """Filter stderr: when another process is gone, XLA ends this one from C++ with a dump of its stack."""
    read, write = os.pipe()
    script = Path(__file__).with_name("abort_filter.py")
    subprocess.Popen([sys.executable, "-S", str(script), sys.argv[0]], stdin=read)
    os.close(read)
    os.dup2(write, 2)
    os.close(write)


def _state() -> Any:
    from jax._src import distributed  # the only way to the key-value store, as in Orbax

    return distributed.global_state


def _store() -> Any:
    return _state().client


def _key(turn: int, index: int) -> str:
    return f"jaxpto/{turn}/{index}"


def _read(key: str) -> bytes:
    """Read a value of another process; wait for it as long as all processes live."""
    while True:
        try:
            return _store().blocking_key_value_get_bytes(key, _PATIENCE_MS)
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                time.sleep(30.0)  # process 0 is gone; XLA is about to end this process too, see `abort_filter`
                raise OtherProcessError("process 0 cannot be reached any more") from None
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # nothing there
            raise OtherProcessError(_store().key_value_try_get(_ENDED))


def _packed(tree: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, *[np.asarray(leaf) for leaf in jax.device_get(jax.tree.leaves(tree))])
    return buffer.getvalue()


def _unpacked(data: bytes, template: Tree) -> Tree:
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        leaves = [arrays[f"arr_{number}"] for number in range(len(arrays.files))]
    return jax.tree.unflatten(jax.tree.structure(template), leaves)


def _joined(parts: list[Tree]) -> Tree:
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
