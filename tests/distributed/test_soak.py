"""A short soak: a run that is killed at random moments, compared with an undisturbed run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.long  # three minutes; .ci/run runs it
def test_soak(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "tools" / "soak.py"), "--kills", "6", "--seed", "1", "--elastic", "1,2,4"]
    done = subprocess.run([*command, "--out", str(tmp_path / "soak.md")], capture_output=True, text=True, timeout=900,
                          env={**os.environ, "PYTHONPATH": str(ROOT)})  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    record = (tmp_path / "soak.md").read_text()
    assert "nothing lost, nothing repeated" in record
