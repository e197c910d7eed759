"""Who is let in to the page, and how much may be sent."""

from __future__ import annotations

import secrets
from collections import Counter
from dataclasses import dataclass
from urllib.parse import SplitResult, unquote, urlsplit

from fastapi import HTTPException, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dist_train.classifier.serving.address import PublicURL, origin
from dist_train.classifier.serving.connections import client

_HEADERS = {
    "Content-Security-Policy": "default-src 'self' 'unsafe-inline'; img-src blob: data:; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
_LOGIN = """<!doctype html><meta name="viewport" content="width=device-width"><title>dist-train</title>
<meta name="color-scheme" content="light dark"><body style="font:1rem system-ui;max-width:30rem;margin:3rem auto">
<p>This model asks for the token that <code>dist-train serve</code> printed.</p>
<form><label>Token <input name="token" type="password" autofocus></label> <button>Open</button></form>"""


@dataclass(frozen=True)
class Access:
    """What a request must have to be let in.

    Attributes:
        token: what a client must have; None: nothing.
        cookie: name of the one that holds the token.
        hosts: the names by which the server may be called, without port; None: any, as a token is asked for. On a
            loopback address this keeps out other web sites that have a name resolve to it.
        public: the address of the page at a proxy, where there is one. The proxy may pass its path on or not, and
            whatever host it likes.
        upload: limit of a body, in bytes.
        requests: of one client that are being answered.
    """

    token: str | None
    cookie: str
    hosts: frozenset[str] | None
    public: PublicURL | None
    upload: int
    requests: int


class AccessControl:
    """ASGI middleware: lets a request in or not, the token asked before anything is counted; bounds its body whatever
    its header says; and adds headers to the answer."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self.app, self.access = app, access
        self._answered: Counter[str] = Counter()  # client -> its requests that are being answered

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.access.upload:
                raise HTTPException(413, self._too_long())
            return message

        async def headed(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        self._leave_out_the_path(scope)
        request = Request(scope)
        refusal = self._refuse(request)
        if refusal:
            return await refusal(scope, counted, headed)
        owner = client(request.client.host) if request.client else ""
        if self._answered[owner] >= self.access.requests:
            detail = f"{self.access.requests} requests of this address are being answered; wait for one of them"
            return await error_response(429, detail)(scope, counted, headed)
        self._answered[owner] += 1
        try:
            await self.app(scope, counted, headed)
        finally:
            self._answered[owner] -= 1
            if not self._answered[owner]:
                del self._answered[owner]

    def _leave_out_the_path(self, scope: Scope) -> None:
        prefix = unquote(self.access.public.path) if self.access.public else "/"
        if prefix != "/" and scope["path"].startswith(prefix):
            scope["path"] = scope["path"][len(prefix) - 1 :]

    def _refuse(self, request: Request) -> Response | None:
        access, host = self.access, request.headers.get("host", "")
        if access.hosts is not None and _split(f"//{host}").hostname not in access.hosts:
            return error_response(421, f"host {host!r} is not served here; use the address that was printed")
        page = request.headers.get("origin")
        if request.method != "GET" and page and not self._is_own(page, host):
            return error_response(403, f"a page of {page} may not change this model")
        if access.token is not None and not self._knows_the_token(request, access.token):
            if request.url.path == "/":
                return HTMLResponse(_LOGIN, 401)
            return error_response(401, "no token, or a wrong one; open the address that was printed")
        length = request.headers.get("content-length", "0")
        if not length.isdigit() or int(length) > access.upload:
            return error_response(413, self._too_long())
        return None

    def _is_own(self, page: str, host: str) -> bool:
        """Whether a page is this server's, by its Origin: the public one, or as the server was called."""
        if self.access.public:
            return origin(page) == self.access.public.origin
        return _split(page).netloc == host

    def _knows_the_token(self, request: Request, token: str) -> bool:
        scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
        asked = request.query_params.get("token") if request.url.path == "/" else None
        given = (bearer if scheme.lower() == "bearer" else None) or asked or request.cookies.get(self.access.cookie, "")
        return secrets.compare_digest(given.encode(), token.encode())

    def _too_long(self) -> str:
        limit = f"{self.access.upload / 1e6:g} MB"
        return f"the upload is over {limit}, the limit of this server; send fewer or smaller photos"


def _split(address: str) -> SplitResult:
    try:
        return urlsplit(address)
    except ValueError:  # half an IPv6 address
        return urlsplit("")


def error_response(code: int, detail: str) -> JSONResponse:
    """An error for the page: its code, and what to say."""
    return JSONResponse({"detail": detail}, code)
