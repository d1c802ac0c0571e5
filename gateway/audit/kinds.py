"""Kinds: every type of event, its kinds, and what they mean. For readers of the log and for docs/events.md.

Beside `gateway/audit/event.py`, which has the types themselves. Additive, as they are: no name is changed, or used
again.
"""

from __future__ import annotations

KINDS: dict[str, dict[str, str]] = {
    "prediction": {
        "done": "answered",
        "refused": "not taken in: `code` says why",
        "failed": "taken in, and ended with an error",
        "cancelled": "the client left; or, with `parameters.corrects`, an answer that was taken back",
        "aborted": "taken in by a worker that died before it recorded them: `count` of them",
    },
    "shadow": {
        "done": "answered",
        "failed": "ended with an error",
        "skipped": "not answered: `code` says why",
    },
    "feedback": {"label": "what became of predictions", "kpi": "", "erratum": ""},
    "control": {
        "route": "a model's route was set, as a whole",
        "shift": "weights changed",
        "promote": "another version became the primary",
        "rollback": "a version's traffic was taken from it",
        "rearm": "a latch was lifted",
        "freeze": "nothing may change this route",
        "thaw": "it may change again",
        "stop": "nothing of this model is answered",
        "resume": "it is answered again",
        "lease": "canaries of an automatic ramp keep their traffic for longer, or for good",
        "breaker": "a worker gives a canary's traffic to the primary until the route's next revision: what the canary"
        " could not answer, the primary did",
        "restart": "workers were asked to be replaced, one by one",
        "token": "a token was made or revoked: its id and scopes, never what opens",
        "load": "versions were asked for",
        "unload": "versions were let go",
        "bounds": "how far automata may move a route",
        "refused": "an automaton asked for more than the route's bounds allow, for the first time at this revision",
        "lease_over": "canaries lost their traffic: nobody renewed their lease",
        "routes": "every route as it stands when control starts; under `*` what was loaded and unloaded by hand, and"
        " what each route would be rolled back to",
    },
    "model": {"loaded": "ready in one process", "failed": "could not be loaded", "unloaded": "let go"},
    "verdict": {
        "tick": "evidence was judged: up to where in the log, and how it stands",
        "alarm": "a decision could not be carried out yet; or (`what` ratio) traffic is not split as the route says",
        "decision": "what follows from the evidence: a rollback, or that one would be due",
        "gate": "",
    },
    "gap": {"gap": "numbers without a record"},
    "heartbeat": {"heartbeat": "an idle source lives"},
    "epoch_open": {"epoch_open": "a process begins to write"},
    "epoch_close": {"epoch_close": "it wrote its last"},
}
"""By type; an empty meaning: the name is kept, nobody writes it yet."""
