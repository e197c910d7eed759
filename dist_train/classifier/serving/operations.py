"""What those who run the server ask of it: whether it is well, what it counts, and what its API is."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from importlib.resources import files

from fastapi import APIRouter, Request, Response
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse, JSONResponse
from pydantic import BaseModel

from dist_train.classifier.serving.access import error_response
from dist_train.classifier.serving.metrics import CONTENT_TYPE, Metrics
from dist_train.classifier.serving.replies import Fault
from dist_train.classifier.serving.served_model import ServedModel

_HEALTH_SECONDS = 10.0
"""How long a model may take to answer; Docker's and Kubernetes' probes wait for less, as long as you tell them to."""
_HEALTH_EVERY = 2.0
"""Seconds for which an outcome is given again: anybody may ask, and no crowd of them can keep the models busy."""
_SWAGGER = {"swagger-ui-bundle.js": "text/javascript", "swagger-ui.css": "text/css"}

probes = APIRouter()
"""What needs no token: ``access.py`` lets it pass."""
router = APIRouter()


class Health(BaseModel):
    """That the server is well."""

    status: str = "ok"


class HealthCheck:
    """Asks every model of a server for the answer to a black image, through the queue that photos go through."""

    def __init__(self, models: Sequence[ServedModel]) -> None:
        self._models, self._lock = models, asyncio.Lock()
        self._fault, self._until = "", 0.0

    async def fault(self) -> str:
        """Return what is wrong; "" where every model answers."""
        async with self._lock:
            if self._until < asyncio.get_running_loop().time():
                self._fault = await self._ask()
                self._until = asyncio.get_running_loop().time() + _HEALTH_EVERY
            return self._fault

    async def _ask(self) -> str:
        try:
            async with asyncio.timeout(_HEALTH_SECONDS):
                await asyncio.gather(*(served.try_out() for served in self._models))
        except TimeoutError:
            return f"a model did not answer within {_HEALTH_SECONDS:g} s"
        except Exception as error:  # whatever it is, it is what a client would meet
            print(f"dist-train: error: {error or type(error).__name__}", file=sys.stderr)
            return "a model cannot answer; the server's log has the reason"
        return ""


@probes.head("/health", include_in_schema=False, response_model=None)
@probes.get("/health", response_model=Health, responses={503: {"model": Fault}})
async def check_health(request: Request) -> Health | JSONResponse:
    """Say whether every model answers; no token is asked for."""
    health: HealthCheck = request.app.state.health
    fault = await health.fault()
    return error_response(503, fault) if fault else Health()


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
def read_metrics(request: Request) -> Response:
    """Return what the server has counted, in Prometheus' text format."""
    metrics: Metrics = request.app.state.metrics
    return Response(metrics.text(), media_type=CONTENT_TYPE)


@router.get("/openapi.json", include_in_schema=False)
def describe_api(request: Request) -> JSONResponse:
    """Return the API as OpenAPI describes it."""
    return JSONResponse(request.app.openapi())


@router.get("/docs", include_in_schema=False)
def show_docs(request: Request) -> HTMLResponse:
    """Return a page that shows the API and tries it (Swagger UI); everything on it comes from this server."""
    script, style = (f"docs/{name}" for name in _SWAGGER)  # relative, as a proxy may serve the page below a path
    page = get_swagger_ui_html(
        openapi_url="openapi.json", title=request.app.title, swagger_js_url=script, swagger_css_url=style,
        swagger_favicon_url="data:,", swagger_ui_parameters={"validatorUrl": None},
    )  # fmt: skip
    # Swagger UI starts by a script in the page, and styles its elements one by one.
    page.headers["Content-Security-Policy"] = (
        "default-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; frame-ancestors 'none'"
    )
    return page


@router.get("/docs/{name}", include_in_schema=False)
def swagger_file(name: str) -> Response:
    """Return the script or the style sheet of Swagger UI, from the package that ships them."""
    if name not in _SWAGGER:
        return error_response(404, "Not Found")
    return Response(files("fastapi_offline").joinpath("static", name).read_bytes(), media_type=_SWAGGER[name])
