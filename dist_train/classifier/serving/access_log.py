"""What was asked of the server, and what it answered: a line of JSON a request."""

from __future__ import annotations

import json
import logging
import sys
import time
from datetime import UTC, datetime
from logging.handlers import WatchedFileHandler
from pathlib import Path

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dist_train.classifier.serving.metrics import Metrics
from dist_train.errors import UserError

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class AccessLog:
    """Write a line of JSON for each request. A line that cannot be written is lost, and the server says so once.

    The file may be renamed while it is written, as logrotate does: a new file is begun then.
    """

    def __init__(self, file: str | None) -> None:
        """Open the log.

        Args:
            file: what to append to; "-" is standard output, None is nowhere.

        Raises:
            UserError: the file cannot be opened.
        """
        self.file, self._handler, self._failed = file, logging.Handler(), False
        if file == "-":
            self._handler = logging.StreamHandler(sys.stdout)
        elif file is not None:
            try:
                self._handler = WatchedFileHandler(Path(file), encoding="utf-8")
            except OSError as error:
                raise UserError(f"--access_log {file}: {error.strerror}; give a file that can be written") from None
        self._handler.handleError = self._say_once  # type: ignore[method-assign,assignment]

    def write(self, client: str, method: str, path: str, code: int, **numbers: float) -> None:
        """Write the line of a request.

        Args:
            client: its address.
            method: "GET", ...; "" where the request did not come whole.
            path: the path of its address, without the query, which may have a token in it.
            code: of the answer.
            numbers: what else there is to say of it.
        """
        if self.file is None:
            return
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line = {"time": now, "client": client, "method": method, "path": path, "code": code, **numbers}
        record = logging.LogRecord("access", logging.INFO, "", 0, json.dumps(line), None, None)
        self._handler.handle(record)

    def _say_once(self, _: logging.LogRecord) -> None:
        """Say that a line could not be written; called by ``logging`` where that raised an exception."""
        if not self._failed:
            print(f"dist-train: error: access log {self.file}: {sys.exc_info()[1]}; its lines are lost, and the server "
                  f"goes on", file=sys.stderr)  # fmt: skip
        self._failed = True


class Accounting:
    """ASGI middleware around everything else: it counts requests and writes the access log."""

    def __init__(self, app: ASGIApp, log: AccessLog, metrics: Metrics) -> None:
        self.app, self._log, self._metrics = app, log, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the application answer a request, and account for it."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        path, begin = scope["path"], time.perf_counter()  # before the application, which changes the path
        code, received, sent = 499, 0, 0  # a client that has gone before an answer began

        async def counted_receive() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            return message

        async def counted_send(message: Message) -> None:
            nonlocal code, sent
            code, sent = message.get("status", code), sent + len(message.get("body", b""))
            await send(message)

        try:
            await self.app(scope, counted_receive, counted_send)
        finally:
            seconds = time.perf_counter() - begin
            self._count(scope, code, seconds, received, sent)
            client = scope["client"][0] if scope.get("client") else ""
            self._log.write(client, scope["method"], path, code, ms=round(1000 * seconds, 1), received=received,
                            sent=sent)  # fmt: skip

    def account_for_ended(self, client: str, code: int) -> None:
        """Account for a connection that the server has ended.

        Args:
            client: its address.
            code: of the answer; 0 where it was closed without an answer.
        """
        self._metrics.ended.labels(code).inc()
        if code:  # a connection that was only idle had asked for nothing
            self._log.write(client, "", "", code)

    def _count(self, scope: Scope, code: int, seconds: float, received: int, sent: int) -> None:
        metrics, route = self._metrics, getattr(scope.get("route"), "path", "other")
        method = scope["method"] if scope["method"] in _METHODS else "other"
        metrics.requests.labels(method, route, code).inc()
        metrics.seconds.labels(route).observe(seconds)
        metrics.received.inc(received)
        metrics.sent.inc(sent)
