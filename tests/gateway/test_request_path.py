"""The core: what one request, one batch and one full ring do."""

from __future__ import annotations

import asyncio
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.api.codec import Codec
from gateway.stages import TIMED_STAGES
from loaders.signature import Signature, TensorSpec
from tests.gateway.path import SIGNATURE, Path_, Sink, SumSession, until


def run(main) -> None:
    asyncio.run(main)


def test_an_event_records_the_stages_in_their_order(tmp_path: Path) -> None:
    """admit, decode, route, queue, infer, encode: as passed, as documented, none negative."""

    async def main() -> None:
        path = Path_(tmp_path)
        sink = path.send([1, 2, 3, 4])
        await until(lambda: sink.status)
        (event,) = path.predictions()
        assert tuple(event.stage_ns) == TIMED_STAGES
        assert all(ns >= 0 for ns in event.stage_ns.values())
        path.close()

    run(main())


def test_the_record_is_what_was_scored(tmp_path: Path) -> None:
    """The event has the reply's id, the bytes sent and the bytes answered."""

    async def main() -> None:
        path = Path_(tmp_path)
        sink = path.send([1, 2, 3, 4])
        await until(lambda: sink.status)
        (event,) = path.predictions()
        assert sink.fields["x-prediction-id"] == event.id == sink.body["id"]
        assert event.inputs[0].data == np.array([1, 2, 3, 4], "<f4").tobytes()
        assert event.outputs[0].data == np.array([10], "<f4").tobytes()
        assert sink.body["outputs"][0]["data"] == [10.0]
        assert (event.route.reason, event.route.weight_bp, event.route.assigned) == (
            "weight",
            10_000,
            "primary",
        )
        path.close()

    run(main())


def test_keyed_draw_is_recorded_as_such(tmp_path: Path) -> None:
    """Whoever sends a key, in the head or as a parameter, may choose where it falls: the record says so."""

    async def main() -> None:
        path = Path_(tmp_path)
        body = (
            b'{"inputs":[{"name":"X","datatype":"FP32","shape":[1,4],"data":[1,2,3,4]}],'
            b'"parameters":{"routing_key":"u1"}}'
        )
        sinks = [path.send([1, 2, 3, 4], routing_key="u1"), Sink(), path.send([1, 2, 3, 4])]
        path.send_body(body, sinks[1])
        await until(lambda: all(s.status for s in sinks))
        assert sorted(e.route.reason for e in path.predictions()) == ["key", "key", "weight"]
        path.close()

    run(main())


def test_requests_of_one_turn_are_one_run(tmp_path: Path) -> None:
    """What arrives in one turn of the loop runs together and each gets its own rows back."""

    async def main() -> None:
        path = Path_(tmp_path)
        sinks = [path.send([[i, 0, 0, 0], [0, i, 0, 1]]) for i in range(10)]
        await until(lambda: all(s.status for s in sinks))
        assert path.session.runs == [20]
        for i, sink in enumerate(sinks):
            assert sink.body["outputs"][0]["data"] == [i, i + 1]
        events = path.predictions()
        assert [e.batch.row0 for e in events] == [2 * i for i in range(10)]
        assert [s.fields["x-prediction-id"] for s in sinks] == [e.id for e in events]
        path.close()

    run(main())


@settings(max_examples=40, deadline=None)
@given(gone=st.sets(st.integers(0, 11)), late=st.booleans())
def test_cancel_any_subset_of_a_batch_and_the_rest_complete(gone: set[int], late: bool) -> None:
    """Clients that leave, before the run or during it, take no one with them; all are in the log."""

    async def main(tmp_path: Path) -> None:
        started, go = threading.Event(), threading.Event()

        class Slow(SumSession):
            def run(self, feeds, names=None, options=None):
                started.set()
                assert go.wait(5)
                return super().run(feeds, names, options)

        session = Slow()
        session.inline_allowed = False
        path = Path_(tmp_path, session=session)
        sinks = [path.send([i, 0, 0, 0]) for i in range(12)]
        if late:
            await until(started.is_set)
        for i in gone:
            sinks[i].disconnected = True
        go.set()
        await until(lambda: all(s.status for i, s in enumerate(sinks) if i not in gone))
        await until(lambda: path.core.inflight == 0)
        for i, sink in enumerate(sinks):
            if i in gone:
                assert sink.status == 0
            else:
                assert (sink.status, sink.body["outputs"][0]["data"]) == (200, [i])
        path.core.turn()
        events = path.predictions()
        assert len(events) == 12
        assert sum(e.kind == "cancelled" for e in events) == len(gone)
        path.close()

    with tempfile.TemporaryDirectory() as directory:
        run(main(Path(directory)))


def test_a_row_that_fails_fails_alone(tmp_path: Path) -> None:
    """When a batch fails its requests run one by one: only the bad one is 500, all are in the log."""

    async def main() -> None:
        path = Path_(tmp_path)
        sinks = [path.send([666 if i == 3 else i, 0, 0, 0]) for i in range(8)]
        await until(lambda: all(s.status for s in sinks))
        assert [s.status for s in sinks] == [500 if i == 3 else 200 for i in range(8)]
        assert sinks[3].body["code"] == "inference_failed"
        kinds = [e.kind for e in path.predictions()]
        assert sorted(kinds) == ["done"] * 7 + ["failed"]
        path.close()

    run(main())


class OnLane(SumSession):
    """Too costly for the loop; notes which threads ran it."""

    def __init__(self) -> None:
        super().__init__()
        self.warm_cost_ns = {1: 50_000_000, 32: 50_000_000}
        self.threads: set[str] = set()

    def run(self, feeds, names=None, options=None):
        self.threads.add(threading.current_thread().name)
        return super().run(feeds, names, options)


def test_a_version_that_lingers_waits_for_company(tmp_path: Path) -> None:
    """With `batch.linger_ms` the first waits for those that come soon after; a full batch waits no longer."""

    async def main() -> None:
        path = Path_(tmp_path, "batch.linger_ms=1000", "batch.max_rows=4")
        sinks = [path.send([1, 0, 0, 0], timeout_ms=30_000)]
        await asyncio.sleep(0)
        sinks.append(path.send([2, 0, 0, 0], timeout_ms=30_000))
        await until(lambda: all(s.status for s in sinks))
        assert path.session.runs == [2]
        full = [path.send([i, 0, 0, 0]) for i in range(4)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert all(s.status == 200 for s in full)
        assert {e.batch.cut for e in path.predictions()} == {"linger"}
        path.close()

    run(main())


def test_a_costly_row_that_fails_is_looked_for_on_the_lane(tmp_path: Path) -> None:
    """When a costly batch fails its requests run one by one on the lane, never on the loop."""

    async def main() -> None:
        path = Path_(tmp_path, session=OnLane())
        sinks = [path.send([666 if i == 3 else i, 0, 0, 0]) for i in range(8)]
        await until(lambda: all(s.status for s in sinks))
        assert [s.status for s in sinks] == [500 if i == 3 else 200 for i in range(8)]
        assert path.session.runs == [8] + [1] * 8
        assert path.session.threads == {"lane-0"}
        assert path.core.inflight == 0
        path.close()

    run(main())


def test_a_batch_stopped_at_its_deadline_is_not_run_again(tmp_path: Path) -> None:
    """A run on a lane that is terminated answers all its requests with a 503 and costs no other run."""

    class Endless(OnLane):
        def __init__(self) -> None:
            super().__init__()
            self.warm_cost_ns = {1: 2_000_000, 32: 2_000_000}

        def run(self, feeds, names=None, options=None):
            super().run(feeds, names, options)
            while not options.terminate:
                time.sleep(0.0005)
            msg = "terminated"
            raise RuntimeError(msg)

    async def main() -> None:
        path = Path_(tmp_path, session=Endless())
        sinks = [path.send([i, 0, 0, 0], timeout_ms=300 + i) for i in range(6)]
        await until(lambda: all(s.status for s in sinks))
        assert {(s.status, s.body["code"]) for s in sinks} == {(503, "deadline_exceeded")}
        assert path.session.runs == [6]
        assert [e.code for e in path.predictions()] == ["deadline_exceeded"] * 6
        path.close()

    run(main())


def test_singles_whose_deadline_is_over_cost_no_run(tmp_path: Path) -> None:
    """After a failed batch on a lane, those that expire while they wait to run alone are dropped."""

    class Failing(OnLane):
        def run(self, feeds, names=None, options=None):
            if len(self.runs) == 1:
                time.sleep(0.65)
            return super().run(feeds, names, options)

    async def main() -> None:
        path = Path_(tmp_path, session=Failing())
        late = [path.send([666, 0, 0, 0], timeout_ms=600), path.send([1, 0, 0, 0], timeout_ms=600)]
        timely = path.send([2, 0, 0, 0], timeout_ms=30_000)
        await until(lambda: timely.status and all(s.status for s in late))
        assert (timely.status, timely.body["outputs"][0]["data"]) == (200, [2])
        assert late[1].body["code"] == "deadline_exceeded"
        assert path.session.runs == [3, 1, 1]
        path.close()

    run(main())


def test_expired_requests_are_refused_and_cost_no_run(tmp_path: Path) -> None:
    """A deadline that is over when the batch is cut: 503, logged, not run."""

    async def main() -> None:
        path = Path_(tmp_path)
        sink = Sink()
        body = b'{"inputs":[{"name":"X","datatype":"FP32","shape":[1,4],"data":[1,2,3,4]}],"parameters":{"timeout":1}}'
        path.send_body(body, sink)
        await asyncio.sleep(0.01)
        await until(lambda: sink.status)
        assert (sink.status, sink.body["code"]) == (503, "deadline_exceeded")
        assert path.session.runs == []
        path.core.turn()
        assert [e.code for e in path.predictions()] == ["deadline_exceeded"]
        path.close()

    run(main())


def test_each_expired_request_has_an_event_of_its_own(tmp_path: Path) -> None:
    """What was admitted and never ran is no refusal: however many, each says route, version and what became of it."""

    async def main() -> None:
        path = Path_(tmp_path)
        sinks = [Sink() for _ in range(250)]
        tensor = b'"inputs":[{"name":"X","datatype":"FP32","shape":[1,4],"data":[1,2,3,4]}]'
        for i, sink in enumerate(sinks):
            path.send_body(b'{"parameters":{"timeout":600000},' + tensor + b"}", sink)
            sink.disconnected = i < 50
        time.sleep(0.6)
        await until(lambda: path.core.inflight == 0)
        path.core.turn()
        events = path.predictions()
        assert [e.code for e in events] == ["cancelled"] * 50 + ["deadline_exceeded"] * 200
        assert {(e.kind, e.count, e.route.assigned, e.model.version) for e in events} == {
            ("cancelled", 1, "primary", "1"),
            ("failed", 1, "primary", "1"),
        }
        path.close()

    run(main())


@pytest.mark.parametrize(
    ("body", "needles"),
    [
        (b"{", ["not JSON"]),
        (b"[]", ["object"]),
        (b'{"inputs":[]}', ["'X'", "missing"]),
        (b'{"inputs":[{"name":"Z","datatype":"FP32","shape":[1,4],"data":[1,2,3,4]}]}', ["'Z'", "X"]),
        (b'{"inputs":[{"name":"X","datatype":"INT64","shape":[1,4],"data":[1,2,3,4]}]}', ["INT64", "FP32"]),
        (b'{"inputs":[{"name":"X","datatype":"FP32","shape":[1,3],"data":[1,2,3]}]}', ["[1, 3]", "[-1, 4]"]),
        (b'{"inputs":[{"name":"X","datatype":"FP32","shape":[1,4],"data":[1,2,3]}]}', ["3", "4"]),
        (b'{"inputs":[{"name":"X","datatype":"FP32","shape":[1,4],"data":[1,2,3,"a"]}]}', ["'X'", '"a"']),
        (b'{"inputs":[{"name":"X","datatype":"FP32","shape":[1,4],"data":[1,2,3,1e39]}]}', ["'X'", "FP32"]),
        (b'{"inputs":[{"name":"X","datatype":"FP32","shape":[-1,4],"data":[1,2,3,4]}]}', ["shape"]),
    ],
)
def test_bad_input_names_tensor_found_and_expected(tmp_path: Path, body: bytes, needles: list[str]) -> None:
    """A 400 says which tensor, what was found and what was expected, and is logged as refused."""

    async def main() -> None:
        path = Path_(tmp_path)
        sink = Sink()
        path.send_body(body, sink)
        assert (sink.status, sink.body["code"]) == (400, "invalid_request")
        for needle in needles:
            assert needle in sink.body["error"]
        path.core.turn()
        assert [(e.kind, e.code) for e in path.predictions()] == [("refused", "invalid_request")]
        path.close()

    run(main())


def test_unknown_models_begin_with_the_known_words(tmp_path: Path) -> None:
    """Clients test for the words "Request for unknown model"."""

    async def main() -> None:
        path = Path_(tmp_path)
        for head in ({"model": "nope"}, {"version": "9"}):
            sink = path.send([1, 2, 3, 4], **head)
            assert sink.status == 404
            assert sink.body["error"].startswith("Request for unknown model")
        path.close()

    run(main())


@pytest.mark.parametrize("policy", ["degrade", "fail"])
def test_a_full_ring_holds_replies_then_follows_the_policy(tmp_path: Path, policy: str) -> None:
    """Without room: held in order, sent when there is room, else by policy, and the log says so."""

    async def main() -> None:
        path = Path_(
            tmp_path,
            f"audit.on_unavailable={policy}",
            "audit.append_timeout_ms=200",
            ring_bytes=64 * 1024,
        )
        sinks = []
        while not path.appender.held:
            assert len(sinks) < 5000
            sinks.append(path.send([len(sinks), 0, 0, 0]))
            await asyncio.sleep(0)
        held = sinks[-1]
        assert not held.status
        await until(lambda: held.status)
        if policy == "fail":
            assert (held.status, held.body["code"]) == (503, "audit_unavailable")
        else:
            assert (held.status, held.fields["x-tidegate-audit"]) == (200, "none")
        logged = path.events()
        last = path.send([1, 1, 1, 1])
        await until(lambda: last.status)
        logged += path.events()
        gaps = [(e.from_seq, e.to_seq) for e in logged if type(e).__name__ == "Gap"]
        numbers = sorted(int(e.id[-16:], 16) for e in logged)
        covered = {n for a, b in gaps for n in range(a, b + 1)}
        assert sorted({*numbers, *covered}) == list(range(path.ring.assigned))
        assert bool(gaps) == (policy == "degrade")
        assert last.fields["x-tidegate-audit"] == "spool"
        path.close()

    run(main())


def test_fsync_replies_wait_for_the_disk(tmp_path: Path) -> None:
    """Level fsync answers only when the recorder's mark covers the record; a request may raise to it."""

    async def main() -> None:
        path = Path_(tmp_path)
        sink = path.send([1, 2, 3, 4], audit_level="fsync")
        other = path.send([1, 2, 3, 4], audit_level="none")
        await until(lambda: other.status)
        await asyncio.sleep(0.01)
        assert not sink.status
        (first, second) = path.predictions()
        await until(lambda: sink.status)
        assert sink.fields["x-tidegate-audit"] == "fsync"
        assert (first.audit, second.audit) == ("fsync", "spool")
        path.close()

    run(main())


def test_large_tensors_are_recorded_by_hash(tmp_path: Path) -> None:
    """Above audit.capture_max_bytes the event has digests instead of data; the answer is whole."""

    async def main() -> None:
        path = Path_(tmp_path, "audit.capture_max_bytes=400")
        small = path.send([1, 2, 3, 4])
        big = path.send([[1, 2, 3, 4]] * 50)
        await until(lambda: small.status and big.status)
        first, second = path.predictions()
        assert (first.capture, second.capture) == ("full", "hash")
        assert first.inputs[0].data is not None
        assert second.inputs[0].data is None
        assert len(second.inputs[0].sha256) == 64
        assert len(big.body["outputs"][0]["data"]) == 50
        path.close()

    run(main())


def test_a_weight_of_zero_is_taken_up_before_it_is_published(tmp_path: Path) -> None:
    """A worker publishes a generation only after its tables are swapped."""

    async def main() -> None:
        import msgspec

        from gateway import fleet as words_of
        from gateway.control import snapshot

        path = Path_(tmp_path)
        serving, ledger = snapshot.decode(path.snapshot_path.read_bytes())
        route = msgspec.structs.replace(serving.routes["sum"], revision=2)
        after = msgspec.structs.replace(serving, generation=2, routes={"sum": route})
        snapshot.write(path.snapshot_path, snapshot.encode(after, ledger))
        path.fleet.publish_generation(2)
        assert path.fleet.worker(0)[words_of.GENERATION] == 1
        path.core.turn()
        assert path.fleet.worker(0)[words_of.GENERATION] == 2
        assert path.models.get("sum").table.route.revision == 2
        path.close()

    run(main())


def test_large_bodies_are_decoded_off_the_loop(tmp_path: Path) -> None:
    """JSON over 256 KiB is decoded on a thread; the answer is the same."""

    async def main() -> None:
        path = Path_(tmp_path)
        seen: list[str] = []
        decode = path.models.get("sum").codec_of(None).decode

        def spy(*args) -> None:
            seen.append(threading.current_thread().name)
            decode(*args)

        path.models.get("sum").codec_of(None).decode = spy
        sink = Sink()
        rows = 30_000
        body = b'{"inputs":[{"name":"X","datatype":"FP32","shape":[%d,4],"data":[%s]}]}' % (
            rows,
            b",".join([b"1,2,3,4"] * rows),
        )
        await path.core.receive_large(path.head(), body, sink, time.perf_counter_ns())
        await until(lambda: sink.status)
        assert sink.body["outputs"][0]["data"] == [10.0] * rows
        assert seen != []
        assert seen[0] != threading.main_thread().name
        path.close()

    run(main())


@pytest.mark.parametrize("large", [False, True])
def test_a_defect_on_the_way_in_is_answered_and_logged(tmp_path: Path, large: bool) -> None:
    """Whatever goes wrong before the queue: a 500 that tells nothing, and an event; no one waits."""

    def defect(*args) -> None:
        msg = "/srv/secret"
        raise RuntimeError(msg)

    async def main() -> None:
        path = Path_(tmp_path)
        path.models.get("sum").codec_of(None).decode = defect
        sink = Sink()
        if large:
            await path.core.receive_large(path.head(), b"{}", sink, time.perf_counter_ns())
        else:
            path.send_body(b"{}", sink)
        assert (sink.status, sink.body) == (500, {"error": "internal error", "code": "internal"})
        path.core.turn()
        assert [(e.kind, e.code) for e in path.predictions()] == [("refused", "internal")]
        path.close()

    run(main())


@pytest.mark.parametrize("large", [False, True])
def test_a_request_is_decoded_by_the_version_that_answers_it(tmp_path: Path, large: bool) -> None:
    """Versions whose inputs differ in order: each gets the tensors under its own names, whoever is primary."""

    class Difference(SumSession):
        def __init__(self, version: str, order: str) -> None:
            specs = tuple(TensorSpec(name, "FP32", (-1, 1)) for name in order)
            super().__init__(Signature(specs, (TensorSpec("Y", "FP32", (-1, 1)),)))
            self.version = version

        def run(self, feeds, names=None, options=None):
            return [feeds["A"] - feeds["B"]]

    async def main() -> None:
        import msgspec

        from gateway.control import snapshot
        from gateway.control.changes import with_variants
        from gateway.routing import Change, Variant

        sessions = {"1": Difference("1", "AB"), "2": Difference("2", "BA")}
        path = Path_(tmp_path, session=sessions["2"])
        path.models.registry.get = lambda model, version: sessions[version]
        serving, ledger = snapshot.decode(path.snapshot_path.read_bytes())
        variants = (
            Variant(name="primary", version="2", role="primary", weight_bp=5000),
            Variant(name="canary", version="1", role="canary", weight_bp=5000),
        )
        route = with_variants(serving.routes["sum"], variants, Change(by="test", reason="test"))
        versions = tuple(
            snapshot.DesiredVersion(model="sum", version=v, slot=slot) for slot, v in enumerate("12")
        )
        after = msgspec.structs.replace(serving, generation=2, routes={"sum": route}, versions=versions)
        snapshot.write(path.snapshot_path, snapshot.encode(after, ledger))
        path.fleet.publish_generation(2)
        path.models.poll()
        for version in sessions:
            path.models.on_change("sum", version, "ready", None)
        tensors = [
            {"name": name, "datatype": "FP32", "shape": [1, 1], "data": [value]}
            for name, value in (("A", 5), ("B", 3))
        ]
        body = orjson.dumps({"inputs": tensors, "id": "r"})
        sinks = [Sink() for _ in range(60)]
        for sink in sinks:
            if large:
                await path.core.receive_large(path.head(), body, sink, time.perf_counter_ns())
            else:
                path.send_body(body, sink)
        await until(lambda: all(sink.status for sink in sinks))
        assert {sink.body["model_version"] for sink in sinks} == {"1", "2"}
        assert {sink.body["outputs"][0]["data"][0] for sink in sinks} == {2.0}
        five = np.array([5], "<f4").tobytes()
        for event in path.predictions():
            assert {t.name: t.data == five for t in event.inputs} == {"A": True, "B": False}
        path.close()

    run(main())


def test_a_version_that_takes_another_tensor_refuses_by_its_own_name(tmp_path: Path) -> None:
    """What the answering version cannot take is a 400 of that version, not a run on wrong bytes."""

    async def main() -> None:
        path = Path_(tmp_path)
        version = path.models.get("sum").version("1")
        other = Signature((TensorSpec("Z", "FP32", (-1, 4)),), SIGNATURE.outputs)
        version.codec = Codec("sum", other, batchable=True)
        sink = path.send([1, 2, 3, 4])
        assert (sink.status, sink.body["code"]) == (400, "invalid_request")
        assert "'X'" in sink.body["error"]
        assert path.session.runs == []
        path.close()

    run(main())


@pytest.mark.parametrize("policy", ["degrade", "fail"])
def test_level_none_never_waits_for_room(tmp_path: Path, policy: str) -> None:
    """Level none is recorded when there is room; without room it is part of a gap and answered at once."""

    async def main() -> None:
        path = Path_(tmp_path, "audit.level=none", f"audit.on_unavailable={policy}", ring_bytes=64 * 1024)
        sinks = []
        for i in range(400):
            sinks.append(path.send([i, 0, 0, 0]))
            await asyncio.sleep(0)
            assert path.appender.held == 0
        await until(lambda: all(sink.status for sink in sinks))
        assert {sink.status for sink in sinks} == {200}
        logged = path.events()
        path.send([1, 1, 1, 1])
        path.core.turn()
        logged += path.events()
        gaps = [event for event in logged if type(event).__name__ == "Gap"]
        lost = [sink for sink in sinks if sink.fields["x-tidegate-audit"] == "none"]
        assert sum(gap.to_seq - gap.from_seq + 1 for gap in gaps) == len(lost) > 0
        path.close()

    run(main())
