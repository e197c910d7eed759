"""Connections that a client cannot hold open for nothing: an HTTP/1.1 protocol with time limits and a fair share.

uvicorn limits the time between requests, and neither that of a header, nor of a body, nor of an answer that is not
taken (its issue 157); its ``limit_concurrency`` turns all visitors away alike. hypercorn and granian limit the time of
a header, and no server for Python limits the connections of one client. So this is uvicorn's protocol with these.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

Networks: TypeAlias = Sequence[ipaddress.IPv4Network | ipaddress.IPv6Network]

_LATE = "the request did not come whole in time; send it again"
_FULL = "too many connections; try again in a few seconds"


@dataclass(frozen=True)
class ConnectionLimits:
    """How long the server waits for a client, and for how many.

    Attributes:
        header: seconds from the start of a connection, or from the answer before, to the end of a header.
        body: seconds for a body, on top of what it takes at ``rate``; also for the rest of a body that was answered
            before it had come whole, as the client reads the answer after it.
        rate: bytes a second of a body that is in time however long it takes.
        answer: seconds without a byte of an answer taken.
        connections: of all clients.
        client: connections of one client, and its requests that are being answered.
    """

    header: float = 10
    body: float = 20
    rate: float = 4000
    answer: float = 30
    connections: int = 200
    client: int = 32


class Connection(H11Protocol):
    """One connection. It ends when its client keeps it waiting, and gives way where there are too many: of the client
    with the most, the oldest that waits for its client; where all of them are being answered, the new one.

    Args:
        proxies: of whose connections any number is let in, as they are many clients'.
    """

    def __init__(self, *args: Any, patience: ConnectionLimits, proxies: Networks = (), **keywords: Any) -> None:
        super().__init__(*args, **keywords)
        self.patience, self.proxies = patience, proxies
        self.phase, self.lingers = "", False
        self._timer: asyncio.TimerHandle | None = None

    # What asyncio and uvicorn call.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.transport = cast(asyncio.Transport, _Lingering(self, transport))
        self.owner = client(self.client[0]) if self.client else ""
        self._follow()
        self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self.received += len(data)
        if not self.lingers:
            super().data_received(data)
            self._follow()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._follow()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._follow()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._follow()

    # Time.

    def _follow(self) -> None:
        """Start the time of another phase when it begins; a phase's own time is not prolonged by what comes in it."""
        phase = self._phase()
        if phase == self.phase:
            return
        self._stop()
        self.phase, self.since, self.received = phase, self.loop.time(), 0
        times = {"header": self.patience.header, "body": self.patience.body, "rest": self.patience.body,
                 "answer": self.patience.answer}  # fmt: skip
        if phase in times:
            self._start(times[phase])

    def _phase(self) -> str:
        """What it waits for: its client's header, body, the rest of a body that was answered, or that it takes an
        answer; or the program ("work")."""
        if self.transport.is_closing() or self.flow.write_paused:
            return "answer"
        if self.conn.their_state is h11.SEND_BODY:
            return "rest" if self.cycle.response_complete else "body"
        return "header" if self.conn.their_state is h11.IDLE else "work"

    def _start(self, seconds: float) -> None:
        self._unsent = self.transport.get_write_buffer_size()
        self._timer = self.loop.call_later(seconds, self._late)

    def _stop(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None

    def _late(self) -> None:
        if 0 < self.transport.get_write_buffer_size() < self._unsent:  # an answer is being taken, slowly
            return self._start(self.patience.answer)
        if self.phase == "body":
            until = self.since + self.patience.body + self.received / self.patience.rate
            left = max(until - self.loop.time(), 1.0 if self.flow.read_paused else 0.0)  # 1: it waits for the program
            if left > 0:
                return self._start(left)
        started = self.phase == "body" or (self.phase == "header" and self.conn.trailing_data[0])
        self.leave(408, _LATE) if started and not self._answering() else self.leave()

    def _answering(self) -> bool:
        return self.cycle is not None and self.cycle.response_started and not self.cycle.response_complete

    # Number.

    def _make_room(self) -> None:
        others = cast("set[Connection]", self.connections)
        counts = Counter(other.owner for other in others)
        proxy = self.client is not None and within(self.client[0], self.proxies)
        if counts[self.owner] > self.patience.client and not proxy:
            most = self.owner
        elif len(others) > self.patience.connections:
            most = counts.most_common(1)[0][0]
        else:
            return
        waiting = [other for other in others if other.owner == most and other.phase != "work" and other is not self]
        if waiting:
            min(waiting, key=lambda other: other.since).leave()
        else:
            self.leave(503, _FULL)

    def leave(self, code: int = 0, detail: str = "") -> None:
        """End the connection at once, with an answer where a code is given."""
        self._stop()
        self.connections.discard(self)
        if self.cycle is not None:
            self.cycle.disconnected = True
        if not code or self.transport.get_write_buffer_size():
            return self.transport.abort()
        body = json.dumps({"detail": detail}).encode()
        head = f"HTTP/1.1 {code} {'Request Timeout' if code == 408 else 'ServedModel Unavailable'}\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        self.transport.write(head.encode() + body)
        self.transport.close()
        self._start(self.patience.answer)


class _Lingering:
    """A transport that is not closed while a body comes whose request is answered: the client would be told that the
    connection is reset, and not the answer. What comes is dropped until the client closes, or its time is over.
    (nginx asks for a close after each request, and does the same with its own clients: ``lingering_close``.)"""

    def __init__(self, connection: Connection, transport: asyncio.Transport) -> None:
        self._connection, self._transport = connection, transport

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def close(self) -> None:
        connection = self._connection
        unread = connection.conn.their_state is h11.SEND_BODY and connection.cycle.response_complete
        if unread and not connection.lingers and not self._transport.is_closing():
            connection.lingers = True
            self._transport.write_eof()
        else:
            self._transport.close()


def client(address: str) -> str:
    """What counts as one client: an address, or of IPv6 the network of 64 bits that a household or a host has."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    return str(ip) if ip.version == 4 else str(ipaddress.ip_network((ip, 64), strict=False))


def within(address: str, networks: Networks) -> bool:
    """Whether an address is in one of the networks."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    return any(ip in network for network in networks)
