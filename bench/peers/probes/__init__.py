"""Probes: what a started product does, found out by asking it.

The same questions go to every product, ours among them; a cell of the feature table is what one probe saw, and the
loss probe counts what a product's log lost while its receiver was killed. Nothing is scored.
"""
