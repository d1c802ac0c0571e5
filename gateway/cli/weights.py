"""From `canary=10%` to a change of a route. Pure.

The left side is a variant's name, or a version number: then the variant that has this version,
and if none has, a new canary for it. The right side is a percentage ("10%") or basis points
("1000").
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from gateway.cli.failures import Stop
from gateway.routing import ROLES, TOTAL_BP, VERSION_PATTERN

Variant = dict[str, Any]


class Shift(NamedTuple):
    """What to ask the admin API: weights alone, or a whole set of variants when one is new."""

    weights_bp: dict[str, int]
    variants: list[Variant] | None


def parse_weight(text: str) -> int:
    """Basis points of "10%", "0.5%" or "1000".

    Raises:
        Stop: neither form, out of range, or finer than a basis point.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)%", text)
    weight = float(match[1]) * 100 if match else float(text) if text.isdecimal() else -1.0
    if not 0 <= weight <= TOTAL_BP or abs(weight - round(weight)) > 1e-6:
        msg = (
            f"weight {text!r}: expected a percentage (10%, at least 0.01% apart) or basis points"
            f" (0..{TOTAL_BP})"
        )
        raise Stop(msg)
    return round(weight)


def parse_assignment(text: str) -> tuple[str, int]:
    """`canary=10%` as (name, basis points).

    Raises:
        Stop: not of that form.
    """
    name, equals, weight = text.partition("=")
    if not equals or not name:
        msg = f"{text!r}: expected VARIANT=WEIGHT, as in canary=10% or canary=1000"
        raise Stop(msg)
    return name, parse_weight(weight)


def plan(model: str, variants: list[Variant], asked: list[tuple[str, int]]) -> Shift:
    """Work out the change for a route's present variants.

    Raises:
        Stop: a name that is neither a variant nor a version.
    """
    weights: dict[str, int] = {}
    added: list[Variant] = []
    for name, weight in asked:
        found = _find(variants, name)
        if found is None:
            if not re.match(VERSION_PATTERN, name):
                names = ", ".join(str(v["name"]) for v in variants)
                msg = f"route {model} has no variant {name!r}; it has {names}, or name a version"
                raise Stop(msg)
            found = _new_canary(name, [*variants, *added])
            added.append(found)
        weights[found["name"]] = weight
    if not added:
        return Shift(weights, None)
    return Shift(weights, _reweighted([*variants, *added], weights))


def parse_variant(text: str) -> Variant:
    """`name=version:role:weight` as a variant; a primary's weight may be left out.

    Raises:
        Stop: not of that form.
    """
    name, _, rest = text.partition("=")
    version, role, weight = (*rest.split(":"), "", "")[:3]
    if not name or not version or role not in ROLES or rest.count(":") > 2:
        msg = (
            f"--variant {text}: expected NAME=VERSION:ROLE:WEIGHT, as in canary=2:canary:10%;"
            f" roles are {', '.join(ROLES)}"
        )
        raise Stop(msg)
    made: Variant = {"name": name, "version": version, "role": role}
    if weight or role != "primary":
        made["sample_bp" if role == "shadow" else "weight_bp"] = parse_weight(weight or "0")
    return made


def with_rest(variants: list[Variant]) -> list[Variant]:
    """The variants with the primary's weight filled in where it was left out."""
    rest = TOTAL_BP - sum(v.get("weight_bp", 0) for v in variants)
    return [
        {**v, "weight_bp": max(rest, 0)} if v["role"] == "primary" and "weight_bp" not in v else v
        for v in variants
    ]


def _find(variants: list[Variant], name: str) -> Variant | None:
    named = [v for v in variants if v["name"] == name]
    versioned = [v for v in variants if v["version"] == name and v["role"] != "shadow"]
    return next(iter(named or versioned), None)


def _new_canary(version: str, variants: list[Variant]) -> Variant:
    names = {v["name"] for v in variants}
    name = next(n for n in ("canary", f"canary-{version}", f"canary-{version}-new") if n not in names)
    return {"name": name, "version": version, "role": "canary", "weight_bp": 0}


def _reweighted(variants: list[Variant], weights: dict[str, int]) -> list[Variant]:
    kept = ("name", "version", "role", "weight_bp", "sample_bp")
    out = [{key: v[key] for key in kept if key in v} for v in variants]
    for v in out:
        if v["role"] != "shadow":
            v["weight_bp"] = weights.get(v["name"], v.get("weight_bp", 0))
        if v["role"] == "primary" and v["name"] not in weights:
            del v["weight_bp"]
    return with_rest(out)
