"""Lattice dynamics: force constants by automatic differentiation or displacements, and what phonopy makes of them."""
