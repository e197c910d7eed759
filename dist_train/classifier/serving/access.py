"""Who is let in to the page, and how much a client may send.

The host check is not Starlette's ``TrustedHostMiddleware``: that answers 400 in plain text, which the page cannot show,
and it knows neither origins nor tokens, which are checked in the same place.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

from fastapi import HTTPException, Request, Response
from fastapi.responses import FileResponse, JSONResponse
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dist_train.classifier.serving.address import PublicURL, origin
from dist_train.classifier.serving.connections import client_key
from dist_train.names import shown

_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob:; object-src 'none'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
_LOGIN = Path(__file__).with_name("page") / "login.html"


@dataclass(frozen=True)
class Access:
    """What a request needs in order to be let in.

    Attributes:
        token: the secret that a client must present; None: none is asked for.
        cookie: name of the cookie that holds the token.
        hosts: the names by which the server may be called, without port; None: any name, as a token is asked for. On a
            loopback address this keeps out web sites whose name resolves to it (DNS rebinding).
        public: the address of the page behind a proxy; None: there is no proxy. The proxy may strip the path or not,
            and may send any host.
        upload: limit of a body, in bytes.
        requests: how many requests of one client are answered at a time.
    """

    token: str | None
    cookie: str
    hosts: frozenset[str] | None
    public: PublicURL | None
    upload: int
    requests: int


class AccessControl:
    """ASGI middleware that refuses requests, limits their bodies and adds security headers to all answers.

    The token is checked before anything is counted, and a body is limited whatever its ``Content-Length`` says.
    """

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self.app, self.access = app, access
        self._in_progress: Counter[str] = Counter()  # client -> its requests that are being answered

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or hand it to the application."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        receive = _LimitedBody(receive, self.access.upload)
        send = partial(_send_with_headers, send)
        self._strip_public_path(scope)
        request = Request(scope)
        refusal = self._refusal(request)
        if refusal:
            return await refusal(scope, receive, send)
        client = client_of(request)
        if self._in_progress[client] >= self.access.requests:
            most = self.access.requests
            detail = f"{most} requests of this address are being answered; wait for one of them"
            return await error_response(429, detail, "server.busy", {"n": most})(scope, receive, send)
        self._in_progress[client] += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self._in_progress[client] -= 1
            if not self._in_progress[client]:
                del self._in_progress[client]

    def _strip_public_path(self, scope: Scope) -> None:
        """Remove the path of the public address where the proxy has left it in the request."""
        prefix = unquote(self.access.public.path) if self.access.public else "/"
        if prefix != "/" and scope["path"].startswith(prefix):
            scope["path"] = scope["path"][len(prefix) - 1 :]

    def _refusal(self, request: Request) -> Response | None:
        """Return the answer that refuses a request, or None where it may pass."""
        access, host = self.access, request.headers.get("host", "")
        if access.hosts is not None and _split(f"//{host}").hostname not in access.hosts:
            detail = f"host {host!r} is not served here; use the address that was printed"
            return error_response(421, detail, "access.host", {"host": host})
        page = request.headers.get("origin")
        if request.method != "GET" and page and not self._is_own_page(page, host):
            return error_response(403, f"a page of {page} may not change this model", "access.page", {"page": page})
        if access.token is not None and not _is_open(request) and not self._has_token(request, access.token):
            if request.url.path == "/":
                return FileResponse(_LOGIN, 401)
            return error_response(401, "no token, or a wrong one; open the address that was printed", "access.token")
        length = request.headers.get("content-length", "0")
        if not length.isdigit() or int(length) > access.upload:
            return _too_long(access.upload).response()
        return None

    def _is_own_page(self, page: str, host: str) -> bool:
        """Return whether an ``Origin`` header is this server's: the public address, or the host of the request."""
        if self.access.public:
            return origin(page) == self.access.public.origin
        return _split(page).netloc == host

    def _has_token(self, request: Request, token: str) -> bool:
        """Return whether a request presents the token: in a header, a cookie, or the address of the page."""
        scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
        in_address = request.query_params.get("token") if request.url.path == "/" else None
        presented = (bearer if scheme.lower() == "bearer" else None) or in_address
        presented = presented or request.cookies.get(self.access.cookie, "")
        return secrets.compare_digest(presented.encode(), token.encode())


class _LimitedBody:
    """The ``receive`` of a request that fails once more bytes have come than the limit."""

    def __init__(self, receive: Receive, limit: int) -> None:
        self._receive, self._limit, self._received = receive, limit, 0

    async def __call__(self) -> Message:
        message = await self._receive()
        self._received += len(message.get("body", b""))
        if self._received > self._limit:
            raise _too_long(self._limit)
        return message


async def _send_with_headers(send: Send, message: Message) -> None:
    if message["type"] == "http.response.start":
        headers = MutableHeaders(scope=message)
        for name, value in _HEADERS.items():
            headers.setdefault(name, value)
    await send(message)


def _is_open(request: Request) -> bool:
    """Return whether a request is answered without a token: the files of the page say nothing of a model, and the login
    needs them; probes have no token, and all they learn is whether the server is well."""
    path = request.url.path
    return path == "/health" or (request.method == "GET" and path.startswith("/page/"))


def client_of(request: Request) -> str:
    """Return the key of the client that sent a request (see ``client_key``); "" where it has no address."""
    return client_key(request.client.host) if request.client else ""


class Refusal(HTTPException):
    """Report a request that cannot be answered."""

    def __init__(self, status: int, text: str, kind: str, **values: str | int) -> None:
        """Make a refusal of an HTTP code, a line for the user, and what ``UserError`` takes beside it."""
        super().__init__(status, text)
        self.kind, self.values = kind, values

    def response(self) -> JSONResponse:
        """Return the answer that says so."""
        return error_response(self.status_code, self.detail, self.kind, self.values)


def error_response(
    status: int, detail: str, kind: str = "", values: Mapping[str, str | int] | None = None
) -> JSONResponse:
    """Return an error as ``replies.Fault`` describes it.

    Args:
        status: the HTTP code.
        detail: a line for the user, in English.
        kind: by which the page has the line in other languages.
        values: what that line names.
    """
    seen = {key: value if isinstance(value, int) else shown(value) for key, value in (values or {}).items()}
    return JSONResponse({"detail": detail, "code": kind, "values": seen}, status)


def _too_long(limit: int) -> Refusal:
    text = f"the upload is over {limit / 1e6:g} MB, the limit of this server; send fewer or smaller photos"
    return Refusal(413, text, "upload.large", limit=f"{limit / 1e6:g}")


def _split(address: str) -> SplitResult:
    try:
        return urlsplit(address)
    except ValueError:  # an IPv6 address without its closing bracket
        return urlsplit("")
