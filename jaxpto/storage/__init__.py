"""Everything that reaches the disk: `files` (atomic writes), `trajectory` (H5MD), `checkpoint` and `alone` (Orbax)."""
