"""Integrators: one method a file, each returning `Integrator(init, apply, invariant)`."""
