"""Whose a run's folder is: claimed by the first process, and found again by a run that goes on."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

from jaxpto.devices.processes import Processes
from jaxpto.errors import InputError
from jaxpto.md.config import SweepConfig, changed_fields, to_json
from jaxpto.md.preparation import Setup
from jaxpto.reporting.provenance import fingerprint, provenance
from jaxpto.storage.run_folder import CONFIG_FILE, check_unclaimed, read_config, run_name, write_config
from jaxpto.system import defining_arrays


@dataclasses.dataclass(frozen=True)
class Claim:
    """What a folder must say of a run that goes on in it.

    Attributes:
        folder: the output folder.
        config: the settings.
        identity: digests of what the settings only name: structure and model.
        marks: whatever else makes a run this one, in groups: {"windows": {"centers": ...}}.
        limits: when a replica counts as lost, for the record.
    """

    folder: Path
    config: SweepConfig
    identity: dict[str, str]
    marks: dict[str, dict[str, Any]]
    limits: dict[str, Any]

    def held(self, *, resume: bool) -> str | None:
        """The name of this very run, which the folder holds to be continued; None where the folder is free.

        Args:
            resume: whether the run may go on.

        Raises:
            InputError: the folder is in use, or holds a run with other settings, structure or model.
        """
        before = read_config(self.folder)
        if before is None:
            check_unclaimed(self.folder, resume=resume)
            return None
        if not resume:
            raise InputError(
                f"`out={self.folder}` already holds a sweep; add `resume=True` to continue it or name a new folder"
            )
        if changes := self._changes(before):
            raise InputError(
                f"{self.folder} was run with other settings: {'; '.join(changes)}; name a new `out`, "
                f"or go on with the settings in {self.folder / CONFIG_FILE}"
            )
        return run_name(before)

    def enter(self, processes: Processes) -> str:
        """Take the folder: the first process claims it, the others check that they see the same run there.

        Returns:
            The name of the run in the folder.

        Raises:
            InputError: as `held`, or another process does not see what the first one has written.
        """
        name = self.held(resume=self.config.resume) if processes.first else None
        if processes.first and name is None:
            document = {"config": to_json(self.config), **self.marks, "identity": self.identity, "limits": self.limits}
            name = write_config(self.folder, document | provenance())
        processes.any(False)
        if not processes.first:
            name = self.held(resume=True)
        if name is None:
            raise InputError(
                f"`out={self.folder}`: process {processes.index} does not see what process 0 has written there; "
                "name a folder on a disk that all processes share"
            )
        return name

    def _changes(self, before: dict[str, Any]) -> list[str]:
        changes = changed_fields(self.config, before["config"])
        try:
            for kind, entries in self.marks.items():
                changes += [f"the {kind}' {name} differ" for name, new in entries.items() if before[kind][name] != new]
        except (KeyError, TypeError):
            path = self.folder / CONFIG_FILE
            raise InputError(f"{path} is damaged; restore it or start in a new folder") from None
        found = before["identity"]
        return changes + [
            f"the {name} is another one" for name, digest in self.identity.items() if found.get(name) != digest
        ]


def claim_of(setup: Setup, folder: Path, marks: dict[str, dict[str, Any]]) -> Claim:
    """The claim of a set-up on a folder; `marks` as in `Claim`."""
    structure = hashlib.sha256(b"".join(array.tobytes() for array in defining_arrays(setup.batch.atoms)))
    identity = {"structure": structure.hexdigest()[:16], "model": fingerprint(setup.batch.potential)}
    if setup.committee is not None:
        identity["committee"] = fingerprint(setup.committee)
    return Claim(folder, setup.config, identity, marks, dataclasses.asdict(setup.batch.limits))
