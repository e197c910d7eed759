"""The page and its API as a FastAPI application.

FastAPI and not Gradio: limits on uploads, tokens and all-or-nothing changes take a few lines here, and the page is a
folder of files without a build step and without a font or a script from elsewhere.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, RedirectResponse
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.staticfiles import StaticFiles

from dist_train.classifier.serving import api, operations
from dist_train.classifier.serving.access import Access, AccessControl, Refusal, error_response
from dist_train.classifier.serving.metrics import Metrics
from dist_train.classifier.serving.served_model import ServedModel
from dist_train.errors import UserError
from dist_train.version import __version__

PAGE = Path(__file__).with_name("page")
"""The page's files: ``index.html``, and what it loads from ``page/`` below its own address."""

router = APIRouter()


def create_app(models: Sequence[ServedModel], access: Access, metrics: Metrics) -> FastAPI:
    """Return the application: the page, its API, what those who run it ask, and the control of access to all of it."""
    app = FastAPI(
        title="dist-train", version=__version__, docs_url=None, redoc_url=None, openapi_url=None,
        generate_unique_id_function=_operation_id, servers=_servers(access),
    )  # fmt: skip
    app.state.models, app.state.access = {served.name: served for served in models}, access
    app.state.metrics, app.state.health = metrics, operations.HealthCheck(models)
    app.include_router(router)
    # The token is checked by AccessControl, before anything is read; this only says in openapi.json how it is given.
    token = [Depends(HTTPBearer(auto_error=False))] if access.token else []
    app.include_router(api.router, dependencies=token)
    app.include_router(operations.router, dependencies=token)
    app.include_router(operations.probes)
    app.mount("/page", StaticFiles(directory=PAGE))
    app.add_middleware(AccessControl, access=access)
    app.add_exception_handler(UserError, _answer_user_error)
    app.add_exception_handler(Refusal, _answer_refusal)
    app.add_exception_handler(HTTPException, _answer_other_refusal)
    app.add_exception_handler(RequestValidationError, _answer_invalid_request)
    app.add_exception_handler(OSError, _answer_disk_error)
    app.add_exception_handler(ClientDisconnect, _answer_nobody)
    return app


def _operation_id(route: APIRoute) -> str:
    """Return the name of an operation in openapi.json, which programs that make clients take: that of its function."""
    return route.name


def _servers(access: Access) -> list[dict[str, str]] | None:
    """Return where the API is behind a proxy; None where it is at the root."""
    path = access.public.path.rstrip("/") if access.public else ""
    return [{"url": path}] if path else None


@router.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
def page(request: Request) -> Response:
    """Return the page; first move a token from the address into a cookie, so that the address can be shown around."""
    access: Access = request.app.state.access
    if access.token and "token" in request.query_params:
        others = urlencode([item for item in request.query_params.multi_items() if item[0] != "token"])
        # Relative, as a proxy may serve the page below a path.
        response = RedirectResponse(f"./?{others}" if others else "./", 303)
        response.set_cookie(access.cookie, access.token, httponly=True, samesite="strict", max_age=30 * 86400,
                            path=access.public.path if access.public else "/",
                            secure=access.public is not None and access.public.secure)  # fmt: skip
        return response
    return FileResponse(PAGE / "index.html")


# Errors. Starlette's type of a handler takes any exception; each of these is registered for its own.


async def _answer_user_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, UserError)
    return error_response(422, str(error), error.kind, error.values)


async def _answer_refusal(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, Refusal)
    return error.response()


async def _answer_other_refusal(_: Request, error: Exception) -> JSONResponse:
    """Answer what Starlette refuses: an address that is not there, a form that is none, a form of too many files."""
    assert isinstance(error, HTTPException)
    many = error.status_code == 400 and error.detail.startswith("Too many files")
    response = error_response(error.status_code, error.detail, "upload.many" if many else "request.wrong")
    response.headers.update(error.headers or {})
    return response


async def _answer_invalid_request(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    field = first["loc"][-1] if isinstance(first["loc"][-1], str) else "the request"
    return error_response(422, f"{field}: {first['msg']}", "request.field", {"field": field})


async def _answer_disk_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, OSError)
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    detail = f"the model could not be written ({error.strerror}); nothing is changed"
    return error_response(507, detail, "disk.full" if full else "disk")


async def _answer_nobody(_: Request, error: Exception) -> Response:
    return Response(status_code=499)  # nginx's code for a client that has gone; nobody reads it
