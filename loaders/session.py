"""Sessions: one loaded version, ready to run. bundle -> **session** -> registry.

What was hashed is what runs: the file is read once, looked through, hashed and given to ONNX Runtime as
bytes. A model with external data must be loaded by its path; its files are hashed again afterwards.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from loaders import graph, probe
from loaders.bundle import NAME_CHARS_MAX, Bundle, is_name, open_regular, read_bundle, tree_sha256
from loaders.datatypes import FROM_ORT, NUMPY
from loaders.errors import ModelError, ModelInvalid, ModelUnreadable, ProviderUnavailable, VersionChanged
from loaders.reference import Profile, checked_profile
from loaders.repository import MODEL_FILE, version_directory
from loaders.signature import Signature, TensorSpec

_SEVERITY_ERROR = 3


class Session:
    """A version in memory.

    Attributes:
        batchable: rows of different requests may share a run.
        inline_allowed: cost is predictable from the rows: no Loop, If or Scan in the graph, and no
            dimension varies but the batch's.
        warm_cost_ns: rows to the time of a warm run, as a first guess of cost.
        profile: of its reference, where inputs shall be held against it.

    Threading: `run` is safe from any thread and releases the GIL.
    """

    def __init__(self, model: str, version: str, session: Any, bundle: Bundle) -> None:
        self.model = model
        self.version = version
        self.bundle = bundle
        self.signature = _signature(session, model, version)
        self.batchable = False
        self.inline_allowed = True
        self.runtime = ""
        self.load_ms = 0
        self.warm_cost_ns: dict[int, int] = {1: 1_000_000}
        self.profile: Profile | None = None
        self._output_names = [spec.name for spec in self.signature.outputs]
        # Skips the wrapper's checks of names and kinds (4 us a run); ours stand before it (tensors, codec).
        # The wrapper itself is let go: it would keep the whole file's bytes beside the model.
        self._run = session._sess.run  # noqa: SLF001

    def run(
        self,
        feeds: dict[str, Any],
        output_names: Sequence[str] | None = None,
        run_options: Any = None,
    ) -> list[Any]:
        """Run the model.

        Args:
            feeds: C-ordered little-endian arrays (object arrays of str for BYTES) by input name.

        Raises:
            Exception: whatever ONNX Runtime raises.
        """
        names = self._output_names if output_names is None else list(output_names)
        return self._run(names, feeds, run_options)  # type: ignore[no-any-return]

    def new_run_options(self) -> Any:
        """Options of one run; setting `terminate` on them stops it."""
        return onnxruntime.RunOptions()

    def close(self) -> None:
        """Let go of the memory."""
        self._run = None


def load(
    root: Path,
    model: str,
    version: str,
    *,
    providers: Sequence[str] = ("CPUExecutionProvider",),
    intra_op_threads: int = 1,
) -> Session:
    """Load, probe and warm a version. Blocking; releases the GIL while ONNX Runtime loads.

    Raises:
        BundleInvalid, ModelInvalid, ModelUnreadable, ProviderUnavailable, VersionChanged: with what to do.
    """
    started = time.monotonic_ns()
    check_providers(providers)
    where = f"{model}/{version}"
    directory = version_directory(root, model, version)
    try:
        with open_regular(directory / MODEL_FILE, f"{where}/{MODEL_FILE}") as file:
            content = file.read()
    except OSError as exc:
        msg = f"{where}: {MODEL_FILE}: {exc.strerror}"
        raise ModelUnreadable(msg) from exc
    try:
        bundle = read_bundle(directory, {MODEL_FILE: content})
        raw, seen = _open(directory, content, providers, intra_op_threads)
        unchanged = not seen.external_data or tree_sha256(directory) == bundle.tree_sha256
    except OSError as exc:
        msg = f"{where}: its files cannot be read: {exc.strerror}"
        raise ModelUnreadable(msg) from exc
    except ModelError:
        raise
    except Exception as exc:
        text = (str(exc).splitlines() or [type(exc).__name__])[0].replace(str(root), "…")[:300]
        msg = f"{where}: ONNX Runtime cannot load {MODEL_FILE}: {text}"
        raise ModelInvalid(msg) from exc
    if not unchanged:
        msg = f"{where}: its files changed while it was loaded: put them there whole, then load it again"
        raise VersionChanged(msg)
    session = Session(model, version, raw, bundle)
    session.profile = checked_profile(directory, bundle, session.signature)
    provider = raw.get_providers()[0].removesuffix("ExecutionProvider").lower()
    session.runtime = f"onnxruntime {onnxruntime.__version__} {provider} x{intra_op_threads}"
    if probe.has_batch_dimension(session.signature):
        session.batchable = probe.rows_are_independent(session.signature, session.run)
    session.inline_allowed = not seen.operators & graph.CONTROL_FLOW and not _varies(session)
    _warm(session)
    session.load_ms = (time.monotonic_ns() - started) // 1_000_000
    return session


def _open(
    directory: Path, content: bytes, providers: Sequence[str], intra_op_threads: int
) -> tuple[Any, graph.Seen]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = intra_op_threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _SEVERITY_ERROR
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    seen = graph.look(content)
    source = str(directory / MODEL_FILE) if seen.external_data else content
    # No fallback: it prints, and goes on with a provider that was not asked for.
    raw = onnxruntime.InferenceSession(source, options, providers=list(providers), enable_fallback=0)
    return raw, seen


def _varies(session: Session) -> bool:
    """Whether a run's cost may depend on more than the rows that batching counts."""
    first = 1 if session.batchable else 0
    specs = (*session.signature.inputs, *session.signature.outputs)
    return any(-1 in spec.shape[first:] for spec in specs)


def check_providers(providers: Sequence[str]) -> None:
    """Refuse execution providers that this build lacks.

    Raises:
        ProviderUnavailable: names it and lists those there are.
    """
    have = onnxruntime.get_available_providers()
    for provider in providers:
        if provider not in have:
            msg = f"execution provider {provider!r} is not in this build; it has {', '.join(have)}"
            raise ProviderUnavailable(msg)


def _signature(session: Any, model: str, version: str) -> Signature:
    def specs(values: Any, what: str) -> tuple[TensorSpec, ...]:
        out = []
        for value in values:
            if not is_name(value.name):
                msg = (
                    f"{model}/{version}: {what} {value.name[:40]!r} cannot be shown: expected a name of at most"
                    f" {NAME_CHARS_MAX} characters without control characters"
                )
                raise ModelInvalid(msg)
            datatype = FROM_ORT.get(value.type)
            if datatype is None:
                msg = f"{model}/{version}: {what} '{value.name}' is {value.type}, which is not served"
                raise ModelInvalid(msg)
            shape = tuple(dim if isinstance(dim, int) and dim >= 0 else -1 for dim in value.shape)
            out.append(TensorSpec(value.name, datatype, shape))
        return tuple(out)

    return Signature(specs(session.get_inputs(), "input"), specs(session.get_outputs(), "output"))


def _warm(session: Session) -> None:
    """Runs on zeros, of one row and (batchable) of 32; the faster of two is the first guess of cost."""
    for rows in (1, 32) if session.batchable else (1,):
        feeds = {spec.name: _zeros(spec, rows) for spec in session.signature.inputs}
        took = []
        try:
            session.run(feeds)
            for _ in range(3):
                started = time.perf_counter_ns()
                session.run(feeds)
                took.append(time.perf_counter_ns() - started)
        except Exception:  # noqa: BLE001  zeros need not be a valid input; cost is learnt from traffic
            return
        session.warm_cost_ns[rows] = min(took)


def _zeros(spec: TensorSpec, rows: int) -> Any:
    shape = tuple(dim if dim != -1 else (rows if i == 0 else 1) for i, dim in enumerate(spec.shape))
    if spec.datatype == "BYTES":
        return np.full(shape, "", dtype=object)
    return np.zeros(shape, NUMPY[spec.datatype])
