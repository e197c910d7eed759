"""Test and measure on a GPU what no CPU can show, in twelve minutes, in steps with a time-out, a JSON and a log each.

    python tools/gpu_check.py run OUT [--cpu] [--only STEP ...]   (tools/gpu_check.sh OUT)
    python tools/gpu_check.py page OUT [--to FILE]

``run`` takes the steps of ``gpu_check_steps`` in order. It writes ``OUT/STEP.json`` for each: name, command, status
(passed, failed, timed out, skipped), reason, seconds, time-out, result, versions, device, start (UTC); and
``OUT/STEP.log``, everything that the step has printed. A step that its time-out ends keeps the part of its result that
it had written. ``page`` writes docs/results/gpu.md from the records in OUT, or OUT/gpu.md where they are of a
rehearsal; ``run`` does so at its end.

It needs nothing but Python itself: git, network and packages may be missing; a step without its packages is skipped.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gpu_check_page import page
from gpu_check_steps import ROOT, Step, installed, steps

PACKAGES = ("torch", "torchvision", "timm", "nvidia-dali-cuda130", "nvidia-dali-cuda120", "deepspeed", "webdataset",
            "numpy")  # fmt: skip
PAGE = ROOT / "docs" / "results" / "gpu.md"
KEYS = {"name", "command", "status", "reason", "seconds", "timeout", "result", "versions", "device", "start"}
"""Keys of a step's record."""
PROBE_SECONDS, GRACE_SECONDS = 25, 5
_PROBE = """
import json, os, torch
found = {"cpus": len(os.sched_getaffinity(0)), "gpus": 0, "name": "CPU"}
if torch.cuda.is_available():
    facts = torch.cuda.get_device_properties(0)
    found |= {"gpus": torch.cuda.device_count(), "name": facts.name, "gib": round(facts.total_memory / 2**30),
              "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
print(json.dumps(found))
"""


def probe(environment: dict[str, str]) -> dict[str, Any]:
    """Return what torch sees: name, number of GPUs, GiB of the first, usable CPUs; "error" where torch cannot say."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", _PROBE], capture_output=True, text=True, timeout=PROBE_SECONDS, env=environment
        )
    except subprocess.TimeoutExpired:
        return {"gpus": 0, "name": "unknown", "error": f"torch gave no answer within {PROBE_SECONDS} s"}
    if done.returncode:
        return {"gpus": 0, "name": "unknown", "error": last_line(done.stderr)}
    device: dict[str, Any] = json.loads(done.stdout)
    return device


def versions() -> dict[str, str]:
    """Return the versions of Python and of the installed packages of ``PACKAGES``."""
    installed = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            installed[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return installed


def obstacle(step: Step, device: dict[str, Any], passed: set[str]) -> str:
    """Return why a step cannot be taken here, or "".

    Args:
        passed: names of the steps that have passed.
    """
    missing = [module for module in step.needs if not installed(module)]
    if missing:
        return f"not installed: {', '.join(missing)}"
    if device["gpus"] < step.gpus:
        return f"GPUs needed: {step.gpus}, here: {device['gpus']}"
    if step.after and step.after not in passed:
        return f"needs what the step {step.after} makes, which has not passed"
    return ""


def take(step: Step, out: Path, environment: dict[str, str]) -> dict[str, Any]:
    """Run a step to its end or its time-out; return status, reason, seconds and result."""
    log, result_file = out / f"{step.name}.log", step.result(out)
    result_file.unlink(missing_ok=True)  # an earlier start's
    began = time.monotonic()
    with log.open("w") as file:
        process = subprocess.Popen(
            step.command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        try:
            code: int | None = process.wait(step.seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            end(process)
    seconds = round(time.monotonic() - began, 1)
    text = log.read_text(errors="replace")
    try:
        result = step.read(result_file, text)
    except (OSError, ValueError, KeyError, SyntaxError):  # it was ended before it had written all
        result = None
    if code is None:
        status, reason = "timed out", f"after {step.seconds} s; last: {last_line(text)}"
    elif code:
        status, reason = "failed", f"exit code {code}: {last_line(text)}"
    elif result is None:
        status, reason = "failed", f"left no result: {last_line(text)}"
    elif isinstance(result, dict) and result.get("skipped") and not result.get("passed"):  # all tests
        status, reason = "skipped", result["reason"]
    else:
        status, reason = "passed", ""
    return {"status": status, "reason": reason, "seconds": seconds, "result": result}


def end(process: subprocess.Popen[bytes]) -> None:
    """End a step and all processes that it has started, by TERM first, so that launchers can end their ranks."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        try:
            process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            continue
    process.wait()


def last_line(text: str) -> str:
    """Return the last line that is not empty."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "nothing was printed"


def records(out: Path) -> dict[str, dict[str, Any]]:
    """Return the records in OUT by step, those of earlier starts too."""
    by_step = {}
    for path in sorted(out.glob("*.json")):
        try:
            record = json.loads(path.read_text())
        except ValueError:
            record = None
        if isinstance(record, dict) and record.keys() >= KEYS:
            by_step[record["name"]] = record
        else:
            print(f"gpu_check: {path}: not a step's record, left out", file=sys.stderr)
    return by_step


def target(out: Path, by_step: Mapping[str, Mapping[str, Any]]) -> Path:
    """Return where the page of these records goes: a rehearsal's never goes into the documentation."""
    rehearsed = any(not record["device"]["gpus"] for record in by_step.values())
    return out / PAGE.name if rehearsed else PAGE


def run(args: argparse.Namespace) -> int:
    """Take the steps; return 1 where one has failed or was ended by its time-out."""
    out = args.out.absolute()
    try:
        (out / "work").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        print(f"gpu_check: {out}: {error.strerror}; choose another folder", file=sys.stderr)
        return 1
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
    if args.cpu:  # and without a compiler, which would take minutes
        environment |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1"}
    device, packages = probe(environment), versions()
    if not args.cpu and not device["gpus"]:
        why = device.get("error", "dist-train doctor says why")
        print(f"gpu_check: no GPU that torch can use ({why}); --cpu rehearses without one", file=sys.stderr)
        return 1
    every = steps(out, args.cpu, device.get("cpus", 1))
    unknown = set(args.only) - {step.name for step in every}
    if unknown:
        print(f"gpu_check: --only {' '.join(sorted(unknown))}: no such step; there are: "
              f"{', '.join(step.name for step in every)}", file=sys.stderr)  # fmt: skip
        return 1
    before = records(out)
    if any(bool(record["device"]["gpus"]) == args.cpu for record in before.values()):
        other = "a GPU's" if args.cpu else "a rehearsal's"
        print(f"gpu_check: {out} holds {other} records; choose another folder", file=sys.stderr)
        return 1
    passed = {name for name, record in before.items() if record["status"] == "passed"}
    bad = 0
    for step in every:
        if args.only and step.name not in args.only:
            continue
        passed.discard(step.name)
        print(f"gpu_check: {step.name}: {step.proves} (at most {step.seconds} s)", flush=True)
        began = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S")
        why = obstacle(step, device, passed)
        outcome = {"status": "skipped", "reason": why, "seconds": 0.0, "result": None} if why else (
            take(step, out, environment)
        )  # fmt: skip
        about = {"name": step.name, "command": shlex.join(step.command), "timeout": step.seconds, "start": began}
        text = json.dumps({**about, **outcome, "versions": packages, "device": device}, indent=1)
        (out / f"{step.name}.json").write_text(text + "\n")
        if outcome["status"] == "passed":
            passed.add(step.name)
        bad += outcome["status"] in ("failed", "timed out")
        verdict = f"{outcome['status']} {outcome['reason']}".rstrip()
        print(f"gpu_check: {step.name}: {verdict} ({outcome['seconds']} s)", flush=True)
    return write(out) or (1 if bad else 0)


def write(out: Path, to: Path | None = None) -> int:
    """Write the page from the records in OUT; return 1 where there are none."""
    by_step = records(out)
    if not by_step and not out.is_dir():
        print(f"gpu_check: {out}: no such folder", file=sys.stderr)
        return 1
    to = to or target(out, by_step)
    to.write_text(page(by_step))
    print(f"gpu_check: {to}")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    take_all = verbs.add_parser("run", help="take the steps")
    take_all.add_argument("out", type=Path, help="folder of the records")
    take_all.add_argument("--cpu", action="store_true", help="rehearse, tiny, without a GPU")
    take_all.add_argument("--only", nargs="+", default=[], metavar="STEP", help="these steps")
    only_write = verbs.add_parser("page", help="write the page from the records")
    only_write.add_argument("out", type=Path, help="folder of the records")
    only_write.add_argument("--to", type=Path, help="default: as run does")
    args = parser.parse_args(arguments)
    if args.verb == "page":
        return write(args.out, args.to)
    # A step has a session of its own: left behind, it would keep the GPU.
    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, leave) for number in numbers]
    try:
        return run(args)
    except (KeyboardInterrupt, Ended) as cause:
        why = str(cause) or "interrupted"
        print(f"gpu_check: {why}; the step that ran is ended, the records before it are kept: --only takes steps that "
              "are missing, and writes the page", file=sys.stderr)  # fmt: skip
        return 1
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


class Ended(BaseException):
    """Report that a signal ends this program."""


def leave(number: int, frame: object) -> None:
    """Raise ``Ended``; a handler of signals."""
    raise Ended(f"told to leave ({signal.Signals(number).name})")


if __name__ == "__main__":
    sys.exit(main())
