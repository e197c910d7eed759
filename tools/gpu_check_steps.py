"""The steps of ``gpu_check``, in the order of what they prove, with their time-outs.

Full size is that of ImageNet on one H200-class GPU with 16 CPU cores; all time-outs together are twelve minutes. With
``cpu`` the same commands are made, tiny, and patient: a rehearsal proves that they can be run, not how fast.
"""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[1]
PATIENT_SECONDS = 600  # of each step of a rehearsal: other work may have the CPU
DALI, CLI = ("nvidia.dali", "webdataset"), ("jsonargparse", "submitit")

# What is marked gpu, by what it proves; tests/tools/test_gpu_check.py holds that none is missing.
TESTS = {
    "pixels": ("tests/data/loading/test_loader.py", "tests/gpu/test_loader_on_gpu.py",
               "tests/data/loading/test_one_preprocessing.py",
               "tests/data/loading/test_operations.py"),
    "step": ("tests/training/test_syncs.py::test_pretrain_on_a_gpu_never_waits_between_log_lines",
             "tests/gpu/test_zero_on_gpu.py", "tests/gpu/test_two_gpus.py", "tests/gpu/test_compile_on_gpu.py"),
    "predictor": ("tests/stages/test_learn.py",
                  "tests/training/test_syncs.py::test_learn_on_a_gpu_never_waits_between_log_lines"),
    "run": ("tests/classifier/test_classifier.py", "tests/gpu/test_run_on_gpu.py"),
}  # fmt: skip


def read_json(made: Path, text: str) -> Any:
    return json.loads(made.read_text())


def read_doctor(made: Path, text: str) -> dict[str, Any]:
    """Its lines: level, what, text."""
    lines = re.findall(r"^(ok|warning|error) +(.{12}) (.*)$", text, re.MULTILINE)
    return {"lines": [[level, what.strip(), told] for level, what, told in lines]}


def read_tests(made: Path, text: str) -> dict[str, Any]:
    """Counts, outcome of each test, message of each that failed: from pytest's XML or, where pytest was ended before
    it wrote that, from the lines that it had printed."""
    tests, failures, reasons = {}, {}, set()
    if made.is_file():
        for case in ElementTree.parse(made).iter("testcase"):
            name = f"{case.get('classname', '')}::{case.get('name', '')}"
            told = next((child for child in case if child.tag in ("failure", "error", "skipped")), None)
            tests[name] = "passed" if told is None else "skipped" if told.tag == "skipped" else "failed"
            if told is not None and tests[name] == "failed":
                failures[name] = (told.text or told.get("message") or "")[-2000:]
            elif told is not None:
                reasons.add(told.get("message") or "")
    else:
        for name, outcome in re.findall(r"^(tests/\S+::.+?) (PASSED|FAILED|SKIPPED|ERROR)\b", text, re.MULTILINE):
            tests[name] = {"PASSED": "passed", "SKIPPED": "skipped"}.get(outcome, "failed")
    counts = {kind: sum(outcome == kind for outcome in tests.values()) for kind in ("passed", "failed", "skipped")}
    return {**counts, "reason": "; ".join(sorted(reasons)), "tests": tests, "failures": failures}


@dataclass(frozen=True)
class Step:
    """One command.

    Attributes:
        name: of its record and its log.
        proves: what it shows, for the page.
        command: what is run, in the checkout.
        seconds: time-out.
        needs: modules without which it is skipped.
        after: the step without whose success it is skipped.
        gpus: without so many GPUs it is skipped.
        made: the file in OUT/work that the command leaves its result in.
        read: from that file and from what was printed to the result; ValueError where there is none.
    """

    name: str
    proves: str
    command: list[str]
    seconds: int
    needs: tuple[str, ...] = ()
    after: str = ""
    gpus: int = 0
    made: str = ""
    read: Callable[[Path, str], Any] = read_json

    def result(self, out: Path) -> Path:
        return out / "work" / (self.made or f"{self.name}.json")


def installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package that it is in
        return False


def steps(out: Path, cpu: bool = False, cpus: int = 16) -> list[Step]:
    """All steps, whose files go to ``out``; ``cpus``: cores that may be used, of which loaders take 16 at most."""
    work, gpus, threads = out / "work", 0 if cpu else 1, str(min(16, cpus))
    python = ("torch", "torchvision", "tensorboard", "scipy")

    def tool(name: str, *words: str) -> list[str]:
        return [sys.executable, f"tools/{name}.py", *words]

    def left(name: str) -> list[str]:
        return ["--json", str(work / f"{name}.json")]

    def test(name: str, proves: str, seconds: int, *needs: str) -> Step:
        chosen = [word for word in TESTS[name] if (ROOT / word.partition("::")[0]).is_file()]
        command = [sys.executable, "-m", "pytest", "-m", "gpu", "-v", "--tb=short", "-p", "no:cacheprovider",
                   f"--junit-xml={work}/tests-{name}.xml", *chosen]  # fmt: skip
        return Step(f"tests-{name}", proves, command, seconds, ("pytest", *python, *needs), gpus=gpus,
                    made=f"tests-{name}.xml", read=read_tests)  # fmt: skip

    def train(name: str, proves: str, seconds: int, *words: str, after: str = "") -> Step:
        size = "--model resnet18 --classes 10 --size 32 --batch 4 --steps 1 --lead 1 --rounds 1 --precision fp32"
        if not cpu:
            size = "--model resnet50 --classes 1000 --size 224 --batch 256 --steps 8 --lead 4 --rounds 6"
        command = tool("bench_step", *size.split(), "--threads", threads, *words, *left(name))
        return Step(name, proves, command, seconds, python + (DALI if after else ()), after, gpus)

    loaders = ["DALI's own", "torchvision", *([] if cpu else ["limit"])]
    passes = "--rounds 1 --passes 1" if cpu else "--rounds 3 --passes 4 --gpu"
    sizes = "--classes 7 --per-class 8 --dim 12 --steps 5 --precision fp32" if cpu else "--steps 2000 --precision bf16"
    classes = "--base 5 --per-class 8 --novel 3 --novel-per-class 9 --val-per-class 2 --dim 8 --draws 2 --shots 1 3"
    rows = [*classes.split(), "--methods", "mean", "phi2"] if cpu else []
    photos = ["--count", "128" if cpu else "1024"]
    every = [
        Step("doctor", "what the machine can do",
             [sys.executable, "-m", "dist_train", "doctor", "--runs", str(work / "runs")], 15, CLI, read=read_doctor),
        test("pixels", "the GPU sees the CPU's pixels, and keeps them", 40, *DALI),
        test("step", "a step waits for nothing; compiled, sharded or on two GPUs it is the same step", 75, "timm"),
        test("predictor", "a CUDA graph learns what single launches learn", 40, "timm"),
        test("run", "a stopped run ends in the table of a whole one; the GPU answers as the CPU", 40, *DALI,
             "pydantic"),
        Step("images", "full-size photos for the loaders, packed",
             tool("gpu_check_work", "images", str(work), *left("images"), *photos), 30, DALI),
        Step("loader", "the loader beside DALI's reader and torchvision's, on full-size photos",
             tool("bench_loader", "--images", str(work / "photos"), *passes.split(), "--threads", threads,
                  "--only", *loaders, *left("loader")), 40, (*DALI, *python), "images", gpus),
        train("step-eager", "the trainer beside a bare loop and timm's", 40, "--no-loader",
              *(["--timm"] if installed("timm") else [])),
        train("step-untuned", "the same without cuDNN's trials", 30, "--no-loader", "--no-tuning"),
        train("step-loader", "the trainer on what its loader reads", 30, "--shards", str(work / "shards"),
              after="images"),
        train("step-compiled", "the compiled trainer", 70, "--no-loader", "--alone", "--compile"),
        Step("run", "drawn classes through all stages, stopped and resumed, beside a whole run",
             tool("gpu_check_work", "resume", str(work), *left("run"), *(["--tiny"] if cpu else [])), 70,
             (*DALI, *CLI, *python), gpus=gpus),
        Step("learn", "the predictors' training with and without the CUDA graph, at full size",
             tool("bench_learn", *sizes.split(), "--methods", "phi2", "phi1", "phi2star", "--cuda-graph", "off", "on",
                  *left("learn")), 45, python, gpus=gpus),
        Step("evaluate", "all rows on stored activations of full size",
             tool("bench_evaluate", *rows, *left("evaluate")), 130, python, gpus=gpus),
    ]  # fmt: skip
    if not cpu:
        return every
    return [Step(**{**vars(step), "seconds": PATIENT_SECONDS}) for step in every]
