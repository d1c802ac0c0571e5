"""The layout is the data flow: who may import whom, how large things may be, and what must be said."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("loaders", "gateway", "shadow", "bench")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
MAINS = {
    "gateway.worker",
    "gateway.control.__main__",
    "gateway.audit.recorder",
    "gateway.audit.forwarder",
    "shadow.mirror",
    "shadow.sidecar",
}
FORBIDDEN_NAMES = {"utils", "util", "common", "helpers", "helper", "manager", "misc"}
PARTS = {
    "routing",
    "admission",
    "batching",
    "breaker",
    "budget",
    "capture",
    "cost",
    "delivery",
    "finite",
    "lanes",
    "runs",
    "sizing",
    "watchdog",
    "tensors",
    "stages",
    "errors",
    "append",
    "recording",
    "redaction",
    "entry",
    "serving",
    "replies",
    "retrying",
    "version",
    "head",
    "counting",
    "statistics",
    "validation",
    "fairness",
}
# The supervisor and its parts: the standard library only.
SUPERVISION = {
    "children",
    "claims",
    "ending",
    "handover",
    "heartbeats",
    "notify",
    "process",
    "rolling",
    "roster",
    "stacks",
    "supervisor",
}
# Words, not steps: they import nothing of ours and do not lengthen a chain.
LEAVES = {"gateway", "gateway.stages", "gateway.errors", "loaders", "loaders.errors"}
# What shadow may know of the gateway (`tensors`: what the log holds); its commands know the command line besides.
SHADOW_READS = {"audit", "config", "errors", "logs", "process", "settings", "stages", "tensors", "gateway"}
FILE_LINES, FUNCTION_LINES, PARAMETERS, DEPTH = 400, 60, 7, 8


def module_of(path: Path) -> str:
    """Dotted name of a file."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


TREES = {module_of(path): (path, ast.parse(path.read_text())) for path in FILES}


def imports_of(module: str) -> set[str]:
    """Our modules that a module imports, at any depth of its code."""
    found: set[str] = set()
    for node in ast.walk(TREES[module][1]):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in TREES else node.module)
    return {name for name in found if name in TREES}


IMPORTS = {module: imports_of(module) for module in TREES}


def area(module: str) -> str:
    """The part of the gateway that a module belongs to."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else parts[0]


def allowed(module: str, imported: str) -> bool:
    """The import rule."""
    mine, other = module.split(".")[0], imported.split(".")[0]
    if PACKAGES.index(other) > PACKAGES.index(mine):
        return False
    if mine == "shadow" and other == "gateway":
        commands = {"cli"} if module.startswith("shadow.cli.") else set()
        return area(imported) in SHADOW_READS | commands
    if mine != "gateway" or other != "gateway" or module in MAINS:
        return True
    here, there = area(module), area(imported)
    if here == "audit":
        return there not in {"api", "core", "batching", "control", "serving", "worker", "cli"}
    if here == "control":
        return there not in {"api", "core", "batching", "serving", "worker", "cli"}
    if here == "core":
        return there not in {"api", "worker", "cli", "supervisor"}
    if here in PARTS:
        return there not in {"api", "core", "worker", "cli", "supervisor"}
    if here in SUPERVISION | {"announce"}:
        return there in SUPERVISION | {"fleet", "logs", "gateway"}
    return not (here == "api" and there in {"worker", "cli", "supervisor"})


def test_imports_follow_the_flow() -> None:
    """loaders <- gateway <- shadow <- bench, and inside the gateway api -> core -> parts."""
    wrong = [f"{m} imports {i}" for m, found in IMPORTS.items() for i in found if not allowed(m, i)]
    assert wrong == []


def test_only_loaders_import_onnxruntime() -> None:
    """One package imports onnxruntime, after it has switched telemetry off."""
    wrong = []
    for module, (_, tree) in TREES.items():
        for node in ast.walk(tree):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if "onnxruntime" in names and not module.startswith(("loaders", "bench")):
                wrong.append(module)
    assert wrong == []


def test_no_cycles_and_no_deep_chains() -> None:
    """Imports have no cycle, and chains of at most 8 steps (9 for a process main, which composes)."""
    state: dict[str, int] = {}
    depth: dict[str, int] = {}

    def visit(module: str, trail: tuple[str, ...]) -> int:
        if state.get(module) == 1:
            pytest.fail("cycle: " + " -> ".join((*trail[trail.index(module) :], module)))
        if module in depth:
            return depth[module]
        state[module] = 1
        inner = [
            visit(other, (*trail, module))
            for other in IMPORTS[module]
            if other.split(".")[0] == module.split(".")[0] and other != module and other not in LEAVES
        ]
        state[module] = 2
        depth[module] = 1 + max(inner, default=0)
        return depth[module]

    deepest = {module: visit(module, ()) for module in TREES}
    mains = MAINS | {"gateway.cli", "gateway.cli.__main__", "gateway.__main__"}
    mains |= {module for module in TREES if module.startswith("shadow.cli.")}
    assert [f"{m}: {d}" for m, d in deepest.items() if d > DEPTH + (m in mains)] == []


def functions(tree: ast.AST) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    """All functions and methods."""
    return [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]


def test_sizes_stay_readable() -> None:
    """Files, functions and parameter lists stay below their limits."""
    wrong = []
    for module, (path, tree) in TREES.items():
        lines = len(path.read_text().splitlines())
        if lines > FILE_LINES:
            wrong.append(f"{module}: {lines} lines")
        for function in functions(tree):
            size = (function.end_lineno or 0) - function.lineno + 1
            if size > FUNCTION_LINES:
                wrong.append(f"{module}.{function.name}: {size} lines")
            a = function.args
            names = [arg.arg for arg in (*a.posonlyargs, *a.args, *a.kwonlyargs)]
            count = len([name for name in names if name not in {"self", "cls"}])
            if count > PARAMETERS and not function.decorator_list:
                wrong.append(f"{module}.{function.name}: {count} parameters")
    assert wrong == []


def test_every_module_says_what_it_is() -> None:
    """Each module begins with a docstring."""
    assert [m for m, (_, tree) in TREES.items() if not ast.get_docstring(tree)] == []


def test_no_file_is_a_corner() -> None:
    """No module is named after nothing in particular."""
    assert [m for m in TREES if m.split(".")[-1] in FORBIDDEN_NAMES] == []


def test_supervisor_is_standard_library_only() -> None:
    """What must never fail imports nothing that could: the supervisor and all it imports."""
    import sys

    seen: set[str] = set()
    todo = ["gateway.supervisor"]
    foreign = []
    while todo:
        module = todo.pop()
        if module in seen:
            continue
        seen.add(module)
        todo.extend(IMPORTS[module])
        for node in ast.walk(TREES[module][1]):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            foreign += [
                f"{module}: {name}"
                for name in names
                if name.split(".")[0] not in sys.stdlib_module_names and name.split(".")[0] != "gateway"
            ]
    assert foreign == []
