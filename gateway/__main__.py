"""`python -m gateway`: the same as the installed command `tidegate`."""

from __future__ import annotations

from gateway.cli import main

main()
