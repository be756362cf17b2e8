"""Free energy by switching to an Einstein crystal."""
