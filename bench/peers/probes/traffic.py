"""Traffic: two versions at once. Splits, sticky draws, mirrors, and a version that turns out to be bad.

Only what has routes has a way of being asked: they are set over our admin API. What the others' pages say of it stands
in **offered**.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from bench.peers.probes.line import Line
from bench.peers.probes.marks import found_below, marked
from bench.peers.probes.small_models import scale_of
from bench.peers.probes.started import Probe, Started
from bench.peers.probes.table import Seen
from bench.serving import Reply, call

GROUP = "Two versions at once"
_ASKED = 4000
_SHARE_BP = 1000
_SPREAD = 3.3
"""Standard deviations that hold 999 of 1,000 draws."""
_KEYS = 400
_MIRRORED = 200
_MIRROR_S = 90.0
_ROUTED_S = 15.0
OURS = ("tidegate",)
"""Who has a way of it; of the others `offered` says what their pages say."""


def admin(
    started: Started, method: str, path: str, body: object = None, revision: int | None = None
) -> Reply | None:
    """A request to the gateway's admin API; None where the product has none (there is no token below its home)."""
    tokens = list(started.what.home.rglob("admin.token"))
    endpoints = list(started.what.home.rglob("endpoints.json"))
    if not tokens or not endpoints:
        return None
    url = str(json.loads(endpoints[0].read_text())["admin_url"])
    headers = {"authorization": f"Bearer {tokens[0].read_text().strip()}"}
    if revision is not None:
        headers["if-match"] = f'"{revision}"'
    return call(url, method, f"/admin/v1/{path}", body, headers)


def route(started: Started, variants: list[Mapping[str, Any]]) -> bool:
    """Set a route, and wait until both versions are loaded; False where the product has no routes.

    Raises:
        ValueError: the route was refused.
    """
    path = f"routes/{started.what.model}"
    for variant in variants:
        # What is neither routed nor the newest is not loaded by itself.
        admin(
            started,
            "POST",
            f"models/{started.what.model}/load",
            {"version": variant["version"], "reason": "probe"},
        )
    deadline = time.monotonic() + _ROUTED_S
    while True:
        present = admin(started, "GET", path)
        if present is None:
            return False
        reply = None
        if present.status == 200:
            body = {"variants": variants, "reason": "probe"}
            reply = admin(started, "PUT", path, body, int(present.content["revision"]))
            if reply is not None and reply.status == 200:
                return True
        if time.monotonic() > deadline:
            msg = f"the route was not taken: {(reply or present).content}"
            raise ValueError(msg)
        time.sleep(0.2)


def _variant(name: str, version: int, role: str, weight_bp: int) -> dict[str, Any]:
    return {"name": name, "version": str(version), "role": role, "weight_bp": weight_bp}


def split(started: Started, canary_bp: int, canary_version: int = 2) -> bool:
    """Version 1 as primary, the other with so many of 10,000 parts."""
    shares = [_variant("primary", 1, "primary", 10_000 - canary_bp)]
    return route(started, [*shares, _variant("canary", canary_version, "canary", canary_bp)])


def keeps_the_split(started: Started) -> Seen | None:
    """Shares as set."""
    if not split(started, _SHARE_BP):
        return None
    x = np.ones((1, 4), np.float32)
    replies = started.at_once([started.message(x)] * _ASKED, 8)
    versions = [
        0 if isinstance(reply, OSError) else started.version_of(reply, x, (1, 2)) for reply in replies
    ]
    share, wanted = versions.count(2) / _ASKED, _SHARE_BP / 10_000
    room = _SPREAD * (wanted * (1 - wanted) / _ASKED) ** 0.5
    said = f"{share:.2%} of {_ASKED} requests went to version 2; set {wanted:.0%}, chance allows ±{room:.2%}"
    return Seen("yes" if abs(share - wanted) <= room and 0 not in versions else "no", said)


def keeps_units(started: Started) -> Seen | None:
    """The same key, the same version; and a larger share takes nobody back."""
    drawn: list[dict[int, int]] = []
    for share_bp in (2000, 2000, 4000):
        if not split(started, share_bp):
            return None
        drawn.append(_drawn(started))
    first, again, larger = drawn
    moved = sum(first[key] != again[key] for key in first)
    back = sum(first[key] == 2 and larger[key] != 2 for key in first)
    said = (
        f"of {_KEYS} keys {moved} changed their version at the same share; raised from 20% to 40%, {back} of"
        f" {sum(version == 2 for version in first.values())} fell back to version 1"
    )
    return Seen("no" if moved or back else "yes", said)


def _drawn(started: Started) -> dict[int, int]:
    x = np.ones((1, 4), np.float32)
    message = started.message(x)
    found = {}
    with Line(started.url) as line:
        for key in range(_KEYS):
            headers = (*message.headers, ("x-routing-key", f"unit-{key}"))
            found[key] = started.version_of(line.send(message._replace(headers=headers)), x, (1, 2))
    return found


def mirrors(started: Started) -> Seen | None:
    """A shadow gets copies, and its answers are compared; clients see the primary's alone."""
    shadow = {**_variant("next", 2, "shadow", 0), "sample_bp": 10_000}
    if not route(started, [_variant("primary", 1, "primary", 10_000), shadow]):
        return None
    rows = marked(range(_MIRRORED))
    replies = started.at_once([started.message(rows[i : i + 1]) for i in range(_MIRRORED)], 2)
    right = sum(
        not isinstance(reply, OSError) and started.version_of(reply, rows[i : i + 1]) == 1
        for i, reply in enumerate(replies)
    )
    deadline = time.monotonic() + _MIRROR_S
    while (copied := _answered_by_shadow(started)) < _MIRRORED and time.monotonic() < deadline:
        time.sleep(0.5)
    said = f"{right} of {_MIRRORED} answers were version 1's; {copied} answers of version 2 stand in its log"
    return Seen("yes" if right == _MIRRORED and copied == _MIRRORED else "no", said)


def _answered_by_shadow(started: Started) -> int:
    hits = found_below(started.what.home, int(scale_of(2)))
    return len({number for numbers in hits.values() for number in numbers})


def turned_back(started: Started) -> Seen | None:
    """A version that answers what is not finite gets no client's request answered with it."""
    if not split(started, 5000, 3):
        return None
    x = np.full((1, 4), -1, np.float32)
    replies = started.at_once([started.message(x)] * 400, 8)
    bad = failed = 0
    for reply in replies:
        try:
            if isinstance(reply, OSError):
                raise reply
            bad += not np.isfinite(started.value(reply).astype(np.float64)).all()
        except (OSError, ValueError):
            failed += 1
    said = f"half of the traffic to a version that answers NaN: of 400 clients {bad} got NaN, {failed} got an error"
    return Seen("no" if bad or failed else "yes", said)


PROBES = (
    Probe(GROUP, "a split is kept", f"10% are set for version 2; yes: its share of {_ASKED} requests is within chance",
          keeps_the_split, audit=True, versions=(1, 2, 3), ways=OURS),
    Probe(GROUP, "sticky draws", "the same key is answered by the same version, and a larger share takes no key back",
          keeps_units, audit=True, versions=(1, 2, 3), ways=OURS),
    Probe(GROUP, "mirror", f"version 2 as a shadow answers copies of {_MIRRORED} requests and is compared; clients see"
          " version 1 alone", mirrors, audit=True, versions=(1, 2, 3), ways=OURS),
    Probe(GROUP, "a bad version is turned back", "half of the traffic goes to a version that answers NaN; yes: no"
          " client gets it, and none an error", turned_back, audit=True, versions=(1, 2, 3), ways=OURS),
)  # fmt: skip
