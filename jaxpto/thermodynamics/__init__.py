"""Free energies and their derivatives."""
