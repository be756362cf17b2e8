"""The PTO-test: what the paper found, and the same from this engine."""
