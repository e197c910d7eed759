"""The scripts in examples/ run, on fewer and smaller data, and examples/README.md lists them all."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from fixtures.processes import WarmPython

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"


def test_the_page_lists_every_example() -> None:
    listed = re.findall(r"^\| \[([\w.]+)\]\(\1\)", (EXAMPLES / "README.md").read_text(), re.MULTILINE)
    assert listed == sorted(path.name for path in EXAMPLES.glob("*.py"))


def test_learn_a_class(tmp_path: Path, warm_python: WarmPython) -> None:
    command = [warm_python.python, str(EXAMPLES / "learn_a_class.py"), "out", "--epochs", "0.5", "--base-classes", "6",
               "--learn-steps", "20"]  # fmt: skip
    env = warm_python.environment()
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    answers = done.stdout.partition("4 classes added from one picture each: ")[2]
    assert re.match(r"\d+% .* among 10 classes\n", answers), done.stdout
    shares = [float(share) for share in re.findall(r"^ +([\d.]+)%  \S+$", answers, re.MULTILINE)]
    assert len(shares) == 3 and shares == sorted(shares, reverse=True)
    assert {"model", "model.safetensors", "run"} <= {path.name for path in (tmp_path / "out").iterdir()}
    again = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert answers in again.stdout, "finished stages are skipped, and the answers stay the same"
