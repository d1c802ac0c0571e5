"""A sidecar that waits long for an answer: what it finds when it wakes does not depend on how long it slept."""

from __future__ import annotations

from shadow import act, sidecar

ANSWER_S = 300.0


def main() -> None:
    """The sidecar's own `main`, whose requests do not expire in a test."""
    act.TIMEOUT_S = ANSWER_S
    sidecar.main()


if __name__ == "__main__":
    main()
