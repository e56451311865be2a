"""The receiving half of a websocket (RFC 6455), on the standard library: enough to follow a ComfyUI server.

Synchronous, so that a test or a progress bar reads one message after the other without an event loop.
"""

from __future__ import annotations

import base64
import os
import socket
import struct
from urllib.parse import urlsplit

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10


class SocketClosed(ConnectionError):
    """The server closed the connection."""


class WebSocket:
    """An open connection. `receive` gives str for text and bytes for binary messages."""

    def __init__(self, url: str, timeout: float = 30.0) -> None:
        parts = urlsplit(url)
        host, port = parts.hostname or "127.0.0.1", parts.port or 80
        self._socket = socket.create_connection((host, port), timeout)
        self._pending = b""
        key = base64.b64encode(os.urandom(16)).decode()
        target = f"{parts.path}?{parts.query}" if parts.query else parts.path
        self._socket.sendall(
            f"GET {target} HTTP/1.1\r\nHost: {host}:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        while b"\r\n\r\n" not in self._pending:
            self._more()
        head, self._pending = self._pending.split(b"\r\n\r\n", 1)
        if b" 101 " not in head.split(b"\r\n", 1)[0]:
            raise ConnectionError(f"{url} did not become a websocket: {head[:100]!r}")

    def receive(self, timeout: float | None = None) -> str | bytes:
        """The next whole message.

        Raises:
            TimeoutError: none came within `timeout` seconds (what was half read is kept).
            SocketClosed: the server closed the connection.
        """
        self._socket.settimeout(timeout)
        message, kind = b"", TEXT
        while True:
            final, opcode, payload, rest = self._frame()
            self._pending = rest
            if opcode == CLOSE:
                raise SocketClosed("the server closed the websocket")
            if opcode == PING:
                self._send(PONG, payload)
                continue
            if opcode == PONG:
                continue
            if opcode in (TEXT, BINARY):
                kind = opcode
            message += payload
            if final:
                return message.decode("utf-8") if kind == TEXT else message

    def close(self) -> None:
        try:
            self._send(CLOSE, b"")
        except OSError:
            pass  # it is gone already
        self._socket.close()

    def _more(self) -> None:
        chunk = self._socket.recv(65536)
        if not chunk:
            raise SocketClosed("the server went away")
        self._pending += chunk

    def _frame(self) -> tuple[bool, int, bytes, bytes]:
        """(final, opcode, payload, what follows it); nothing is taken from the buffer until the frame is whole."""
        while True:
            data = self._pending
            if len(data) >= 2:
                length, at = data[1] & 127, 2
                if length == 126 and len(data) >= 4:
                    length, at = struct.unpack(">H", data[2:4])[0], 4
                elif length == 127 and len(data) >= 10:
                    length, at = struct.unpack(">Q", data[2:10])[0], 10
                elif length >= 126:
                    length = len(data)  # the length itself is not all there yet
                if len(data) >= at + length:
                    return bool(data[0] & 128), data[0] & 15, data[at : at + length], data[at + length :]
            self._more()

    def _send(self, opcode: int, payload: bytes) -> None:
        """Send one short control frame; a client must mask what it sends."""
        mask = os.urandom(4)
        masked = bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))
        self._socket.sendall(bytes([128 | opcode, 128 | len(payload)]) + mask + masked)
