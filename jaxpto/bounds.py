"""How large is too large: limits on what a run may ask for, each with its reason, checked before anything is built."""

from __future__ import annotations

import os

from jaxpto.errors import InputError

MOST_STEPS = 2_000_000_000  # the step counter of a replica has 32 bits
MOST_ATOMS = 10_000_000  # of a replica; with 200 neighbours each, edges still have indices of 32 bits
MOST_REPLICAS = 10_000  # each has a trajectory file and a place in every table
HOTTEST = 100_000.0  # K; 9 eV of kT, a plasma that no force field of condensed matter describes
LONGEST_SKIN = 5.0  # Angstrom; edges grow with (cutoff + skin)^3, a step needs those within the cutoff only
SHORTEST_TIMESTEP = 1e-3  # fs; below it a step changes positions by less than single precision resolves
HIGHEST_PRESSURE = 1000.0  # GPa; three times that at the centre of the Earth
MOST_CPU_DEVICES_PER_CORE = 8  # virtual devices of a CPU share its cores: more of them gain nothing
# What an atom takes at least, with some 40 neighbours in single precision: its state and neighbour list in every
# replica, and what a model computes for its edges in those replicas that are evaluated at a time (one on a CPU).
LEAST_STATE = 500  # bytes
LEAST_WORK = 2_500  # bytes; docs/parallel.md has 55 MB for 20,480 atoms


def check_size(atoms: int, replicas: int = 1, what: str = "the run") -> None:
    """Refuse what cannot fit into the memory of this machine, whatever the model.

    Args:
        atoms: atoms of one replica.
        replicas: number of replicas.
        what: name of the run in the message, with the setting behind it.

    Raises:
        InputError: it does not fit; the message has the figures.
    """
    if atoms > MOST_ATOMS:
        raise InputError(f"{what}: {atoms:,} atoms, at most {MOST_ATOMS:,} can be; take a smaller supercell")
    needed, memory = atoms * (replicas * LEAST_STATE + LEAST_WORK), memory_bytes()
    if memory is not None and needed > memory:
        times = f" in each of {replicas:,} replicas" if replicas > 1 else ""
        raise InputError(
            f"{what}: {atoms:,} atoms{times} take at least {needed / 1e9:.0f} GB of memory, this machine has "
            f"{memory / 1e9:.0f} GB; take a smaller supercell" + (" or fewer replicas" if replicas > 1 else "")
        )


def memory_bytes() -> int | None:
    """Main memory of this machine, None where the system does not tell."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None
