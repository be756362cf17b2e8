"""Identity of a run: its settings, and digests of the data and structures they name; compared before it goes on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def make_identity(
    settings: Mapping[str, Any], parts: Sequence[tuple[str, str]], digests: Mapping[str, str | None]
) -> dict[str, Any]:
    """The identity of a run as JSON values.

    Args:
        settings: values by name, groups as mappings.
        parts: name and digest of each input in order, such as data sets or structures.
        digests: digests of other things that the settings name, such as a model; None where there is none.
    """
    document = {"settings": _flat(settings), "parts": list(map(list, parts)), "digests": dict(digests)}
    return json.loads(json.dumps(document))


def differences(before: Mapping[str, Any], now: Mapping[str, Any], part: str) -> list[str]:
    """Every difference between two identities, in words.

    Args:
        before, now: identities from `make_identity`.
        part: what the parts are called, as in "structure".
    """
    old, new = before["settings"], now["settings"]
    found = [
        f"{name} was {_spell(old.get(name))}, now {_spell(new.get(name))}"
        for name in dict.fromkeys((*old, *new))
        if old.get(name) != new.get(name)
    ]
    first, second = dict(before["parts"]), dict(now["parts"])
    other = [f"{part} {name} is missing" for name in first if name not in second]
    other += [f"{part} {name} is new" for name in second if name not in first]
    other += [f"{part} {name} is another one" for name in first if name in second and first[name] != second[name]]
    if not other and before["parts"] != now["parts"]:
        other = [f"each {part} is there, in another order"]
    found += other
    return found + [
        f"the {name} is another one" for name, digest in now["digests"].items() if before["digests"].get(name) != digest
    ]


def digest_of(*arrays: np.ndarray) -> str:
    """Digest of the contents of arrays."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in settings.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return found


def _spell(value: Any) -> str:
    return " ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)
