"""The page and its API as a FastAPI application.

FastAPI and not Gradio: limits on uploads, tokens and all-or-nothing changes take a few lines here, and the page is one
file without a build step and without a font or a script from elsewhere.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeAlias, TypeVar

import torch
from fastapi import APIRouter, Body, Depends, FastAPI, File, Form, Request, Response, UploadFile
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, RedirectResponse
from starlette.background import BackgroundTask
from starlette.requests import ClientDisconnect

from dist_train.classifier.serving.access import Access, AccessControl, client_of, error_response
from dist_train.classifier.serving.served_model import REMEMBERED, EmbeddedPhoto, ServedModel
from dist_train.errors import UserError

PAGE = Path(__file__).with_name("page.html")
_CHECK_SECONDS = 1.0  # between two checks whether a client is still there

Result = TypeVar("Result")
router = APIRouter()


def create_app(served: ServedModel, access: Access) -> FastAPI:
    """Return the application: the page, its API, and the control of access to both."""
    app = FastAPI(title="dist-train serve", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.served, app.state.access = served, access
    app.include_router(router)
    app.add_middleware(AccessControl, access=access)
    app.add_exception_handler(UserError, _answer_user_error)
    app.add_exception_handler(RequestValidationError, _answer_invalid_request)
    app.add_exception_handler(OSError, _answer_disk_error)
    app.add_exception_handler(ClientDisconnect, _answer_nobody)
    return app


async def _served_model(request: Request) -> ServedModel:
    served: ServedModel = request.app.state.served
    return served


Served: TypeAlias = Annotated[ServedModel, Depends(_served_model)]
Images: TypeAlias = Annotated[list[UploadFile], File()]


@router.api_route("/", methods=["GET", "HEAD"])
def page(request: Request) -> Response:
    """Return the page; first move a token from the address into a cookie, so that the address can be shown around."""
    access: Access = request.app.state.access
    if access.token and "token" in request.query_params:
        response = RedirectResponse("./", 303)  # relative, as a proxy may serve the page below a path
        response.set_cookie(access.cookie, access.token, httponly=True, samesite="strict", max_age=30 * 86400,
                            path=access.public.path if access.public else "/",
                            secure=access.public is not None and access.public.secure)  # fmt: skip
        return response
    return FileResponse(PAGE)


@router.get("/api/model")
def describe(served: Served) -> dict[str, Any]:
    """Return what the page shows of the model."""
    return served.about()


@router.get("/api/download")
def download(served: Served) -> FileResponse:
    """Return the model folder as a zip file."""
    archive = served.archive()
    name = f"{served.path.absolute().name}.zip"
    return FileResponse(archive, filename=name, background=BackgroundTask(shutil.rmtree, archive.parent))


@router.post("/api/classify")
async def classify(request: Request, served: Served, images: Images) -> dict[str, Any]:
    """Return for each photo its key and its predictions, or its error."""
    photos = await _embed_uploads(request, served, images)
    activations = [photo.activation for photo in photos if isinstance(photo, EmbeddedPhoto)]
    answers = iter(await run_in_threadpool(served.predictions, torch.cat(activations)) if activations else [])
    results: list[dict[str, Any]] = []
    for photo, name in zip(photos, _file_names(images), strict=True):
        if isinstance(photo, EmbeddedPhoto):
            results.append({"name": name, "id": photo.key, "predictions": next(answers)})
        else:
            results.append({"name": name, "error": str(photo)})
    return {"results": results}


@router.post("/api/predictions")
def predict_again(served: Served, ids: Annotated[list[str], Body(embed=True, max_length=REMEMBERED)]) -> dict[str, Any]:
    """Return the predictions of photos by their keys; null for a photo that is forgotten."""
    known = {key: activation for key in ids if (activation := served.remembered(key)) is not None}
    answers = dict(zip(known, served.predictions(torch.cat(list(known.values()))), strict=True)) if known else {}
    return {"results": [answers.get(key) for key in ids]}


@router.post("/api/classes")
async def add_class(request: Request, served: Served, name: Annotated[str, Form()], images: Images) -> dict[str, Any]:
    """Add a class from its photos; return what the page shows of the model."""
    served.model.check_new(name)  # before the work
    activations = []
    for photo in await _embed_uploads(request, served, images):
        if isinstance(photo, UserError):
            raise photo
        activations.append(photo.activation)
    await run_in_threadpool(served.add_class, name, torch.cat(activations))
    return served.about()


@router.post("/api/remove")
def remove_class(served: Served, name: Annotated[str, Body(embed=True)]) -> dict[str, Any]:
    """Remove a class; return what the page shows of the model."""
    served.change(lambda model: model.remove_class(name))
    return served.about()


@router.post("/api/rename")
def rename_class(
    served: Served, name: Annotated[str, Body(embed=True)], new: Annotated[str, Body(embed=True)]
) -> dict[str, Any]:
    """Rename a class; return what the page shows of the model."""
    served.change(lambda model: model.rename_class(name, new))
    return served.about()


def _file_names(images: Sequence[UploadFile]) -> list[str]:
    return [image.filename or f"photo {number}" for number, image in enumerate(images, 1)]


async def _embed_uploads(
    request: Request, served: ServedModel, images: Sequence[UploadFile]
) -> list[EmbeddedPhoto | UserError]:
    files = [(name, image.file) for name, image in zip(_file_names(images), images, strict=True)]
    return await unless_disconnected(request, served.embed(files, client_of(request)))


async def unless_disconnected(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """Return the result of ``work``, which is cancelled when the client that asked for it has gone.

    Raises:
        ClientDisconnect: the client has gone.
    """
    task = asyncio.create_task(work)
    while not (await asyncio.wait({task}, timeout=_CHECK_SECONDS))[0]:
        if await request.is_disconnected():
            task.cancel()
            raise ClientDisconnect
    return task.result()


# Errors. Starlette's type of a handler takes any exception; each of these is registered for its own.


async def _answer_user_error(_: Request, error: Exception) -> JSONResponse:
    return error_response(422, str(error))


async def _answer_invalid_request(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    field = first["loc"][-1] if isinstance(first["loc"][-1], str) else "the request"
    return error_response(422, f"{field}: {first['msg']}")


async def _answer_disk_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, OSError)
    return error_response(507, f"the model could not be written ({error.strerror}); nothing is changed")


async def _answer_nobody(_: Request, error: Exception) -> Response:
    return Response(status_code=499)  # nginx's code for a client that has gone; nobody reads it
