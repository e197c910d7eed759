"""A web page for a model: drop photos, see the classes, add some from photos. FastAPI and one HTML file.

FastAPI and not Gradio: limits on what is uploaded, tokens and all-or-nothing changes are a matter of a few lines
here, and the page is a file without a build, a font or a script from elsewhere.
"""

from __future__ import annotations

import asyncio
import secrets
import shutil
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, TypeVar

import torch
import uvicorn
from fastapi import Body, FastAPI, File, Form, Request, Response, UploadFile
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, RedirectResponse
from starlette.background import BackgroundTask
from starlette.requests import ClientDisconnect

from dist_train.classifier import model_folder
from dist_train.classifier.classifier import Classifier
from dist_train.classifier.serving.access import Access, AccessControl, error_response
from dist_train.classifier.serving.address import PublicURL, is_loopback, listen, page_links
from dist_train.classifier.serving.connections import Connection, ConnectionLimits, Networks, client
from dist_train.classifier.serving.served_model import REMEMBERED, EmbeddedPhoto, Limits, ServedModel
from dist_train.errors import UserError

PAGE = Path(__file__).with_name("page.html")
_THIS_MACHINE = (ip_network("127.0.0.0/8"), ip_network("::1"))
_SECONDS = 1.0  # between two looks whether a client is still there

Result = TypeVar("Result")


def app(service: ServedModel, access: Access) -> FastAPI:
    """The page and what it asks for."""
    made = FastAPI(title="dist-train serve", docs_url=None, redoc_url=None, openapi_url=None)

    made.add_middleware(AccessControl, access=access)

    @made.exception_handler(UserError)
    async def user_error(_: Request, error: UserError) -> JSONResponse:
        return error_response(422, str(error))

    @made.exception_handler(RequestValidationError)
    async def form(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        what = first["loc"][-1] if isinstance(first["loc"][-1], str) else "the request"
        return error_response(422, f"{what}: {first['msg']}")

    @made.exception_handler(OSError)
    async def disk(_: Request, error: OSError) -> JSONResponse:
        return error_response(507, f"the model could not be written ({error.strerror}); nothing is changed")

    @made.exception_handler(ClientDisconnect)
    async def left(_: Request, error: ClientDisconnect) -> Response:
        return Response(status_code=499)  # nginx's code; nobody reads it

    @made.api_route("/", methods=["GET", "HEAD"])
    def page(request: Request) -> Response:
        if access.token and "token" in request.query_params:
            response = RedirectResponse("./", 303)  # relative, as a proxy may serve the page below a path
            response.set_cookie(access.cookie, access.token, httponly=True, samesite="strict", max_age=30 * 86400,
                                path=access.public.path if access.public else "/",
                                secure=access.public is not None and access.public.secure)  # fmt: skip
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
    async def classify(request: Request, images: Annotated[list[UploadFile], File()]) -> dict[str, Any]:
        found = await _embedded(request, service, images)
        good = [photo for photo in found if isinstance(photo, EmbeddedPhoto)]
        activations = [photo.activation for photo in good]
        answers = iter(await run_in_threadpool(service.answer, torch.cat(activations)) if good else [])
        results: list[dict[str, Any]] = []
        for photo, name in zip(found, _names(images), strict=True):
            if isinstance(photo, EmbeddedPhoto):
                results.append({"name": name, "id": photo.key, "predictions": next(answers)})
            else:
                results.append({"name": name, "error": str(photo)})
        return {"results": results}

    @made.post("/api/predictions")
    def predictions(ids: Annotated[list[str], Body(embed=True, max_length=REMEMBERED)]) -> dict[str, Any]:
        found = {key: one for key in ids if (one := service.remembered(key)) is not None}
        answers = dict(zip(found, service.answer(torch.cat(list(found.values()))), strict=True)) if found else {}
        return {"results": [answers.get(key) for key in ids]}

    @made.post("/api/classes")
    async def add(
        request: Request, name: Annotated[str, Form()], images: Annotated[list[UploadFile], File()]
    ) -> dict[str, Any]:
        service.model.check_new(name)  # before the work
        activations = []
        for photo in await _embedded(request, service, images):
            if isinstance(photo, UserError):
                raise photo
            activations.append(photo.activation)
        await run_in_threadpool(service.add, name, torch.cat(activations))
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


def _names(images: Sequence[UploadFile]) -> list[str]:
    return [image.filename or f"photo {number}" for number, image in enumerate(images, 1)]


async def _embedded(
    request: Request, service: ServedModel, images: Sequence[UploadFile]
) -> list[EmbeddedPhoto | UserError]:
    files = [(name, image.file) for name, image in zip(_names(images), images, strict=True)]
    owner = client(request.client.host) if request.client else ""
    return await unless_left(request, service.embed(files, owner))


async def unless_left(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """The result of work for a client, which ends when the client has left.

    Raises:
        ClientDisconnect: it has.
    """
    task = asyncio.create_task(work)
    while not (await asyncio.wait({task}, timeout=_SECONDS))[0]:
        if await request.is_disconnected():
            task.cancel()
            raise ClientDisconnect
    return task.result()


@dataclass(frozen=True)
class ServeOptions:
    """Where the page is served.

    Attributes:
        host: name or address to listen on.
        port: 0 is any free one.
        token: what visitors must have; None: one is drawn where others than this machine's users are let in.
        public: the address of the page at a proxy, where there is one.
        proxies: the proxy's addresses, whose word on the address of a client is taken.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    token: str | None = None
    public: PublicURL | None = None
    proxies: Networks = _THIS_MACHINE

    def __post_init__(self) -> None:
        if self.token is not None and len(self.token) < 16:
            raise UserError("--token: give at least 16 characters, or leave it out and one is drawn")

    @property
    def private(self) -> bool:
        """Whether only this machine's users can reach it."""
        return is_loopback(self.host) and self.public is None


def serve(path: Path, place: ServeOptions, limits: Limits, patience: ConnectionLimits | None = None) -> int:
    """Serve until Ctrl-C.

    Raises:
        UserError: no model there or it is served already, or the address cannot be listened on.
    """
    patience = patience or ConnectionLimits()
    token = place.token or (None if place.private else secrets.token_urlsafe(24))
    if not model_folder.is_model(path):
        Classifier.load(path)  # for its error
    with listen(place.host, place.port) as listening, model_folder.lock(path):
        port = listening.getsockname()[1]
        service = ServedModel(path, limits)
        hosts = frozenset({"localhost", "127.0.0.1", "::1", place.host}) if place.private else None
        access = Access(token, f"dist_train_{port}", hosts, place.public, limits.upload, patience.client)
        proxies = place.proxies if place.public else ()
        server = uvicorn.Server(
            uvicorn.Config(
                app(service, access), log_level="error", timeout_graceful_shutdown=5,
                http=partial(Connection, patience=patience, proxies=proxies),  # type: ignore[arg-type]
                timeout_keep_alive=int(patience.header) + 1, proxy_headers=bool(proxies),
                forwarded_allow_ips=[str(network) for network in proxies],
            )
        )  # fmt: skip
        print(f"{path}: {len(service.model.classes)} classes", flush=True)
        for link in page_links(place.host, port, place.public, token):
            print(link, flush=True)
        with suppress(KeyboardInterrupt):
            server.run(sockets=[listening])
    return 0
