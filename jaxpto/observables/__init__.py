"""What a run is asked for: lattice, polarization, phases, and the statistics behind their error bars."""
