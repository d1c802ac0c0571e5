"""Bench: every published figure as a command."""
