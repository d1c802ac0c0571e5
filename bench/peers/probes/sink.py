"""Sink: an HTTP receiver of logs that can be killed: whatever is posted is appended to a file, then answered 200.

    python -m bench.peers.probes.sink --port PORT --file FILE

A process of its own, so that kill -9 is what it is in earnest. A body with Content-Encoding gzip is stored inflated.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import os
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Head and body of a reply are two writes: the second would wait for the client's delayed acknowledgement.
    disable_nagle_algorithm = True
    descriptor = -1

    def do_POST(self) -> None:  # noqa: N802 (the name that the server looks for)
        """Store, then answer."""
        body = self._body()
        if self.headers.get("content-encoding", "") == "gzip":
            with contextlib.suppress(OSError, EOFError, zlib.error):
                body = gzip.decompress(body)
        os.write(self.descriptor, body + b"\n")
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    do_PUT = do_POST

    def _body(self) -> bytes:
        if self.headers.get("transfer-encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("content-length", 0)))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def log_message(self, *args: object) -> None:
        """Nothing."""


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--file", required=True)
    given = parser.parse_args()
    _Handler.descriptor = os.open(given.file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    ThreadingHTTPServer.daemon_threads = True
    ThreadingHTTPServer.request_queue_size = 256
    ThreadingHTTPServer(("127.0.0.1", given.port), _Handler).serve_forever()


if __name__ == "__main__":
    main()
