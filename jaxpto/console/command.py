"""What all commands share: parsing, exit codes, one-line errors, and the set-up of JAX."""

from __future__ import annotations

import _thread
import contextlib
import errno
import gc
import io
import logging
import math
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Generator, Sequence
from typing import Any, NoReturn, TextIO, TypeVar, cast

import jax
import tyro

from jaxpto.console.options import as_typed
from jaxpto.devices.compilation_cache import use_compilation_cache
from jaxpto.devices.host_memory import keep_freed_memory
from jaxpto.devices.processes import OtherProcessError
from jaxpto.errors import InputError, is_interrupt
from jaxpto.storage.files import StorageError

Config = TypeVar("Config")

DONE, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130
PATIENCE = 10.0  # seconds after an interrupt in which the next one is taken for the same


def run_command(
    name: str,
    config_type: type[Config],
    run: Callable[[Config], Any],
    argv: Sequence[str] | None = None,
    defaults: Config | None = None,
) -> int:
    """Parse the arguments of a command, run it, and turn what happens into an exit code.

    Every error is one line on stderr; with the environment variable JAXPTO_TRACEBACK=1 an unexpected one also shows its
    traceback. `--dtype float64`, where the command has it, switches JAX to 64 bit before anything is computed.

    Args:
        name: name of the module, as in `python -m NAME`.
        config_type: the command's configuration, a dataclass; its fields are the arguments.
        run: called with the configuration.
        argv: arguments; by default those of the process.
        defaults: default values in place of the dataclass's.

    Returns:
        0 done, 2 bad input, 130 interrupted, 1 anything else.
    """
    with _output_may_end():
        return _run(name, config_type, run, argv, defaults)


def leave(code: int | None) -> NoReturn:
    """End the process of a command with its exit code, as `sys.exit` does.

    After an interrupt or a failure a compiled program may still run in XLA's threads. The interpreter would free memory
    that these still use, which ended some interrupted sweeps with a segmentation fault; so the process then ends at
    once. All files are closed and synced by then. (In a run with several processes, JAX tells the others.)
    """
    for number in _interrupts():  # all is written: nothing is left to interrupt
        signal.signal(number, signal.SIG_IGN)
    if code and not jax.distributed.is_initialized():
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                stream.flush()
        os._exit(code)
    sys.exit(code)


def _run(
    name: str,
    config_type: type[Config],
    run: Callable[[Config], Any],
    argv: Sequence[str] | None,
    defaults: Config | None,
) -> int:
    program = f"python -m {name}"
    config = None
    try:
        config = _parse(program, config_type, sys.argv[1:] if argv is None else argv, defaults)
        if config is None:
            return DONE
        set_up_jax(getattr(config, "dtype", "float32"))
        with _terminated_is_interrupted():
            run(config)
        return DONE
    except InputError as error:
        _complain(name, as_typed(str(error), config_type))
        return BAD_INPUT
    except (StorageError, OtherProcessError) as error:
        _complain(name, as_typed(str(error), config_type))
        return FAILED
    except KeyboardInterrupt:
        return _interrupted(name, config)
    except Exception as error:
        if is_interrupt(error):
            return _interrupted(name, config)
        if os.environ.get("JAXPTO_TRACEBACK") == "1":
            traceback.print_exc()
        _complain(name, as_typed(_describe(error), config_type))
        return FAILED


def _interrupted(name: str, config: object) -> int:
    goes_on = "; the same command with --resume goes on" if hasattr(config, "resume") else ""
    _complain(name, f"interrupted{goes_on}")
    return INTERRUPTED


def _interrupts() -> list[int]:
    """The signals that ask a command to end, where the system has them."""
    return [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


@contextlib.contextmanager
def _terminated_is_interrupted() -> Generator[None]:
    """Keep what is computed, as Ctrl-C does, on SIGTERM (batch systems before they kill) and SIGHUP (a lost terminal).

    While the command then saves, further signals within `PATIENCE` seconds change nothing: an impatient second Ctrl-C,
    or the SIGTERM that some shells and batch systems send after it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in _interrupts()}
    # ignored from outside, by nohup or a shell in the background: it stays so
    heeded = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}

    last = -math.inf
    unraisable = sys.unraisablehook

    def interrupt(*_: object) -> None:
        nonlocal last
        if time.monotonic() - last > PATIENCE:
            last = time.monotonic()
            raise KeyboardInterrupt

    def swallowed(what: sys.UnraisableHookArgs) -> None:
        """Interrupt again: Python drops exceptions from callbacks of its garbage collector, and JAX has one."""
        nonlocal last
        if what.exc_type is not KeyboardInterrupt:
            unraisable(what)
            return
        last = -math.inf
        threading.Timer(0.02, _thread.interrupt_main, [next(iter(heeded))]).start()  # once the callback is left

    for number in heeded:
        signal.signal(number, interrupt)
    sys.unraisablehook = swallowed
    try:
        yield
    finally:
        sys.unraisablehook = unraisable
        for number, handler in heeded.items():
            signal.signal(number, handler)


class _MayEnd:
    """A text stream whose reader may close it: what is written from then on is dropped."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """As the stream does."""
        try:
            self._stream.write(text)
        except OSError as error:
            self._drop(error)
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        """As the stream does."""
        self.write("".join(lines))

    def flush(self) -> None:
        """As the stream does."""
        try:
            self._stream.flush()
        except OSError as error:
            self._drop(error)

    def _drop(self, error: OSError) -> None:
        if error.errno not in (errno.EPIPE, errno.EIO):  # EIO: the terminal is gone
            raise error
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())  # for what is still in the buffer, too
        os.close(nowhere)


@contextlib.contextmanager
def _output_may_end() -> Generator[None]:
    """Go on when the output has no reader any more, as after `| head -1` or in a closed terminal."""
    out, err = sys.stdout, sys.stderr
    # both are None where they were closed from the start
    sys.stdout, sys.stderr = (cast("TextIO", stream and _MayEnd(stream)) for stream in (out, err))
    try:
        yield
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()  # here, for at its exit the interpreter would complain
    finally:
        sys.stdout, sys.stderr = out, err


def set_up_jax(dtype: str) -> None:
    """Set JAX up for a command: precision, compilation cache, no chatter, few garbage collections, memory kept.

    The cache lies where JAX_COMPILATION_CACHE_DIR says, else in ~/.cache/jaxpto/xla.

    Args:
        dtype: "float64" switches the 64-bit mode on; anything else leaves it alone.
    """
    # tracing makes many objects and no garbage; looking for some took a twentieth of the time to the first step
    gc.set_threshold(50_000)
    keep_freed_memory()
    for chatty in ("absl", "orbax"):
        logging.getLogger(chatty).setLevel(logging.ERROR)
    if "JAX_LOGGING_LEVEL" not in os.environ:
        # At level ERROR, XLA says of every program from the cache of a CPU that another machine compiled it, because it
        # compares lists of features that it has itself extended. What really fails is raised as an exception.
        jax.config.update("jax_logging_level", "CRITICAL")
    if dtype == "float64":
        jax.config.update("jax_enable_x64", True)
    use_compilation_cache()


def configure_devices(count: int | None = None) -> int:
    """Split the CPU into virtual devices over which replicas can be sharded; call it before the first JAX operation.

    Args:
        count: number of CPU devices; None takes the number of cores this process may use.

    Returns:
        The number of devices of the default backend: `count` on a CPU, the accelerators elsewhere. Where JAX runs
        already, nothing changes and the number it has is returned.

    Raises:
        InputError: `count` below 1.
    """
    count = usable_cores() if count is None else count
    if count < 1:
        raise InputError(f"{count} CPU devices; give at least 1")
    # JAX refuses once its backend is up: what is there then counts.
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", count)
    return len(jax.local_devices())


def usable_cores() -> int:
    """Number of CPU cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _parse(program: str, config_type: type[Config], argv: Sequence[str], defaults: Config | None) -> Config | None:
    """The configuration, or None when help was asked for and printed."""
    output = io.StringIO()
    try:
        with contextlib.redirect_stderr(output):
            return tyro.cli(
                config_type,
                prog=program,
                args=list(argv),
                default=tyro.MISSING_NONPROP if defaults is None else defaults,
            )
    except SystemExit as leaving:
        if not leaving.code:
            return None
        # tyro frames its message in a box of several lines, in ASCII where it must, under a title; ours are one line.
        lines = [line.strip("╭╮╰╯│─ ") for line in output.getvalue().splitlines()]
        message = [line for line in lines if line.strip("-")][1:]
        words = " ".join(message).split("For full helptext")[0].strip()
        raise InputError(f"{words}; see {program} --help") from None


def _complain(name: str, message: str) -> None:
    print(f"{name}: {' '.join(message.split())}", file=sys.stderr)


def _describe(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"disk full: {error}; free some space"
    return f"{type(error).__name__}: {error} (JAXPTO_TRACEBACK=1 shows where)"
