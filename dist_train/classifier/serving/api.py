"""The API, version 1: what programs and the page ask of the served models."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Coroutine, Mapping, Sequence
from typing import Annotated, Any, TypeAlias, TypeVar

from fastapi import APIRouter, Body, Depends, File, Form, Query, Request, Response, UploadFile
from fastapi import Path as InPath
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse
from pydantic import WithJsonSchema
from starlette.background import BackgroundTask
from starlette.requests import ClientDisconnect

from dist_train.classifier.measuring import Measurement
from dist_train.classifier.serving.access import Refusal, client_of
from dist_train.classifier.serving.replies import (
    About,
    Changes,
    Classified,
    ClassPhotos,
    Fault,
    LabelledPhoto,
    ModelList,
    ModelSummary,
    NamedAnswer,
    PhotoAnswer,
    PhotoFault,
    Remembered,
)
from dist_train.classifier.serving.served_model import REMEMBERED, EmbeddedPhoto, ServedModel
from dist_train.errors import UserError
from dist_train.names import shown

_CHECK_SECONDS = 1.0  # between two checks whether a client is still there

Result = TypeVar("Result")
router = APIRouter(prefix="/api/v1", responses={code: {"model": Fault} for code in (401, 404, 413, 422, 429, 507)})


async def _served_model(request: Request, model: Annotated[str, InPath(description="Name of a model.")]) -> ServedModel:
    """Return the served model that an address names.

    Raises:
        Refusal: there is none of that name.
    """
    models: Mapping[str, ServedModel] = request.app.state.models
    if model not in models:
        text = f"model {shown(model)}: is not served here; there is {', '.join(models)}"
        raise Refusal(404, text, "model.unknown", name=shown(model), models=", ".join(models))
    return models[model]


Served: TypeAlias = Annotated[ServedModel, Depends(_served_model)]
# pydantic describes a file as OpenAPI 3.1 does, by contentMediaType, which Swagger UI shows as a field for text.
_Upload: TypeAlias = Annotated[UploadFile, WithJsonSchema({"type": "string", "format": "binary"})]
Images: TypeAlias = Annotated[list[_Upload], File(description="Photos.")]
Name: TypeAlias = Annotated[str, Body(embed=True, description="Name or wnid of a class.")]


@router.get("/models")
def list_models(request: Request) -> ModelList:
    """List the models that are served, in the order of the command line."""
    models: Mapping[str, ServedModel] = request.app.state.models
    return ModelList(
        models=[
            ModelSummary(name=served.name, classes=len(served.model.classes), method=served.model.method)
            for served in models.values()
        ]
    )


@router.get("/models/{model}")
def describe_model(served: Served) -> About:
    """Describe a model: its classes, the limits of the server, and what counts as a photo."""
    return served.about()


@router.get("/models/{model}/download", response_class=FileResponse)
def download_model(served: Served) -> FileResponse:
    """Return the model folder as a zip file."""
    archive = served.archive()
    return FileResponse(
        archive, filename=f"{served.name}.zip", background=BackgroundTask(shutil.rmtree, archive.parent)
    )


@router.post("/models/{model}/classify")
async def classify(request: Request, served: Served, images: Images) -> Classified:
    """Say what is on photos; a photo that cannot be read has an error in place of an answer."""
    photos = await _embed_uploads(request, served, images)
    answers = iter(await run_in_threadpool(served.answers, [p for p in photos if isinstance(p, EmbeddedPhoto)]))
    results: list[NamedAnswer | PhotoFault] = []
    for photo, name in zip(photos, _file_names(images), strict=True):
        if isinstance(photo, EmbeddedPhoto):
            results.append(NamedAnswer(name=name, **dict(next(answers))))
        else:
            results.append(PhotoFault(name=name, error=str(photo), code=photo.kind, values=photo.values))
    return Classified(results=results)


@router.post("/models/{model}/predictions")
def predict_again(served: Served, ids: Annotated[list[str], Body(embed=True, max_length=REMEMBERED)]) -> Remembered:
    """Say what is on photos that were classified before, by their ids, without another upload."""
    photos = [photo for key in ids if (photo := served.remembered(key)) is not None]
    answers: dict[str, PhotoAnswer] = {answer.id: answer for answer in served.answers(photos)}
    return Remembered(results=[answers.get(key) for key in ids])


@router.post("/models/{model}/evaluate")
def evaluate(
    served: Served,
    photos: Annotated[list[LabelledPhoto], Body(embed=True, min_length=1, max_length=REMEMBERED)],
) -> Measurement:
    """Measure the model on photos that were classified before and whose classes are known."""
    return served.measure([(photo.id, photo.label) for photo in photos])


@router.post("/models/{model}/classes")
async def add_class(
    request: Request, served: Served, name: Annotated[str, Form(description="Name of the new class.")], images: Images
) -> About:
    """Add a class from its photos; all of them must be readable."""
    served.model.check_new(name)  # before the work
    await run_in_threadpool(served.add_class, name, await _all_embedded(request, served, images))
    return served.about()


@router.post("/models/{model}/photos")
async def add_photos(
    request: Request, served: Served, name: Annotated[str, Form(description="Name or wnid of a class.")], images: Images
) -> About:
    """Give further photos to a class; all of them must be readable, and none may be in it already."""
    served.model.photos(name)  # before the work
    await run_in_threadpool(served.add_photos, name, await _all_embedded(request, served, images))
    return served.about()


@router.get("/models/{model}/photos")
def list_photos(served: Served, name: Annotated[str, Query(description="Name or wnid of a class.")]) -> ClassPhotos:
    """List the photos that the model keeps of a class."""
    return served.photos(name)


@router.post("/models/{model}/photos/remove")
def remove_photos(served: Served, name: Name, ids: Annotated[list[str], Body(embed=True, min_length=1)]) -> About:
    """Remove photos of a class."""
    served.remove_photos(name, ids)
    return served.about()


@router.get("/models/{model}/pictures/{id}", response_class=Response, responses={404: {"model": Fault}})
def show_picture(served: Served, id: str) -> Response:
    """Return a small picture of a photo, a JPEG."""
    data = served.picture(id)
    if data is None:
        text = f"picture {shown(id)}: there is none of this id; ask again for the photos of the class"
        raise Refusal(404, text, "picture.unknown")
    return Response(data, media_type="image/jpeg")


@router.post("/models/{model}/undo")
def undo(served: Served) -> About:
    """Undo the last change; called again, the change before it, up to ten."""
    served.undo()
    return served.about()


@router.get("/models/{model}/history")
def list_changes(served: Served) -> Changes:
    """List the changes of a model, the last at the end."""
    return served.history()


@router.post("/models/{model}/remove")
def remove_class(served: Served, name: Name) -> About:
    """Remove a class."""
    served.change(lambda model: model.remove_class(name))
    return served.about()


@router.post("/models/{model}/rename")
def rename_class(served: Served, name: Name, new: Annotated[str, Body(embed=True)]) -> About:
    """Rename a class."""
    served.change(lambda model: model.rename_class(name, new))
    return served.about()


def _file_names(images: Sequence[UploadFile]) -> list[str]:
    return [image.filename or f"photo {number}" for number, image in enumerate(images, 1)]


async def _embed_uploads(
    request: Request, served: ServedModel, images: Sequence[UploadFile]
) -> list[EmbeddedPhoto | UserError]:
    files = [(name, image.file) for name, image in zip(_file_names(images), images, strict=True)]
    return await unless_disconnected(request, served.embed(files, client_of(request)))


async def _all_embedded(request: Request, served: ServedModel, images: Sequence[UploadFile]) -> list[EmbeddedPhoto]:
    """Return the photos that were sent.

    Raises:
        UserError: any of them cannot be read.
    """
    embedded = []
    for photo in await _embed_uploads(request, served, images):
        if isinstance(photo, UserError):
            raise photo
        embedded.append(photo)
    return embedded


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
