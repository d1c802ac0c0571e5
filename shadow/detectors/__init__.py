"""Detectors: pure streaming tests on counts, one file for each; no clock, no I/O, no randomness."""
