"""Files of weights: every wrapping that frameworks write, and every file that is refused, in one line."""

from __future__ import annotations

import argparse
import hashlib
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import timm
import torch
from safetensors.torch import save_file

from dist_train.config import BackboneConfig
from dist_train.errors import UserError
from dist_train.models.backbones import fetching, open_pretrained

State = dict[str, torch.Tensor]

NAME = "mobilenetv3_small_050"
SOURCE = f"timm:{NAME}"


@pytest.fixture(scope="module")
def state() -> State:
    torch.manual_seed(0)
    return timm.create_model(NAME).state_dict()


def opened(path: Path, source: str = SOURCE, size: int = 64) -> Any:
    return open_pretrained(BackboneConfig(source=source, weights=path, size=size))


def prefixed(state: State, prefix: str) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def other(state: State) -> State:
    return {name: torch.zeros_like(tensor) for name, tensor in state.items()}


WRAPPINGS: dict[str, Callable[[State], Any]] = {
    "plain": lambda state: state,
    "state_dict of DDP": lambda state: {"state_dict": prefixed(state, "module."), "epoch": 3, "optimizer": {}},
    "compiled in DDP": lambda state: prefixed(state, "module._orig_mod."),
    "DDP, compiled": lambda state: prefixed(state, "_orig_mod.module."),
    "timm's average": lambda state: {
        "state_dict": other(state), "state_dict_ema": state, "args": argparse.Namespace(lr=1),
    },
    "model and its average": lambda state: {"model": other(state), "model_ema": state},
    "average of torch.optim": lambda state: {**prefixed(state, "module."), "n_averaged": torch.tensor(5)},
    "torchvision's references": lambda state: {"model": state, "args": argparse.Namespace(lr=1)},
    "Lightning": lambda state: {"state_dict": {**prefixed(state, "model."), "criterion.weight": torch.ones(3)}},
    "teacher of DINO": lambda state: {
        "student": other(state), "teacher": {**prefixed(state, "backbone."), "head.mlp.0.weight": torch.ones(3, 3)},
    },
    "nested": lambda state: {"model_state": {"model": prefixed(state, "net.")}},
    "half precision": lambda state: {name: tensor.half() if tensor.is_floating_point() else tensor
                                     for name, tensor in state.items()},
}  # fmt: skip


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_weights_are_found_in_what_wraps_them(state: State, tmp_path: Path, wrapping: str) -> None:
    path = tmp_path / "checkpoint.pth"
    torch.save(WRAPPINGS[wrapping](state), path)
    result = opened(path)
    tolerance = 1e-3 if wrapping == "half precision" else 0.0
    for name, tensor in result.backbone.body.state_dict().items():
        assert torch.allclose(tensor, state[name], rtol=tolerance, atol=tolerance / 100), name
    assert torch.allclose(result.backbone.head.weight, state["classifier.weight"], atol=tolerance)
    assert result.origin.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert result.origin.file == "checkpoint.pth"


def test_what_is_left_aside_is_said(state: State, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pth"
    torch.save(WRAPPINGS["model and its average"](state), path)
    assert opened(path).notes == ("of model_ema, model in the file, model_ema is taken",)
    torch.save(WRAPPINGS["Lightning"](state), path)
    total = len(state) + 1
    assert opened(path).notes == (f"left aside, as tensors of other networks: 1 of {total}",)


@pytest.mark.parametrize("rows", [10, None])
def test_a_head_of_other_classes_is_left_aside_and_said_so(state: State, tmp_path: Path, rows: int | None) -> None:
    path = tmp_path / "mine.safetensors"
    body = {name: tensor for name, tensor in state.items() if not name.startswith("classifier.")}
    save_file({**body, **({"classifier.weight": torch.ones(rows, 1024)} if rows else {})}, path)
    result = opened(path)
    assert result.classes is None and result.backbone.head.out_features == 0
    aside = "the file's classifier of 10 rows is left aside: whose rows they are is not known"
    assert result.notes == ((aside if rows else "no classifier of 1,000 rows is in the file"),)


def test_wrong_tensors_are_named_by_their_first_three(state: State, tmp_path: Path) -> None:
    path = tmp_path / "wrong.pth"
    names = [name for name in state if name.endswith("weight")]
    wrong = {name: tensor for name, tensor in state.items() if name not in names[:4]}
    wrong[names[5]] = torch.zeros(1, 2)
    wrong |= {"extra.a": torch.zeros(1), "extra.b": torch.zeros(1)}
    torch.save(wrong, path)
    shape = "x".join(map(str, state[names[5]].shape))
    with pytest.raises(UserError) as error:
        opened(path)
    line = str(error.value)
    assert line.startswith(f"{path}: not the weights of timm:{NAME}.lamb_in1k: tensors 4 missing (")
    assert f"({', '.join(names[:3])}, ...)" in line and names[3] not in line
    assert "2 unexpected (extra.a, extra.b)" in line
    assert f"1 of another shape ({names[5]} 1x2 for {shape})" in line
    assert "\n" not in line


class Code:
    """An object whose pickle runs a command when it is opened."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("touch executed",)


def truncated(path: Path, state: State) -> None:
    torch.save(state, path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def truncated_safetensors(path: Path, state: State) -> None:
    save_file(state, path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


REFUSED: dict[str, tuple[str, Callable[[Path, State], Any], str]] = {
    "no such file": ("a.pth", lambda path, state: None, "no such file of weights; give an existing one"),
    "folder": ("a.pth", lambda path, state: path.mkdir(), "is no file; .*, or for the folder of a run the source run"),
    "pipe": ("a.pth", lambda path, state: os.mkfifo(path), "is no file; give the file"),
    "other suffix": ("a.npz", lambda path, state: path.write_bytes(b"x"), "not a file of weights by its name"),
    "empty": ("a.pth", lambda path, state: path.touch(), "is empty; fetch it again"),
    "text": ("a.pth", lambda path, state: path.write_text("<html>not found</html>"), "is text and not weights"),
    "text for safetensors": ("a.safetensors", lambda path, state: path.write_text("{}" * 40), "is text and not"),
    "pointer": (
        "a.bin", lambda path, state: path.write_text("version https://git-lfs.github.com/spec/v1\noid"), "git lfs",
    ),
    "pickle with code": ("a.pth", lambda path, state: path.write_bytes(pickle.dumps(Code(), 2)), r"holds code \(posix"),
    "pickle of today": ("a.pth", lambda path, state: path.write_bytes(pickle.dumps([Code()])), "is a pickle of Python"),
    "archive with code": (
        "a.pt", lambda path, state: torch.save({"state_dict": Code()}, path), r"holds code \(posix\.system\)",
    ),
    "whole model": ("a.pth", lambda path, state: torch.save(timm.create_model(NAME), path), r"holds code \(timm\."),
    "truncated": ("a.pth", truncated, "is cut short"),
    "truncated safetensors": ("a.safetensors", truncated_safetensors, "is cut short"),
    "TorchScript": (
        "a.pt", lambda path, state: torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path), "TorchScript",
    ),
    "no tensors": ("a.pth", lambda path, state: torch.save({"epoch": 3}, path), "has no tensors by name"),
    "one tensor": ("a.pth", lambda path, state: torch.save(torch.ones(3), path), "has no tensors by name"),
    "another network": (
        "a.safetensors", lambda path, state: save_file({"fc.weight": torch.ones(2, 2)}, path),
        "not the weights of timm:.* missing .* 1 unexpected",
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", REFUSED)
def test_other_files_are_refused_in_a_line(
    state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.chdir(tmp_path)
    name, write, wanted = REFUSED[kind]
    path = tmp_path / name
    write(path, state)
    with pytest.raises(UserError, match=rf"^{re.escape(str(path))}: .*{wanted}") as error:
        opened(path)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "executed").exists()


SOURCES = {
    "timm:resnet18dd": "timm .* has no such network; the nearest are resnet18d, ",
    "timm:qqqqqqqqqqq": r"has no such network; timm.list_models\(\) lists them",
    "timm:resnet18.in22k": "not a tag of its weights; give one of a1_in1k, ",
    "timm:hf-hub:someone/resnet": "has no such network",
    "torchvision:resnet19": "torchvision has no such network; the nearest are resnet18, ",
    "torchvision:resnet18.V9": "not a name of its weights; give one of IMAGENET1K_V1",
    "torchvision:fcn_resnet50": "torchvision has no such network",
    "torchvision:squeezenet1_1": "has no linear classifier",
    "timm:": "give timm:NAME, torchvision:NAME, starter or run",
    "resnet18": "give timm:NAME, torchvision:NAME, starter or run",
    "keras:resnet": "give timm:NAME, torchvision:NAME, starter or run",
}  # fmt: skip


@pytest.mark.parametrize("source", SOURCES)
def test_a_source_that_does_not_exist_is_refused_in_a_line(source: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=SOURCES[source]) as error:
        opened(tmp_path / "a.pth", source)
    assert str(error.value).startswith(f"backbone.source={source}: ") or "squeezenet" in source


def test_a_size_that_a_network_does_not_take_is_refused_in_a_line(state: State, tmp_path: Path) -> None:
    vit = "timm:vit_tiny_patch16_224"
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(
        UserError, match=r"^backbone.size=65: .* patches of 16 pixels; give a multiple, such as 64 or 80$"
    ):
        opened(tmp_path / "a.pth", vit, size=65)
    with pytest.raises(UserError, match=r"^backbone.size=50: torchvision:vit_b_16.* does not take that size"):
        opened(tmp_path / "a.pth", "torchvision:vit_b_16", size=50)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Give the caches of downloads an empty folder, and fail whatever would be fetched."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("something is fetched")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    monkeypatch.setattr(fetching, "urlopen", refuse)
    return tmp_path


URLS = {
    SOURCE: f"https://huggingface.co/timm/{NAME}.lamb_in1k/resolve/main/model.safetensors",
    "torchvision:resnet18": "https://download.pytorch.org/models/resnet18-f37072fd.pth",
}


@pytest.mark.parametrize("source", URLS)
def test_nothing_is_fetched_unasked(no_network: Path, source: str) -> None:
    url = re.escape(URLS[source])
    with pytest.raises(
        UserError, match=f"nothing is downloaded unasked; fetch {url} and name the file with --backbone.weights"
    ):
        open_pretrained(BackboneConfig(source=source))


def test_a_file_in_the_cache_is_no_download(no_network: Path, state: State) -> None:
    folder = no_network / f"models--timm--{NAME}.lamb_in1k"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc")
    (folder / "snapshots" / "abc").mkdir(parents=True)
    save_file(state, folder / "snapshots" / "abc" / "model.safetensors")
    result = open_pretrained(BackboneConfig(source=SOURCE))
    assert torch.equal(result.backbone.head.weight, state["classifier.weight"])
    assert result.origin.licence == "apache-2.0"
