"""config.pbtxt: what is honoured, what is told, what refuses the model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from loaders.errors import ModelConfigInvalid
from loaders.model_config import read_config
from loaders.repository import scan
from loaders.session import Session, load
from tests.loaders import graphs

TENSORS = (
    'input { name: "X" data_type: TYPE_FP32 dims: [4] } output { name: "Y" data_type: TYPE_FP32 dims: 4 }'
)


def served(root: Path, config: str, content: bytes | None = None, **files: bytes) -> Session:
    """The session of a model with these settings."""
    graphs.put(root, content or graphs.double())
    (root / "m" / "config.pbtxt").write_text(config)
    for name, text in files.items():
        (root / "m" / name).write_bytes(text)
    return load(root, "m", "1")


def test_limits_and_hints_surface(tmp_path: Path) -> None:
    """What Triton users set is where the request path looks for it."""
    session = served(
        tmp_path,
        f"""name: "m" platform: "onnxruntime_onnx" max_batch_size: 8 {TENSORS}
        dynamic_batching {{ preferred_batch_size: [4, 8] max_queue_delay_microseconds: 250 }}
        instance_group [ {{ count: 2 kind: KIND_CPU }} ]
        parameters {{ key: "intra_op_thread_count" value {{ string_value: "2" }} }}
        optimization {{ graph {{ level: 1 }} }}
        model_warmup [ {{ name: "w" batch_size: 2 count: 3
          inputs {{ key: "X" value {{ data_type: TYPE_FP32 dims: 4 random_data: true }} }} }} ]
        metric_tags {{ key: "team" value: "delays" }}""",
    )
    assert (session.max_batch_rows, session.queue_delay_us) == (8, 250)
    assert session.config["instance_group"] == [{"kind": "KIND_CPU", "count": 2}]
    assert session.batchable
    assert session.runtime.split(" ")[3] == "x2"
    assert session.warnings == ()
    assert session.config["max_batch_size"] == 8
    assert session.config["input"][0]["dims"] == [4]
    assert session.config["metric_tags"] == {"team": "delays"}
    assert session.config["dynamic_batching"]["preferred_batch_size"] == [4, 8]


def test_without_a_file_the_graph_decides(tmp_path: Path) -> None:
    """No config needed."""
    graphs.put(tmp_path, graphs.double())
    session = load(tmp_path, "m", "1")
    assert (session.max_batch_rows, session.queue_delay_us, session.config) == (None, None, {})


def test_no_batches_are_made_where_the_file_forbids_them(tmp_path: Path) -> None:
    """max_batch_size 0: shapes are whole, requests stay alone."""
    tensors = TENSORS.replace("dims: [4]", "dims: [-1, 4]").replace("dims: 4", "dims: [-1, 4]")
    session = served(tmp_path, f"max_batch_size: 0 {tensors}")
    assert not session.batchable
    assert session.max_batch_rows is None


def test_reshape_shows_clients_what_the_file_says(tmp_path: Path) -> None:
    """As Triton's densenet example: three dimensions outside, four in the graph."""
    add = helper.make_node("Add", ["X", "X"], ["Y"])
    content = graphs.model([add], (TensorProto.FLOAT, (1, 2, 2)), (TensorProto.FLOAT, (1, 2, 2)))
    session = served(
        tmp_path,
        """max_batch_size: 0
        input [ { name: "X" data_type: TYPE_FP32 dims: [2, 2] reshape { shape: [1, 2, 2] } } ]
        output [ { name: "Y" data_type: TYPE_FP32 dims: [4] reshape { shape: [1, 2, 2] }
                   label_filename: "names.txt" } ]""",
        content,
        **{"names.txt": b"a\nb\nc\nd\n"},
    )
    assert [spec.shape for spec in (*session.signature.inputs, *session.signature.outputs)] == [(2, 2), (4,)]
    assert session.run({"X": np.ones((2, 2), np.float32)})[0].tolist() == [2, 2, 2, 2]
    assert session.label_names == {"Y": ["a", "b", "c", "d"]}
    assert session.config["output"][0]["label_filename"] == "names.txt"
    assert session.config["input"][0]["reshape"] == {"shape": [1, 2, 2]}


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ('name: "other"', "name is 'other'; expected that of its directory, 'm'"),
        ('platform: "tensorflow_savedmodel"', "platform is 'tensorflow_savedmodel'"),
        ('backend: "python"', "backend is 'python'"),
        ("sequence_batching { }", "sequence_batching"),
        ("ensemble_scheduling { }", "ensemble_scheduling"),
        ("model_transaction_policy { decoupled: true }", "decoupled"),
        ("batch_input [ { kind: BATCH_ELEMENT_COUNT } ]", "batch_input"),
        ('input { name: "X" allow_ragged_batch: true }', "allow_ragged_batch"),
        ("max_batch_size: -1", "max_batch_size is -1"),
        ('max_batch_size: "8"', "max_batch_size is '8'; expected a number"),
        (
            "optimization { execution_accelerators { gpu_execution_accelerator { } } }",
            "gpu_execution_accelerator",
        ),
        ("optimization { graph { level: 7 } }", "optimization.graph.level is 7"),
        ('default_model_filename: "../x"', "default_model_filename"),
        ("version_policy { newest { } }", "version_policy: 'newest'"),
        ('input { name: "Z" }', "input 'Z' is not in the graph; it has 'X'"),
        (
            'input { name: "X" data_type: TYPE_INT64 }',
            "input 'X' is TYPE_INT64 there, and TYPE_FP32 in the graph",
        ),
        (
            'max_batch_size: 8 input { name: "X" dims: 5 }',
            "has dims [5], and the graph has [4] besides the batch",
        ),
        ('max_batch_size: 0 input { name: "X" dims: 4 }', "has dims [4], and the graph has [-1, 4]"),
        ('input { name: "X" dims: [3] reshape { shape: [4] } }', "different numbers of elements"),
        ('output { name: "Y" label_filename: "gone.txt" }', "label_filename 'gone.txt' cannot be read"),
        ('output { name: "Y" label_filename: "../../x" }', "lies outside of the model's directory"),
        ("name", "line 1: found the end of the file"),
    ],
)
def test_refused_with_the_field(tmp_path: Path, config: str, said: str) -> None:
    """A model that asks for what we do not do, or contradicts its graph, does not load; field and sides are named."""
    with pytest.raises(ModelConfigInvalid, match=r"^m/config\.pbtxt: ") as wrong:
        served(tmp_path, config)
    assert said in str(wrong.value)
    assert str(tmp_path) not in str(wrong.value)


def test_batch_needs_a_dimension_that_varies(tmp_path: Path) -> None:
    """max_batch_size over a graph of one row is a contradiction."""
    with pytest.raises(
        ModelConfigInvalid, match=r"max_batch_size is 8, and the graph's input 'X' has shape \[1, 4\]"
    ):
        served(tmp_path, "max_batch_size: 8", graphs.fixed())


def test_what_is_not_known_is_told_and_shown(tmp_path: Path) -> None:
    """An unknown field loads the model, with a warning that stands in the inventory."""
    session = served(tmp_path, "frobnicate: 1 response_cache { enable: true }")
    assert session.warnings == ("frobnicate: not known, ignored", "response_cache: not used here, ignored")
    assert "m/config.pbtxt: frobnicate: not known, ignored" in scan(tmp_path).problems


@pytest.mark.parametrize(
    ("policy", "chosen"),
    [
        ("latest { num_versions: 2 }", ("2", "10")),
        ("latest { }", ("10",)),
        ("all { }", ("1", "2", "10")),
        ("specific { versions: [1, 10, 99] }", ("1", "10")),
    ],
)
def test_version_policy_says_what_is_loaded(tmp_path: Path, policy: str, chosen: tuple[str, ...]) -> None:
    """What is held loaded; traffic is the route's."""
    for version in ("1", "2", "10"):
        graphs.put(tmp_path, graphs.double(), version=version)
    (tmp_path / "m" / "config.pbtxt").write_text(f"version_policy: {{ {policy} }}")
    found = scan(tmp_path)
    assert found.models == {"m": ("1", "2", "10")}
    assert found.chosen == {"m": chosen}


def test_settings_are_read_again_when_they_change(tmp_path: Path) -> None:
    """The scan reads a file once, and again when it is another."""
    graphs.put(tmp_path, graphs.double())
    (tmp_path / "m" / "config.pbtxt").write_text("version_policy { all { } }")
    assert scan(tmp_path).chosen == {"m": ("1",)}
    (tmp_path / "m" / "config.pbtxt").write_text("# none")
    assert scan(tmp_path).chosen == {}


def test_models_under_another_name_and_with_their_weights(tmp_path: Path) -> None:
    """default_model_filename, and a directory model.onnx that holds the model and its weights."""
    (graphs.put(tmp_path, b"") / "model.onnx").rename(tmp_path / "m" / "1" / "net.onnx")
    (tmp_path / "m" / "1" / "net.onnx").write_bytes(graphs.double())
    (tmp_path / "m" / "config.pbtxt").write_text('default_model_filename: "net.onnx"')
    inner = tmp_path / "big" / "1" / "model.onnx"
    inner.mkdir(parents=True)
    (inner / "model.onnx").write_bytes(graphs.adding_weights("w.bin"))
    (inner / "w.bin").write_bytes(np.arange(4, dtype="<f4").tobytes())
    assert scan(tmp_path).models == {"big": ("1",), "m": ("1",)}
    x = np.ones((1, 4), np.float32)
    assert load(tmp_path, "m", "1").run({"X": x})[0].tolist() == [[2, 2, 2, 2]]
    assert load(tmp_path, "big", "1").run({"X": x})[0].tolist() == [[1, 2, 3, 4]]


def test_reading_costs_nothing_without_a_file(tmp_path: Path) -> None:
    """The defaults, not an error."""
    (tmp_path / "m").mkdir()
    assert not read_config(tmp_path / "m").found
