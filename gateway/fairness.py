"""Fairness: what one principal, and one model, may take of a worker. doors (who asks) -> **fairness** -> admission.

Pure: the clock is an argument, nothing is read or written. Off unless `[limits]` says something.

Of a principal: so many requests (or rows) a second and a burst, a share of the requests in flight, bytes of bodies in
flight. Over its own limits it is told 429, whatever others do. The share is work-conserving: it counts only once the
worker is more than half full, so who is alone may have all.

Of a model: a share of the requests in flight, always, and of the lanes as far as others want them (`Turns`): a
bulkhead, so that a flood for one model, or one that hangs, leaves room for the others. Over it: 503.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from gateway.settings import Allowance, Limits, ModelShare

ACCOUNTS_MAX = 4096
"""Principals whose use is known apart; more at once share one account. Those at rest are forgotten."""
SWEEP_NS = 1_000_000_000
"""Accounts at rest are looked for once in so long at most."""
NS_PER_S = 1_000_000_000
_WHOLE = ModelShare()


class Refusal(NamedTuple):
    """Why a request is not taken; equal ones are equal, so that a reply can be made once for many.

    `by_principal`: its own limit (429), not the model's (503). `wait_s`: when it may come again, whole seconds.
    """

    text: str
    by_principal: bool
    wait_s: int


class Account:
    """What one principal uses. `busy_until_ns` is when all that it asked for would be worked off at its rate."""

    __slots__ = ("allowance", "burst_ns", "busy_until_ns", "bytes", "inflight", "inflight_max", "unit_ns")

    def __init__(self, allowance: Allowance, inflight_max: int) -> None:
        self.allowance = allowance
        self.inflight = 0
        self.bytes = 0
        self.inflight_max = max(1, inflight_max * allowance.share_pct // 100)
        self.unit_ns = int(NS_PER_S / allowance.per_s) if allowance.per_s else 0
        """What one request, or row, takes of the principal's time; 0: nothing."""
        burst = allowance.burst or max(1, int(allowance.per_s))
        self.burst_ns = (burst - 1) * self.unit_ns
        self.busy_until_ns = 0

    def rests(self, now_ns: int) -> bool:
        """Whether nothing would be lost if it were forgotten."""
        return not self.inflight and self.busy_until_ns <= now_ns


class Held:
    """What one request in flight holds; given back once, at its end."""

    __slots__ = ("account", "bytes", "model")

    def __init__(self, account: Account, model: str, size: int) -> None:
        self.account = account
        self.model = model
        self.bytes = size


class Fairness:
    """The accounts of one worker.

    Args:
        inflight_max: requests that the worker holds.

    Threading: the loop thread alone. Cost: about a microsecond a request; a sweep of all accounts once a second at
    most, while there are too many.
    """

    def __init__(self, limits: Limits, inflight_max: int) -> None:
        self._limits = limits
        self._inflight_max = inflight_max
        self._accounts: dict[str, Account] = {}
        self._others = Account(limits.default, inflight_max)
        self._inflight_of: dict[str, int] = {}
        self._model_max = {
            model: max(1, inflight_max * share.share_pct // 100) for model, share in limits.models.items()
        }
        self._swept_ns = -SWEEP_NS

    def claim(self, name: str, model: str, size: int, inflight: int, now_ns: int) -> Held | Refusal:
        """Take what a request needs, before it is decoded; it counts as one row until `charge`.

        Args:
            name: the principal, or the address of who has none.
            size: bytes of its body.
            inflight: requests that the worker holds.

        Returns:
            What to give back at its end; or why it is refused, and then nothing was taken.
        """
        account = self._accounts.get(name)
        if account is None:
            account = self._opened(name, now_ns)
        allowance = account.allowance
        unit_ns = account.unit_ns
        if unit_ns:
            early_ns = account.busy_until_ns - account.burst_ns - now_ns
            if early_ns > 0:
                return _too_many(allowance, early_ns)
        if account.inflight >= account.inflight_max and 2 * inflight > self._inflight_max:
            return Refusal(
                f"{account.inflight_max} of your requests are in flight, {allowance.share_pct}% of what is held here"
                " while others wait; wait for answers first",
                True,
                1,
            )
        if allowance.bytes_max and account.bytes + size > allowance.bytes_max and account.inflight:
            return Refusal(
                f"bodies of your requests in flight may have {allowance.bytes_max} bytes together;"
                " wait for answers first",
                True,
                1,
            )
        most = self._model_max.get(model)
        if most is not None:
            held = self._inflight_of.get(model, 0)
            if held >= most:
                return Refusal(
                    f"{most} requests for model '{model}' are in flight, its share of what is held here;"
                    " try again shortly",
                    False,
                    1,
                )
            self._inflight_of[model] = held + 1
        if unit_ns:
            account.busy_until_ns = max(account.busy_until_ns, now_ns) + unit_ns
        account.inflight += 1
        account.bytes += size
        return Held(account, model, size)

    def charge(self, held: Held, rows: int) -> None:
        """Count the rows of a request whose principal is limited by rows; what they are beyond what is left is owed."""
        account = held.account
        if rows > 1 and account.unit_ns and account.allowance.unit == "rows":
            account.busy_until_ns += (rows - 1) * account.unit_ns

    def give_back(self, inference: Any) -> None:
        """A request's end, whichever; one that holds nothing gives nothing back."""
        held, inference.held = inference.held, None
        if held is None:
            return
        held.account.inflight -= 1
        held.account.bytes -= held.bytes
        if held.model in self._model_max:
            self._inflight_of[held.model] -= 1

    def inflight_of(self, model: str) -> int:
        """Requests in flight for a model that has a share."""
        return self._inflight_of.get(model, 0)

    def accounts(self) -> list[Account]:
        """All that are known apart."""
        return list(self._accounts.values())

    def _opened(self, name: str, now_ns: int) -> Account:
        accounts = self._accounts
        if len(accounts) >= ACCOUNTS_MAX:
            if now_ns - self._swept_ns >= SWEEP_NS:
                self._swept_ns = now_ns
                for known in [known for known, account in accounts.items() if account.rests(now_ns)]:
                    del accounts[known]
            if len(accounts) >= ACCOUNTS_MAX and name not in self._limits.principals:
                return self._others
        allowance = self._limits.principals.get(name, self._limits.default)
        made = accounts[name] = Account(allowance, self._inflight_max)
        return made


def _too_many(allowance: Allowance, early_ns: int) -> Refusal:
    return Refusal(
        f"more than {allowance.per_s:g} {allowance.unit} a second; come again when some time has passed",
        True,
        min(-(-early_ns // NS_PER_S), 60),
    )


class Bodies:
    """Bytes of bodies on their way in, by account: who sends many large ones slowly must not have all the room.

    Threading: the loop thread alone. Cost: O(1) a part of a body.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._bytes: dict[str, int] = {}

    @property
    def is_limited(self) -> bool:
        """Whether anyone is limited in bytes."""
        return any(one.bytes_max for one in (self._limits.default, *self._limits.principals.values()))

    def most_bytes(self, name: str) -> int:
        """What an account may have; 0: any."""
        return self._limits.principals.get(name, self._limits.default).bytes_max

    def take(self, name: str, size: int, own_bytes: int) -> bool:
        """Count so many more of an account; False, and nothing is counted: it has too many.

        Args:
            own_bytes: of the same connection: one body alone is taken, however large.
        """
        held = self._bytes.get(name, 0)
        most = self.most_bytes(name)
        if most and held > own_bytes and held + size > most:
            return False
        self._bytes[name] = held + size
        return True

    def give_back(self, name: str, size: int) -> None:
        """They are answered or given up."""
        left = self._bytes[name] - size
        if left:
            self._bytes[name] = left
        else:
            del self._bytes[name]


class Turns:
    """Whose turn a lane is: models share lanes by weight, as far as they want them (start-time fair queueing).

    A model that waits is behind by what it had; one that did not want anything saves nothing up. Without `[limits]`
    of models the most urgent request is next, whichever model's.

    Args:
        models: `[limits.models]`; a model that is not there has the weight of a whole share.

    Threading: the loop thread alone. Cost: O(1).
    """

    def __init__(self, models: Mapping[str, ModelShare]) -> None:
        self._models = models
        self._now = 0.0
        """Virtual time: the start of the newest run, in nanoseconds of a model that has all lanes."""
        self._ends: dict[str, float] = {}

    def weight(self, model: str) -> int:
        """A model's."""
        return self._models.get(model, _WHOLE).share_pct

    def start(self, model: str) -> float:
        """When the model's next run starts, in virtual time: the least is next."""
        return max(self._ends.get(model, 0.0), self._now)

    def charge(self, model: str, run_ns: int) -> None:
        """A run of a model goes to a lane."""
        self._now = start = self.start(model)
        self._ends[model] = start + run_ns * 100 / self.weight(model)

    def before_ns(self, model: str, other: str, own_ns: int) -> int:
        """What another model has of the lanes at most while this one has `own_ns` of them."""
        return own_ns * self.weight(other) // self.weight(model)
