"""Quasi-harmonic free energy and thermal expansion."""
