"""Where the page is: what the server listens on, and the address that visitors know it by."""

from __future__ import annotations

import ipaddress
import re
import socket
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

from dist_train.errors import UserError
from dist_train.names import shown

_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True)
class PublicURL:
    """The address of the page behind a proxy.

    Attributes:
        origin: as a browser names it: ``https://photos.example``, with a port where it is not the scheme's own.
        path: ``/``, or where on that host the page is: ``/photos/``.
    """

    origin: str
    path: str

    @property
    def secure(self) -> bool:
        return self.origin.startswith("https:")

    @classmethod
    def parse(cls, url: str) -> PublicURL:
        """Read what was given for ``--public-url``.

        Raises:
            UserError: it is no http address, or has more than a host, a port and a path.
        """
        with suppress(ValueError):  # half an IPv6 address
            parts = urlsplit(url)
            plain = (
                url.isprintable()
                and parts.username is None
                and not parts.query
                and not parts.fragment
                and parts.port != 0
            )
            # The host as browsers send it (xn--...), and of the path what a cookie's attribute can hold.
            plain = plain and re.fullmatch(r"[A-Za-z0-9.:\[\]-]+", parts.netloc) is not None
            plain = plain and re.fullmatch(r"[A-Za-z0-9._~/-]*", parts.path) is not None
            if origin(url) and plain and ".." not in parts.path.split("/"):
                return cls(origin(url), re.sub("/+", "/", f"/{parts.path}/"))
        raise UserError(f"--public-url {shown(url)}: give https://HOST, https://HOST:PORT or https://HOST/PATH/")


def origin(url: str) -> str:
    """Scheme, host and port of an address as browsers write them; "" for an address without these."""
    with suppress(ValueError):  # half an IPv6 address, or a port that is none
        parts = urlsplit(url)
        if parts.scheme in _PORTS and parts.hostname:
            host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
            port = "" if parts.port in (None, _PORTS[parts.scheme]) else f":{parts.port}"
            return f"{parts.scheme}://{host}{port}"
    return ""


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        UserError: the address cannot be listened on.
    """
    if not 0 <= port < 65536:
        raise UserError(f"--port {port}: must be in 0..65535")
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, UnicodeError) as error:
        text = getattr(error, "strerror", None) or str(error)
        raise UserError(f"--host {host} --port {port}: {text}; take another one, or --port 0 for any") from None


def is_loopback(host: str) -> bool:
    """Whether a name or address to listen on is this machine's own, which no other reaches."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def parse_network(text: str) -> Any:
    """The addresses of a proxy: ``10.0.0.7`` or ``10.0.0.0/24``, as ``ipaddress`` has them.

    Raises:
        UserError: it is neither.
    """
    try:
        return ipaddress.ip_network(text)
    except ValueError as error:
        raise UserError(f"--proxy {text}: {error}; give its address, or its network as in 10.0.0.0/24") from None


def page_links(host: str, port: int, public: PublicURL | None, token: str | None) -> list[str]:
    """The addresses to open in a browser, the token in them where there is one."""
    names = [f"[{host}]" if ":" in host else host]
    if host in ("0.0.0.0", "::"):
        names = [socket.gethostname(), *_own_address()]
    pages = [f"{public.origin}{public.path}"] if public else [f"http://{name}:{port}/" for name in names]
    return [page + (f"?token={quote(token)}" if token else "") for page in pages]


def _own_address() -> list[str]:
    """This machine's address on its network, where it has one: phones do not know its name."""
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # sends nothing
        return [probe.getsockname()[0]]
    return []
