"""Peers: the products that do what this one does, measured beside it by one command.

`peer` says what a product must be able to do to be measured; `adapters` has one module for each product and `served`
the code that runs inside a product's own environment, which imports nothing of ours. `environment` makes those
environments from `locks`, `served_process` is the life of a started server, `processes` holds its whole process tree
and `family` ends it, when the bench was killed, too. `calibration` finds each product's best settings, `comparison`
measures them against ours in rounds, `keeping` lets a run go on where it was cut, and `page` writes what came out.
"""
