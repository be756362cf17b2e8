"""Where programs run: devices, processes, compiled programs."""
