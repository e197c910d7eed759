"""Who is let in to the page, and how much may be sent."""

from __future__ import annotations

import secrets
from urllib.parse import SplitResult, urlsplit

from fastapi import HTTPException, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

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


class Guard:
    """ASGI middleware: lets a request in or not, bounds its body whatever its header says, and adds headers to the
    answer.

    Args:
        token: what a client must have; None: nothing.
        hosts: the names by which the server may be called, without port; None: any. On a loopback address this keeps
            out other web sites that have a name resolve to it.
        cookie: name of the one that holds the token.
        limit: of a body, in bytes.
    """

    def __init__(self, app: ASGIApp, token: str | None, hosts: frozenset[str] | None, cookie: str, limit: int) -> None:
        self.app, self.token, self.hosts, self.cookie, self.limit = app, token, hosts, cookie, limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self.limit:
                raise HTTPException(413, self._too_long())
            return message

        async def headed(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        refused = self._refused(Request(scope))
        await (refused or self.app)(scope, counted, headed)

    def _refused(self, request: Request) -> Response | None:
        host = request.headers.get("host", "")
        if self.hosts is not None and _split(f"//{host}").hostname not in self.hosts:
            return told(421, f"host {host!r} is not served here; use the address that was printed")
        origin = request.headers.get("origin")
        if request.method != "GET" and origin and _split(origin).netloc != host:
            return told(403, f"a page of {origin} may not change this model")
        length = request.headers.get("content-length", "0")
        if not length.isdigit() or int(length) > self.limit:
            return told(413, self._too_long())
        if self.token is None:
            return None
        scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
        asked = request.query_params.get("token") if request.url.path == "/" else None
        given = (bearer if scheme.lower() == "bearer" else None) or asked or request.cookies.get(self.cookie, "")
        if secrets.compare_digest(given.encode(), self.token.encode()):
            return None
        if request.url.path == "/":
            return HTMLResponse(_LOGIN, 401)
        return told(401, "no token, or a wrong one; open the address that was printed")

    def _too_long(self) -> str:
        return f"the upload is over {self.limit / 1e6:g} MB, the limit of this server; send fewer or smaller photos"


def _split(address: str) -> SplitResult:
    try:
        return urlsplit(address)
    except ValueError:  # half an IPv6 address
        return urlsplit("")


def told(code: int, detail: str) -> JSONResponse:
    return JSONResponse({"detail": detail}, code)
