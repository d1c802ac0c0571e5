"""Ending: what `bench peers` and its probes have in common as commands: what they demand at once, and how they end.

Exit codes: 0; 1 a goal missed, or our own answer is no; 2 something is missing or wrong, which goes before 1: what is
not whole cannot say that it missed; 3 nothing was measured; 130 cut.
"""

from __future__ import annotations

import contextlib
import math
import os
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from bench.cli_load import end, unwind_by_signals
from bench.peers.peer import Unavailable
from gateway.errors import ConfigInvalid

MISSED, WRONG, NOTHING, CUT = 1, 2, 3, 130
SECONDS_MAX = 3600.0


class Seconds(click.FloatRange):
    """An option that is a time: above 0, an hour at most, and a number."""

    def __init__(self) -> None:
        super().__init__(0, SECONDS_MAX, min_open=True)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """See click.ParamType."""
        seconds = float(super().convert(value, param, ctx))
        if math.isnan(seconds):
            self.fail(f"{value!r} is no number of seconds", param, ctx)
        return seconds


def status(*, is_missing: bool, is_missed: bool) -> int:
    """How a command that came to its end leaves."""
    return WRONG if is_missing else MISSED if is_missed else 0


def demand_writable(*files: Path | None) -> None:
    """Raise ConfigInvalid now rather than after an hour, when a file cannot be written where it is to be."""
    for file in files:
        if file is None or (file.exists() and not file.is_dir() and not file.is_file()):
            continue
        place = file.resolve().parent
        if file.is_dir():
            msg = f"{file} is a directory: expected a file"
            raise ConfigInvalid(msg)
        if not place.is_dir():
            msg = f"{file} cannot be written: there is no directory {place}"
            raise ConfigInvalid(msg)
        if not os.access(place, os.W_OK | os.X_OK):
            msg = f"{file} cannot be written: nothing may be written in {place}"
            raise ConfigInvalid(msg)


@contextlib.contextmanager
def ending(when_cut: str) -> Iterator[None]:
    """A user's mistake and a product that does not run end with one message and their status.

    So does a defect of the bench itself, behind its traceback: Python's status for it would say that a goal was missed.
    A signal ends the servers, too: they have sessions of their own, and no terminal would end them.

    Args:
        when_cut: what becomes of what was measured.
    """
    unwind_by_signals()
    try:
        yield
    except BrokenPipeError:
        # Who reads what is printed has had enough: no fault of this side.
        raise
    except (ConfigInvalid, OSError) as exc:
        end(WRONG, str(exc))
    except Unavailable as exc:
        end(NOTHING, str(exc))
    except Exception as exc:
        traceback.print_exc()
        end(WRONG, f"a defect of the bench itself: {exc!r}")
    except KeyboardInterrupt:
        end(CUT, f"cut; {when_cut}")
