"""Sessions: one loaded version, ready to run. material (its files) -> **session** -> registry.

What was hashed is what runs: files are read once, looked through, hashed and given to ONNX Runtime as bytes. In a
worker the whole of it happens in a child of the trial server first (`verdicts`, `trial`); the worker then loads what
is known to load, and takes over what the trial measured.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import onnxruntime

from loaders import golden, graph, material, probe, sizes, triton, warm
from loaders.bundle import NAME_CHARS_MAX, Bundle, is_name
from loaders.canonical import canonical_sha256
from loaders.datatypes import FROM_ORT
from loaders.errors import ModelInvalid, ProviderUnavailable
from loaders.lighten import LOCATION, lightened
from loaders.material import Material
from loaders.precheck import check_sizes
from loaders.processor import processor
from loaders.redact import Cell, cells
from loaders.reference import Profile, checked_profile
from loaders.repository import version_directory
from loaders.signature import Signature, TensorSpec
from loaders.verdicts import Facts, Request, Trials

_SEVERITY_ERROR, _SEVERITY_FATAL = 3, 4
_LEVELS = {
    -1: onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    0: onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
    1: onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    2: onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
}
"""optimization.graph.level of config.pbtxt."""
OnStage = Callable[[str], None]


class Threads(NamedTuple):
    """Where a session runs."""

    providers: tuple[str, ...]
    intra_op: int


class Session:
    """A version in memory.

    Attributes:
        batchable: rows of different requests may share a run.
        inline_allowed: cost is predictable from the rows: no Loop, If or Scan in the graph, no dimension varies but
            the batch's, and no tensor is as large as a request's values say.
        warm_cost_ns: rows to the time of a warm run, as a first guess of cost.
        profile: of its reference, where inputs shall be held against it.
        redacted: features that are not recorded as they come.
        max_batch_rows: config.pbtxt's max_batch_size; a request of more rows is refused. None: no limit of its own.
        queue_delay_us: config.pbtxt's dynamic_batching.max_queue_delay_microseconds; None where it says nothing.
        label_names: names of classes by output, from label_filename.
        config: what config.pbtxt says, as Triton's ModelConfig in JSON; empty without one.
        warnings: what config.pbtxt asks for and is not done.
        trial: what the trial load found out; None when there was none.
        canonical_sha256: equal for exports that compute the same (see `canonical`).
        golden_lines: lines of golden.jsonl that it answered as they say.
        locations: other files that hold weights.
        endless: a run did not end by itself while it was probed or warmed.

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
        self.redacted: tuple[Cell, ...] = ()
        self.max_batch_rows: int | None = None
        self.queue_delay_us: int | None = None
        self.label_names: dict[str, list[str]] = {}
        self.config: dict[str, Any] = {}
        self.warnings: tuple[str, ...] = ()
        self.trial: Facts | None = None
        self.canonical_sha256 = ""
        self.golden_lines = 0
        self.endless = False
        self.locations: tuple[str, ...] = ()
        self._output_names = [spec.name for spec in self.signature.outputs]
        # Skips the wrapper's checks of names and kinds (4 us a run); ours stand before it (tensors, codec).
        # The wrapper itself is let go: it would keep the whole file's bytes beside the model.
        self._run = session._sess.run  # noqa: SLF001

    def fit(self, found: Material) -> triton.Fitted:
        """Take up what config.pbtxt says; the tensors as clients see them.

        Raises:
            ModelConfigInvalid: it says other things than the graph.
        """
        config = found.config
        fitted = triton.fit(config, self.signature, found.where)
        self.signature = fitted.signature
        self._run = triton.reshaping(self._run, fitted)
        self.max_batch_rows = config.max_batch_rows or None
        self.queue_delay_us = config.queue_delay_us
        self.label_names = found.labels
        self.warnings = config.warnings
        return fitted

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
        options = onnxruntime.RunOptions()
        # What fails is raised, and told to the client; printed as well, each bad request would be a line of the log.
        options.log_severity_level = _SEVERITY_FATAL
        return options

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
    trials: Trials | None = None,
) -> Session:
    """Load, probe and warm a version. Blocking; releases the GIL while ONNX Runtime loads.

    Args:
        trials: tries it in another process first; None loads it here at once (tests, tools).

    Raises:
        ModelError: of one of its kinds, with what to do.
    """
    started = time.monotonic_ns()
    check_providers(providers)
    threads = Threads(tuple(providers), intra_op_threads)
    if trials is not None:
        trials.prepare(version_directory(root, model, version))
    found = material.read(root, model, version)
    if trials is None:
        session = make(found, threads)
    else:
        with trials.turn():
            session = _after_trial(root, found, threads, trials)
    session.load_ms = (time.monotonic_ns() - started) // 1_000_000
    return session


def check(root: Path, model: str, version: str, trials: Trials, threads: Threads) -> tuple[Facts, Material]:
    """What a trial says of a version; it is not loaded here.

    Raises:
        ModelError: of one of its kinds, with what to do.
    """
    check_providers(threads.providers)
    found = material.read(root, model, version)
    with trials.turn():
        return _tried(root, found, threads, trials), found


def _after_trial(root: Path, found: Material, threads: Threads, trials: Trials) -> Session:
    tree_sha256 = found.bundle.tree_sha256
    trials.check_same(found.model, found.version, tree_sha256)
    facts = _tried(root, found, threads, trials)
    trials.admit(found.where, facts)
    session = make(found, threads, facts)
    trials.hold(session, facts)
    trials.pin(found.model, found.version, tree_sha256)
    return session


def _tried(root: Path, found: Material, threads: Threads, trials: Trials) -> Facts:
    request = Request(
        root=str(root),
        model=found.model,
        version=found.version,
        providers=threads.providers,
        intra_op_threads=threads.intra_op,
        cpu_s=0,
        memory_bytes=0,
    )
    bundle = found.bundle
    identity = (
        f"{bundle.tree_sha256} {bundle.config_sha256} {onnxruntime.__version__} {threads} {found.labels}"
    )
    digests = (bundle.tree_sha256, bundle.config_sha256)
    return trials.facts(request, digests, identity, material.size_bytes(found.directory))


def make(
    found: Material,
    threads: Threads,
    facts: Facts | None = None,
    on_stage: OnStage = lambda stage: None,
) -> Session:
    """A session from a version's files.

    Args:
        facts: of its trial: neither looked through nor probed again.
        on_stage: told "read", "load", "probe", "golden" and "warm" before each; what ends the process ends in one.

    Raises:
        ModelError: of one of its kinds.
    """
    on_stage("read")
    seen = material.look(found) if facts is None else None
    weights = material.weights(
        found, seen.locations if seen is not None else facts.locations if facts else ()
    )
    if seen is not None:
        check_sizes(seen, {name: len(content) for name, content in weights.items()}, found.file)
    on_stage("load")
    session = _open(found, weights, threads)
    session.locations = tuple(weights)
    fitted = session.fit(found)
    session.profile = checked_profile(found.reference, found.bundle.settings, session.signature, found.where)
    session.redacted = cells(found.bundle.settings, session.signature, found.where)
    runs = warm.Runs(session.run, session.new_run_options)
    lines: list[golden.Golden] = []
    if found.golden is not None:
        where = f"{found.where}/{found.bundle.settings.golden}"
        lines = golden.parse(found.golden, session.signature, where)
    if facts is not None:
        _take_over(session, facts)
    elif seen is not None:
        on_stage("probe")
        _probe(session, seen, runs, may_batch=found.config.max_batch_rows != 0)
        on_stage("golden")
        _check_golden(session, lines, runs, found)
        session.canonical_sha256 = canonical_sha256(found.content, weights)
    on_stage("warm")
    if not session.endless:
        rows_max = session.max_batch_rows if session.batchable else 1
        cost_ns = warm.warm(runs, session.signature, lines, found.config.warmups, rows_max)
        session.warm_cost_ns.update(cost_ns)
        session.endless = runs.endless
    if facts is not None and not session.endless:
        _check_golden_again(session, lines, runs, found)
    session.config = triton.describe(found.config, fitted, batchable=session.batchable)
    return session


def _open(found: Material, weights: Mapping[str, bytes], threads: Threads) -> Session:
    config = found.config
    intra_op = threads.intra_op if config.intra_op_threads is None else config.intra_op_threads
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = intra_op
    options.inter_op_num_threads = config.inter_op_threads or 1
    if config.parallel:
        options.execution_mode = onnxruntime.ExecutionMode.ORT_PARALLEL
    options.graph_optimization_level = _LEVELS[config.graph_level]
    options.log_severity_level = _SEVERITY_ERROR
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    content = None if LOCATION in weights else lightened(found.content)
    if content is None:
        content = found.content
    else:
        weights = {**weights, LOCATION: found.content}
    try:
        if weights:
            options.add_external_initializers_from_files_in_memory(
                list(weights), list(weights.values()), [len(content) for content in weights.values()]
            )
        # No fallback: it prints, and goes on with a provider that was not asked for.
        raw = onnxruntime.InferenceSession(
            content, options, providers=list(threads.providers), enable_fallback=0
        )
    except Exception as exc:
        # Texts of foreign errors may hold paths, and this one reaches clients.
        text = (str(exc).splitlines() or [type(exc).__name__])[0].replace(str(found.directory), "…")[:300]
        msg = f"{found.where}: ONNX Runtime cannot load {found.name}: {text}"
        raise ModelInvalid(msg) from exc
    session = Session(found.model, found.version, raw, found.bundle)
    provider = raw.get_providers()[0].removesuffix("ExecutionProvider").lower()
    session.runtime = f"onnxruntime {onnxruntime.__version__} {provider} x{intra_op} {processor()}"
    return session


def _take_over(session: Session, facts: Facts) -> None:
    session.trial = facts
    session.batchable = facts.batchable
    session.inline_allowed = facts.inline_allowed
    session.warm_cost_ns = dict(facts.warm_cost_ns)
    session.canonical_sha256 = facts.canonical_sha256
    session.golden_lines = facts.golden_lines
    session.endless = facts.endless


def _probe(session: Session, seen: graph.Model, runs: warm.Runs, *, may_batch: bool) -> None:
    if may_batch and probe.has_batch_dimension(session.signature):
        session.batchable = probe.rows_are_independent(session.signature, runs.run)
    predictable = not seen.operators & graph.CONTROL_FLOW and not sizes.by_values(seen)
    session.inline_allowed = predictable and not _varies(session)


def _check_golden(session: Session, lines: Sequence[golden.Golden], runs: warm.Runs, found: Material) -> None:
    where = f"{found.where}/{found.bundle.settings.golden}"
    golden.check(lines, session.signature, runs.run, where, batchable=session.batchable)
    session.golden_lines = len(lines)


def _check_golden_again(
    session: Session, lines: Sequence[golden.Golden], runs: warm.Runs, found: Material
) -> None:
    """A few of the lines in the process that will serve: its processor, threads and settings are the trial's by intent
    only, and what a child said of itself is no evidence."""
    where = f"{found.where}/{found.bundle.settings.golden}, run again where it is to be served"
    again = golden.some(lines, session.warm_cost_ns.get(1, 0))
    golden.check(again, session.signature, runs.run, where, batchable=session.batchable)


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
