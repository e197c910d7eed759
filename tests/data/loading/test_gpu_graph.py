"""DALI's graph for a GPU, built without a GPU: the device and the arguments of each operator."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError
from typing import Any

import nvidia.dali as dali_library
import pytest
import torch

from dist_train.config import Config, DataConfig
from dist_train.config.backbone import Preprocessing
from dist_train.data.loading import dali
from dist_train.data.loading.loader import train_batches
from dist_train.data.loading.order import Order
from dist_train.data.shards.index import ShardSet
from dist_train.data.splits import make_view
from dist_train.distributed.context import Context

PLAIN, RAND, TRIVIAL = (DataConfig(augment=suite) for suite in ("none", "randaugment", "trivialaugment"))


@dataclass(frozen=True)
class Operator:
    """An operator of DALI's graph: its schema, its inputs and outputs as (name, device), its arguments as text."""

    schema: str
    inputs: list[tuple[str, str]]
    outputs: list[tuple[str, str]]
    arguments: dict[str, str]


@pytest.fixture
def graph(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Operator]]:
    """``graph(data, crops, turned, device, preprocessing)``: the operators, in an order in which they can run."""
    monkeypatch.setattr(dali_library.Pipeline, "build", lambda pipeline: pipeline._build_graph())

    def build(
        data: DataConfig,
        crops: int = 1,
        turned: bool = False,
        device: int | None = 0,
        preprocessing: Preprocessing | None = None,
    ) -> list[Operator]:
        options = dali.GraphOptions(data, preprocessing or data.preprocessing, 8, 2, device, crops, turned)
        pipeline = dali.build_pipeline(options, depth=2)
        assert pipeline.device_id == device
        operators = []
        for operator in pipeline._ops:
            text = str(operator.spec)
            arguments = dict(re.findall(r"^    (\w+): (.*)$", text.split("Arguments:")[1], re.MULTILINE))
            schema = text.split()[2].rstrip(":")
            ends = [[(node.name, node.device) for node in nodes or ()] for nodes in (operator.inputs, operator.outputs)]
            operators.append(Operator(schema, *ends, arguments))
        (output,) = pipeline._graph_outputs if hasattr(pipeline, "_graph_outputs") else pipeline._graph_out
        assert output.device == ("cpu" if device is None else "gpu")
        return operators

    return build


def of_images(operators: list[Operator]) -> list[Operator]:
    """Return the operators on pixels: the decoder and those behind it, but not those that ask a device for a shape."""
    pixels: set[str] = set()
    found = []
    for one in operators:
        if one.schema.startswith("decoders__") or any(name in pixels for name, _ in one.inputs):
            found.append(one)
            pixels |= {name for name, _ in one.outputs}
    return found


def of(operators: list[Operator], schema: str) -> list[Operator]:
    return [one for one in operators if one.schema == schema]


@pytest.mark.parametrize("turned", [False, True], ids=["upright", "turned"])
@pytest.mark.parametrize(
    ("data", "crops"), [(PLAIN, 1), (PLAIN, 10), (RAND, 1), (TRIVIAL, 1)], ids=["plain", "ten", "rand", "trivial"]
)
@pytest.mark.parametrize("regions", [True, False], ids=["nvjpeg-13.2", "nvjpeg-12"])
def test_every_operator_on_pixels_works_on_the_gpu(
    graph: Callable[..., list[Operator]],
    monkeypatch: pytest.MonkeyPatch,
    data: DataConfig,
    crops: int,
    turned: bool,
    regions: bool,
) -> None:
    monkeypatch.setattr(dali, "_decodes_whole_images", lambda device: not regions)
    operators = graph(data, crops, turned)
    decoder, *later = of_images(operators)
    assert decoder.arguments["device"] == "mixed"
    for one in later:
        assert one.arguments["device"] == "gpu" and {device for _, device in one.outputs} == {"gpu"}, one
    # The other inputs come from the host, which knows their values.
    inputs = of(operators, "ExternalSource")
    assert len(inputs) == 5 + 3 * crops + 3 * turned + (data.operations > 0)
    assert {one.arguments["device"] for one in inputs} == {"cpu"}
    assert len(of(operators, "Copy")) == 0, "nothing goes to the GPU and back"

    wanted = {
        "output_type": "0",
        "adjust_orientation": "False",
        "jpeg_fancy_upsampling": "True",
    }
    assert decoder.schema == ("decoders__ImageSlice" if regions else "decoders__Image")
    assert {key: decoder.arguments[key] for key in wanted} == wanted
    assert float(decoder.arguments["hw_decoder_load"]) == 1
    window = decoder if regions else later[0]
    assert window.schema == ("decoders__ImageSlice" if regions else "Slice")
    assert window.arguments["axis_names"] == "HW" and len(window.inputs) == 3  # the blobs or images, start, shape

    (resize,) = of(later, "Resize")
    assert resize.arguments["antialias"] == "True" and resize.arguments["interp_type"] == "1"  # linear
    last = of(later, "CropMirrorNormalize")
    assert len(last) == crops
    for one in last:
        assert one.arguments["output_layout"] == "HWC" and one.arguments["dtype"] == "9"  # float32
        assert [round(float(part), 3) for part in re.findall(r"[\d.]+", one.arguments["mean"])] == [
            123.675,
            116.28,
            103.53,
        ]
        assert [round(float(part), 3) for part in re.findall(r"[\d.]+", one.arguments["std"])] == [
            58.395,
            57.12,
            57.375,
        ]
    assert len(of(later, "Stack")) == (crops > 1)
    flips = of(later, "Flip")
    assert len(flips) == turned + (data.operations > 0)
    assert len(of(later, "Transpose")) == turned


@pytest.mark.parametrize("turned", [False, True], ids=["upright", "turned"])
@pytest.mark.parametrize("data", [PLAIN, RAND], ids=["plain", "rand"])
def test_pillows_way_to_resize_works_on_the_gpu(
    graph: Callable[..., list[Operator]], data: DataConfig, turned: bool
) -> None:
    mean, std = (0.25, 0.5, 0.75), (0.1, 0.2, 0.3)
    preprocessing = Preprocessing(resize=248, size=224, interpolation="bicubic", mean=mean, std=std)
    operators = graph(data, 1, turned, preprocessing=preprocessing)
    _, *later = of_images(operators)
    for one in later:
        assert one.arguments["device"] == "gpu" and {device for _, device in one.outputs} == {"gpu"}, one
    passes = of(later, "Resize")
    assert [one.arguments["interp_type"] for one in passes] == ["2", "2"]  # cubic
    assert {one.arguments["antialias"] for one in passes} == {"True"}
    assert {one.arguments["dtype"] for one in passes} == {"9"} and len(of(later, "Cast")) == 2  # floats, then bytes
    given = {name for one in of(operators, "ExternalSource") for name, _ in one.outputs}
    sent = {name for one in later for name, device in one.inputs if device == "gpu" and name in given}
    assert sent == {"across_share", "down_share"}, "nothing else but the encoded images goes to the GPU"
    (last,) = of(later, "CropMirrorNormalize")
    for argument, row in (("mean", mean), ("std", std)):
        numbers = [float(part) for part in re.findall(r"[\d.]+", last.arguments[argument])]
        assert numbers == pytest.approx([255 * value for value in row])


def test_without_a_gpu_every_operator_works_on_the_cpu(graph: Callable[..., list[Operator]]) -> None:
    for data in (PLAIN, RAND):
        assert {one.arguments["device"] for one in graph(data, device=None)} == {"cpu"}


@pytest.mark.parametrize(
    ("version", "exact"),
    [("13.3.2.43", True), ("13.2.0.21", True), ("13.1.0.59", False), ("13.10.1", True), ("12.4.0.76", False),
     ("13", False), ("unknown", False), (None, False)],
)  # fmt: skip
def test_windows_are_decoded_by_nvjpeg_where_it_is_exact(
    monkeypatch: pytest.MonkeyPatch, version: str | None, exact: bool
) -> None:
    def of_package(name: str) -> str:
        if version is None:
            raise PackageNotFoundError(name)
        return version

    monkeypatch.setattr(dali, "version", of_package)
    assert dali._decodes_whole_images(0) is not exact and dali._decodes_whole_images(None) is False


@pytest.mark.parametrize("suite", ["none", "randaugment"])
def test_the_graph_of_older_libraries_makes_the_same_pixels(
    shards: ShardSet, config: Config, monkeypatch: pytest.MonkeyPatch, suite: Any
) -> None:
    """An image that is decoded whole and then cut, here on the CPU, gives the windows that are decoded alone."""
    view = make_view(shards["train"], shards.classes, shards.classes[:6], "s")
    monkeypatch.setattr(dali, "_finishes", lambda *_: True)
    data = replace(config.data, augment=suite)
    made = []
    for cut in (False, True):
        monkeypatch.setattr(dali, "_decodes_whole_images", lambda device_id, cut=cut: cut)
        batches = train_batches(view, Order(len(view), 24, 0), data, Context(), range(0, 3))
        made.append(torch.cat([batch.images for batch in batches]))
    assert torch.equal(*made)
