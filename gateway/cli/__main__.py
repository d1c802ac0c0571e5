"""`python -m gateway.cli`: the command line without an installed script."""

from __future__ import annotations

from gateway.cli import main

main()
