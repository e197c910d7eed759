"""Connections that a client cannot hold open for nothing: uvicorn's HTTP/1.1 protocol with time limits and fair shares.

uvicorn limits the time between requests, but not the time of a header, a body or an answer that the client does not
read (its issue 157), and its ``limit_concurrency`` turns all visitors away alike. hypercorn and granian limit the time
of a header, and no server for Python limits the connections of a single client. Hence this subclass.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from dist_train.classifier.serving.address import Network, without_mapping

Networks: TypeAlias = Sequence[Network]

_STATUS = {408: "Request Timeout", 503: "Service Unavailable"}


@dataclass(frozen=True)
class Notice:
    """The answer to a client whose request the application does not learn of.

    Attributes:
        code: of the answer, in HTTP.
        detail: the line for the user, where ``n`` stands for a limit.
        kind: what the page knows it by.
    """

    code: int
    detail: str
    kind: str


LATE = Notice(408, "the request did not come whole in time; send it again", "request.late")
FULL = Notice(503, "too many connections; try again in a few seconds", "server.full")
MANY = Notice(503, "over {n} connections of this address, the limit of this server; close some, or other windows of "
              "the page, or try again in a few seconds", "server.connections")  # fmt: skip


@dataclass(frozen=True)
class ConnectionLimits:
    """How long the server waits for a client, and how many connections it keeps.

    Attributes:
        header: seconds from the start of a connection, or from the previous answer, to the end of a header.
        body: seconds for a body, in addition to the time that it takes at ``rate``; also for the rest of what was
            answered before it had come whole, as the client reads the answer after it.
        rate: bytes per second at which a body may come for as long as it takes.
        answer: seconds in which a client must read at least a byte of its answer.
        connections: connections of all clients together; as many again may be answered that they are too many, and
            wait for their clients to read that.
        client: connections of a single client, and its requests that are answered at a time.
    """

    header: float = 10
    body: float = 20
    rate: float = 4000
    answer: float = 30
    connections: int = 200
    client: int = 32


class Connection(H11Protocol):
    """A connection that ends when its client keeps it waiting, and gives way where there are too many.

    Where there are too many, the client with the most connections loses the oldest that waits for it; where all of
    its connections are being answered, the new connection is refused. Either is told by an answer, which the client
    can read whatever it still sends.

    Args:
        limits: how long to wait, and how many connections to keep.
        proxies: networks whose connections are not limited in number, as they are those of many clients.
        on_end: is told the client and the code of each connection that is ended (0: without an answer).

    Attributes:
        phase: what the connection waits for: "header", "body", "rest" (of what is answered already) or "answer"
            (for its client to read it); "work" while it waits for the application.
        lingers: whether it is answered and drops what still comes.
        ended: whether the server has ended it, so that it does not count any more.
        key: its client, as ``client_key`` counts clients.
    """

    def __init__(
        self,
        *args: Any,
        limits: ConnectionLimits,
        proxies: Networks = (),
        on_end: Callable[[str, int], None] = lambda client, code: None,
        **keywords: Any,
    ) -> None:
        super().__init__(*args, **keywords)
        self.limits, self.proxies, self._on_end = limits, proxies, on_end
        self.phase, self.lingers, self.ended = "", False, False
        self._timer: asyncio.TimerHandle | None = None

    # Called by asyncio and uvicorn.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.transport = cast(asyncio.Transport, _LingeringTransport(self, transport))
        if self.client:
            self.client = (without_mapping(self.client[0]), self.client[1])
        self.key = client_key(self.client[0]) if self.client else ""
        self._update_phase()
        self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self.received += len(data)
        if not self.lingers:
            super().data_received(data)
            self._update_phase()

    def send_400_response(self, msg: str) -> None:
        self._leave_application()
        if not self.ended:
            self._on_end(self.client[0] if self.client else "", 400)  # the application does not log it
        self.ended = True
        super().send_400_response(msg)

    def shutdown(self) -> None:
        self.transport.close() if self.lingers else super().shutdown()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.lingers:
            self._unset_keepalive_if_required()  # its time is that of the rest
        self._update_phase()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._update_phase()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._update_phase()

    # Time limits.

    def _update_phase(self) -> None:
        """Start the timer of a phase when the phase begins; bytes that come within a phase do not prolong it."""
        phase = self._current_phase()
        if phase == self.phase:
            return
        self._stop_timer()
        self.phase, self.since, self.received = phase, self.loop.time(), 0
        limits = self.limits
        seconds = {"header": limits.header, "body": limits.body, "rest": limits.body, "answer": limits.answer}
        if phase in seconds:
            self._start_timer(seconds[phase])

    def _current_phase(self) -> str:
        if self.lingers:
            return "rest"
        if self.transport.is_closing() or self.flow.write_paused:
            return "answer"
        if self.conn.their_state is h11.SEND_BODY:
            return "rest" if self.cycle.response_complete else "body"
        return "header" if self.conn.their_state is h11.IDLE else "work"

    def _start_timer(self, seconds: float) -> None:
        self._unsent = self.transport.get_write_buffer_size()
        self._timer = self.loop.call_later(seconds, self._on_timeout)

    def _stop_timer(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None

    def _on_timeout(self) -> None:
        limits = self.limits
        if 0 < self.transport.get_write_buffer_size() < self._unsent:  # the client reads its answer, slowly
            return self._start_timer(limits.answer)
        if self.phase == "body":
            until = self.since + limits.body + self.received / limits.rate
            left = until - self.loop.time()
            if self.flow.read_paused:  # the application is slow, not the client
                left = max(left, 1.0)
            if left > 0:
                return self._start_timer(left)
        begun = self.phase == "body" or (self.phase == "header" and self.conn.trailing_data[0])
        self.end(LATE if begun else None)

    def _is_answering(self) -> bool:
        return self.cycle is not None and self.cycle.response_started and not self.cycle.response_complete

    # The number of connections.

    def _make_room(self) -> None:
        """End a connection where this new one is over the limit of its client or of all clients."""
        there = cast("set[Connection]", self.connections)
        ended = [other for other in there if other.ended]
        if len(ended) > self.limits.connections:
            min(ended, key=lambda other: other.since).end()
        others = [other for other in there if not other.ended]
        counts = Counter(other.key for other in others)
        from_proxy = self.client is not None and is_within(self.client[0], self.proxies)
        if counts[self.key] > self.limits.client and not from_proxy:
            largest, notice = self.key, MANY
        elif len(others) > self.limits.connections:
            largest, notice = counts.most_common(1)[0][0], FULL
        else:
            return
        waiting = [other for other in others if other.key == largest and other.phase != "work" and other is not self]
        if waiting:
            min(waiting, key=lambda other: (other.phase != "header", other.since)).end(notice)  # idle before uploads
        else:
            self.end(notice)

    def end(self, notice: Notice | None = None) -> None:
        """End the connection: at once, or with a notice where one is given and no other answer has begun."""
        self._stop_timer()
        self._leave_application()
        if self.phase == "rest" or self._is_answering() or self.transport.get_write_buffer_size():
            notice = None
        if not self.ended:
            self._on_end(self.client[0] if self.client else "", notice.code if notice else 0)
        self.ended = True
        if notice is None:
            self.connections.discard(self)
            return self.transport.abort()
        values = {"n": self.limits.client} if notice is MANY else {}
        body = json.dumps({"detail": notice.detail.format(**values), "code": notice.kind, "values": values}).encode()
        head = f"HTTP/1.1 {notice.code} {_STATUS[notice.code]}\r\nContent-Type: application/json\r\n"
        head += "Retry-After: 5\r\n" * (notice.code == 503)
        head += f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        self.transport.write(head.encode() + body)
        self.linger()

    def _leave_application(self) -> None:
        """Let the application wait for the body no longer; what it answers is dropped."""
        if self.cycle is not None:
            self.cycle.disconnected, self.cycle.waiting_for_100_continue = True, False
            self.cycle.message_event.set()

    def linger(self) -> None:
        """Close the way to the client after what was written, and drop what still comes until the client closes the
        other way or its time is over.

        If both were closed at once, a client that still sends would learn that the connection was reset, and not the
        answer. nginx does the same with its clients: ``lingering_close``.
        """
        self.lingers = True
        self._unset_keepalive_if_required()
        self.flow.resume_reading()
        with suppress(OSError):  # the client has gone
            self.transport.write_eof()
        self._update_phase()


class _LingeringTransport:
    """A transport that lingers where its connection is closed and more may come: the rest of a body whose request is
    answered already, or of what is not HTTP. nginx as a proxy asks for a close after each request.
    """

    def __init__(self, connection: Connection, transport: asyncio.Transport) -> None:
        self._connection, self._transport = connection, transport

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def close(self) -> None:
        connection = self._connection
        state = connection.conn.their_state
        unread = state is h11.ERROR or (state is h11.SEND_BODY and connection.cycle.response_complete)
        if unread and not connection.lingers and not self._transport.is_closing():
            connection.linger()
        else:
            self._transport.close()


def client_key(address: str) -> str:
    """Return what counts as the same client: an IPv4 address, or the /64 network of an IPv6 address, which belongs to
    a single household or host. Text that is not an address is returned as it is."""
    try:
        ip = ipaddress.ip_address(without_mapping(address.partition("%")[0]))
    except ValueError:
        return address
    return str(ip) if ip.version == 4 else str(ipaddress.ip_network((ip, 64), strict=False))


def is_within(address: str, networks: Networks) -> bool:
    """Return whether an address is in any of the networks."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    return any(ip in network for network in networks)
