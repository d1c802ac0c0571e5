"""What the fast door relies on in uvicorn and httptools; both are pinned, an upgrade must pass this."""

from __future__ import annotations

import inspect

import httptools
import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle


def test_versions_are_the_pinned_ones() -> None:
    """The class we derive from is the one that was read."""
    assert uvicorn.__version__ == "0.54.0"
    assert httptools.__version__ == "0.9.0"


def test_the_protocol_has_the_hooks_we_override() -> None:
    """Parser callbacks, the pipeline and the life of a connection are where we expect them."""
    for name in (
        "data_received", "on_message_begin", "on_url", "on_header", "on_headers_complete", "on_body",
        "on_message_complete", "on_response_complete", "_start_asgi_task", "send_400_response",
        "connection_lost", "shutdown", "_unset_keepalive_if_required",
    ):  # fmt: skip
        assert callable(getattr(HttpToolsProtocol, name))


def test_cycles_are_read_through_the_attributes_that_fast_cycles_have() -> None:
    """The parent touches only these attributes of `self.cycle`."""
    from gateway.api.cycle import FastCycle

    source = inspect.getsource(HttpToolsProtocol)
    used = {
        part.split("(")[0].split(".")[0].split()[0].strip(":,)") for part in source.split("self.cycle.")[1:]
    }
    assert used <= set(FastCycle.__slots__) | {"message_event"}
    assert "on_response" in inspect.signature(RequestResponseCycle.__init__).parameters
    assert STATUS_LINE[200] == b"HTTP/1.1 200 OK\r\n"


def test_pipelined_cycles_go_through_start_asgi_task() -> None:
    """A queued request starts through the one method that we override."""
    source = inspect.getsource(HttpToolsProtocol.on_response_complete)
    assert "self.pipeline.pop()" in source
    assert "self._start_asgi_task(cycle, app)" in source
