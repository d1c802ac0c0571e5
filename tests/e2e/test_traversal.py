"""Names that lead elsewhere: whatever stands where a name is expected, no file outside the gateway's own is touched.

Seen by the kernel: strace on the worker and on control, from when they serve; every path of every call that takes one.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest

import gateway
from bench.serving import Gateway
from tests.e2e.onnx_models import write_linear
from tests.e2e.wire import RawReply, Wire, post

UP = ("../", "..\\", "..%2f", "..%5c", "%2e%2e/", "%2e%2e%2f", "%252e%252e%252f", "..%c0%af", "..%ef%bc%8f",
      "....//", "..;/", ".%00./", "%2e%2e%5c", "..%u2215", "./../")  # fmt: skip
ROOTED = ("/", "//", "%2f", "file:///", "\\\\host\\share\\", "C:\\", "~/", "/proc/self/root/", "/dev/fd/")
ENDS = ("", "%00", "%00.onnx", "/1/model.onnx", "/.", "%20", "%0a", "#", "/config.pbtxt")
_PATH = re.compile(r'\b(?:open|openat|openat2|stat|lstat|newfstatat|statx|access|faccessat2?|readlink|readlinkat|'
                   r'unlink|unlinkat|rename|renameat2?|mkdir|mkdirat|execve|chdir|truncate|link|symlink)\('
                   r'[^"\n]*"((?:[^"\\]|\\.)*)"')  # fmt: skip


def payloads(count: int, outside: Path, seed: int) -> Iterator[str]:
    """Ways to a file outside, as they stand in a URL."""
    draw = random.Random(seed)
    targets = (
        "etc/passwd",
        str(outside).lstrip("/"),
        "proc/self/environ",
        "state/admin.token",
        "admin.token",
    )
    for _ in range(count):
        begin = "".join(draw.choice(UP) for _ in range(draw.randint(1, 12)))
        begin = draw.choice(
            (begin, begin, draw.choice(ROOTED), "linear/" + begin, "linear%2f" + begin, "1/" + begin)
        )
        target = draw.choice(targets)
        yield begin + draw.choice((target, target.replace("/", "%2f"))) + draw.choice(ENDS)


def as_get(path: str, token: str) -> bytes:
    """A GET of whatever path."""
    return f"GET {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer {token}\r\n\r\n".encode()


Build = Callable[[str, str], bytes]
WHY = {"reason": "x"}


def _label(name: str, token: str) -> bytes:
    return post("/v2/models/linear/feedback", {"labels": [{"id": name, "value": 1}]})


def _asked(path: str, body: dict[str, object]) -> Build:
    """An admin POST with the name in its path or, as `NAME`, in its body; plain and decoded."""

    def build(name: str, token: str) -> bytes:
        content = json.dumps(body).replace("NAME", json.dumps(unquote(name, "latin-1"))[1:-1]).encode()
        return post(path.replace("NAME", name), content, authorization=f"Bearer {token}", if_match="1")

    return build


FIELDS: dict[str, tuple[str, Build]] = {
    "v2 model": ("data", lambda n, t: as_get(f"/v2/models/{n}", t)),
    "v2 model, infer": ("data", lambda n, t: post(f"/v2/models/{n}/infer", {"inputs": []})),
    "v2 version": ("data", lambda n, t: as_get(f"/v2/models/linear/versions/{n}/ready", t)),
    "v2 version, infer": ("data", lambda n, t: post(f"/v2/models/linear/versions/{n}/infer", {"inputs": []})),
    "v1 model": ("data", lambda n, t: as_get(f"/v1/models/{n}", t)),
    "v1 predict": ("data", lambda n, t: post(f"/v1/models/{n}:predict", {"instances": []})),
    "repository model": ("data", lambda n, t: post(f"/v2/repository/models/{n}/load", {})),
    "prediction id": ("data", _label),
    "feedback model": ("data", lambda n, t: post(f"/v2/models/{n}/feedback", {"labels": []})),
    "variant": ("data", lambda n, t: post("/v2/models/linear/infer", {"inputs": []}, x_tidegate_variant=n)),
    "admin route": ("admin", lambda n, t: as_get(f"/admin/v1/routes/{n}", t)),
    "admin history": ("admin", lambda n, t: as_get(f"/admin/v1/routes/{n}/history", t)),
    "admin freeze": ("admin", _asked("/admin/v1/routes/NAME/freeze", dict(WHY))),
    "admin variant": ("admin", _asked("/admin/v1/routes/linear/promote", {**WHY, "variant": "NAME"})),
    "admin latched": ("admin", _asked("/admin/v1/routes/linear/rearm", {**WHY, "version": "NAME"})),
    "admin model": ("admin", lambda n, t: as_get(f"/admin/v1/models/{n}", t)),
    "admin load": ("admin", _asked("/admin/v1/models/NAME/load", dict(WHY))),
    "admin version": ("admin", _asked("/admin/v1/models/linear/load", {**WHY, "version": "NAME"})),
    "token id": ("admin", lambda n, t: as_get(f"/admin/v1/tokens/{n}", t).replace(b"GET", b"DELETE", 1)),
    "principal": ("admin", _asked("/admin/v1/tokens", {**WHY, "principal": "NAME", "scopes": ["read"]})),
    "scope": ("admin", _asked("/admin/v1/tokens", {**WHY, "principal": "x", "scopes": ["shift:NAME"]})),
    "reason": ("admin", _asked("/admin/v1/routes/linear/promote", {"reason": "NAME", "variant": "nobody"})),
    "address": ("admin", lambda n, t: as_get(f"/{n}", t)),
    "data address": ("data", lambda n, t: as_get(f"/{n}", t)),
}


@pytest.fixture(scope="module")
def tracer() -> str:
    """Where strace is. Its absence is a skip on a laptop and a failure under CI."""
    found = shutil.which("strace")
    if found is None:
        why = "strace is not on this machine: install it to see which files are touched"
        if os.environ.get("CI") == "true":
            pytest.fail(why)
        pytest.skip(why)
    return found


def touched(trace: Path) -> set[str]:
    """Every path of a trace, as the kernel got it; relative ones from the working directory."""
    found = set()
    for line in trace.read_text(errors="replace").splitlines():
        match = _PATH.search(line)
        if match is not None:
            path = match[1].encode().decode("unicode_escape", "replace")
            found.add(
                os.path.normpath(path if path.startswith("/") else f"{Path.cwd()}/{path}") if path else ""
            )
    return found


def _run(tmp_path: Path, tracer: str, count: int) -> tuple[set[str], list[str]]:
    """So many payloads a field, under strace; paths touched and answers that are no refusals."""
    outside = tmp_path / "outside" / "secret"
    outside.parent.mkdir()
    outside.write_text("not for you")
    write_linear(tmp_path / "models")
    served = Gateway(tmp_path / "models", tmp_path / "state", settings=("data.model_control=true",)).start(60)
    trace, wrong = tmp_path / "trace", []
    pids = [pid for role in ("worker", "control") for pid in served.pids(role)]
    command = [tracer, "-f", "-qq", "-s", "4096", "-e", "trace=%file", "-o", str(trace)]
    strace = subprocess.Popen([*command, *(part for pid in pids for part in ("-p", str(pid)))])  # noqa: S603
    try:
        while not all("TracerPid:\t0" not in Path(f"/proc/{pid}/status").read_text() for pid in pids):
            time.sleep(0.01)
        token = (tmp_path / "state" / "admin.token").read_text().strip()
        for seed, (field, (listener, build)) in enumerate(FIELDS.items()):
            url = served.data_url if listener == "data" else served.admin_url
            wire = Wire(url)
            for name in payloads(count, outside, seed):
                try:
                    reply: RawReply | None = wire.exchange(build(name, token))
                except (OSError, ValueError, IndexError):
                    reply = None
                if reply is None or reply.fields.get("connection") == "close":
                    wire.close()
                    wire = Wire(url)
                if reply is not None and (
                    reply.status < 400 or b"root:" in reply.body or b"not for" in reply.body
                ):
                    wrong.append(f"{field}: {name} -> {reply.status}")
            wire.close()
    finally:
        strace.terminate()
        strace.wait(20)
        code = served.stop()
    assert code == 0, served.said()
    return touched(trace), wrong


def _check(tmp_path: Path, tracer: str, count: int) -> None:
    paths, wrong = _run(tmp_path, tracer, count)
    assert wrong == []
    code = Path(gateway.__file__).parents[1]
    own = (
        str(tmp_path / "models"), str(tmp_path / "state"), "/dev/shm/tidegate-", str(code),  # noqa: S108
        sys.prefix, sys.base_prefix, "/proc/self/", "/proc/", "/sys/fs/cgroup", "/sys/devices/system",
    )  # fmt: skip
    # The directories that lead to our own are looked at, as links might be among them; they are not opened.
    above = {str(parent) for root in (tmp_path / "models", tmp_path / "state") for parent in root.parents}
    foreign = {path for path in paths if not path.startswith(own)} - above
    assert foreign <= {"/etc/localtime", "/usr/share/zoneinfo/UTC", ""}, foreign
    assert not any("secret" in path or "passwd" in path or "environ" in path for path in paths)
    assert any(str(tmp_path / "models") in path for path in paths), "the trace has nothing: was it attached?"


def test_names_lead_nowhere(tmp_path: Path, tracer: str) -> None:
    """200 payloads in each field: refused, and every path that the kernel saw is one of ours."""
    _check(tmp_path, tracer, 200)


@pytest.mark.prove
def test_very_many_names_lead_nowhere(tmp_path: Path, tracer: str) -> None:
    """5,000 payloads in each field."""
    _check(tmp_path, tracer, 5000)
