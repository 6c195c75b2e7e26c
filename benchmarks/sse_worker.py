"""A worker that streams what a file holds, and a client that takes everything.

``python -m benchmarks.sse_worker FILE GAP_MS`` prints the URL of the worker; one port further the
client listens. The file holds JSON: a list of events. With a gap of 0 all are sent at once.
"""

from __future__ import annotations

import re
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Final

import msgspec

__all__ = ["main"]

_HEAD: Final = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)
_READ: Final = 2**20


def _listen(port: int) -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen(1024)
    return listener


def _pair() -> tuple[socket.socket, socket.socket]:
    while True:
        first = _listen(0)
        try:
            return first, _listen(first.getsockname()[1] + 1)
        except OSError:
            first.close()


def _read_request(connection: socket.socket) -> bool:
    data = b""
    while b"\r\n\r\n" not in data:
        piece = connection.recv(_READ)
        if not piece:
            return False
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    named = re.search(rb"\r\ncontent-length: *([0-9]+)", head, re.IGNORECASE)
    while len(body) < (int(named[1]) if named else 0):
        body += connection.recv(_READ)
    return True


def _stream(connection: socket.socket, pieces: list[bytes], gap_s: float) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with connection:
        while _read_request(connection):
            connection.sendall(_HEAD)
            due = time.monotonic()
            for piece in pieces:
                if gap_s:
                    due += gap_s
                    time.sleep(max(0.0, due - time.monotonic()))
                connection.sendall(piece)


def _take(connection: socket.socket) -> None:
    with connection:
        while connection.recv(_READ):
            pass


def main() -> None:
    """Serve until ended."""
    events = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=list[bytes])
    gap_s = float(sys.argv[2]) / 1000
    pieces = [b"%x\r\n%b\r\n" % (len(event), event) for event in events]
    pieces[-1] += b"0\r\n\r\n"
    if not gap_s:
        pieces = [b"".join(pieces)]
    worker, client = _pair()

    def take_all() -> None:
        while True:
            threading.Thread(target=_take, args=client.accept()[:1], daemon=True).start()

    threading.Thread(target=take_all, daemon=True).start()
    print(f"listens on http://127.0.0.1:{worker.getsockname()[1]}", flush=True)
    while True:
        arguments = (worker.accept()[0], pieces, gap_s)
        threading.Thread(target=_stream, args=arguments, daemon=True).start()


if __name__ == "__main__":
    main()
