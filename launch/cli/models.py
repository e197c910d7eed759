"""The commands that use a model: export, serve."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from dist_train.errors import UserError, counted
from launch.cli.signature import Option, Options


def export(model: Path, *, format: str, out: Path | None = None, rule: str | None = None) -> int:
    """Write a model for other programs: torchvision, timm, safetensors or ONNX.

    docs/python.md says how each is loaded.

    Args:
        model: Folder made by adapt or create.
        format: torchvision, timm, safetensors or onnx.
        out: File to write; default: the model's name, in this folder.
        rule: How several photos of a class count: max, mean or rows; default: the model's.
    """
    from dist_train.classifier import model_folder
    from dist_train.classifier.classifier import Classifier
    from dist_train.classifier.export import FORMATS
    from dist_train.classifier.maker import check_kind
    from dist_train.classifier.predicted import check_rule
    from dist_train.distributed.pool import working

    if format not in FORMATS:
        raise UserError(f"--format {format}: give one of {', '.join(FORMATS)}")
    if rule:
        check_rule(rule)
    suffix, write = FORMATS[format]
    file = out or Path(model.absolute().name + suffix)
    if file.is_dir() or not file.absolute().parent.is_dir():
        raise UserError(f"--out {file}: {'is a folder' if file.is_dir() else 'no such folder'}; give a file to write")
    if file.exists() and not file.is_file():
        raise UserError(f"--out {file}: is no ordinary file; give another")
    if file.resolve().parent == model.resolve():
        raise UserError(f"--out {file}: lies in the model; give a file elsewhere")
    if rule:
        check_kind(model_folder.is_fitted(model), rule=rule)
    classifier = Classifier.load(model, "cpu")
    if rule:
        classifier.rule = rule
    with working(f"export to {format}"):
        usage = write(classifier, file)
    print(f"{file}: {counted(len(classifier.classes), 'class')}\n{usage}")
    return 0


@dataclass(kw_only=True)
class ServeOptions(Options):
    """Where the page is, who may use it, and its limits."""

    host: str = "127.0.0.1"
    """Address to listen on; on any other than this machine's own a token is asked for."""
    port: int = 8000
    """Port; 0 = any free one."""
    token: str | None = None
    """The token, at least 16 characters; default: one is drawn and printed."""
    public_url: Annotated[str | None, Option(metavar="URL")] = None
    """The page's address at a proxy, as in https://HOST:PORT/PATH/; see docs/serving.md."""
    proxy: Annotated[str | None, Option(metavar="ADDRESS")] = None
    """With --public-url: the proxy's address or network; default: this machine's."""
    access_log: Annotated[str | None, Option(metavar="FILE")] = None
    """File to append a line of JSON to for each request; - is standard output; default: none is written."""
    max_upload_mb: int = 64
    """Limit of one upload in megabytes (10^6 bytes)."""
    max_megapixels: int = 64
    """Limit of one photo in millions of pixels."""
    max_classes: int = 5000
    """Limit of all classes together."""


def serve(models: list[str], options: ServeOptions) -> int:
    """Serve a web page to try a model, or several: drop photos, see the classes, add some.

    Runs on this machine; Ctrl-C ends it.

    Args:
        models: Folders made by adapt or create; changes are written to them at once.
    """
    from dist_train.classifier.serving import server
    from dist_train.classifier.serving.address import PublicURL, parse_network
    from dist_train.classifier.serving.served_model import Limits

    public = None if options.public_url is None else PublicURL.parse(options.public_url)
    if options.proxy and not public:
        raise UserError(f"--proxy {options.proxy}: is of use with --public-url only; give that too")
    proxies = {"proxies": (parse_network(options.proxy),)} if options.proxy else {}
    place = server.ServeOptions(options.host, options.port, options.token, public, **proxies,
                                access_log=options.access_log)  # fmt: skip
    limits = Limits(options.max_upload_mb * 1_000_000, options.max_megapixels * 1_000_000, options.max_classes)
    return server.serve([Path(model) for model in models], place, limits)
