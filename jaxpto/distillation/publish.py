"""The finished student becomes the model of the folder, at one instant."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxpto.errors import InputError
from jaxpto.models.committee import load_committee, save_committee
from jaxpto.models.folder import HEADER, read_header

KEPT = ("source", "reference_energies_eV", "training")


def publish(student: Path, out: Path, facts: Mapping[str, Any]) -> None:
    """Save a trained committee as the model of another folder, with facts about its distillation.

    Args:
        student: model folder of a training with a committee.
        out: model folder to write; other files in it stay.
        facts: entry `distillation` of `model.json`.

    Raises:
        InputError: the training left no committee.
    """
    committee = load_committee(student)
    if committee is None:
        raise InputError(f"{student} has no committee; remove its folder, and it is trained again")
    header = read_header(student)
    kept = {name: header[name] for name in KEPT if name in header}
    save_committee(dataclasses.replace(committee, name=out.name), out, kept | {"distillation": dict(facts)})


def is_published(out: Path, facts: Mapping[str, Any]) -> bool:
    """Whether a folder holds the student with these facts already.

    Raises:
        InputError: its `model.json` is damaged.
    """
    return (out / HEADER).exists() and read_header(out).get("distillation") == dict(facts)
