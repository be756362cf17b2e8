"""Figures, pages and provenance."""
