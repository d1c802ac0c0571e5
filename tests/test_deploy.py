"""The files of deploy/ for proxies: their figures fit the gateway's defaults, and the page says what they say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gateway.api.heads import HEADERS_MAX_BYTES, URL_MAX_BYTES
from gateway.head import TIMEOUT_MAX_MS
from gateway.settings import Data

ROOT = Path(__file__).parents[1]
NGINX, HAPROXY = ((ROOT / "deploy" / name).read_text() for name in ("nginx.conf", "haproxy.cfg"))
PAGE = (ROOT / "docs" / "behind-a-proxy.md").read_text()
UPSTREAM = NGINX.partition("upstream tidegate {")[2].partition("}")[0]
SERVER = NGINX.partition("server {\n    listen")[2]


def seconds(text: str, name: str) -> int:
    """A time-out of a file."""
    found = re.findall(rf"^\s*(?:default-server .*)?{re.escape(name)} (\d+)s;?$", text, re.MULTILINE)
    assert len(found) == 1, f"{name}: {found}"
    return int(found[0])


def test_proxies_let_go_of_idle_connections_first() -> None:
    """By their settings, else a request meets the close; HAProxy may be late all the same, as the page says."""
    data = Data()
    assert seconds(UPSTREAM, "keepalive_timeout") <= data.keep_alive_s - 10
    # HAProxy halves what is idle each time.
    (most,) = re.findall(r"pool-max-conn (\d+)", HAPROXY)
    rounds = int(most).bit_length() + 2
    assert rounds * seconds(HAPROXY, "pool-purge-delay") <= data.keep_alive_s - 10


def test_the_gateway_says_itself_that_it_is_too_late() -> None:
    """Proxies wait for longer than the longest deadline."""
    assert seconds(SERVER, "proxy_read_timeout") * 1000 > TIMEOUT_MAX_MS
    assert seconds(HAPROXY, "timeout server") * 1000 > TIMEOUT_MAX_MS


def test_sizes_are_the_gateways() -> None:
    """What the gateway takes a proxy does not refuse, and what it refuses stops at the proxy."""
    data = Data()
    (most,) = re.findall(r"client_max_body_size (\d+)m;", NGINX)
    assert int(most) << 20 == data.body_max_bytes
    assert f"req.hdr_val(content-length) gt {data.body_max_bytes} " in HAPROXY
    (count, kib) = re.findall(r"large_client_header_buffers (\d+) (\d+)k;", NGINX)[0]
    assert int(kib) << 10 == URL_MAX_BYTES
    assert int(count) * (int(kib) << 10) == HEADERS_MAX_BYTES


def test_clients_are_waited_for_as_by_the_gateway() -> None:
    """nginx has the same time-outs towards clients."""
    data = Data()
    assert seconds(SERVER, "client_header_timeout") == data.header_timeout_s
    assert seconds(SERVER, "client_body_timeout") == data.body_timeout_s
    assert seconds(SERVER, "send_timeout") == data.write_timeout_s
    assert seconds(SERVER, "keepalive_timeout") == data.keep_alive_s
    assert seconds(HAPROXY, "timeout http-keep-alive") == data.keep_alive_s


def rows() -> list[list[str]]:
    """The cells of the page's table."""
    table = PAGE.partition("## Who waits for what")[2].partition("\n## ")[0]
    return [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| ")][1:]


@pytest.mark.parametrize(("column", "text"), [(2, NGINX), (3, HAPROXY)], ids=["nginx", "haproxy"])
def test_the_page_says_what_the_file_says(column: int, text: str) -> None:
    """Each figure of the table, with its directive."""
    assert len(rows()) == 7
    for row in rows():
        figure, name = re.findall(r"^(\d+) s, `([a-z_ -]+)`", row[column])[0]
        part = UPSTREAM if "`upstream`" in row[column] else SERVER if text is NGINX else text
        assert seconds(part, name) == int(figure), row


def test_nothing_that_was_sent_is_sent_again() -> None:
    """Retries are of connections that could not be made."""
    assert "proxy_next_upstream error;" in NGINX
    assert "non_idempotent" not in NGINX
    assert re.findall(r"retry-on (.*)", HAPROXY) == ["conn-failure"]
