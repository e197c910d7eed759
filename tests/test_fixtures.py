"""The fork that tests start in place of a new interpreter behaves like an interpreter to its caller."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import pytest
from fixtures.processes import WarmPython

SPAWN = """
import multiprocessing

def work(queue):
    queue.put(__name__)

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=work, args=(queue,))
    process.start()
    print(queue.get(timeout=60))
    process.join()
    print(process.exitcode)
"""
WAITING = "import time; print('ready', flush=True); time.sleep(600)"


def test_arguments_files_and_exit_codes(warm_python: WarmPython, tmp_path: Path) -> None:
    code = "import os, sys; print(sys.argv, os.getcwd(), os.environ['GIVEN'], sys.stdin.read()); sys.exit(7)"
    done = subprocess.run([warm_python.python, "-c", code, "a", "b"], input="text", capture_output=True, text=True,
                          cwd=tmp_path, env=warm_python.environment(GIVEN="here"))  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (7, f"['-c', 'a', 'b'] {tmp_path} here text\n", "")
    failed = subprocess.run([warm_python.python, "-c", "1 / 0"], capture_output=True, text=True)
    assert failed.returncode == 1 and failed.stderr.endswith("ZeroDivisionError: division by zero\n")
    refused = warm_python.run("status", str(tmp_path / "none"))
    assert refused.returncode == 1 and refused.stderr.startswith("dist-train: error: ")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL, signal.SIGUSR2])
def test_signals_end_it(warm_python: WarmPython, number: int, tmp_path: Path) -> None:
    process = subprocess.Popen([warm_python.python, "-c", "import os; print(os.getpid());" + WAITING],
                               stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)  # fmt: skip
    assert process.stdout
    forked = Path("/proc") / process.stdout.readline().strip()
    assert process.stdout.readline() == "ready\n" and forked.exists()
    process.send_signal(number)
    assert process.wait(30) == -number
    deadline = time.monotonic() + 30
    while forked.exists():
        assert time.monotonic() < deadline, "the forked process outlived its client"
        time.sleep(0.01)


def test_what_it_spawns_is_forked_too(warm_python: WarmPython, tmp_path: Path) -> None:
    (tmp_path / "spawning.py").write_text(SPAWN)
    done = subprocess.run([warm_python.python, tmp_path / "spawning.py"], capture_output=True, text=True,
                          env=warm_python.environment())  # fmt: skip
    assert done.stdout == "__mp_main__\n0\n", done.stderr


def test_options_of_the_interpreter_get_a_real_one(warm_python: WarmPython) -> None:
    code = "import sys; print('torch' in sys.modules)"
    for options, loaded in (([], True), (["-W", "error"], False)):
        done = subprocess.run([warm_python.python, *options, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout == f"{loaded}\n"
