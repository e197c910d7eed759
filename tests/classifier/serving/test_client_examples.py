"""The examples of docs/serving.md, as they stand but for the port, against a real server."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import zipfile
from pathlib import Path

import httpx
from clients import photo, start
from fixtures.processes import WarmPython

PAGE = (Path(__file__).parents[3] / "docs" / "serving.md").read_text()


def test_the_examples_of_the_page(untrained_model: Path, tmp_path: Path, warm_python: WarmPython) -> None:
    section = PAGE.split("## From programs")[1].split("\n## ")[0]
    [shell], [program] = (re.findall(rf"^```{kind}\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
                          for kind in ("bash", "python"))  # fmt: skip
    (tmp_path / "okapi.jpg").write_bytes(photo(0))
    for name in ("owls", "zebras"):
        (tmp_path / name).mkdir()
        for number in range(20):
            (tmp_path / name / f"{number}.jpg").write_bytes(photo(number + len(name)))
    (tmp_path / "owls" / "7.jpg").write_bytes(b"text")
    process, url = start(warm_python, shutil.copytree(untrained_model, tmp_path / "animals"))
    host = httpx.URL(url).netloc.decode().replace("127.0.0.1", "localhost")

    def run(*words: str) -> str:
        done = subprocess.run(words, cwd=tmp_path, text=True, capture_output=True, env=warm_python.environment())
        assert done.returncode == 0, done.stderr
        return done.stdout

    answers = []
    for command in shell.splitlines():
        assert command.count("localhost:8000") == 1
        answers.append(run("bash", "-c", command.replace("curl ", "curl -sS --fail-with-body ")
                           .replace("localhost:8000", host)))  # fmt: skip
    assert answers[0] == '{"models":[{"name":"animals","classes":3,"method":"phi2"}]}'
    assert answers[2].count('"predictions"') == 2 and '"zebra"' in answers[3]
    assert [answer.count('"name"') for answer in answers[5:6]] == [3] and "undid: added 1 photo to zebra" in answers[7]
    names = [[entry["name"] for entry in json.loads(answer)["classes"]] for answer in answers[8:10]]
    assert "plains zebra" in names[0] and "plains zebra" not in names[1] and len(answers) == 11
    assert "animals/model.json" in zipfile.ZipFile(tmp_path / "animals.zip").namelist()
    assert "localhost:8000" in program
    lines = run(warm_python.python, "-c", program.replace("localhost:8000", host)).splitlines()
    assert len(lines) == 20 and sum("not an image of a known format" in line for line in lines) == 1
    assert sum(bool(re.match(r"\d+\.jpg (cat|dog|owl) \d+\.\d%", line)) for line in lines) == 19, lines
    process.send_signal(signal.SIGINT)
    assert process.wait() == 0
