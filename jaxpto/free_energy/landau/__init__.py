"""Free energy against polarization, by umbrella windows."""
