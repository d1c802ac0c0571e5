"""Feedback: labels that clients send are checked, kept as one event, and answered once they are in the log."""

from __future__ import annotations

import asyncio
import gzip
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway import fleet as words_of
from gateway.api import feedback as module
from gateway.api.crowd import Limits
from gateway.api.feedback import AHEAD_NS, LABELS_MAX, YEAR_2000_NS, FeedbackIntake, decode_labels
from gateway.api.guarding import Guard
from gateway.api.infer import DataApi
from gateway.audit.event import Feedback
from gateway.audit.identity import EventId
from gateway.control.tokens import CLIENTS, FEEDBACK, Tokens, ensure_token
from gateway.errors import InvalidRequest
from loaders.bundle import BundleSettings, LabelSettings
from tests.gateway.path import Path_, SumSession, until

ID = str(EventId(7, 9, 3))
NOW_NS = 1_785_312_000_000_000_000
LABEL: dict[str, Any] = {"id": ID, "row": 2, "value": 1, "at_ns": NOW_NS - 5}
MIB = 1_048_576


def labelled(kind: str | None) -> SumSession:
    """A session whose bundle says what labels will come."""
    session = SumSession()
    session.bundle.settings = BundleSettings(labels=None if kind is None else LabelSettings(kind=kind))
    return session


class Api:
    """The data listener's Starlette door over a request path."""

    def __init__(self, tmp_path: Path, *settings_: str, kind: str | None = None, **facts: Any) -> None:
        self.path = Path_(tmp_path, *settings_, session=labelled(kind), **facts)
        core, config = self.path.core, self.path.config
        guard = Guard(Tokens(tmp_path, CLIENTS), on_loopback=config.data.on_loopback)
        api = DataApi(core, Limits(), config.audit.level, guard)
        api._feedback = FeedbackIntake(core.models, core.appender, config.audit.level, lambda: NOW_NS)
        self.client = httpx.AsyncClient(
            transport=httpx.ASGITransport(api.app(), raise_app_exceptions=False), base_url="http://127.0.0.1"
        )

    async def send(self, *labels: Any, model: str = "sum", **headers: str) -> httpx.Response:
        """One request with these labels; underscores in header names become dashes."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.post(orjson.dumps({"labels": labels}), model, **named)

    async def post(self, body: bytes, model: str = "sum", **headers: str) -> httpx.Response:
        """One request as it is given."""
        sent = {"content-type": "application/json", **headers}
        return await self.client.post(f"/v2/models/{model}/feedback", content=body, headers=sent)

    def events(self) -> list[Feedback]:
        """Feedback in the ring since the last call."""
        return [event for event in self.path.events() if isinstance(event, Feedback)]

    def fill(self) -> None:
        """Leave no room in the ring for even one label."""
        while self.path.writer.append_run(b"\xc0" * 64, 1) is not None:
            pass


def run(main: Any) -> None:
    """A test's coroutine."""
    asyncio.run(main())


def test_labels_become_one_event(tmp_path: Path) -> None:
    """All labels of a request stand together in the log as given; row 0 and the present are the defaults."""

    async def main() -> None:
        api = Api(tmp_path)
        other = str(EventId(8, 9, 4))
        reply = await api.send(LABEL, {"id": other, "value": False})
        assert (reply.status_code, reply.json()) == (202, {"accepted": 2})
        assert reply.headers["x-tidegate-audit"] == "spool"
        assert "x-prediction-id" not in reply.headers
        (event,) = api.events()
        assert (event.kind, event.model, event.at_ns, event.principal) == (
            "label",
            "sum",
            NOW_NS,
            "anonymous",
        )
        assert event.labels == [LABEL, {"id": other, "row": 0, "value": False, "at_ns": NOW_NS}]

    run(main)


WELL_FORMED = st.fixed_dictionaries(
    {
        "id": st.builds(
            lambda *parts: str(EventId(*parts)),
            *(st.integers(0, 2**bits - 1) for bits in (64, 32, 64)),
        ),
        "value": st.booleans()
        | st.integers(-(2**63), 2**63 - 1)
        | st.floats(allow_nan=False, allow_infinity=False),
    },
    optional={
        "row": st.integers(0, 2**31 - 1),
        "at_ns": st.integers(YEAR_2000_NS, NOW_NS + AHEAD_NS),
    },
)


@settings(max_examples=30, deadline=None)
@given(labels=st.lists(WELL_FORMED, min_size=1, max_size=LABELS_MAX // 5))
def test_what_is_accepted_is_in_the_log(labels: list[dict[str, Any]]) -> None:
    """Any well-formed labels: accepted counts them, and the log has each, value and type."""

    async def main(tmp_path: Path) -> None:
        api = Api(tmp_path)
        reply = await api.send(*labels)
        assert (reply.status_code, reply.json()) == (202, {"accepted": len(labels)})
        (event,) = api.events()
        assert event.labels == [{"row": 0, "at_ns": NOW_NS, **label} for label in labels]
        assert [type(kept["value"]) for kept in event.labels] == [type(label["value"]) for label in labels]

    with tempfile.TemporaryDirectory() as name:
        asyncio.run(main(Path(name)))


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "id of another form": ({"id": str(EventId(0xAB, 9, 3)).upper()}, "labels[1].id"),
    "id with a tail": ({"id": ID + "\n"}, "labels[1].id"),
    "id that is no text": ({"id": 7}, "labels[1].id"),
    "row below 0": ({"row": -1}, "labels[1].row"),
    "row that no request can have": ({"row": 2**31}, "labels[1].row"),
    "row that is no integer": ({"row": 1.5}, "labels[1].row"),
    "no value": ({"value": None}, "labels[1].value"),
    "value as text": ({"value": "1"}, "labels[1].value"),
    "time before 2000": ({"at_ns": YEAR_2000_NS - 1}, "labels[1].at_ns"),
    "time in seconds": ({"at_ns": NOW_NS // 10**9}, "labels[1].at_ns"),
    "time below 0": ({"at_ns": -NOW_NS}, "labels[1].at_ns"),
    "time more than a day ahead": ({"at_ns": NOW_NS + AHEAD_NS + 1}, "labels[1].at_ns"),
    "a field that is not known": ({"rows": 1}, "labels[1]"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_one_bad_label_refuses_them_all(tmp_path: Path, case: str) -> None:
    """400 names which label and what of it; none of the request's labels is in the log."""
    change, named = REFUSED[case]

    async def main() -> None:
        api = Api(tmp_path)
        reply = await api.send(LABEL, {**LABEL, **change}, LABEL)
        assert (reply.status_code, reply.json()["code"]) == (400, "invalid_request")
        assert named in reply.json()["error"]
        assert api.events() == []

    run(main)


def test_the_bounds_of_time_are_within(tmp_path: Path) -> None:
    """The first instant of 2000 and a day ahead are taken; labels may be years late."""

    async def main() -> None:
        api = Api(tmp_path)
        bounds = [{**LABEL, "at_ns": at_ns} for at_ns in (YEAR_2000_NS, NOW_NS + AHEAD_NS)]
        assert (await api.send(*bounds)).status_code == 202

    run(main)


@pytest.mark.parametrize(
    ("kind", "taken", "refused"),
    [
        ("class", (0, -3, True, False), (1.0, 0.5)),
        ("value", (0, 1.5, -2.0), (True, False)),
        ("rank", (0, 1.5), (True,)),
        (None, (0, 1.5, True), ()),
    ],
)
def test_values_are_of_the_kind_that_the_bundle_names(
    tmp_path: Path, kind: str | None, taken: tuple[Any, ...], refused: tuple[Any, ...]
) -> None:
    """A class is an integer or a boolean, a value a finite number; without the setting all of these are labels."""

    async def main() -> None:
        api = Api(tmp_path, kind=kind)
        for value in taken:
            assert (await api.send({"id": ID, "value": value})).status_code == 202
        for value in refused:
            reply = await api.send({"id": ID, "value": value})
            assert reply.status_code == 400
            assert f"labels.kind is '{kind}'" in reply.json()["error"]
        assert [event.labels[0]["value"] for event in api.events()] == list(taken)

    run(main)


@pytest.mark.parametrize("value", ["1e400", "NaN", "Infinity", str(2**63), "9" * 6000])
def test_a_number_that_cannot_be_kept_is_refused(tmp_path: Path, value: str) -> None:
    """Not finite, or beyond 64 bits: 400, not a label that says something else."""

    async def main() -> None:
        api = Api(tmp_path)
        reply = await api.post(f'{{"labels":[{{"id":"{ID}","value":{value}}}]}}'.encode())
        assert reply.status_code == 400
        assert api.events() == []

    run(main)


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"{}", b'{"labels":[]}', b'{"labels":{}}', b'{"labels":[1]}', b"\xff", b"[" * 100_000,
     b'{"labels":[{"id":"%b","value":1}],"model":"sum"}' % ID.encode()],
)  # fmt: skip
def test_a_body_of_another_form_is_refused(tmp_path: Path, body: bytes) -> None:
    """400, whatever stands there."""

    async def main() -> None:
        api = Api(tmp_path)
        reply = await api.post(body)
        assert (reply.status_code, reply.json()["code"]) == (400, "invalid_request")

    run(main)


def test_a_thousand_labels_are_taken_and_no_more(tmp_path: Path) -> None:
    """1,000 in one request; the one beyond is refused, and a body of very many is not even looked through."""

    async def main() -> None:
        api = Api(tmp_path)
        assert (await api.send(*[LABEL] * LABELS_MAX)).json() == {"accepted": LABELS_MAX}
        assert [len(event.labels) for event in api.events()] == [LABELS_MAX]
        assert (await api.send(*[LABEL] * (LABELS_MAX + 1))).status_code == 400
        assert api.events() == []

    run(main)
    with pytest.raises(InvalidRequest, match="more than 1000"):
        decode_labels(b"}" * (LABELS_MAX + 2))


def test_predictions_do_not_wait_for_labels(tmp_path: Path) -> None:
    """While a thousand labels are looked through, the loop turns ten times."""

    async def main() -> None:
        api = Api(tmp_path)
        core, entry = api.path.core, api.path.models.get("sum")
        assert entry is not None
        intake = FeedbackIntake(core.models, core.appender, "spool")
        body = orjson.dumps({"labels": [LABEL] * LABELS_MAX})
        taking = asyncio.create_task(intake.take(entry, body, None))
        await asyncio.sleep(0)
        sink = api.path.send([1, 2, 3, 4])
        turns = 1
        while not taking.done():
            await asyncio.sleep(0)
            turns += 1
        assert turns >= LABELS_MAX / module.TURN_LABELS
        assert (sink.status, await taking) == (200, (LABELS_MAX, "spool"))
        kinds = [type(event).__name__ for event in api.path.events()]
        assert kinds.index("Prediction") < kinds.index("Feedback")

    run(main)


@pytest.mark.parametrize(
    ("body", "status"), [(b" " * (MIB + 1), 413), (b" " * MIB, 400), (gzip.compress(b" " * (MIB + 1)), 413)]
)
def test_a_body_is_at_most_a_mib(tmp_path: Path, body: bytes, status: int) -> None:
    """Also after inflating."""

    async def main() -> None:
        api = Api(tmp_path)
        coding = {"content-encoding": "gzip"} if body[:1] != b" " else {}
        assert (await api.post(body, **coding)).status_code == status

    run(main)


def test_labels_that_no_frame_holds_are_413(tmp_path: Path) -> None:
    """An eighth of the ring bounds a record: nothing is kept, fewer are taken."""

    async def main() -> None:
        api = Api(tmp_path, ring_bytes=64 * 1024)
        reply = await api.send(*[LABEL] * 200)
        assert (reply.status_code, reply.json()["code"]) == (413, "body_too_large")
        assert "send fewer" in reply.json()["error"]
        assert api.events() == []
        assert (await api.send(*[LABEL] * 50)).status_code == 202

    run(main)


def test_addresses(tmp_path: Path) -> None:
    """A model that is not known is 404; other methods are 405."""

    async def main() -> None:
        api = Api(tmp_path)
        reply = await api.send(LABEL, model="nobody")
        assert (reply.status_code, reply.json()["code"]) == (404, "unknown_model")
        reply = await api.client.get("/v2/models/sum/feedback")
        assert (reply.status_code, reply.headers["allow"]) == (405, "POST")

    run(main)


def test_labels_come_also_while_the_model_cannot_answer(tmp_path: Path) -> None:
    """They are about predictions made before; what the bundle says of them is then not known."""

    async def main() -> None:
        api = Api(tmp_path, kind="class")
        api.path.models.on_change("sum", "1", "failed", "broken")
        assert (await api.send({"id": ID, "value": 0.5})).status_code == 202

    run(main)


@pytest.mark.parametrize("level", ["none", "spool", "fsync"])
@pytest.mark.parametrize("policy", ["fail", "degrade"])
def test_what_finds_no_room_is_not_accepted(tmp_path: Path, policy: str, level: str) -> None:
    """A label has no answer but its record: 503 whatever the policy and the level; later it is taken."""

    async def main() -> None:
        api = Api(
            tmp_path,
            f"audit.on_unavailable={policy}",
            f"audit.level={level}",
            "audit.append_timeout_ms=5",
            ring_bytes=64 * 1024,
        )
        api.fill()
        reply = await api.send(LABEL)
        assert (reply.status_code, reply.json()["code"]) == (503, "audit_unavailable")
        assert "retry-after" in reply.headers
        api.path.ring.set_synced(api.path.ring.committed)
        api.path._position = api.path.ring.committed
        sending = asyncio.create_task(api.send({**LABEL, "row": 3}))
        while not sending.done():
            api.path.ring.set_synced(api.path.ring.committed)
            await asyncio.sleep(0)
        assert (await sending).status_code == 202
        assert [event.labels[0]["row"] for event in api.events()] == [3]
        assert api.path.fleet.slot(0, 0)[words_of.LABELS] == 1

    run(main)


def test_it_waits_for_room_as_predictions_do(tmp_path: Path) -> None:
    """A full ring holds the reply; room releases it."""

    async def main() -> None:
        api = Api(tmp_path, "audit.append_timeout_ms=5000", ring_bytes=64 * 1024)
        api.fill()
        sending = asyncio.create_task(api.send(LABEL))
        await until(lambda: api.path.appender.held)
        assert not sending.done()
        api.path.ring.set_synced(api.path.ring.committed)
        assert (await sending).status_code == 202

    run(main)


def test_while_the_log_cannot_be_written_nothing_is_accepted(tmp_path: Path) -> None:
    """Policy fail and a recorder that cannot write: refused before the work, as predictions are."""

    async def main() -> None:
        api = Api(tmp_path, "audit.on_unavailable=fail")
        api.path.ring.set_unavailable(True)
        reply = await api.post(b"not looked at")
        assert (reply.status_code, reply.json()["code"]) == (503, "audit_unavailable")
        assert api.events() == []

    run(main)


def test_a_request_may_ask_for_the_disk(tmp_path: Path) -> None:
    """x-tidegate-audit-level fsync: the reply comes when the labels are on disk, and says so."""

    async def main() -> None:
        api = Api(tmp_path)
        sending = asyncio.create_task(api.send(LABEL, x_tidegate_audit_level="fsync"))
        await until(lambda: api.path.appender.held)
        assert not sending.done()
        api.path.ring.set_synced(api.path.ring.committed)
        reply = await sending
        assert (reply.status_code, reply.headers["x-tidegate-audit"]) == (202, "fsync")
        assert (await api.send(LABEL, x_tidegate_audit_level="always")).status_code == 400

    run(main)


def test_a_request_never_lowers_the_level(tmp_path: Path) -> None:
    """The gateway's fsync holds for those who ask for less."""

    async def main() -> None:
        api = Api(tmp_path, "audit.level=fsync")
        sending = asyncio.create_task(api.send(LABEL, x_tidegate_audit_level="none"))
        await until(lambda: api.path.appender.held)
        api.path.ring.set_synced(api.path.ring.committed)
        assert (await sending).headers["x-tidegate-audit"] == "fsync"

    run(main)


@pytest.mark.parametrize(
    ("policy", "status", "code"), [("fail", 503, "audit_timeout"), ("degrade", 202, None)]
)
def test_a_disk_that_stalls(tmp_path: Path, policy: str, status: int, code: str | None) -> None:
    """Policy fail says that the disk was not there in time; degrade answers, and says which level it reached."""

    async def main() -> None:
        api = Api(tmp_path, "audit.sync_timeout_ms=5", f"audit.on_unavailable={policy}", "audit.level=fsync")
        reply = await api.send(LABEL)
        assert (reply.status_code, reply.json().get("code")) == (status, code)
        assert reply.headers.get("x-tidegate-audit") == (None if code else "spool")

    run(main)


def test_the_primarys_bundle_counts(tmp_path: Path) -> None:
    """Of several versions that are loaded, the primary's says what labels are."""

    async def main() -> None:
        api = Api(tmp_path, kind="class")
        entry = api.path.models.get("sum")
        assert entry is not None
        other = SimpleNamespace(session=labelled("value"))
        entry.versions["2"] = other  # type: ignore[assignment]
        assert (await api.send({"id": ID, "value": 0.5})).status_code == 400
        assert module._label_kind(entry) == "class"

    run(main)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.1.2.3", "gateway.example"])  # noqa: S104
def test_feedback_from_outside_needs_the_token(tmp_path: Path, host: str) -> None:
    """Labels decide rollbacks: a listener that others can reach takes them with the token only, and says by whom."""

    async def main() -> None:
        token = ensure_token(tmp_path, FEEDBACK)
        api = Api(tmp_path, f"data.host={host}")
        for sent in ({}, {"authorization": "Bearer " + "0" * 64}, {"authorization": token}):
            for model in ("sum", "unknown"):
                reply = await api.send(LABEL, model=model, **sent)
                assert (reply.status_code, reply.json()["code"]) == (401, "unauthorized")
                assert reply.headers["www-authenticate"] == "Bearer"
        assert api.events() == []
        assert (await api.send(LABEL, authorization=f"Bearer {token}")).status_code == 202
        assert [event.principal for event in api.events()] == ["feedback"]

    run(main)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
def test_feedback_on_loopback_is_anonymous(tmp_path: Path, host: str) -> None:
    """On loopback no token is asked for."""

    async def main() -> None:
        api = Api(tmp_path, f"data.host={host}")
        assert (await api.send(LABEL)).status_code == 202
        assert [event.principal for event in api.events()] == ["anonymous"]

    run(main)
