"""Addresses of the page: the address that the server listens on, and the address that visitors type."""

from __future__ import annotations

import ipaddress
import re
import socket
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeAlias
from urllib.parse import quote, urlsplit

from dist_train.errors import UserError
from dist_train.names import shown

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True)
class PublicURL:
    """The address of the page behind a proxy.

    Attributes:
        origin: scheme, host and port as a browser writes them: ``https://photos.example``, with a port only where it
            is not the scheme's default.
        path: where on that host the page is: ``/``, or ``/photos/``.
    """

    origin: str
    path: str

    @property
    def secure(self) -> bool:
        """Whether the page is reached over https."""
        return self.origin.startswith("https:")

    @classmethod
    def parse(cls, url: str) -> PublicURL:
        """Read the value of ``--public-url``.

        Raises:
            UserError: it is not an http(s) address, or has more than a host, a port and a path.
        """
        with suppress(ValueError):  # an IPv6 address without its closing bracket
            parts = urlsplit(url)
            plain = (
                url.isprintable()
                and parts.username is None
                and not parts.query
                and not parts.fragment
                and parts.port != 0
                # The host as browsers send it (xn--...), and a path that fits into the attribute of a cookie.
                and re.fullmatch(r"[A-Za-z0-9.:\[\]-]+", parts.netloc) is not None
                and re.fullmatch(r"[A-Za-z0-9._~/-]*", parts.path) is not None
                and ".." not in parts.path.split("/")
            )
            if origin(url) and plain:
                return cls(origin(url), re.sub("/+", "/", f"/{parts.path}/"))
        raise UserError(f"--public-url {shown(url)}: give https://HOST, https://HOST:PORT or https://HOST/PATH/")


def origin(url: str) -> str:
    """Return scheme, host and port of an address as browsers write them; "" where the address lacks them."""
    with suppress(ValueError):  # an IPv6 address without its closing bracket, or a port that is not a number
        parts = urlsplit(url)
        if parts.scheme in _PORTS and parts.hostname:
            host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
            port = "" if parts.port in (None, _PORTS[parts.scheme]) else f":{parts.port}"
            return f"{parts.scheme}://{host}{port}"
    return ""


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens. What its connections write is sent at once: by TCP's default the body of an answer
    would wait until the client has confirmed the header, which clients put off by 40 ms (Nagle's algorithm and delayed
    acknowledgements). asyncio switches that off only for sockets whose protocol is named, which ``socket`` does not do.

    Args:
        host: name or address; "::" is every address of this machine, of IPv4 too where the system can do both at once.

    Raises:
        UserError: the port is out of range, or the address cannot be listened on.
    """
    if not 0 <= port < 65536:
        raise UserError(f"--port {port}: must be in 0..65535")
    if host.startswith("["):
        raise UserError(f"--host {host}: leave the brackets out: --host {host.strip('[]')}")
    both = ":" in host and is_every_address(host) and socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family, dualstack_ipv6=both)
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # connections inherit it
        return listening
    except (OSError, UnicodeError) as error:
        text = getattr(error, "strerror", None) or str(error)
        raise UserError(f"--host {host} --port {port}: {text}; take another one, or --port 0 for any") from None


def is_loopback(host: str) -> bool:
    """Return whether a name or address is this machine's own, which no other machine can reach."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_every_address(host: str) -> bool:
    """Return whether an address stands for all addresses of this machine, as "0.0.0.0" and "::" do."""
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def without_mapping(address: str) -> str:
    """Return the address of a client as its network writes it: a socket of both families has 10.0.0.7 as
    ``::ffff:10.0.0.7``. Text that is not an address is returned as it is."""
    try:
        mapped = getattr(ipaddress.ip_address(address), "ipv4_mapped", None)
    except ValueError:
        return address
    return str(mapped or address)


def parse_network(text: str) -> Network:
    """Read the value of ``--proxy``: an address as ``10.0.0.7``, or a network as ``10.0.0.0/24``.

    Raises:
        UserError: it is neither.
    """
    try:
        return ipaddress.ip_network(text)
    except ValueError as error:
        raise UserError(f"--proxy {text}: {error}; give its address, or its network as in 10.0.0.0/24") from None


def page_links(host: str, port: int, public: PublicURL | None, token: str | None) -> list[str]:
    """Return the addresses to open in a browser, with the token in them where there is one."""
    names = [f"[{host}]" if ":" in host else host]
    if is_every_address(host):
        names = [socket.gethostname(), *_addresses_in_network(host)]
    pages = [f"{public.origin}{public.path}"] if public else [f"http://{name}:{port}/" for name in names]
    return [page + (f"?token={quote(token)}" if token else "") for page in pages]


def _addresses_in_network(host: str) -> list[str]:
    """Return this machine's addresses in its networks, of the families that ``listen`` takes for a host, as they stand
    in a URL: a phone cannot resolve the machine's name."""
    probes = [(socket.AF_INET, "192.0.2.1")] if ":" not in host or socket.has_dualstack_ipv6() else []
    probes += [(socket.AF_INET6, "2001:db8::1")] if ":" in host else []
    names = []
    for family, other in probes:
        with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((other, 9))  # a datagram socket: this sends nothing
            names.append(probe.getsockname()[0])
    return [f"[{name}]" if ":" in name else name for name in names if "%" not in name]  # %: of no use elsewhere
