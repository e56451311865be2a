"""The websocket reader against frames written by hand as RFC 6455 draws them."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest

from likeness.experiments.websocket import SocketClosed, WebSocket


def frame(opcode: int, payload: bytes, final: bool = True) -> bytes:
    first = bytes([(128 if final else 0) | opcode])
    if len(payload) < 126:
        return first + bytes([len(payload)]) + payload
    if len(payload) < 65536:
        return first + bytes([126]) + struct.pack(">H", len(payload)) + payload
    return first + bytes([127]) + struct.pack(">Q", len(payload)) + payload


@contextmanager
def serving(*pieces: bytes) -> Iterator[str]:
    """A server that accepts one websocket and sends the pieces one after the other, each in a packet of its own."""
    listener = socket.create_server(("127.0.0.1", 0))
    released = threading.Event()

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 101 Switching Protocols\r\n\r\n")
            for piece in pieces:
                connection.sendall(piece)
                released.wait(0.02)
            released.wait(5)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"ws://127.0.0.1:{listener.getsockname()[1]}/ws?clientId=x"
    finally:
        released.set()
        thread.join(5)
        listener.close()


@pytest.mark.parametrize("size", [0, 5, 125, 126, 65535, 65536, 200_000])
def test_every_length_arrives_whole(size):
    """Fails if one of the three length encodings is read wrongly."""
    payload = bytes(i % 251 for i in range(size))
    with serving(frame(2, payload)) as url, closing(WebSocket(url)) as reader:
        assert reader.receive(5) == payload


def test_fragments_and_split_packets_are_joined_and_pings_passed_over():
    """Fails if a frame cut in two packets, a message in two frames or a ping in between breaks the reading."""
    whole = frame(1, "grüße".encode()[:3], final=False) + frame(9, b"?") + frame(0, "grüße".encode()[3:])
    with serving(whole[:4], whole[4:9], whole[9:] + frame(1, b"next")) as url, closing(WebSocket(url)) as reader:
        assert reader.receive(5) == "grüße"
        assert reader.receive(5) == "next"


def test_a_timeout_loses_nothing_and_a_close_is_told():
    """Fails if half a frame is thrown away when the wait ends, or a closed connection looks like silence."""
    message = frame(1, b"late")
    with serving(message[:3], message[3:] + frame(8, b"")) as url, closing(WebSocket(url)) as reader:
        with pytest.raises(TimeoutError):
            reader.receive(0.000001)
        assert reader.receive(5) == "late"
        with pytest.raises(SocketClosed):
            reader.receive(5)
