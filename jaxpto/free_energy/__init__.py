"""Free energies of crystals against temperature, by five methods; `python -m jaxpto.free_energy`."""
