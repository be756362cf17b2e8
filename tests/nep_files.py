"""Small NEP files with random parameters, of every kind that the converter reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np

HEADERS = {
    "nep3": ("nep3 3 O Ti Pb", "cutoff 5 4 200 100", "n_max 2 3", "basis_size 4 5", "l_max 3 0 0", "ANN 6 0"),
    "nep3_zbl": (
        "nep3_zbl 3 Pb Ti O", "zbl 1.2 2.4", "cutoff 5 4.5 200 100", "n_max 3 2", "basis_size 5 4", "l_max 4 2 0",
        "ANN 5 0",
    ),
    "nep4": ("nep4 4 O Ti Sr Pb", "cutoff 5.5 4 200 100", "n_max 2 2", "basis_size 6 4", "l_max 2 2 1", "ANN 4 0"),
    "nep4_zbl": (
        "nep4_zbl 3 O Ti Pb", "zbl 1.0 2.2", "cutoff 5 5 200 100", "n_max 1 3", "basis_size 3 3", "l_max 4 2 1",
        "ANN 7 0",
    ),
    "nep4_charge1": (
        "nep4_charge1 3 O Ti Pb", "cutoff 5 4 200 100", "n_max 2 2", "basis_size 4 4", "l_max 3 2 0", "ANN 5 0",
    ),
    "nep4_zbl_charge1": (
        "nep4_zbl_charge1 4 O Ti Sr Pb", "zbl 1.0 2.2", "cutoff 4.5 4 200 100", "n_max 3 2", "basis_size 5 4",
        "l_max 4 2 1", "ANN 6 0",
    ),
    "nep4_zbl_charge2": (
        "nep4_zbl_charge2 3 Pb Ti O", "zbl 1.2 2.4", "cutoff 5 4.5 200 100", "n_max 2 2", "basis_size 3 4",
        "l_max 2 0 0", "ANN 4 0",
    ),
}  # fmt: skip


def write(path: Path, header: tuple[str, ...], seed: int = 0, count: int | None = None) -> Path:
    """A file with a header and as many random numbers as it asks for, or `count`."""
    if count is None:
        count = size(header)
    numbers = 0.3 * np.random.default_rng(seed).normal(size=count)
    path.write_text("\n".join([*header, *(f"{number:15.7e}" for number in numbers)]) + "\n")
    return path


def size(header: tuple[str, ...]) -> int:
    """How many numbers a file has, as GPUMD's manual counts them."""
    kind, elements, *_ = header[0].split()
    entry = {line.split()[0]: [float(word) for word in line.split()[1:]] for line in header[1:]}
    (radial, angular), (radial_basis, angular_basis) = entry["n_max"], entry["basis_size"]
    highest, four, five = entry["l_max"]
    descriptors = int(radial + 1 + (angular + 1) * (highest + (four > 0) + (five > 0)))
    hidden, species = int(entry["ANN"][0]), int(elements)
    charged = "charge" in kind
    net = (descriptors + 2 + charged) * hidden * (species if kind.startswith("nep4") else 1) + 1 + charged
    coefficients = species**2 * ((radial + 1) * (radial_basis + 1) + (angular + 1) * (angular_basis + 1))
    return int(net + coefficients + descriptors)
