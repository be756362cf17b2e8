"""A fast student of any teacher: labels, rounds of training and exploring, and the proof of what was learned."""
