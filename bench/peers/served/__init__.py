"""Served: what runs inside a peer's own environment, one file each; imports nothing of ours."""
