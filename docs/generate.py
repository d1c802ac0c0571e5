"""Writes docs/config.md, errors.md, metrics.md, events.md, admin-api.md from the code they describe: `make docs`.

The pages are committed, so that they can be read without running anything; tests/test_docs.py holds them
against what this file makes now.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
from msgspec import inspect
from prometheus_client import Metric

from docs.admin_page import admin_page
from docs.schema import events_page
from gateway import errors
from gateway.api.metrics import STATUS_FIGURES, FleetCollector
from gateway.api.problems import status_of
from gateway.batching import CUT_REASONS
from gateway.children import CAUSES
from gateway.config import DEFAULT_FILE, ENV_PREFIX
from gateway.control.snapshot import DesiredVersion, Serving
from gateway.fleet import FLAG_KINDS, TIMEOUTS, VARIANTS_MAX, Fleet
from gateway.routing import Change, first_route
from gateway.settings import Config
from gateway.stages import TIMED_STAGES

DIRECTORY = Path(__file__).parent

_CONFIG_HEAD = f"""# Settings

Made from `gateway/settings.py` by `make docs`. Every setting has a default; no file is needed.

Order, later wins: defaults, the file (`--config FILE`, else `./{DEFAULT_FILE}` when it is there), the environment,
`--set`.
One setting, three ways:

```toml
# {DEFAULT_FILE}
[audit]
level = "fsync"
```
```sh
{ENV_PREFIX}AUDIT__LEVEL=fsync tidegate serve
tidegate serve --set audit.level=fsync
```

Where `<model>` stands, a model's name does; a name with a dot goes into quotes in the file, and has no form in the
environment or in `--set`:

```toml
[policy.flights]
ramp = "auto"
max_shift_sd = {{ probabilities = 0.3 }}           # version 2 was trained on another season
```

A key that is not here refuses the start, naming its origin. `tidegate config check` says whether a file is right,
`tidegate config show` prints what holds and where each value came from.
"""

_ERRORS_HEAD = """# Error codes

Made from `gateway/errors.py` by `make docs`. Every error has one shape, `{"error": text, "code": snake_case}`.
Codes are stable, texts are for people. "Again" says that the same request may succeed later; over HTTP such replies
carry `Retry-After`.
"""


_METRICS_HEAD = """# Metrics

Made from `gateway/api/metrics.py` by `make docs`. `GET /metrics` on the admin listener answers in Prometheus's text
format, from shared memory that the workers write: a scrape asks no worker anything, and a dead worker's counters are
kept and carried on by its successor. Workers write once a run and once a second; what is shown is 20 ms old, of the
`tidegate_worker_*`, waiting times and errors a second.

Counters of versions start at 0 with each start of the gateway. Figures of recorder, forwarder and sidecar are
what those say of themselves; they are missing while such a process never ran.
"""

_METRICS_LABELS = f"""## Labels

Every value comes from a closed set, so that no client can make series: models and versions are those that the gateway
serves, `variant` those of their routes (a version keeps {VARIANTS_MAX - 1}, further ones count as `other`; what had no
variant counts under the reason, `pinned`), `code` those of [errors.md](errors.md), `kind`, `stage`, `cut` and `policy`
words of the gateway, `worker` an index.

| label | values |
|---|---|
| `kind` of `tidegate_requests_total` | `done`, `failed`, `cancelled`, `expired` |
| `kind` of `tidegate_flagged_requests_total` | {", ".join(f"`{kind}`" for kind in FLAG_KINDS)} |
| `kind` of `tidegate_timed_out_connections_total` | {", ".join(f"`{kind}`" for kind in TIMEOUTS)} |
| `policy` | `flag`: answered and marked in the log; `reject`: refused |
| `process` | roles, as in the first column of docs/architecture.md's table |
| `cause` | {", ".join(f"`{cause}`" for cause in CAUSES)} |
| `what` | `restart`, `upgrade` |
| `stage` | {", ".join(f"`{stage}`" for stage in TIMED_STAGES)} |
| `cut` | {", ".join(f"`{cut}`" for cut in CUT_REASONS)} |

Mean rows of a run: `tidegate_run_rows_sum / tidegate_run_rows_count`. Time that runs took in the runtime is
`tidegate_run_seconds_total`; `tidegate_stage_seconds` counts by request, and all requests of a run wait for the whole
of it.
"""


def settings(section: type[msgspec.Struct]) -> Iterator[tuple[str, inspect.Field]]:
    """The fields of one section that are values."""
    info = inspect.type_info(section)
    assert isinstance(info, inspect.StructType)
    for field in info.fields:
        if struct_of(field) is None and named_struct_of(field) is None:
            yield field.name, field


def struct_of(field: inspect.Field) -> type[msgspec.Struct] | None:
    """The section that a field holds, if it holds one."""
    return _struct_in(_plain(field.type))


def named_struct_of(field: inspect.Field) -> type[msgspec.Struct] | None:
    """The section that a field holds by names that the user chooses, if it holds such."""
    kind = _plain(field.type)
    return _struct_in(_plain(kind.value_type)) if isinstance(kind, inspect.DictType) else None


def _plain(kind: inspect.Type) -> inspect.Type:
    return _plain(kind.type) if isinstance(kind, inspect.Metadata) else kind


def _struct_in(kind: inspect.Type) -> type[msgspec.Struct] | None:
    options = kind.types if isinstance(kind, inspect.UnionType) else (kind,)
    return next((option.cls for option in options if isinstance(option, inspect.StructType)), None)


def values_text(kind: inspect.Type) -> str:
    """What a setting accepts, in words."""
    match kind:
        case inspect.Metadata():
            return values_text(kind.type)
        case inspect.UnionType():
            return " or ".join(values_text(t) for t in kind.types if not isinstance(t, inspect.NoneType))
        case inspect.LiteralType():
            return ", ".join(f"`{value}`" for value in kind.values)
        case inspect.BoolType():
            return "`true`, `false`"
        case inspect.IntType() | inspect.FloatType():
            noun = "integer" if isinstance(kind, inspect.IntType) else "number"
            if kind.ge is not None and kind.le is not None:
                return f"{noun}, {kind.ge} to {kind.le}"
            if kind.gt is not None:
                return f"{noun} above {kind.gt}" + (f", to {kind.le}" if kind.le is not None else "")
            return f"{noun} from {kind.ge}" if kind.ge is not None else noun
        case inspect.VarTupleType():
            return "list of texts"
        case inspect.DictType():
            return f"`{{ name = {values_text(kind.value_type)} }}`"
        case _:
            return "text"


def description(kind: inspect.Type) -> str:
    """The one line that says what a setting is."""
    if isinstance(kind, inspect.Metadata) and kind.extra_json_schema:
        return str(kind.extra_json_schema.get("description", ""))
    if isinstance(kind, inspect.UnionType):
        return next((text for text in map(description, kind.types) if text), "")
    return ""


def default_text(field: inspect.Field) -> str:
    """A default as TOML has it."""
    default: Any = field.default
    if field.default_factory is not msgspec.NODEFAULT:
        return f"`{msgspec.json.encode(field.default_factory()).decode()}`"
    if default is msgspec.NODEFAULT:
        return "required"
    return "" if default is None else f"`{msgspec.json.encode(default).decode()}`"


def sections_of(section: type[msgspec.Struct], name: str = "") -> Iterator[tuple[str, type[msgspec.Struct]]]:
    """A section and those in it, with their names in TOML; `<...>` stands where the user chooses one."""
    yield name, section
    info = inspect.type_info(section)
    assert isinstance(info, inspect.StructType)
    for field in info.fields:
        full = f"{name}.{field.name}" if name else field.name
        if (one := struct_of(field)) is not None:
            yield from sections_of(one, full)
        elif (named := named_struct_of(field)) is not None:
            yield from sections_of(named, f"{full}.<{description(field.type).removeprefix('by ')}>")


def config_page() -> str:
    """docs/config.md."""
    out = [_CONFIG_HEAD]
    for name, section in sections_of(Config):
        title = f"`[{name}]`" if name else "Top level"
        says = (section.__doc__ or "").splitlines()[0] if name else "The gateway as a whole."
        out += [f"## {title}\n", f"{says}\n", "| key | default | accepts | what it is |", "|---|---|---|---|"]
        for key, field in settings(section):
            full = f"{name}.{key}" if name else key
            cells = (f"`{full}`", default_text(field), values_text(field.type), description(field.type))
            out.append("| " + " | ".join(cells) + " |")
        out.append("")
    return "\n".join(out)


def error_kinds() -> list[type[errors.GatewayError]]:
    """All error classes, in the order of the file."""
    kinds = [k for k in vars(errors).values() if isinstance(k, type) and issubclass(k, errors.GatewayError)]
    return [kind for kind in kinds if kind.__module__ == errors.__name__]


def errors_page() -> str:
    """docs/errors.md."""
    out = [_ERRORS_HEAD, "| code | HTTP | again | meaning |", "|---|---|---|---|"]
    for kind in error_kinds():
        # Without arguments: the status depends on the type alone.
        status = status_of(kind.__new__(kind))
        meaning = " ".join((kind.__doc__ or "").split())
        seen = str(status) if status != 500 or kind.code in {"internal", "inference_failed"} else "—"
        again = "yes" if kind.retryable else "no"
        out.append(f"| `{kind.code}` | {seen} | {again} | {meaning} |")
    out += [
        "",
        "No HTTP status: the error ends a command or a start (exit code 2), or stays in the log of a process.",
        "",
    ]
    return "\n".join(out)


def metric_families() -> list[Metric]:
    """Every family that a scrape can hold, from a gateway of one worker and one route."""
    change = Change(by="docs", reason="docs")
    serving = Serving(
        gateway_id="00" * 8,
        generation=1,
        routes={"m": first_route("m", "1", "00" * 16, change)},
        versions=(DesiredVersion(model="m", version="1", slot=0),),
    )
    with tempfile.TemporaryDirectory() as name:
        state_dir = Path(name)
        for process, known in STATUS_FIGURES.items():
            (state_dir / process).mkdir()
            status = {key: 1 for key, *_ in known} | {"at_ns": 1, "pending": []}
            (state_dir / process / "status.json").write_bytes(msgspec.json.encode(status))
        collector = FleetCollector(Fleet.create(state_dir / "fleet", 1), serving, state_dir, 1)
        return list(collector.collect())


def metrics_page() -> str:
    """docs/metrics.md."""
    out = [_METRICS_HEAD, "| metric | type | labels | what it is |", "|---|---|---|---|"]
    for family in metric_families():
        name = family.name + ("_total" if family.type == "counter" else "")
        labels = ", ".join(f"`{label}`" for label in getattr(family, "_labelnames", ()))
        out.append(f"| `{name}` | {family.type} | {labels} | {family.documentation} |")
    return "\n".join([*out, "", _METRICS_LABELS])


PAGES = {
    "config.md": config_page,
    "errors.md": errors_page,
    "metrics.md": metrics_page,
    "events.md": events_page,
    "admin-api.md": admin_page,
}


def main() -> None:
    """Write all pages."""
    for name, page in PAGES.items():
        (DIRECTORY / name).write_text(page())


if __name__ == "__main__":
    main()
