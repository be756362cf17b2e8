"""Relaxation of positions and cell at 0 K: by ASE's optimizers, or of many structures at once on the device."""
