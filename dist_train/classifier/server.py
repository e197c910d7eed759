"""A web page for a model: drop photos, see the classes, add some from photos. FastAPI and one HTML file.

FastAPI and not Gradio: limits on what is uploaded, tokens and all-or-nothing changes are a matter of a few lines
here, and the page is a file without a build, a font or a script from elsewhere.

The model that answers is never changed: a change is made on a copy, written to disk, and only then put in its place,
one change at a time. So no answer sees half of one, and what a client was told is added is on disk.
"""

from __future__ import annotations

import hashlib
import ipaddress
import secrets
import shutil
import socket
import tempfile
import threading
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import torch
import uvicorn
from fastapi import Body, FastAPI, File, Form, Request, Response, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, RedirectResponse
from starlette.background import BackgroundTask

from dist_train.classifier import folder
from dist_train.classifier.classifier import Classifier
from dist_train.classifier.guard import Guard, told
from dist_train.errors import UserError

PAGE = Path(__file__).with_name("page.html")
_REMEMBERED = 2000  # photos whose activations are kept, so that a change shows without another upload


@dataclass(frozen=True)
class Limits:
    """Of one upload in bytes, of one photo in pixels, and of all classes."""

    upload: int = 64_000_000
    pixels: int = 64_000_000
    classes: int = 5000


class Service:
    """The model in use, and its changes. All methods may be called by several threads."""

    def __init__(self, path: Path, limits: Limits) -> None:
        self.path, self.limits = path, limits
        self.model = Classifier.load(path)
        self.model.head()
        self._change = threading.Lock()
        self._work = threading.Semaphore(2)  # photos being decoded take memory
        self._seen: OrderedDict[str, torch.Tensor] = OrderedDict()
        self._look = threading.Lock()

    def embed(self, data: bytes, name: str) -> tuple[str, torch.Tensor]:
        """The key of a photo, and its activation [1, dim].

        Raises:
            UserError: it cannot be decoded, or is too large.
        """
        key = hashlib.sha256(data).hexdigest()
        with self._look:
            found = self._seen.get(key)
        if found is None:
            with self._work:
                found = self.model.activations(self.model.pixels(data, name, self.limits.pixels))
        with self._look:
            self._seen[key] = found
            self._seen.move_to_end(key)
            while len(self._seen) > _REMEMBERED:
                self._seen.popitem(last=False)
        return key, found

    def remembered(self, key: str) -> torch.Tensor | None:
        with self._look:
            return self._seen.get(key)

    def change(self, make: Callable[[Classifier], None]) -> None:
        """Change a copy, write it, and put it in place.

        Raises:
            UserError: of ``make``; nothing is changed.
            OSError: it cannot be written; nothing is changed.
        """
        with self._change:
            changed = self.model.copy()
            make(changed)
            changed.head()
            changed.save(self.path)
            self.model = changed

    def add(self, name: str, activations: torch.Tensor) -> None:
        def make(model: Classifier) -> None:
            if len(model.classes) >= self.limits.classes:
                raise UserError(f"there are {len(model.classes)} classes, the limit of this server; remove some first")
            model.add_activations(name, activations)

        self.change(make)

    def archive(self) -> Path:
        """The model as a zip in a temporary folder, whose owner removes it."""
        made = Path(tempfile.mkdtemp()) / "model.zip"
        try:
            with self._change, zipfile.ZipFile(made, "w") as file:
                for path in sorted([self.path / "model.json", *self.path.glob("*.safetensors")]):
                    file.write(path, f"{self.path.absolute().name}/{path.name}")
        except OSError as error:
            shutil.rmtree(made.parent)
            raise UserError(f"the model cannot be read ({error.strerror}); look at its folder") from None
        return made

    def about(self) -> dict[str, Any]:
        model = self.model
        return {
            "name": self.path.absolute().name,
            "method": model.network.method,
            "classes": [asdict(one) for one in model.classes],
            "limits": asdict(self.limits),
        }

    def answer(self, activations: torch.Tensor) -> list[list[dict[str, Any]]]:
        return [[asdict(one) for one in best] for best in self.model.answers(activations)]


def app(service: Service, token: str | None, hosts: frozenset[str] | None, cookie: str = "dist_train") -> FastAPI:
    """The page and what it asks for; ``token``, ``hosts`` and ``cookie`` as in ``Guard``."""
    made = FastAPI(title="dist-train serve", docs_url=None, redoc_url=None, openapi_url=None)

    made.add_middleware(Guard, token=token, hosts=hosts, cookie=cookie, limit=service.limits.upload)

    @made.exception_handler(UserError)
    async def user_error(_: Request, error: UserError) -> JSONResponse:
        return told(422, str(error))

    @made.exception_handler(RequestValidationError)
    async def form(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        what = first["loc"][-1] if isinstance(first["loc"][-1], str) else "the request"
        return told(422, f"{what}: {first['msg']}")

    @made.exception_handler(OSError)
    async def disk(_: Request, error: OSError) -> JSONResponse:
        return told(507, f"the model could not be written ({error.strerror}); nothing is changed")

    @made.api_route("/", methods=["GET", "HEAD"])
    def page(request: Request) -> Response:
        if token and "token" in request.query_params:
            response = RedirectResponse("/", 303)
            response.set_cookie(cookie, token, httponly=True, samesite="strict", max_age=30 * 86400)
            return response
        return FileResponse(PAGE)

    @made.get("/api/model")
    def model() -> dict[str, Any]:
        return service.about()

    @made.get("/api/download")
    def download() -> FileResponse:
        archive = service.archive()
        name = f"{service.path.absolute().name}.zip"
        return FileResponse(archive, filename=name, background=BackgroundTask(shutil.rmtree, archive.parent))

    @made.post("/api/classify")
    def classify(images: Annotated[list[UploadFile], File()]) -> dict[str, Any]:
        results: list[dict[str, Any]] = []
        for number, image in enumerate(images, 1):
            name = image.filename or f"photo {number}"
            try:
                key, activation = service.embed(image.file.read(), name)
                results.append({"name": name, "id": key, "predictions": service.answer(activation)[0]})
            except UserError as error:
                results.append({"name": name, "error": str(error)})
        return {"results": results}

    @made.post("/api/predictions")
    def predictions(ids: Annotated[list[str], Body(embed=True, max_length=_REMEMBERED)]) -> dict[str, Any]:
        found = {key: one for key in ids if (one := service.remembered(key)) is not None}
        answers = dict(zip(found, service.answer(torch.cat(list(found.values()))), strict=True)) if found else {}
        return {"results": [answers.get(key) for key in ids]}

    @made.post("/api/classes")
    def add(name: Annotated[str, Form()], images: Annotated[list[UploadFile], File()]) -> dict[str, Any]:
        service.model.check_new(name)  # before the work
        activations = [service.embed(image.file.read(), image.filename or "photo")[1] for image in images]
        service.add(name, torch.cat(activations))
        return service.about()

    @made.post("/api/remove")
    def remove(name: Annotated[str, Body(embed=True)]) -> dict[str, Any]:
        service.change(lambda model: model.remove_class(name))
        return service.about()

    @made.post("/api/rename")
    def rename(name: Annotated[str, Body(embed=True)], new: Annotated[str, Body(embed=True)]) -> dict[str, Any]:
        service.change(lambda model: model.rename_class(name, new))
        return service.about()

    return made


def run(path: Path, host: str, port: int, token: str | None, limits: Limits) -> int:
    """Serve until Ctrl-C.

    Raises:
        UserError: no model there or it is served already, or the address cannot be listened on.
    """
    loopback = _loopback(host)
    if token is not None and len(token) < 16:
        raise UserError("--token: give at least 16 characters, or leave it out and one is drawn")
    if min(limits.upload, limits.pixels, limits.classes) < 1:
        raise UserError("--max_upload_mb, --max_megapixels and --max_classes: must be >= 1")
    token = token or (None if loopback else secrets.token_urlsafe(24))
    if not folder.is_model(path):
        Classifier.load(path)  # for its error
    with _listen(host, port) as listening, folder.lock(path):
        port = listening.getsockname()[1]
        service = Service(path, limits)
        hosts = frozenset({"localhost", "127.0.0.1", "::1", host}) if loopback else None
        web = app(service, token, hosts, f"dist_train_{port}")
        server = uvicorn.Server(
            uvicorn.Config(web, log_level="warning", limit_concurrency=200, timeout_graceful_shutdown=5)
        )
        names = [f"[{host}]" if ":" in host else host]
        if host in ("0.0.0.0", "::"):
            names = [socket.gethostname(), *_address()]
        print(f"{path}: {len(service.model.classes)} classes", flush=True)
        for named in names:
            print(f"http://{named}:{port}/" + (f"?token={quote(token)}" if token else ""), flush=True)
        with suppress(KeyboardInterrupt):
            server.run(sockets=[listening])
    return 0


def _listen(host: str, port: int) -> socket.socket:
    if not 0 <= port < 65536:
        raise UserError(f"--port {port}: must be in 0..65535")
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, UnicodeError) as error:
        text = getattr(error, "strerror", None) or str(error)
        raise UserError(f"--host {host} --port {port}: {text}; take another one, or --port 0 for any") from None


def _address() -> list[str]:
    """This machine's address on its network, where it has one: phones do not know its name."""
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # sends nothing
        return [probe.getsockname()[0]]
    return []


def _loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
