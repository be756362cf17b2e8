"""Devices and processes that share a run, and compiled programs that are kept between runs."""
