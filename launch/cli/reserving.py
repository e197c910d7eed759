"""The folder that a command writes a model to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dist_train.errors import UserError, command
from dist_train.files import outermost_missing, remove_empty


@contextmanager
def reserved(out: Path, source: Path | None = None, is_model: bool = False) -> Iterator[None]:
    """Reserve the folder that a model is written to for this process; after an error the folder is as it was.

    Args:
        out: the folder.
        source: the run or model that the model is made of; None: it is made of photos alone.
        is_model: whether the source is a model, which may be replaced.

    Raises:
        UserError: the folder is there and not the model that is changed, or lies in what the model is made of.
    """
    from dist_train.classifier import model_folder

    same = source is not None and out.exists() and source.exists() and out.samefile(source)
    if source is not None and (source.resolve() in out.resolve().parents or (same and not is_model)):
        raise UserError(f"--out {out}: lies in {source}; take another folder")
    new = not (same and is_model)
    exists = UserError(
        f"--out {out}: exists; take another folder, or change it: {command('adapt', out, '--class', 'NAME=PHOTOS')}"
    )
    if new and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise exists
    made = outermost_missing(out)
    out.mkdir(parents=True, exist_ok=True)
    try:
        with model_folder.lock(out):
            if new and model_folder.is_model(out):  # another process made it after the check above
                raise exists
            yield
    except BaseException:
        if made and not model_folder.is_model(out):
            (out / ".lock").unlink(missing_ok=True)
            remove_empty(out, made)
        raise
