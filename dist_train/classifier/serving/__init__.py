"""The web page of a model: ``dist-train serve``. Needs the extra ``serve``."""

from dist_train.extras import needs_extra

with needs_extra("serve", "dist-train serve"):
    import fastapi as fastapi
    import fastapi_offline as fastapi_offline  # the files of Swagger UI
    import h11 as h11
    import prometheus_client as prometheus_client
    import python_multipart as python_multipart  # FastAPI needs it for forms
    import uvicorn as uvicorn
