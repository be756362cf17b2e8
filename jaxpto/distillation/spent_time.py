"""Time that a distillation has taken so far, whatever interrupted it."""

from __future__ import annotations

import json
import time
from pathlib import Path

from jaxpto.storage.files import write_json_atomic


class SpentTime:
    """A clock that goes on where it was saved."""

    def __init__(self, path: Path):
        """Start the clock.

        Args:
            path: where it is saved.
        """
        self._path, self._began = path, time.monotonic()
        self._before = float(json.loads(path.read_text())["seconds"]) if path.exists() else 0.0

    @property
    def seconds(self) -> float:
        """Seconds spent, those before the last interrupt included."""
        return self._before + time.monotonic() - self._began

    def save(self) -> None:
        """Store what was spent."""
        write_json_atomic(self._path, {"seconds": round(self.seconds, 1)})
