"""What perovskites alone have: axes, polarization."""
