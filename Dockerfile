# A server of models: dist-train serve. docs/serving.md says how it is built and run.
FROM python:3.12-slim

# PyTorch for the CPU; for a GPU: --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore PYTHONUNBUFFERED=1

# First what seldom changes, as each line is a layer that the next build takes over. pyproject.toml has the ranges.
# hadolint ignore=DL3013
RUN pip install --index-url "$TORCH_INDEX" "torch>=2.10,<3" "torchvision>=0.25,<1"
WORKDIR /source
COPY . .
# hadolint ignore=DL3013
RUN pip install ".[serve,starter]" && rm -rf build

RUN useradd --create-home --uid 1000 visitor
USER 1000
WORKDIR /models
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=15s --start-period=120s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://localhost:8000/health', timeout=14)"]
ENTRYPOINT ["dist-train", "serve", "--host", "0.0.0.0", "--access_log", "-"]
CMD ["/models/model"]
