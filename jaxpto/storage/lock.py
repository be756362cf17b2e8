"""One run for each folder: a lock on a file `.lock` in it, which the system frees when its holder dies."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import socket
from collections.abc import Generator
from datetime import datetime
from pathlib import Path

from jaxpto.errors import InputError
from jaxpto.storage.files import NO_ROOM, storage_error

LOCK_FILE = ".lock"
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)  # file systems without locks


@contextlib.contextmanager
def one_run(folder: str | Path) -> Generator[None]:
    """Hold a run's folder, made if missing, against every other process that wants to write to it.

    The lock (flock) belongs to the process, not to the file: a `.lock` that a kill left behind is free. Between
    hosts it holds on network file systems that pass locks to their server, as NFS does from version 4 on.

    A folder that was made here and is still empty in the end, because its run was refused, is removed.

    Args:
        folder: the output folder.

    Raises:
        InputError: another process holds it (the message says which, on which host and since when), or it is a file or
            in a place that cannot be written to.
        StorageError: the disk is full.
    """
    folder, path = Path(folder), Path(folder) / LOCK_FILE
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = _locked(path)
    except BlockingIOError:
        raise InputError(f"`out={folder}` is in use by {_holder(path)}; wait for it, end it, or name another") from None
    except FileExistsError:
        raise InputError(f"`out={folder}` is a file; name a folder") from None
    except OSError as error:
        if error.errno in NO_ROOM:
            raise storage_error(folder, error) from error
        raise InputError(f"`out={folder}`: {error.strerror}; name a folder in a place that can be written to") from None
    try:
        os.ftruncate(descriptor, 0)
        since = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M:%S %z")
        os.pwrite(
            descriptor, json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "since": since}).encode(), 0
        )
        yield
    finally:
        with contextlib.suppress(OSError):  # while it is still held: nobody else's file can be meant
            path.unlink(missing_ok=True)
        os.close(descriptor)
        with contextlib.suppress(OSError):  # not empty: it is in use
            for place in made:
                place.rmdir()


def is_empty(folder: Path) -> bool:
    """Whether a folder holds nothing but the lock of a run."""
    return all(path.name == LOCK_FILE for path in folder.iterdir())


def _locked(path: Path) -> int:
    """An open and locked file at `path`.

    Raises:
        BlockingIOError: another process has the lock.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                os.close(descriptor)
                raise
            said = "%s: this file system has no locks (%s); start no second run in this folder"
            logging.getLogger("jaxpto").warning(said, path.parent, error.strerror)
            return descriptor
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
        os.close(descriptor)  # its last holder has removed it meanwhile


def _holder(path: Path) -> str:
    try:
        held = json.loads(path.read_text())
        return f"process {held['pid']} on {held['host']} since {held['since']}"
    except (OSError, ValueError, KeyError, TypeError):  # it has not written it yet
        return "another process"
