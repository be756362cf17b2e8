"""Runs and model folders made when some facts of a class were fields go on: their fingerprints and headers hold."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from jaxpto.models.catalogue import load_potential
from jaxpto.models.chgnet import CHGNet
from jaxpto.models.deepmd import DPA1, DeepPotSE
from jaxpto.models.former_fields import FORMER_FIELDS, text_of
from jaxpto.models.gptff import GPTFF
from jaxpto.models.lennard_jones import LennardJones
from jaxpto.models.m3gnet import M3GNet
from jaxpto.models.mace import MACE
from jaxpto.models.orb import OrbConservative, OrbDirect
from jaxpto.models.perovskite import Perovskite
from jaxpto.models.sevennet import SevenNet
from jaxpto.potential import Potential
from jaxpto.reporting.provenance import fingerprint

PTO = (8, 22, 82)
MACE_LAYERS = ((1, 0), (False, True), (False, False), ((3, 2, 1), (3, 2, 1)), (0, 1))
# fingerprints as jaxpto gave them when `by_species` was a field
KNOWN = [
    (CHGNet(PTO, 6.0, 3.0, 8), "0fe5129bd6139d25"),
    (GPTFF(), "0fc65f9850919f85"),
    (M3GNet(), "20a20533674794a9"),
    (MACE(PTO, (0.66, 1.6, 1.46), 6.0, 5, (0.5, 1.0), (), (), True, 3, *MACE_LAYERS), "3492afc2751b7c6f"),
    (OrbDirect(PTO, 20, 6.0), "c735f3bf44e9dc11"),
    (OrbConservative(PTO, 120, 6.0), "ceb4ef5b82d12840"),
    (SevenNet(PTO, 5.0, ((8,), (8, 6)), 2, "xplor", 4.5), "4de9aa4de771062a"),
    (
        DPA1(PTO, 6.0, 0.5, 120, 16, False, True, True, False, 1.0, 1e-6, 1e-3, (0, 1, 1), "tanh", (0, 1), "tanh"),
        "dc95c460bdb8cd43",
    ),
    (DeepPotSE(PTO, 6.0, 0.5, (46, 46, 92), False, 16, (0, 2, 2), "tanh", (0, 1), "tanh"), "53326bed06b00d30"),
    (LennardJones((18, 36), 6.0, 5.0), "fcaa4ecaac450ffa"),
    (Perovskite(PTO, strangers=((8, 22),)), "7b2d318c4c9d21a1"),
]


@pytest.mark.parametrize(("model", "known"), KNOWN, ids=lambda value: type(value).__name__)
def test_fingerprints_of_stored_runs_hold(model, known: str) -> None:
    assert fingerprint(Potential({}, model, "any")) == known


def test_fingerprints_of_shipped_and_wrapped_models_hold() -> None:
    assert fingerprint(load_potential("perovskite", np.float64)) == "82f2349eb3e4c878"
    assert fingerprint(load_potential("perovskite", np.float32)) == "7012116a73ca29a6"
    assert fingerprint(load_potential("ase:ase.calculators.emt:EMT")) == "e84fe1c2d338c78d"


def test_every_former_field_is_a_fact_of_its_class() -> None:
    kinds = {type(model).__name__: type(model) for model, _ in KNOWN}
    assert set(FORMER_FIELDS) == {*kinds, "HostCalculator"}
    for name, kind in kinds.items():
        assert FORMER_FIELDS[name]["by_species"] is kind.by_species
        assert not FORMER_FIELDS[name].keys() & {field.name for field in dataclasses.fields(kind)}


@dataclasses.dataclass(frozen=True)
class Later:
    elements: tuple[int, ...]
    cutoff: float


def test_later_models_are_spelled_as_python_does() -> None:
    assert text_of(Later((1, 8), 5.0)) == repr(Later((1, 8), 5.0))


def test_another_envelope_is_another_model() -> None:
    """Folders without the setting have the power 3, the only one of their time."""
    smoother = Perovskite(PTO, envelope=5, strangers=((8, 22),))
    assert fingerprint(Potential({}, smoother, "any")) != "7b2d318c4c9d21a1"
    assert "envelope" not in text_of(Perovskite(PTO))
    assert "envelope=5" in text_of(smoother)
