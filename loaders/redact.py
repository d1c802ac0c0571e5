"""Redaction rules of a version, held against its signature: which cells of which inputs must not be recorded.

bundle -> **redact** -> gateway.redaction. A rule that names what is not there, or asks for what cannot be done, refuses
the version: a misspelt one would record in the clear what was to be kept out.
"""

from __future__ import annotations

from math import isfinite
from typing import NamedTuple

from loaders.bundle import BUNDLE_FILE, BundleSettings, Redaction
from loaders.errors import BundleInvalid
from loaders.signature import Signature, TensorSpec


class Cell(NamedTuple):
    """One feature of one input that is not recorded as it came."""

    input_index: int
    spec: TensorSpec
    column: int
    width: int
    """Features of a row."""
    rule: Redaction


def cells(settings: BundleSettings, signature: Signature, where: str) -> tuple[Cell, ...]:
    """The cells that the rules name, in the rules' order.

    Raises:
        BundleInvalid: naming the rule, what was found and what was expected.
    """
    by_name = {spec.name: (index, spec) for index, spec in enumerate(signature.inputs)}
    made: list[Cell] = []
    for rule in settings.redact:
        named = f"{where}/{BUNDLE_FILE}: redact {rule.input!r}, {rule.feature!r}"
        if rule.input not in by_name:
            msg = f"{named}: no such input; the model has {', '.join(map(repr, by_name))}"
            raise BundleInvalid(msg)
        index, spec = by_name[rule.input]
        width = 1 if len(spec.shape) < 2 else spec.shape[-1]
        if width < 1:
            msg = f"{named}: the input has shape {list(spec.shape)}; expected a last dimension that does not vary"
            raise BundleInvalid(msg)
        column = _column(rule, settings, width, named)
        _check_how(rule, spec, named)
        if any((cell.input_index, cell.column) == (index, column) for cell in made):
            msg = f"{named}: the feature is named twice"
            raise BundleInvalid(msg)
        made.append(Cell(index, spec, column, width, rule))
    return tuple(made)


def _column(rule: Redaction, settings: BundleSettings, width: int, named: str) -> int:
    inputs = settings.inputs.get(rule.input)
    features = inputs.features if inputs is not None else ()
    if not features:
        features = (rule.input,) if width == 1 else tuple(map(str, range(width)))
    if len(features) != width:
        msg = f"{named}: bundle.toml names {len(features)} features of an input that has {width}"
        raise BundleInvalid(msg)
    if features.count(rule.feature) > 1:
        msg = f"{named}: {features.count(rule.feature)} features have this name; expected names that differ"
        raise BundleInvalid(msg)
    if rule.feature not in features:
        msg = f"{named}: no such feature; expected one of {', '.join(features[:20])}"
        raise BundleInvalid(msg)
    return features.index(rule.feature)


def _check_how(rule: Redaction, spec: TensorSpec, named: str) -> None:
    if rule.how != "bucket":
        if rule.edges:
            msg = f"{named}: edges are for how = 'bucket', found {rule.how!r}"
            raise BundleInvalid(msg)
        return
    if spec.datatype in {"BYTES", "BOOL"}:
        msg = f"{named}: {spec.datatype} has no order to make buckets of; expected how = 'hash' or 'drop'"
        raise BundleInvalid(msg)
    pairs = zip(rule.edges, rule.edges[1:], strict=False)
    if not rule.edges or not all(map(isfinite, rule.edges)) or any(low >= high for low, high in pairs):
        msg = f"{named}: edges are {list(rule.edges)[:8]}; expected some, each above the one before"
        raise BundleInvalid(msg)
