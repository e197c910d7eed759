"""The process of ``dist-train serve``: it listens, prints the addresses of the page and answers until Ctrl-C."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_network
from pathlib import Path

import uvicorn

from dist_train.classifier import model_folder
from dist_train.classifier.classifier import Classifier
from dist_train.classifier.serving.access import Access
from dist_train.classifier.serving.access_log import AccessLog, Accounting
from dist_train.classifier.serving.address import PublicURL, is_loopback, listen, page_links
from dist_train.classifier.serving.app import create_app
from dist_train.classifier.serving.connections import Connection, ConnectionLimits, Networks
from dist_train.classifier.serving.served_model import Limits, ServedModel, Shared, model_name
from dist_train.errors import UserError, counted

_THIS_MACHINE = (ip_network("127.0.0.0/8"), ip_network("::1"))


@dataclass(frozen=True)
class ServeOptions:
    """Where the page is served, and to whom.

    Attributes:
        host: name or address to listen on.
        port: port to listen on; 0 for any free port.
        token: the secret that visitors must present; None: it is drawn where others than this machine's users can
            reach the page, and else none is asked for.
        public: the address of the page behind a proxy; None: there is no proxy.
        proxies: the networks of the proxy; what it says about a client's address is believed.
        access_log: the file to which a line a request is appended; "-" is standard output, None is nowhere.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    token: str | None = None
    public: PublicURL | None = None
    proxies: Networks = _THIS_MACHINE
    access_log: str | None = None

    def __post_init__(self) -> None:
        if self.token is not None and len(self.token) < 16:
            raise UserError("--token: give at least 16 characters, or leave it out and one is drawn")

    @property
    def private(self) -> bool:
        """Whether only this machine's users can reach the page."""
        return is_loopback(self.host) and self.public is None

    def access(self, port: int, token: str | None, limits: Limits, requests: int) -> Access:
        """Return what a request needs in order to be let in, for a server that listens on ``port``."""
        hosts = frozenset({"localhost", "127.0.0.1", "::1", self.host}) if self.private else None
        return Access(token, f"dist_train_{port}", hosts, self.public, limits.upload, requests)


def serve(
    paths: Sequence[Path], options: ServeOptions, limits: Limits, connection_limits: ConnectionLimits | None = None
) -> int:
    """Serve the models in folders until Ctrl-C; return the exit code.

    Raises:
        UserError: there is no model, two have the same name, a model is served or changed by another process, or the
            address cannot be listened on.
    """
    connection_limits = connection_limits or ConnectionLimits()
    token = options.token or (None if options.private else secrets.token_urlsafe(24))
    _check_folders(paths)
    log, shared = AccessLog(options.access_log), Shared()
    with listen(options.host, options.port) as listening, ExitStack() as locks:
        for path in paths:
            locks.enter_context(model_folder.lock(path))
        port = listening.getsockname()[1]
        models = [ServedModel(path, limits, shared) for path in paths]
        access = options.access(port, token, limits, connection_limits.client)
        for served in models:
            print(f"{served.path}: {counted(len(served.model.classes), 'class')}", flush=True)
        for link in page_links(options.host, port, options.public, token):
            print(link, flush=True)
        app = Accounting(create_app(models, access, shared.metrics), log, shared.metrics)
        _run_server(app, options, connection_limits, listening)
    return 0


def _check_folders(paths: Sequence[Path]) -> None:
    names: dict[str, Path] = {}
    for path in paths:
        if not model_folder.is_model(path):
            Classifier.load(path)  # raises the error that says what is missing
        other = names.setdefault(model_name(path), path)
        if other is not path:
            raise UserError(f"{other} and {path}: both are named {model_name(path)}; rename a folder, or give only one")


def _run_server(app: Accounting, options: ServeOptions, limits: ConnectionLimits, listening: socket.socket) -> None:
    proxies = options.proxies if options.public else ()
    protocol = partial(Connection, limits=limits, proxies=proxies, on_end=app.account_for_ended)
    server = uvicorn.Server(
        uvicorn.Config(
            app, log_level="error", timeout_graceful_shutdown=5, http=protocol,  # type: ignore[arg-type]
            timeout_keep_alive=int(limits.header) + 1, proxy_headers=bool(proxies),
            forwarded_allow_ips=[str(network) for network in proxies],
        )
    )  # fmt: skip
    with suppress(KeyboardInterrupt):
        server.run(sockets=[listening])
