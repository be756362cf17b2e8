"""Structures: reading, checking and repeating them."""

from jaxpto.structures.read import (
    BUILT_IN,
    Input,
    Use,
    builtin_structure,
    check_elements,
    check_use,
    make_supercell,
    notes_on,
    read_frames,
    read_input,
    read_structure,
    repeats_of,
    vacuum,
)

__all__ = [
    "BUILT_IN",
    "Input",
    "Use",
    "builtin_structure",
    "check_elements",
    "check_use",
    "make_supercell",
    "notes_on",
    "read_frames",
    "read_input",
    "read_structure",
    "repeats_of",
    "vacuum",
]
