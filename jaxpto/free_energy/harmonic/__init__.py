"""Free energy of harmonic vibrations."""
