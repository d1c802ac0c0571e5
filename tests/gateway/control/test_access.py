"""Scopes and rules: what a principal may, and what stands in the tables."""

from __future__ import annotations

import pytest

from gateway.control.access import ADMIN_RULES, DATA_RULES, OF_MODELS, PLAIN, Principal, Rule, allows, check
from gateway.errors import Forbidden


def holds(*scopes: str, automaton: bool = False) -> Principal:
    """Somebody with these scopes."""
    return Principal("token:ci", frozenset(scopes), "ab", automaton)


@pytest.mark.parametrize(
    ("scope", "asked", "model", "allowed"),
    [
        ("shift:m", "shift", "m", True),
        ("shift:m", "shift", "m2", False),
        ("shift:m", "shift", "", False),
        ("shift:*", "shift", "m2", True),
        ("shift", "shift", "m", True),
        ("shift:m", "rollback", "m", True),
        ("shift:m", "lease", "m", True),
        ("shift:m", "publish", "m", False),
        ("shift:m", "read", None, False),
        ("publish:m", "load", "m", True),
        ("publish:m", "load", "n", False),
        ("publish:m", "publish", None, True),
        ("load:m", "publish", None, False),
        ("load", "load", "m", True),
        ("rollback:m", "shift", "m", False),
        ("rollback", "rollback", "m", True),
        ("read", "audit", None, False),
        ("read", "open", None, True),
        ("feedback:m", "infer", "m", False),
        ("admin", "force", "m", True),
        ("admin:m", "admin", None, False),
    ],
)
def test_what_a_scope_allows(scope: str, asked: str, model: str | None, allowed: bool) -> None:
    """A scope is for its model, for all with `*`, and brings the narrower ones; `admin` is everything."""
    assert allows(holds(scope), asked, model) is allowed


def test_nobody_without_scopes_may_anything() -> None:
    """Every rule but the open ones refuses a principal with no scope."""
    for rules in (ADMIN_RULES, DATA_RULES):
        for rule in rules.values():
            assert allows(holds(), rule.scope, "m") is (rule.scope == "open")


def test_automaton_may_not_decide_what_people_decide() -> None:
    """Whatever it holds: what a person stopped or latched, a person lets go."""
    rule, address = Rule("shift", people=True), ("POST", "/admin/v1/routes/{model}/thaw")
    check(holds("shift:*"), rule, address, "m")
    with pytest.raises(Forbidden, match="for a person to decide"):
        check(holds("admin", automaton=True), rule, address, "m")


def test_refusal_names_scope_model_and_what_there_is() -> None:
    """So that whoever reads it knows which token to ask for."""
    with pytest.raises(Forbidden, match=r"needs the scope shift:m; the token:ci has read, shift:n"):
        check(holds("read", "shift:n"), Rule("shift"), ("POST", "/x"), "m")


def test_rules_use_known_scopes_and_change_nothing_openly() -> None:
    """No address that changes state is open beyond loopback; inference is no change."""
    for rules in (ADMIN_RULES, DATA_RULES):
        for (method, path), rule in rules.items():
            assert rule.scope in {"open", *PLAIN, *OF_MODELS}
            if method != "GET" and not path.endswith(("infer", ":predict", "repository/index")):
                assert rule.scope != "open", path
