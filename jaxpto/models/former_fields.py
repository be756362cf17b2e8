"""Facts of a class that were fields of the first models: model folders and runs of that time stay valid.

A `model.json` of that time names them among the hyperparameters, and the fingerprint of a run counts them. Models that
came later are not listed here.
"""

from __future__ import annotations

import dataclasses
from typing import Any

_PACKED = ("CHGNet", "GPTFF", "HostCalculator", "LennardJones", "MACE", "OrbConservative", "OrbDirect", "SevenNet")
FORMER_FIELDS: dict[str, dict[str, Any]] = {
    **{name: {"by_species": False} for name in _PACKED},
    **{name: {"by_species": True} for name in ("DPA1", "DeepPotSE", "Perovskite")},
    "M3GNet": {"by_species": False, "angle_cutoff": 0.0},
}
"""Class -> its former fields, each with the only value it had."""
LATER_FIELDS: dict[str, dict[str, Any]] = {
    "Perovskite": {"envelope": 3},
    "M3GNet": {"smooth": False},
    "MACE": {"gated": False},
    "OrbDirect": {"version": 2},
}
"""Class -> fields that came later, each with what all models did before."""


def text_of(model: Any) -> str:
    """What `repr` gave for a model when the former fields were fields, for fingerprints; `repr` for later models."""
    shown = {field.name: getattr(model, field.name) for field in dataclasses.fields(model) if field.repr}
    name = type(model).__name__
    for field, value in LATER_FIELDS.get(name, {}).items():
        if shown[field] == value:
            del shown[field]
    after = {"strangers": shown.pop("strangers")} if name == "Perovskite" else {}
    every = shown | FORMER_FIELDS.get(name, {}) | after
    return f"{type(model).__qualname__}({', '.join(f'{name}={value!r}' for name, value in every.items())})"
