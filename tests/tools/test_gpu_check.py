"""tools/gpu_check.sh, rehearsed without a GPU, with steps that fail, hang and lack packages; and its page."""

from __future__ import annotations

import ast
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import gpu_check  # noqa: E402
import gpu_check_page  # noqa: E402
from gpu_check_steps import TESTS, Step, read_tests, steps  # noqa: E402

DEVICE = {"gpus": 1, "name": "Drawn GPU", "gib": 141, "cpus": 16, "cuda": "13.0", "cudnn": 91000}


def start(out: Path, *words: str, **environment: str) -> tuple[int, str, dict[str, Any]]:
    """Run the script with these words; return its exit code, its printed text and the records."""
    done = subprocess.run(
        [str(ROOT / "tools" / "gpu_check.sh"), str(out), *words], capture_output=True, text=True, timeout=1800,
        env={**os.environ, "PYTHON": sys.executable, **environment},
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr, gpu_check.records(out)


@pytest.mark.long
def test_the_rehearsal_takes_every_step(tmp_path: Path) -> None:
    code, said, found = start(tmp_path, "--cpu")
    every = steps(tmp_path, cpu=True)
    assert code == 0, said
    assert list(found) == sorted(step.name for step in every)
    for name, record in found.items():
        tests = name.startswith("tests-")  # pytest skips all of them without a GPU
        assert record["status"] == ("skipped" if tests else "passed"), (name, record)
        assert {"command", "timeout", "start", "seconds", "versions", "device"} <= set(record) and record["result"]
        assert "torch" in record["versions"] and record["device"]["gpus"] == 0 and (tmp_path / f"{name}.log").is_file()
    assert found["run"]["result"]["equal"] and found["run"]["result"]["seconds"].keys() == {
        "whole",
        "stopped",
        "resumed",
    }
    assert found["tests-pixels"]["result"]["skipped"] >= 10
    assert set(found["step-eager"]["result"][0]["rates"]) == {"bare", "trainer", "timm"}
    assert set(found["step-loader"]["result"][0]["rates"]) == {"bare", "trainer", "trainer + loader"}
    assert set(found["step-compiled"]["result"][0]["rates"]) == {"trainer"}
    assert found["step-compiled"]["result"][0]["compiled"]
    page = (tmp_path / "gpu.md").read_text()
    assert "no GPU: a rehearsal" in page and page.count("| rehearsed |") == 4 and "not run" not in page
    assert "are equal" in page and "| `run` |" in page and page.count(" passed, ") >= len(every) - len(TESTS)


BLOCKED = """
from functools import partial
from importlib.machinery import PathFinder

MISSING = {"nvidia.dali", "webdataset", "jsonargparse", "submitit", "deepspeed", "fastapi", "pydantic", "playwright",
           "moto", "pillow_heif", "uvicorn", "onnx"}
find = PathFinder.find_spec


def find_spec(name, path=None, target=None):
    gone = name in MISSING or name.partition(".")[0] in MISSING
    return None if gone else find(name, path, target)


PathFinder.find_spec = partial(find_spec)  # not a method of its owner
"""


def test_steps_that_need_only_torch_run_without_other_packages(tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(BLOCKED)
    out = tmp_path / "out"
    alone = ("step-eager", "learn", "evaluate")
    taken = ("doctor", "tests-pixels", "tests-step", "images", "run", *alone)
    code, said, found = start(out, "--cpu", "--only", *taken, PYTHONPATH=str(tmp_path / "site"))
    assert code == 0, said
    assert sorted(found) == sorted(taken)
    assert [name for name in found if found[name]["status"] == "passed"] == sorted(alone)
    record = found["tests-step"]  # collected, and skipped by pytest alone
    assert record["result"]["skipped"] and "no CUDA device" in record["reason"], record
    for name, missing in {"doctor": "jsonargparse, submitit", "tests-pixels": "nvidia.dali, webdataset",
                          "images": "nvidia.dali, webdataset", "run": "jsonargparse"}.items():  # fmt: skip
        assert found[name]["reason"].startswith("not installed: ") and missing in found[name]["reason"], found[name]


def python(name: str, code: str, **more: Any) -> Step:
    return Step(name, f"what {name} proves", [sys.executable, "-c", code], **{"seconds": 60, **more})


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"


def test_a_step_that_fails_hangs_or_lacks_packages_does_not_harm_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, work = tmp_path, tmp_path / "work"
    write = "import sys, pathlib; pathlib.Path({!r}).write_text({!r}); "
    child = "import subprocess, time; p = subprocess.Popen(['sleep', '600']); "
    child += f"open({str(work / 'pid')!r}, 'w').write(str(p.pid)); "
    listed = [
        python("one", write.format(str(work / "one.json"), '{"figure": 1}')),
        python("broken", "print('about to break'); raise ValueError('on purpose')"),
        python("killed", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"),
        python("hangs", child + write.format(str(work / "hangs.json"), '{"part": 2}') + "print('half', flush=True); "
               "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)", seconds=12),
        python("mute", "pass"),
        python("torn", write.format(str(work / "torn.json"), '{"figure"')),
        python("elsewhere", "pass", needs=("no_such_package.part", "json")),
        python("many", "pass", gpus=3),
        python("after", "pass", after="broken"),
        python("last", write.format(str(work / "last.json"), '{"figure": 3}'), after="one"),
    ]  # fmt: skip
    monkeypatch.setattr(gpu_check, "steps", lambda *given: listed)
    monkeypatch.setattr(gpu_check, "probe", lambda environment: {"gpus": 0, "name": "CPU", "cpus": 2})
    monkeypatch.setattr(gpu_check, "GRACE_SECONDS", 1)
    assert gpu_check.main(["run", str(out), "--cpu"]) == 1
    found = gpu_check.records(out)
    assert {name: record["status"] for name, record in found.items()} == {
        "one": "passed", "broken": "failed", "killed": "failed", "hangs": "timed out", "mute": "failed",
        "torn": "failed", "elsewhere": "skipped", "many": "skipped", "after": "skipped", "last": "passed",
    }  # fmt: skip
    assert found["one"]["result"] == {"figure": 1} and found["last"]["result"] == {"figure": 3}
    assert "exit code 1: ValueError: on purpose" in found["broken"]["reason"]
    assert "about to break" in (out / "broken.log").read_text()
    assert found["hangs"]["result"] == {"part": 2} and found["hangs"]["reason"] == "after 12 s; last: half"
    end = time.monotonic() + 30
    while alive(int((work / "pid").read_text())):  # its child is ended with it
        assert time.monotonic() < end
        time.sleep(0.05)
    assert "left no result" in found["mute"]["reason"] and "left no result" in found["torn"]["reason"]
    assert found["elsewhere"]["reason"] == "not installed: no_such_package.part"
    assert found["many"]["reason"] == "GPUs needed: 3, here: 0"
    assert "broken" in found["after"]["reason"]

    # A step taken again: the others' records stay, and an earlier result does not count as a new one.
    listed[0] = python("one", "raise SystemExit(3)")
    assert gpu_check.main(["run", str(out), "--cpu", "--only", "one"]) == 1
    again = gpu_check.records(out)
    assert again["one"]["status"] == "failed" and again["one"]["result"] is None
    assert {name: again[name] for name in again if name != "one"} == {n: found[n] for n in found if n != "one"}
    assert gpu_check.main(["run", str(out), "--cpu", "--only", "none"]) == 1
    # A GPU's figures and a rehearsal's are never on one page.
    monkeypatch.setattr(gpu_check, "probe", lambda environment: DEVICE)
    assert gpu_check.main(["run", str(out)]) == 1 and gpu_check.records(out) == again


TOLD = """
import sys
import gpu_check
from gpu_check_steps import Step
out, child = sys.argv[1:]
code = f"import subprocess, time; p = subprocess.Popen(['sleep', '600']); open({child!r}, 'w').write(f'{{p.pid}} '); " \
    "time.sleep(600)"
gpu_check.steps = lambda *given: [Step("long", "what it proves", [sys.executable, "-c", code], 600)]
gpu_check.probe = lambda environment: {"gpus": 0, "name": "CPU", "cpus": 2}
sys.exit(gpu_check.main(["run", out, "--cpu"]))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_ends_the_running_step_too(tmp_path: Path, number: signal.Signals) -> None:
    child = tmp_path / "pid"
    process = subprocess.Popen([sys.executable, "-c", TOLD, str(tmp_path / "out"), str(child)], cwd=ROOT / "tools",
                               stderr=subprocess.PIPE, text=True)  # fmt: skip
    end = time.monotonic() + 60
    while not (child.is_file() and child.read_text().endswith(" ")):
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.05)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1 and "records before it are kept" in said and "Traceback" not in said, said
    while alive(int(child.read_text())):
        assert time.monotonic() < end + 60
        time.sleep(0.05)


def test_a_rehearsal_never_gets_into_the_documentation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "docs.md"
    page.write_text("as it was")
    monkeypatch.setattr(gpu_check, "PAGE", page)
    out = tmp_path / "out"
    assert gpu_check.main(["page", str(out)]) == 1 and "no such folder" in capsys.readouterr().err
    out.mkdir()
    (out / "package.json").write_text('{"name": "of something else"}')
    (out / "list.json").write_text("[]")
    (record,) = made_up(evaluate=GOOD["evaluate"]).values()
    rehearsed = {**record, "device": {"gpus": 0, "name": "CPU"}}
    (out / "evaluate.json").write_text(json.dumps(rehearsed))
    assert gpu_check.main(["page", str(out)]) == 0 and page.read_text() == "as it was"
    assert "no GPU: a rehearsal" in (out / page.name).read_text()
    assert capsys.readouterr().err.count("not a step's record") == 2
    (out / "evaluate.json").write_text(json.dumps(record))
    assert gpu_check.main(["page", str(out)]) == 0 and "1 × Drawn GPU" in page.read_text()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert gpu_check.main(["run", str(tmp_path / "file"), "--cpu"]) == 1
    assert "file: Not a directory; choose another folder" in capsys.readouterr().err


def test_without_a_gpu_nothing_is_started_and_the_page_stays(tmp_path: Path) -> None:
    before = gpu_check.PAGE.read_text()
    code, said, found = start(tmp_path, CUDA_VISIBLE_DEVICES="")
    assert code == 1 and "no GPU that torch can use" in said and "--cpu" in said and not found
    assert gpu_check.PAGE.read_text() == before


def test_all_steps_fit_in_twelve_minutes_and_use_tools_that_exist(tmp_path: Path) -> None:
    every = steps(tmp_path)
    assert sum(step.seconds for step in every) + gpu_check.PROBE_SECONDS <= 12 * 60
    names = [step.name for step in every]
    assert len(set(names)) == len(names) and all(step.after in ("", *names[: names.index(step.name)]) for step in every)
    for step in every:
        assert all((ROOT / word).is_file() for word in step.command if word.startswith("tools/")), step.command


def gpu_tests() -> set[str]:
    """Return ``file::test`` of all tests that are marked gpu, or lie in tests/gpu."""
    found = set()
    for path in (ROOT / "tests").rglob("test_*.py"):
        for node in ast.parse(path.read_text()).body:
            marks = [ast.unparse(mark) for mark in node.decorator_list] if isinstance(node, ast.FunctionDef) else []
            name = getattr(node, "name", "")
            if "pytest.mark.gpu" in marks or (path.parent.name == "gpu" and name.startswith("test_")):
                found.add(f"{path.relative_to(ROOT)}::{name}")
    return found


def test_every_gpu_test_belongs_to_a_step() -> None:
    chosen = [word for words in TESTS.values() for word in words]
    assert len(gpu_tests()) >= 10
    for test in gpu_tests():
        assert test in chosen or test.partition("::")[0] in chosen, (
            f"{test}: no step of tools/gpu_check_steps.py has it"
        )


XML = """<testsuites><testsuite>
<testcase classname="tests.a" name="test_good[x]"/>
<testcase classname="tests.a" name="test_bad"><failure message="assert 1 == 2">E assert 1 == 2</failure></testcase>
<testcase classname="tests.a" name="test_error"><error message="no fixture">E no fixture</error></testcase>
<testcase classname="tests.a" name="test_none"><skipped message="no CUDA device"/></testcase>
</testsuite></testsuites>"""
LINES = """tests/a.py::test_good[x - y] PASSED  [ 25%]
tests/a.py::test_bad FAILED [ 50%]
tests/a.py::test_none SKIPPED (no CUDA device) [ 75%]
tests/a.py::test_slow """


def test_outcomes_of_tests_come_from_the_xml_or_else_from_printed_lines(tmp_path: Path) -> None:
    (tmp_path / "x.xml").write_text(XML)
    whole, part = read_tests(tmp_path / "x.xml", ""), read_tests(tmp_path / "none.xml", LINES)
    assert [whole[kind] for kind in ("passed", "failed", "skipped")] == [1, 2, 1]
    assert "1 == 2" in whole["failures"]["tests.a::test_bad"] and whole["reason"] == "no CUDA device"
    assert [part[kind] for kind in ("passed", "failed", "skipped")] == [1, 1, 1] and len(part["tests"]) == 3


def made_up(**results: Any) -> dict[str, dict[str, Any]]:
    """Return the records of a run in which these steps have passed."""
    results = {name.replace("_", "-"): value for name, value in results.items()}
    return {name: {"name": name, "status": "passed", "reason": "", "seconds": 9.0, "timeout": 60, "command": "x",
                   "start": "2031-05-06 07:08:09", "result": value, "versions": {"torch": "2.99"}, "device": DEVICE}
            for name, value in results.items()}  # fmt: skip


def step_of(**rates: float) -> list[dict[str, Any]]:
    return [{"rates": {name: [rate - 1, rate, rate + 5] for name, rate in rates.items()}, "memory": {"trainer": 21.5}}]


GOOD: dict[str, Any] = {
    "loader": {"rates": {"dist_train": [4000.0], "torchvision DataLoader": [900.0]}, "threads": 16},
    "step_eager": step_of(trainer=3000, timm=2600, bare=2990),
    "step_compiled": step_of(trainer=3500, bare=3480),
    "learn": {"rates": {name: {"off": 500.0, "on": 1300.0} for name in ("phi1", "phi2", "phi2star")}},
    "evaluate": {"seconds": {"nn": 60.0, "mean": 90.0}, "methods": ["nn", "mean"]},
    "run": {"equal": False, "largest_difference": 0.25, "weights_difference": 1.5e-5},
}


def verdicts(**results: Any) -> list[str]:
    text = gpu_check_page.page(made_up(**results))
    table = text.split("## Aims")[1].split("##")[0].strip().splitlines()[2:]
    return [row.strip("| ").rpartition("|")[2].strip() for row in table]


MET, NOT, OPEN = "**met**", "**not met**", "not decided"


def test_each_aim_stands_beside_its_figure() -> None:
    assert verdicts(**GOOD) == [MET] * 4
    text = gpu_check_page.page(made_up(**GOOD))
    assert "4,000 images/s on 16 cores, training 3,500" in text and "3,500 beside 2,600 images/s: 1.35 times" in text
    assert "58 s, from its rate" in text and "2 of 2 rows: 150 s" in text and "1 × Drawn GPU, 141 GiB" in text
    assert "differ by at most 0.25 points" in text and "2031-05-06" in text and "Not run" not in text


@pytest.mark.parametrize(
    ("number", "met", "step", "result"),
    [
        (0, NOT, "loader", {"rates": {"dist_train": [3499.0]}, "threads": 16}),  # slower than the compiled trainer
        (0, OPEN, "loader", {"rates": {"dist_train": [3499.0]}, "threads": 8}),
        (0, MET, "loader", {"rates": {"dist_train": [3501.0]}, "threads": 8}),
        (0, "not run", "loader", None),
        (1, NOT, "step_eager", step_of(trainer=3000, timm=2950, bare=2990)),
        (1, "not run", "step_eager", step_of(trainer=3000, bare=2990)),  # timm is not installed
        (1, NOT, "step_compiled", None),  # the eager one alone: 1.15 times
        (2, NOT, "learn", {"rates": {"phi1": {"on": 1300.0}, "phi2": {"off": 900.0}}}),
        (2, OPEN, "learn", {"rates": {"phi2": {"on": 1300.0}}}),  # ended after one of three
        (2, "not run", "learn", {"rates": {}}),
        (3, NOT, "evaluate", {"seconds": {"nn": 60.0, "mean": 121.0}, "methods": ["nn", "mean"]}),
        (3, OPEN, "evaluate", {"seconds": {"nn": 60.0}, "methods": ["nn", "mean"]}),
        (3, NOT, "evaluate", {"seconds": {"nn": 181.0}, "methods": ["nn", "mean"]}),
    ],
)
def test_an_aim_is_judged_by_its_own_figure(number: int, met: str, step: str, result: Any) -> None:
    found = verdicts(**{**GOOD, step: result})
    assert found[number] == met
    others = [verdict for at, verdict in enumerate(found) if at != number]
    assert others == [MET] * 3, found


def test_a_page_names_what_failed_and_why(tmp_path: Path) -> None:
    found = made_up(**GOOD)
    tests = {"passed": 3, "failed": 1, "skipped": 2, "tests": {}, "failures": {"a::b": "E\nAssertionError: a | b"}}
    found |= made_up(tests_step=tests)
    found["tests-step"] |= {"status": "failed", "reason": "exit code 1: 1 failed | 3 passed"}
    text = gpu_check_page.page(found)
    assert "failed, 9 s: 3 passed, 1 failed, 2 skipped (exit code 1: 1 failed \\| 3 passed)" in text
    assert "- `a::b`: AssertionError: a \\| b" in text
    for name, record in found.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(record))
    (tmp_path / "notes.json").write_text("{}")
    gpu_check.main(["page", str(tmp_path), "--to", str(tmp_path / "page.md")])
    assert (tmp_path / "page.md").read_text() == text


def test_the_page_in_docs_says_not_run_until_it_is_made_from_a_run() -> None:
    text = gpu_check.PAGE.read_text()
    if "**Not run:**" in text:
        assert text == gpu_check_page.page({}), "write it anew: python tools/gpu_check.py page EMPTY_FOLDER"
        assert text.count("| not run |") == len(gpu_check_page.AIMS) + len(steps(Path("OUT")))
