"""Proxy: a TCP connection between client and server that fails where a test wants it to.

It forwards bytes without a word until it is told otherwise, and knows just so much of the
protocol: a COMMIT is sent as a simple query, and the server tells its version when it greets.
"""

from __future__ import annotations

import contextlib
import random
import select
import socket
import struct
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Final, Literal, Self

_COMMIT: Final = b"COMMIT\0"
_CHUNK: Final = 65_536

Fault = Literal[
    "", "cut before commit", "cut after commit", "swallow commit", "swallow and cut", "black hole"
]


class Proxy:
    """A proxy in front of a port on loopback; `with` starts it, and ends its threads.

    Attributes:
        port: where it listens, below 32768.
        fault: what it does to connections from now on: nothing; cuts them as a COMMIT comes, or
            as the answer to it comes; lets a COMMIT, and all after it on that connection,
            vanish; or lets everything vanish on every connection, new ones too.
        faults: how many connections it has done that to.
        version: first two digits of the server's version, as the client is told; as it is.
    """

    def __init__(self, target: int) -> None:
        self._target = target
        self._listener = _listen()
        self.port: int = self._listener.getsockname()[1]
        self.fault: Fault = ""
        self.faults = 0
        self._due: tuple[int, Callable[[], object]] | None = None
        self.version = b""
        self._sent = 0
        self._lock = threading.Lock()  # guards _open, _sent, _due and faults
        self._open: set[socket.socket] = set()
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._accept, daemon=True)]

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stopping.set()
        for thread in list(self._threads):
            thread.join(30)
        self._listener.close()

    def after(self, count: int, action: Callable[[], object] | None) -> None:
        """Do something in the middle of a piece, once so many more bytes have passed."""
        with self._lock:
            self._sent = 0
            self._due = None if action is None else (count, action)

    def cut(self) -> None:
        """Cut every connection, by RST, as a machine that went away does."""
        with self._lock:
            for side in self._open:
                _reset(side)

    # Inside.

    def _accept(self) -> None:
        while not self._stopping.is_set():
            if not select.select([self._listener], [], [], 0.02)[0]:
                continue
            client, _ = self._listener.accept()
            thread = threading.Thread(target=self._serve, args=(client,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, client: socket.socket) -> None:
        with (
            contextlib.suppress(OSError),
            client,
            socket.create_connection(("127.0.0.1", self._target), 10) as server,
        ):
            for side in (client, server):
                side.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._open |= {client, server}
            try:
                self._forward(client, server)
            finally:
                with self._lock:
                    self._open -= {client, server}

    def _forward(self, client: socket.socket, server: socket.socket) -> None:
        is_swallowing = False
        is_committing = False
        while not self._stopping.is_set():
            for side in select.select([client, server], [], [], 0.02)[0]:
                data = side.recv(_CHUNK)
                if not data:
                    if is_swallowing and side is client:
                        self._stopping.wait()  # the server is not told that the client is gone
                    return
                fault = self.fault  # which may be healed as soon as it is counted
                if is_swallowing or fault == "black hole":
                    continue
                if side is client and data.endswith(_COMMIT) and fault:
                    self._count()
                    if fault in ("cut before commit", "swallow and cut"):
                        _reset(client)
                        if fault == "swallow and cut":
                            self._stopping.wait()
                        return
                    is_swallowing = fault == "swallow commit"
                    is_committing = not is_swallowing
                elif side is server and is_committing:
                    _reset(client)
                    return
                if not is_swallowing:
                    self._pass_on(side, server if side is client else client, data)

    def _pass_on(self, side: socket.socket, other: socket.socket, data: bytes) -> None:
        with self._lock:
            self._sent += len(data)
            due = self._due
            if due is not None and self._sent >= due[0]:
                self._due = None
            else:
                due = None
        if due is not None:
            other.sendall(data[: len(data) // 2])
            due[1]()
            data = data[len(data) // 2 :]
        mark = b"server_version\0"
        at = data.find(mark) + len(mark)
        if self.version and at >= len(mark):
            data = data[:at] + self.version + data[at + 2 :]
        other.sendall(data)

    def _count(self) -> None:
        with self._lock:
            self.faults += 1


def _listen() -> socket.socket:
    """Listen on a port that nobody has, below those that the kernel gives to clients."""
    chooser = random.SystemRandom()
    while True:
        listener = socket.socket()
        try:
            listener.bind(("127.0.0.1", chooser.randrange(20_000, 32_000)))
        except OSError:
            listener.close()
            continue
        listener.listen()
        return listener


def free_port() -> int:
    """Choose a port that nobody listens on, below those that the kernel gives to clients."""
    with _listen() as listener:
        port: int = listener.getsockname()[1]
        return port


def _reset(side: socket.socket) -> None:
    with contextlib.suppress(OSError):
        side.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        side.shutdown(socket.SHUT_RDWR)
