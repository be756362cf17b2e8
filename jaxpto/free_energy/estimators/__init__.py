"""Estimators that several free-energy methods share."""
