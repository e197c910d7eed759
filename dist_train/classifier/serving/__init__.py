"""The web page of a model: ``dist-train serve``. Needs the extra ``serve``."""

from dist_train.extras import needs_extra

with needs_extra("serve", "dist-train serve"):
    import fastapi as fastapi
    import h11 as h11
    import python_multipart as python_multipart  # FastAPI needs it for forms
    import uvicorn as uvicorn
