"""A campaign against the promises of a run: kills, signals, damage, full disks, bad input; seeded, bounded in time."""
