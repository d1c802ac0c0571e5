"""What to do next, by an error's code: the second half of the line that a refused command ends with. Pure.

The gateway's sentence says what is wrong; here stands the command that helps, which a gateway need not know: it answers
others than `tidegate` too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_NAMED = re.compile(r"/(?:routes|models)/([A-Za-z0-9][A-Za-z0-9._-]*)")
_SCOPE = re.compile(r"needs the scope ([a-z]+(?::[A-Za-z0-9._*-]+)?)")
_STEPS = {
    "revision_conflict": "look again with `tidegate route show {model}` and repeat",
    "precondition_required": "name the revision that you decided on with --if-match",
    "out_of_bounds": "`tidegate route bounds {model}` shows what it is held to",
    "evidence_stale": "`tidegate route rollback {model}` without evidence needs none",
    "model_stopped": "`tidegate model resume {model} --reason …` lets it answer again",
    "model_not_ready": "`tidegate model show {model}` says why",
    "load_failed": "`tidegate model check DIR` tries the files without a gateway",
    "unknown_model": "`tidegate model list` shows those that there are",
    "audit_unavailable": "`tidegate audit status` says why",
    "audit_timeout": "`tidegate audit status` says why",
    "control_unavailable": "repeat it in a second",
    "upgrading": "the gateway is being upgraded: repeat it in a minute",
    "rate_limited": "repeat it {later}",
    "overloaded": "repeat it {later}",
    "idempotency_mismatch": "another change has this key: leave --idempotency-key out, or name a new one",
    "not_found": "`tidegate version` here and there: the gateway may be an older one",
    "method_not_allowed": "`tidegate version` here and there: the gateway may be an older one",
}
"""By code; those without a line say in their own sentence what to do."""


def next_step(body: Mapping[str, Any], headers: Mapping[str, str], path: str, own_token: bool = False) -> str:
    """A refusal's line: what the gateway says, and what to do.

    Args:
        body: of the answer, with "error" and "code".
        headers: of the answer, by lower-case name.
        path: that was asked; names the model.
        own_token: the user named the token's file.
    """
    text = " ".join(str(body["error"]).split())
    code = str(body.get("code", ""))
    if code == "unauthorized":
        step = _token_step(text, own_token)
    elif code == "forbidden":
        step = _scope_step(text)
    else:
        found = _NAMED.search(path)
        later = f"in {headers['retry-after']} s" if headers.get("retry-after", "").isdigit() else "later"
        step = _STEPS.get(code, "").format(model=found[1] if found else "MODEL", later=later)
    if code == "not_found" and "no such address" not in text:
        # A thing that is not there: the gateway is no older one for that.
        step = ""
    if code == "state_conflict" and "is frozen" in text:
        found = _NAMED.search(path)
        step = f"`tidegate route thaw {found[1] if found else 'MODEL'} --reason …` ends it"
    # The gateway's own sentence may name the same command.
    command = step.partition("`")[2].partition("`")[0].partition(" --")[0]
    if not step or (command and f"`{command}" in text):
        return text
    return f"{text.rstrip('.')}; {step}"


def _token_step(text: str, own_token: bool) -> str:
    if own_token:
        return "`tidegate token list` shows which are valid; --token-file names another"
    read = "" if "admin.token" in text else "the token is read from admin.token in the state directory: "
    return f"{read}set --state-dir, or name a token with --token-file"


def _scope_step(text: str) -> str:
    found = _SCOPE.search(text)
    if found is None:
        return ""
    return f"`tidegate token new NAME --scope {found[1]} --reason …` makes a token that may"
