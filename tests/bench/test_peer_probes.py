"""Probes see what a product does: each against a product without fault, and one that has just that fault."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from bench.peers.adapters import PEERS
from bench.peers.probes import answers, features, killed, new_version, operation, protocol, recorded, refusals
from bench.peers.probes.exposition import rose_by, samples_of
from bench.peers.probes.offered import not_offered
from bench.peers.probes.started import Started
from bench.peers.probes.table import Seen, markdown, without_paths
from tests.bench.fake_peer import FakePeer, Ways

QUICK = {
    "JSON", "64 rows", "each its own answer", "unlike shapes side by side", "no JSON", "an empty body",
    "a body cut short", "a text for a number", "too many values", "100,000 brackets",
    "broken requests beside right ones",
    "says that it is ready", "taken up without a failed request", "readiness is true", "outlives a broken version",
    "metrics count answers", "inference", "refuses broken JSON", "exact INT64",
}  # fmt: skip


@pytest.fixture(autouse=True)
def soon(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not come is not waited for, but of real products."""
    if request.node.get_closest_marker("prove"):
        return
    monkeypatch.setattr(new_version, "_TAKES_S", 1.0)
    monkeypatch.setattr(new_version, "_AFTER_S", 0.2)
    monkeypatch.setattr(operation, "_SETTLE_S", (0.0, 0.05))
    monkeypatch.setattr(refusals, "IDLE_S", 1.0)
    monkeypatch.setattr(refusals, "WAIT_S", 1.0)


def asked(ways: Ways, *names: str, of: str = "fake") -> dict[str, Seen]:
    """What probes of these names see of a product that behaves so."""
    peer = FakePeer(ways, of)
    probes = [probe for probe in features.PROBES if probe.name in names]
    assert {probe.name for probe in probes} == set(names)
    table = features.probe_all([peer], lambda _: None, probes=probes)
    return {name: table.answer(of, name) for name in names}


def test_a_product_without_fault_passes() -> None:
    """Every quick probe says yes."""
    seen = asked(Ways(), *QUICK)
    assert {name: cell for name, cell in seen.items() if cell.answer != "yes"} == {}


def test_who_hangs_up_on_half_a_head_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a server of its own, for no other client may be that idle; seconds of room for a machine that is busy."""
    monkeypatch.setattr(refusals, "IDLE_S", 30.0)
    name = "half a head, then nothing"
    seen = asked(Ways(hangs_up_s=0.5), name)[name]
    assert seen.answer == "yes" and "hung up" in seen.seen


@pytest.mark.parametrize(
    ("name", "ways"),
    [
        ("each its own answer", Ways(mixes=True)),
        ("unlike shapes side by side", Ways(mixes=True)),
        ("broken requests beside right ones", Ways(mixes=True)),
        ("a text for a number", Ways(status_of_bad=200)),
        ("refuses broken JSON", Ways(status_of_bad=200)),
        ("half a head, then nothing", Ways()),
        ("taken up without a failed request", Ways(gap_s=0.3)),
        ("taken up without a failed request", Ways(takes_up=False)),
        ("readiness is true", Ways(gap_s=0.3, lies=True)),
        ("outlives a broken version", Ways(dies_of_broken=True)),
        ("latency by version", Ways()),
        ("metrics count answers", Ways(metrics=False)),
        ("inference", Ways(speaks=False)),
    ],
)
def test_a_fault_is_seen(name: str, ways: Ways) -> None:
    """The probe of that fault says no, and what it saw."""
    names = ("taken up without a failed request", name) if name == "readiness is true" else (name,)
    seen = asked(ways, *names)[name]
    assert seen.answer == "no"
    assert seen.seen


def test_a_refusal_as_the_servers_own_fault_is_half_of_one() -> None:
    """Who answers a wrong request with a 5xx has refused it, and tells the client to ask again."""
    seen = asked(Ways(status_of_bad=500), "no JSON", "refuses broken JSON")
    assert {name: cell.answer for name, cell in seen.items()} == {
        "no JSON": "partly",
        "refuses broken JSON": "partly",
    }


def test_who_hangs_up_on_a_huge_body_is_not_said_to_wait_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hanging up without a word is half of a refusal; waiting for the rest is none."""
    name = "a body of 8 GiB announced"
    waited = asked(Ways(), name)[name]
    # With room for a machine that is busy: it hangs up at once.
    monkeypatch.setattr(refusals, "WAIT_S", 30.0)
    hung_up = asked(Ways(most_bytes=1 << 20), name)[name]
    assert (hung_up.answer, waited.answer) == ("partly", "no")
    assert "hung up" in hung_up.seen and "waits" in waited.seen


def test_what_batching_breaks_is_asked_without_it() -> None:
    """A product whose batches mix answers is asked with batching off, and the cell says both."""
    seen = asked(Ways(mixes_batches=True), "each its own answer")["each its own answer"]
    assert seen.answer == "partly"
    assert "without batching" in seen.seen and "with it" in seen.seen


def test_a_refusal_is_counted_only_by_what_counts_no_answers() -> None:
    """A sample that counts every request counts no refusals."""
    names = ("metrics count answers", "metrics count refusals")
    assert [seen.answer for seen in asked(Ways(), *names).values()] == ["yes", "no"]
    assert [seen.answer for seen in asked(Ways(counts_refusals=True), *names).values()] == ["yes", "yes"]


def test_a_latency_is_a_time() -> None:
    """A histogram of something else is none of latency; a sum alone is half of one."""
    for metric, answer in (
        ('rows_bucket{model="scale",version="1",le="1"} 1', "no"),
        ('run_seconds_sum{model="scale",version="1"} 1', "partly"),
        ('run_seconds_bucket{model="scale",version="1",le="1"} 1', "yes"),
    ):
        seen = asked(Ways(exposes=metric), "latency by version")
        assert seen["latency by version"].answer == answer


def test_readiness_is_true_though_a_version_leaves_a_gap() -> None:
    """A product that says that it is not ready in its gap tells the truth."""
    names = ("taken up without a failed request", "readiness is true")
    seen = asked(Ways(gap_s=0.3), *names)
    assert [seen[name].answer for name in names] == ["no", "yes"]


def test_who_does_not_speak_the_protocol_refuses_nothing_of_it() -> None:
    """A 404 for an unknown address is no refusal of a wrong request."""
    seen = asked(Ways(speaks=False), "refuses broken JSON")["refuses broken JSON"]
    assert seen.answer == "no"
    assert "404" in seen.seen


def test_what_a_product_does_not_offer_names_its_page() -> None:
    """A no becomes "not offered" only with a page; a yes stays a yes."""
    peer = FakePeer(Ways(speaks=False), name="litserve")
    probes = [probe for probe in features.PROBES if probe.name in ("inference", "JSON", "a split is kept")]
    table = features.probe_all([peer], lambda _: None, probes=probes)
    for name in ("inference", "a split is kept"):
        cell = table.answer("litserve", name)
        assert cell.answer == "not offered"
        assert cell.source is not None and cell.source.address.startswith("https://")
    assert table.answer("litserve", "JSON").answer == "yes"


def test_a_no_that_was_measured_is_hidden_by_no_page() -> None:
    """A page explains a measured no; "not offered" is only what there was nothing to ask of."""
    name = "latency by version"
    for ways, answer in ((Ways(), "no"), (Ways(metrics=False), "not offered")):
        cell = asked(ways, name, of="bentoml")[name]
        assert (cell.answer, cell.source) == (answer, not_offered("bentoml", operation.GROUP, name))


def test_who_logs_predictions_is_not_said_to_offer_no_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """What such a log lost is a no, and no page says that there is none."""
    name = "outlives kill -9"
    assert [peer.name for peer in PEERS if peer.audit and not_offered(peer.name, recorded.GROUP, name)] == []
    monkeypatch.setattr(recorded, "_APPEARS_S", 0.1)
    monkeypatch.setattr(recorded, "_KILLED", 30)
    cell = asked(Ways(log="file", loses_every=3), name, of="ray-serve")[name]
    assert cell.answer == "no" and "10 are lost" in cell.seen


def test_a_form_that_a_product_has_not_could_not_be_asked() -> None:
    """Binary tensors to one that takes JSON alone: its page says so."""
    for name, answer in (("binary tensors", "not offered"), ("refuses broken gzip", "yes")):
        assert asked(Ways(), name, of="mlserver")[name].answer == answer


def test_logs_are_found_or_not() -> None:
    """Inputs and outputs of every prediction, of most, of none."""
    names = ("inputs of every prediction", "outputs of every prediction")
    assert [seen.answer for seen in asked(Ways(log="file"), *names).values()] == ["yes", "yes"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bench.peers.probes.recorded._APPEARS_S", 0.5)
        assert {seen.answer for seen in asked(Ways(log="file", loses_every=5), *names).values()} == {"partly"}
        assert {seen.answer for seen in asked(Ways(), *names).values()} == {"no"}


def test_a_product_that_is_not_there_has_a_column_with_its_last_lines() -> None:
    """Never dropped: the reason stands in the page, and every cell says that it could not be asked."""
    peers = [
        FakePeer(),
        FakePeer(Ways(unavailable="its environment cannot be made"), name="other", title="Other"),
    ]
    probes = [probe for probe in features.PROBES if probe.name == "JSON"]
    table = features.probe_all(peers, lambda _: None, probes=probes)
    assert table.answer("fake", "JSON").answer == "yes"
    assert table.answer("other", "JSON").answer == "not seen"
    text = markdown(table)
    assert "its environment cannot be made" in text
    assert "last words" in text


def test_a_model_that_it_does_not_start_with_is_a_no() -> None:
    """With the reason, and the other models' probes are asked all the same."""
    seen = asked(Ways(does_not_start_with="id_int64"), "exact INT64", "JSON")
    assert seen["exact INT64"].answer == "no"
    assert "ModelError" in seen["exact INT64"].seen
    assert seen["JSON"].answer == "yes"


def test_a_probe_that_fails_itself_costs_one_cell() -> None:
    """Others are asked all the same, and no product gets a no for it."""

    def fails(_started: object) -> Seen:
        raise AttributeError("'list' object has no attribute 'get'")

    probes = [probe for probe in features.PROBES if probe.name in ("JSON", "64 rows")]
    table = features.probe_all(
        [FakePeer()], lambda _: None, probes=[probes[0]._replace(run=fails), probes[1]]
    )
    assert table.answer("fake", "JSON").answer == "not seen"
    assert "AttributeError" in table.answer("fake", "JSON").seen
    assert table.answer("fake", "64 rows").answer == "yes"


def test_a_run_that_is_to_be_ended_is_a_servers_first() -> None:
    """What the probe before it taught a server may refuse a request whose run never began."""
    peer = FakePeer()
    servers = []

    def looks(started: Started) -> Seen:
        servers.append(started.running)
        return Seen("yes")

    names = ("deadline while waiting", "deadline while running", "ends in order")
    probes = [probe._replace(run=looks) for probe in features.PROBES if probe.name in names]
    features.probe_all([peer], lambda _: None, probes=probes)
    waiting, running, ends = servers
    assert waiting is not running
    assert running is ends


def test_every_way_that_only_some_have_is_said_of_the_others() -> None:
    """A probe that only some products can be asked has a page for each of the others."""
    others = ("triton", "mlserver", "litserve", "bentoml", "ray-serve", "onnxruntime-server")
    for probe in features.PROBES:
        if probe.ways:
            for name in others:
                assert not_offered(name, probe.group, probe.name) is not None, (name, probe.name)


def test_rows_have_names_of_their_own() -> None:
    """A row is found by its name."""
    names = [probe.name for probe in features.PROBES]
    assert len(set(names)) == len(names)


def test_the_sample_of_cases_is_the_contract() -> None:
    """Sampled cases are lines of the gateway's own contract, to the letter."""
    contract = (Path(__file__).parents[1] / "contracts" / "protocol_cases.jsonl").read_text().splitlines()
    assert set(protocol.CASES_FILE.read_text().splitlines()) <= set(contract)


def test_samples_are_read_and_compared() -> None:
    """Prometheus's text form, with and without labels; what rose by a number is found."""
    text = '# HELP a b\na_total{x="1",y="a b"} 3\nb 1.5e+01\nc_bucket{le="+Inf"} 2 1700000000\n'
    before = samples_of(text)
    assert before == {'a_total{x="1",y="a b"}': 3.0, "b": 15.0, 'c_bucket{le="+Inf"}': 2.0}
    assert rose_by(before, {**before, "b": 32.0, "new": 17.0}, 17) == ["b", "new"]


@pytest.mark.parametrize(
    ("command", "name"),
    [
        (b"/opt/x/bin/tritonserver\0--model-repository=/tmp/y\0", "tritonserver"),
        (b"/opt/venv/bin/python3.11\0-P\0-m\0gateway.worker\0--index\0000\0", "python -m gateway.worker"),
        (b"/opt/venv/bin/python\0/opt/venv/bin/mlserver\0start\0", "python mlserver"),
        (b"ray::ServeReplica:default:App\0", "ray::ServeReplica:default:App"),
        (b"ray::ServeController.listen_for_change\0", "ray::ServeController"),
        (b"", "?"),
    ],
)
def test_a_process_is_named_without_paths(command: bytes, name: str) -> None:
    """A page says which process was killed, and nothing of the machine's directories."""
    assert killed.called(command) == name


def test_words_are_shown_without_this_machines_directories(tmp_path: Path) -> None:
    """A product's words name files; addresses stay."""
    place = Path(tempfile.gettempdir()) / "tidegate-probes-x" / "home" / "model.onnx"
    said = f"cannot load {place}, GET /v2/health/ready answered 200, see https://example.org/a/b"
    assert without_paths(said) == (
        "cannot load …/model.onnx, GET /v2/health/ready answered 200, see https://example.org/a/b"
    )


def test_what_is_known_of_a_no_stands_beside_it() -> None:
    """A no, or half of a yes, names the page that says why; a yes does not."""
    peer = FakePeer(Ways(takes_up=False), name="litserve", title="LitServe")
    probes = [probe for probe in features.PROBES if probe.name == "taken up without a failed request"]
    table = features.probe_all([peer], lambda _: None, probes=probes)
    cell = table.answer("litserve", probes[0].name)
    assert cell.answer == "no" and cell.source is not None
    assert cell.source.says in markdown(table)
    peer = FakePeer(name="litserve", title="LitServe")
    cell = features.probe_all([peer], lambda _: None, probes=probes).answer("litserve", probes[0].name)
    assert (cell.answer, cell.source) == ("yes", None)


def test_who_offers_nothing_of_a_group_is_told_once() -> None:
    """The page stands once, and not at each row; what is offered of a group is told row by row."""
    peer = FakePeer(Ways(speaks=False), name="litserve", title="LitServe")
    probes = [probe for probe in features.PROBES if probe.group in (protocol.GROUP, answers.GROUP)]
    text = markdown(features.probe_all([peer], lambda _: None, probes=probes))
    source = not_offered("litserve", protocol.GROUP, "live")
    assert source is not None
    assert text.count(source.address) == 1
    assert "  * LitServe: yes" in text


@pytest.mark.prove
def test_ours_passes_its_own_probes() -> None:
    """Every row of the feature table says yes of Tidegate, but the one that docs/status.md tells of."""
    from bench.peers.adapters.tidegate import Tidegate

    table = features.probe_all([Tidegate()], print)
    missed = {row.name: table.answer("tidegate", row.name) for row in table.missed("tidegate")}
    assert {name: cell.seen for name, cell in missed.items() if name != "deadline while waiting"} == {}
    assert all(cell.answer == "partly" for cell in missed.values())
