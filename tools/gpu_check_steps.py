"""The steps of ``gpu_check``, in the order of what they prove, with their time-outs.

Full size is the size of ImageNet on an H200-class GPU with 16 CPU cores; all time-outs together are twelve minutes.
With ``cpu`` the same commands are tiny and have long time-outs: a rehearsal proves that they can be run, not how fast.
"""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[1]
PATIENT_SECONDS = 600  # time-out of each step of a rehearsal: other work may have the CPU
DALI, CLI = ("nvidia.dali", "webdataset"), ("jsonargparse", "submitit")
TORCH = ("torch", "torchvision", "tensorboard", "scipy")

# Tests that are marked gpu, by their subject; tests/tools/test_gpu_check.py asserts that none is missing.
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


def read_json(file: Path, text: str) -> Any:
    """Return the result that a tool has written as JSON."""
    return json.loads(file.read_text())


def read_doctor(file: Path, text: str) -> dict[str, Any]:
    """Return the lines of ``doctor``: level, subject, text."""
    lines = re.findall(r"^(ok|warning|error) +(.{12}) (.*)$", text, re.MULTILINE)
    return {"lines": [[level, subject.strip(), finding] for level, subject, finding in lines]}


def read_tests(file: Path, text: str) -> dict[str, Any]:
    """Return counts, the outcome of each test, and the message of each failure: from pytest's XML or, where pytest was
    ended before it wrote the XML, from its printed lines."""
    tests, failures, reasons = {}, {}, set()
    if file.is_file():
        for case in ElementTree.parse(file).iter("testcase"):
            name = f"{case.get('classname', '')}::{case.get('name', '')}"
            problem = next((child for child in case if child.tag in ("failure", "error", "skipped")), None)
            tests[name] = "passed" if problem is None else "skipped" if problem.tag == "skipped" else "failed"
            if problem is not None and tests[name] == "failed":
                failures[name] = (problem.text or problem.get("message") or "")[-2000:]
            elif problem is not None:
                reasons.add(problem.get("message") or "")
    else:
        for name, outcome in re.findall(r"^(tests/\S+::.+?) (PASSED|FAILED|SKIPPED|ERROR)\b", text, re.MULTILINE):
            tests[name] = {"PASSED": "passed", "SKIPPED": "skipped"}.get(outcome, "failed")
    counts = {kind: sum(outcome == kind for outcome in tests.values()) for kind in ("passed", "failed", "skipped")}
    return {**counts, "reason": "; ".join(sorted(reasons)), "tests": tests, "failures": failures}


@dataclass(frozen=True)
class Step:
    """Describe a command and its proof.

    Attributes:
        name: the name of its record and its log.
        proves: what the step shows, for the page.
        command: the words of the command, which runs in the checkout.
        seconds: the time-out.
        needs: modules without which it is skipped.
        after: the step without whose success it is skipped.
        gpus: the number of GPUs without which it is skipped.
        made: the file in OUT/work in which the command leaves its result.
        read: returns the result from that file and the printed text; raises ValueError where there is none.
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
        """Return the file of the result."""
        return out / "work" / (self.made or f"{self.name}.json")


def installed(module: str) -> bool:
    """Return whether a module can be imported, without importing it."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # its package is missing
        return False


@dataclass(frozen=True)
class Commands:
    """Make the steps' commands, whose files go to ``work``.

    Attributes:
        cpu: whether to rehearse, tiny, without a GPU.
        threads: cores that loaders take.
    """

    work: Path
    cpu: bool
    threads: str

    @property
    def gpus(self) -> int:
        """GPUs that a step needs."""
        return 0 if self.cpu else 1

    def tool(self, name: str, *words: str) -> list[str]:
        """Return the command of a tool."""
        return [sys.executable, f"tools/{name}.py", *words]

    def json(self, name: str) -> list[str]:
        """Return the option that names the file of a step's result."""
        return ["--json", str(self.work / f"{name}.json")]

    def test(self, name: str, proves: str, seconds: int, *needs: str) -> Step:
        """Return the step that runs the tests of ``TESTS[name]``."""
        chosen = [word for word in TESTS[name] if (ROOT / word.partition("::")[0]).is_file()]
        command = [sys.executable, "-m", "pytest", "-m", "gpu", "-v", "--tb=short", "-p", "no:cacheprovider",
                   f"--junit-xml={self.work}/tests-{name}.xml", *chosen]  # fmt: skip
        return Step(f"tests-{name}", proves, command, seconds, ("pytest", *TORCH, *needs), gpus=self.gpus,
                    made=f"tests-{name}.xml", read=read_tests)  # fmt: skip

    def train(self, name: str, proves: str, seconds: int, *words: str, after: str = "") -> Step:
        """Return a step that times the trainer."""
        size = "--model resnet18 --classes 10 --size 32 --batch 4 --steps 1 --lead 1 --rounds 1 --precision fp32"
        if not self.cpu:
            size = "--model resnet50 --classes 1000 --size 224 --batch 256 --steps 8 --lead 4 --rounds 6"
        command = self.tool("bench_step", *size.split(), "--threads", self.threads, *words, *self.json(name))
        return Step(name, proves, command, seconds, TORCH + (DALI if after else ()), after, self.gpus)


def steps(out: Path, cpu: bool = False, cpus: int = 16) -> list[Step]:
    """Return all steps, whose files go to ``out``; loaders take ``cpus`` cores, 16 at most."""
    make = Commands(out / "work", cpu, str(min(16, cpus)))
    every = [*_proofs(make), *_measurements(make)]
    return [replace(step, seconds=PATIENT_SECONDS) for step in every] if cpu else every


def _proofs(make: Commands) -> list[Step]:
    """Return the steps that pass or fail."""
    return [
        Step("doctor", "what the machine can do",
             [sys.executable, "-m", "dist_train", "doctor", "--runs", str(make.work / "runs")], 15, CLI,
             read=read_doctor),
        make.test("pixels", "the GPU sees the CPU's pixels, and keeps them", 40, *DALI),
        make.test("step", "a step waits for nothing; compiled, sharded or on two GPUs it is the same step", 75, "timm"),
        make.test("predictor", "a CUDA graph learns the same as single launches", 40, "timm"),
        make.test("run", "a stopped run ends in the table of a whole run; the GPU answers as the CPU", 40, *DALI,
                  "pydantic"),
    ]  # fmt: skip


def _measurements(make: Commands) -> list[Step]:
    """Return the steps that measure, and those that make their inputs."""
    cpu, work, gpus = make.cpu, make.work, make.gpus
    loaders = ["DALI's own", "torchvision", *([] if cpu else ["limit"])]
    passes = "--rounds 1 --passes 1" if cpu else "--rounds 3 --passes 4 --gpu"
    sizes = "--classes 7 --per-class 8 --dim 12 --steps 5 --precision fp32" if cpu else "--steps 2000 --precision bf16"
    classes = "--base 5 --per-class 8 --novel 3 --novel-per-class 9 --val-per-class 2 --dim 8 --draws 2 --shots 1 3"
    rows = [*classes.split(), "--methods", "mean", "phi2"] if cpu else []
    photos = ["--count", "128" if cpu else "1024"]
    return [
        Step("images", "full-size photos for the loaders, packed",
             make.tool("gpu_check_work", "images", str(work), *make.json("images"), *photos), 30, DALI),
        Step("loader", "the loader beside DALI's reader and torchvision's, on full-size photos",
             make.tool("bench_loader", "--images", str(work / "photos"), *passes.split(), "--threads", make.threads,
                       "--only", *loaders, *make.json("loader")), 40, (*DALI, *TORCH), "images", gpus),
        make.train("step-eager", "the trainer beside a bare loop and timm's", 40, "--no-loader",
                   *(["--timm"] if installed("timm") else [])),
        make.train("step-untuned", "the same without cuDNN's trials", 30, "--no-loader", "--no-tuning"),
        make.train("step-loader", "the trainer on the batches of its loader", 30, "--shards", str(work / "shards"),
                   after="images"),
        make.train("step-compiled", "the compiled trainer", 70, "--no-loader", "--alone", "--compile"),
        Step("run", "drawn classes through all stages, stopped and resumed, beside a whole run",
             make.tool("gpu_check_work", "resume", str(work), *make.json("run"), *(["--tiny"] if cpu else [])), 70,
             (*DALI, *CLI, *TORCH), gpus=gpus),
        Step("learn", "the predictors' training with and without the CUDA graph, at full size",
             make.tool("bench_learn", *sizes.split(), "--methods", "phi2", "phi1", "phi2star", "--cuda-graph", "off",
                       "on", *make.json("learn")), 45, TORCH, gpus=gpus),
        Step("evaluate", "all rows on stored activations of full size",
             make.tool("bench_evaluate", *rows, *make.json("evaluate")), 130, TORCH, gpus=gpus),
    ]  # fmt: skip
