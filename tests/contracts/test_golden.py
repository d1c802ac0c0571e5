"""Golden vectors: bytes that were written once and must be read, and written, the same for ever."""

from __future__ import annotations

import msgspec
import pytest

from gateway.audit.event import (
    BatchFacts,
    Feedback,
    Gap,
    Heartbeat,
    ModelFacts,
    Prediction,
    RouteFacts,
    Tensor,
    decode_event,
    encode_event,
)
from gateway.audit.frame import Caller, Events, Run, RunTensor, encoder, expand, open_frame, seal
from gateway.audit.identity import EventId, parse_event_id, source_of

SOURCE, EPOCH = 0x0102030405060708, 0x6543210F


def golden_run() -> Run:
    """Two requests of one and two rows; the second by hash."""
    model = ModelFacts("fraud", "3", "aa" * 32, "bb" * 32, None, "onnxruntime 1.23.0 cpu")
    route = RouteFacts(7, 2, "3", "3", 9000, "weight")
    return Run(
        model=msgspec.Raw(encoder.encode(model)),
        batch_id=11,
        cut="idle",
        infer_ns=1000,
        rows=[1, 2],
        received_ns=[1_700_000_000_000_000_000, 1_700_000_000_000_000_500],
        done_ns=[1_700_000_000_000_002_000],
        route=[msgspec.Raw(encoder.encode(route))],
        unit_hash=[0xFEDCBA9876543210, None],
        caller=[msgspec.Raw(encoder.encode(Caller("/v2/models/fraud/infer", "oip-json", None)))],
        stages=[[1, 2], [3, 4], [5], [6, 7], [8, 9]],
        inputs=[RunTensor("x", "FP32", (2,), bytes(range(8)), True, [None, "cc" * 32])],
        outputs=[RunTensor("y", "INT64", (), (42).to_bytes(8, "little"), True, [None, "dd" * 32])],
        request_id=["a", None],
        capture=["full", "hash"],
    )


def golden_events() -> Events:
    """A label and a gap."""
    return Events(
        [
            Feedback(
                kind="label",
                at_ns=5,
                model="fraud",
                labels=[{"id": f"{SOURCE:016x}-{EPOCH:08x}-{5:016x}", "row": 0, "value": 1}],
            ),
            Gap(source=f"{SOURCE:016x}", epoch=EPOCH, from_seq=3, to_seq=4, cause="ring_full", at_ns=6),
        ]
    )


def golden_prediction() -> Prediction:
    """One answered request with every fact set."""
    return Prediction(
        kind="done",
        id=str(EventId(SOURCE, EPOCH, 5)),
        received_ns=1_700_000_000_000_000_000,
        done_ns=1_700_000_000_000_002_000,
        request_id="a",
        traceparent="00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        endpoint="/v2/models/fraud/infer",
        protocol="oip-json",
        principal="p",
        rows=1,
        route=RouteFacts(7, 2, "3", "3", 9000, "weight", "fedcba9876543210"),
        model=ModelFacts("fraud", "3", "aa" * 32, "bb" * 32, None, "onnxruntime 1.23.0 cpu"),
        batch=BatchFacts(11, 3, 0, "idle"),
        inputs=[Tensor("x", "FP32", (1, 2), bytes(range(8)))],
        outputs=[Tensor("y", "INT64", (1,), None, "dd" * 32)],
        stage_ns={"admit": 1, "decode": 3},
    )


RUN_FRAME = bytes.fromhex(
    "580300000ea7341a050000000000000002000000de0010a56672616d65a372756ea56d6f64656c86a46e616d65a56672"
    "617564a776657273696f6ea133ab747265655f736861323536d940616161616161616161616161616161616161616161"
    "61616161616161616161616161616161616161616161616161616161616161616161616161616161616161ad636f6e66"
    "69675f736861323536d94062626262626262626262626262626262626262626262626262626262626262626262626262"
    "626262626262626262626262626262626262626262626262626262b07265666572656e63655f736861323536c0a77275"
    "6e74696d65b66f6e6e7872756e74696d6520312e32332e3020637075a862617463685f69640ba3637574a469646c65a8"
    "696e6665725f6e73cd03e8a4726f7773920102ab72656365697665645f6e7392cf17979cfe362a0000cf17979cfe362a"
    "01f4a7646f6e655f6e7391cf17979cfe362a07d0a5726f7574659187a87265766973696f6e07aa67656e65726174696f"
    "6e02a861737369676e6564a133a6736572766564a133a97765696768745f6270cd2328a6726561736f6ea67765696768"
    "74a9756e69745f68617368c0a9756e69745f6861736892cffedcba9876543210c0a663616c6c65729183a8656e64706f"
    "696e74b62f76322f6d6f64656c732f66726175642f696e666572a870726f746f636f6ca86f69702d6a736f6ea9707269"
    "6e636970616cc0a6737461676573959201029203049105920607920809a6696e707574739186a46e616d65a178a86461"
    "746174797065a446503332a47461696c9102a464617461c4080001020304050607a762617463686564c3a67368613235"
    "3692c0d94063636363636363636363636363636363636363636363636363636363636363636363636363636363636363"
    "636363636363636363636363636363636363636363a76f7574707574739186a46e616d65a179a86461746174797065a5"
    "494e543634a47461696c90a464617461c4082a00000000000000a762617463686564c3a673686132353692c0d9406464"
    "646464646464646464646464646464646464646464646464646464646464646464646464646464646464646464646464"
    "6464646464646464646464646464aa726571756573745f696492a161c0a76361707475726592a466756c6ca468617368"
)
EVENTS_FRAME = bytes.fromhex(
    "25010000615d63b709000000000000000200000082a56672616d65a66576656e7473a66576656e74739288a474797065"
    "a8666565646261636ba46b696e64a56c6162656ca6736368656d6101a26964a0a561745f6e7305a56d6f64656ca56672"
    "617564a66c6162656c739183a26964d92a303130323033303430353036303730382d36353433323130662d3030303030"
    "3030303030303030303035a3726f7700a576616c756501a97072696e636970616cc08ba474797065a3676170a6736f75"
    "726365b030313032303330343035303630373038a565706f6368ce6543210fa866726f6d5f73657103a6746f5f736571"
    "04a56361757365a972696e675f66756c6ca46b696e64a3676170a6736368656d6101a26964a0a561745f6e7306ae6c61"
    "73745f73796e6365645f6e73c0000000"
)
PREDICTION_MSGPACK = bytes.fromhex(
    "de001ba474797065aa70726564696374696f6ea46b696e64a4646f6e65a6736368656d6101a26964d92a303130323033"
    "303430353036303730382d36353433323130662d30303030303030303030303030303035ab72656365697665645f6e73"
    "cf17979cfe362a0000a7646f6e655f6e73cf17979cfe362a07d0aa726571756573745f6964a161ab7472616365706172"
    "656e74d93730302d34626639326633353737623334646136613363653932396430653065343733362d30306630363761"
    "6130626139303262372d3031a8656e64706f696e74b62f76322f6d6f64656c732f66726175642f696e666572a870726f"
    "746f636f6ca86f69702d6a736f6ea97072696e636970616ca170a4726f777301a5726f75746587a87265766973696f6e"
    "07aa67656e65726174696f6e02a861737369676e6564a133a6736572766564a133a97765696768745f6270cd2328a672"
    "6561736f6ea6776569676874a9756e69745f68617368b066656463626139383736353433323130a56d6f64656c86a46e"
    "616d65a56672617564a776657273696f6ea133ab747265655f736861323536d940616161616161616161616161616161"
    "616161616161616161616161616161616161616161616161616161616161616161616161616161616161616161616161"
    "61ad636f6e6669675f736861323536d94062626262626262626262626262626262626262626262626262626262626262"
    "626262626262626262626262626262626262626262626262626262626262626262b07265666572656e63655f73686132"
    "3536c0a772756e74696d65b66f6e6e7872756e74696d6520312e32332e3020637075a5626174636884a269640ba4726f"
    "777303a4726f773000a3637574a469646c65a6696e707574739185a46e616d65a178a86461746174797065a446503332"
    "a57368617065920102a464617461c4080001020304050607a6736861323536c0a76f7574707574739185a46e616d65a1"
    "79a86461746174797065a5494e543634a573686170659101a464617461c0a6736861323536d940646464646464646464"
    "646464646464646464646464646464646464646464646464646464646464646464646464646464646464646464646464"
    "64646464646464a873746167655f6e7382a561646d697401a66465636f646503a6737461747573ccc8a4636f6465c0a8"
    "646567726164656490a763617074757265a466756c6ca56175646974a573706f6f6caa706172616d6574657273c0a966"
    "697273745f747279c0a87265646163746564c0a5636f756e7401"
)
PREDICTION_JSON = (
    b'{"type":"prediction","kind":"done","schema":1,"id":"0102030405060708-6543210f-0000000000000005",'
    b'"received_ns":1700000000000000000,"done_ns":1700000000000002000,"request_id":"a","traceparent":"'
    b'00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01","endpoint":"/v2/models/fraud/infer","pr'
    b'otocol":"oip-json","principal":"p","rows":1,"route":{"revision":7,"generation":2,"assigned":"3",'
    b'"served":"3","weight_bp":9000,"reason":"weight","unit_hash":"fedcba9876543210"},"model":{"name":'
    b'"fraud","version":"3","tree_sha256":"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa'
    b'aaaaa","config_sha256":"bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb","refer'
    b'ence_sha256":null,"runtime":"onnxruntime 1.23.0 cpu"},"batch":{"id":11,"rows":3,"row0":0,"cut":"'
    b'idle"},"inputs":[{"name":"x","datatype":"FP32","shape":[1,2],"data":"AAECAwQFBgc=","sha256":null'
    b'}],"outputs":[{"name":"y","datatype":"INT64","shape":[1],"data":null,"sha256":"ddddddddddddddddd'
    b'ddddddddddddddddddddddddddddddddddddddddddddddd"}],"stage_ns":{"admit":1,"decode":3},"status":20'
    b'0,"code":null,"degraded":[],"capture":"full","audit":"spool","parameters":null,"first_try":null,'
    b'"redacted":null,"count":1}'
)

# Flags came later: they stand behind what was, of which only the number of keys (and so length and CRC) changed.
FLAGS_MSGPACK = bytes.fromhex("a5666c61677392aa72616e67653a74656d70a66d6f72653a32")
FLAGGED_MSGPACK = bytes.fromhex("de001c") + PREDICTION_MSGPACK[3:] + FLAGS_MSGPACK
FLAGGED_JSON = PREDICTION_JSON[:-1] + b',"flags":["range:temp","more:2"]}'
FLAGGED_FRAME = (
    bytes.fromhex("8503000014300e47050000000000000002000000de0011")
    + RUN_FRAME[23:].rstrip(b"\0")
    + bytes.fromhex("a5666c6167739292aa72616e67653a74656d70b8756e6b6e6f776e5f63617465676f72793a636172726965")
    + bytes.fromhex("7290000000")
)


def test_event_id_text():
    """An event id is 16-8-16 lower-case hex digits, and nothing else is one."""
    which = EventId(SOURCE, EPOCH, 5)
    assert str(which) == "0102030405060708-6543210f-0000000000000005"
    assert parse_event_id(str(which)) == which
    for wrong in (
        str(which).upper(),
        str(which)[:-1],
        str(which) + "0",
        str(which) + "\n",
        "",
        "-".join("abc"),
    ):
        with pytest.raises(ValueError, match="not an event id"):
            parse_event_id(wrong)


def test_source_of():
    """A source is the first eight bytes of SHA-256 over gateway/role/index."""
    assert f"{source_of('0123456789abcdef', 'worker', 0):016x}" == "7e5098cb31e2e776"
    assert f"{source_of('0123456789abcdef', 'recorder', 3):016x}" == "9d908cd3b13b7b8b"
    with pytest.raises(ValueError, match="unknown role"):
        source_of("0123456789abcdef", "supervisor", 0)


@pytest.mark.parametrize(
    ("first_seq", "content", "frame_bytes"),
    [(5, golden_run, RUN_FRAME), (9, golden_events, EVENTS_FRAME)],
    ids=["run", "events"],
)
def test_frames_are_written_as_ever(first_seq, content, frame_bytes):
    """A run frame and an events frame are the same bytes as when the format was set."""
    assert seal(first_seq, 2, encoder.encode(content())) == frame_bytes


def test_run_frame_reads_as_ever():
    """The stored run frame opens into the two predictions that went in."""
    frame, following = open_frame(RUN_FRAME, 0, len(RUN_FRAME))
    assert (frame.first_seq, frame.count, following) == (5, 2, len(RUN_FRAME))
    first, second = expand(SOURCE, EPOCH, frame)
    assert first.id == str(EventId(SOURCE, EPOCH, 5))
    assert second.id == str(EventId(SOURCE, EPOCH, 6))
    assert first.route == RouteFacts(7, 2, "3", "3", 9000, "weight", "fedcba9876543210")
    assert second.route == RouteFacts(7, 2, "3", "3", 9000, "weight", None)
    assert first.batch == BatchFacts(11, 3, 0, "idle")
    assert second.batch == BatchFacts(11, 3, 1, "idle")
    assert first.inputs == [Tensor("x", "FP32", (1, 2), bytes(range(8)))]
    assert second.inputs == [Tensor("x", "FP32", (2, 2), None, "cc" * 32)]
    assert second.outputs == [Tensor("y", "INT64", (2,), None, "dd" * 32)]
    assert first.stage_ns == {"admit": 1, "decode": 3, "route": 5, "queue": 6, "infer": 1000, "encode": 8}
    assert (first.done_ns, second.done_ns) == (1_700_000_000_000_002_000,) * 2


def test_events_frame_reads_as_ever():
    """The stored events frame opens into the same events, numbered."""
    frame, _ = open_frame(EVENTS_FRAME, 0, len(EVENTS_FRAME))
    wanted = golden_events().events
    for offset, event in enumerate(wanted):
        event.id = str(EventId(SOURCE, EPOCH, 9 + offset))
    assert expand(SOURCE, EPOCH, frame) == wanted


@pytest.mark.parametrize("value", [PREDICTION_MSGPACK, PREDICTION_JSON], ids=["msgpack", "json"])
def test_a_prediction_reads_as_ever(value):
    """A record from before flags were there reads, without any."""
    assert decode_event(value) == golden_prediction()


@pytest.mark.parametrize(("encoding", "value"), [("msgpack", FLAGGED_MSGPACK), ("json", FLAGGED_JSON)])
def test_prediction_value(encoding, value):
    """A topic record's value is the same bytes as when the schema last grew, and reads back."""
    flagged = msgspec.structs.replace(golden_prediction(), flags=("range:temp", "more:2"))
    assert encode_event(flagged, encoding) == value
    assert decode_event(value) == flagged


def test_a_run_with_flags():
    """Flags are one more column: written only where a request may have some, one value a request."""
    run = golden_run()
    run.flags = [("range:temp", "unknown_category:carrier"), ()]
    assert seal(5, 2, encoder.encode(run)) == FLAGGED_FRAME
    frame, _ = open_frame(FLAGGED_FRAME, 0, len(FLAGGED_FRAME))
    flagged = expand(SOURCE, EPOCH, frame)
    assert [event.flags for event in flagged] == [("range:temp", "unknown_category:carrier"), ()]
    frame, _ = open_frame(RUN_FRAME, 0, len(RUN_FRAME))
    plain = expand(SOURCE, EPOCH, frame)
    assert [msgspec.structs.replace(event, flags=()) for event in flagged] == plain


def test_unknown_keys_are_ignored():
    """A reader takes an event with a key of a later version."""
    later = msgspec.msgpack.decode(encode_event(Heartbeat(at_ns=1)))
    later["since_then"] = {"a": 1}
    assert decode_event(msgspec.msgpack.encode(later)) == Heartbeat(at_ns=1)


HEARTBEAT = (
    "a474797065a9686561727462656174a46b696e64a9686561727462656174a6736368656d6101a26964d92a3031303230333034303530363037"
    "30382d36353433323130662d30303030303030303030303030303035a561745f6e7307"
)
POSITIONS = (
    "a9706f736974696f6e7381b9303130323033303430353036303730382d36353433323130669205d94065656565656565656565656565656565"
    "656565656565656565656565656565656565656565656565656565656565656565656565656565656565656565656565"
)


def test_a_heartbeat_with_positions():
    """Positions are one key more, and not there where there are none: other heartbeats are written as ever."""
    beat = Heartbeat(id=str(EventId(SOURCE, EPOCH, 5)), at_ns=7)
    assert encode_event(beat) == bytes.fromhex("85" + HEARTBEAT)
    beat.positions = {f"{SOURCE:016x}-{EPOCH:08x}": (5, "ee" * 32)}
    assert encode_event(beat) == bytes.fromhex("86" + HEARTBEAT + POSITIONS)
    assert decode_event(encode_event(beat)) == decode_event(encode_event(beat, "json")) == beat
