"""Every command and example of README.md and docs/*.md is run: as it stands, or made smaller by SMALLER, or in the test
that ELSEWHERE names. The pages of docs/results record measurements; tests/tools runs the tools that they name.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from fixtures.processes import WarmPython
from imagenet_like import make_sources

from dist_train.data.shards.index import open_shards
from dist_train.runs.run import Run
from launch.cli.main import build_parser

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

TINY = " ".join([
    "--pretrain.model conv4 --pretrain.epochs 2 --pretrain.warmup_epochs 0 --pretrain.precision fp32",
    "--extract.precision fp32 --data.train_size 32 --data.eval_resize 36 --data.eval_size 32",
    "--learn.steps 30 --learn.precision fp32 --evaluate.draws 2",
])  # fmt: skip
IMAGENET = f"{TINY} --pretrain.global_batch 16 --data.split split.json --evaluate.options '{{linear_oracle_steps: 9}}'"

SMALLER = {
    r"--train_per_class 60": "--train_per_class 30 --size 40",
    r"(run --config photos)$": rf"\1 {TINY} --pretrain.model resnet18",
    # docs/python.md exports that model as safetensors, which a model of whichever method is ahead may not have.
    r"(adapt runs/photos --class okapi=okapi.jpg --out animals)$": r"\1 --method phi_plus",
    r"--nproc-per-node 8": "--nproc-per-node 2",
    r"--workers 8": "--workers 2",
    r"(run --config imagenet)$": rf"\1 {IMAGENET}",
    r"(run --config imagenet --dry-run --ranks 8)$": rf"\1 {IMAGENET}",
    r"(run --config recipes/rn50_16 .*)": r"\1 --pretrain.model resnet10 --data.train_size 64 --data.ramp_from 32",
    r"^dist-train serve (\w+).*": r"dist-train serve \1 --port 0",
}
ELSEWHERE = {
    "make demo": "e2e/test_wheel.py",
    "make test": "../.ci/run",
    "git clone <this repository> dist_train && cd dist_train": "../.ci/run",
    "python3 -m venv .venv && .venv/bin/pip install -e '.[cuda13]'": "../.ci/run",
    "source .venv/bin/activate": "../.ci/run",
    "dist-train run --config imagenet_hariharan_girshick": "e2e/test_protocols.py",
    "dist-train run --config imagenet --name pseudo --data.holdout pseudo-novel": "e2e/test_study.py",
    "dist-train study unstated --config imagenet --name pseudo": "e2e/test_study.py",
    'dist-train run --config tiny_imagenet --name tiny --evaluate.methods "[nn, phi2, finetune, triplet, '
    'finetune_network, triplet_network, triplet_network10, triplet_network1]"': "stages/test_networks.py",
    "dist-train doctor --cluster my_site.yaml": "slurm/test_chain.py",
    "for n in 1 2 3; do": "launch/grid/test_seeds.py",
    "dist-train launch slurm --here --cluster dev --config tiny_imagenet --name s$n --seed $n --evaluate.seed $n "
        "--sweep learn.seed=1,2,3": "launch/grid/test_seeds.py",
    "done": "launch/grid/test_seeds.py",
    "dist-train collect runs/s1 runs/s2 runs/s3": "launch/grid/test_seeds.py",
    "dist-train launch slurm --config imagenet --cluster my_site.yaml --dry-run": "launch/slurm/test_profile.py",
    "dist-train launch slurm --config imagenet --cluster my_site.yaml --name first --pack.train "
    "ILSVRC2012_img_train.tar --pack.val ILSVRC2012_img_val.tar --pack.devkit ILSVRC2012_devkit_t12.tar.gz":
        "slurm/test_chain.py",
    "dist-train status runs/first --watch": "launch/test_status.py",
    "dist-train logs runs/first -f": "slurm/test_chain.py",
    "dist-train launch tensorboard runs": "launch/test_local.py",
    "dist-train serve animals --public-url https://photos.example": "classifier/serving/test_proxy.py",
    "dist-train cancel runs/first": "slurm/test_chain.py",
    "dist-train launch local --workers 8 --config imagenet": "launch/test_local.py",
    "python3 -m venv .venv && .venv/bin/pip install -e '.[cuda13,starter,serve]'": "../.ci/run",
    "dist-train create photos/ --out animals50 --backbone timm:resnet50.a1_in1k --weights resnet50_a1.safetensors":
        "launch/test_create.py",
    "dist-train split --shards shards/photos --novel 0 --out all.json": "e2e/test_no_novel_classes.py",
    "dist-train run --config photos --name all --data.split all.json": "e2e/test_no_novel_classes.py",
    "dist-train split --features train.npz --novel 20 --out split.json": "e2e/test_features_run.py",
    "dist-train run --config features": "e2e/test_features_run.py",
    "dist-train pretrain --config tuned.yaml": "stages/test_trained_backbone.py",
    "torchrun --nproc-per-node 8 -m dist_train run --config imagenet": "e2e/test_run.py",
    "torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29500 --rdzv-id 1 "
    "-m dist_train run --config imagenet": "distributed/test_two_hosts.py",
    "dist-train launch slurm --here --config imagenet --cluster my_site.yaml": "launch/slurm/test_submission.py",
}  # fmt: skip


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def commands(page: Path) -> list[str]:
    """Return the lines of a page's bash blocks, continued lines joined, without comments."""
    found = []
    for block in blocks(page, "bash"):
        for line in re.sub(r"\\\n\s*", "", block).splitlines():
            line = re.sub(r"\s+#.*", "", line).strip()
            if line:
                found.append(line)
    return found


class Shell:
    """Runs commands as they are typed, in a folder, where ``dist-train``, ``torchrun`` and ``python`` are those of
    this test."""

    def __init__(self, folder: Path, warm_python: WarmPython) -> None:
        self.folder = folder
        self.environment = warm_python.environment()

    def run(self, command: str) -> str:
        """Run a command, made smaller by SMALLER, and return what it printed. A server is ended once it has printed
        its address."""
        for pattern, other in SMALLER.items():
            command = re.sub(pattern, other, command)
        process = subprocess.Popen(["bash", "-e", "-o", "pipefail", "-c", command], cwd=self.folder,
                                   env=self.environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                   start_new_session=True)  # fmt: skip
        if not command.startswith(("dist-train serve", "tensorboard")):
            output, _ = process.communicate(timeout=600)
            assert process.returncode == 0, f"{command}\n{output}"
            return output
        assert process.stdout
        output = ""
        while "http://" not in output:
            line = process.stdout.readline()
            assert line, f"{command}\n{output}"
            output += line
        os.killpg(process.pid, signal.SIGINT)
        process.wait(60)
        return output

    def run_page(self, name: str) -> None:
        """Run all commands of a page that no other test runs."""
        for command in commands(ROOT / name):
            if command not in ELSEWHERE:
                self.run(command)


@pytest.fixture
def shell(tmp_path: Path, warm_python: WarmPython) -> Shell:
    return Shell(tmp_path, warm_python)


def test_every_command_is_run_somewhere() -> None:
    """Pages that are not run here have only commands that are run elsewhere, in a file that is there."""
    here = {"README.md", "quickstart.md", "python.md", "imagenet.md", "training.md", "troubleshooting.md", "photos.md"}
    here.add("serving.md")  # its examples are run by classifier/serving/test_client_examples.py
    for page in PAGES:
        left = [command for command in commands(page) if command not in ELSEWHERE and page.name not in here]
        assert left in ([], ["dist-train doctor"]), (page.name, left)
        assert page.name in ("python.md", "serving.md") or not blocks(page, "python"), page.name
    every = [command for page in PAGES for command in commands(page)]
    for command, where in ELSEWHERE.items():
        assert command in every, f"no page has {command!r} any more"
        assert (ROOT / "tests" / where).exists(), where


def test_the_first_road_has_one_model() -> None:
    """From README over photos.md to python.md and serving.md the commands can be copied one after the other: all of
    them use the model that the first of them makes, and none makes it again."""
    road = [command for page in ("README.md", "docs/photos.md", "docs/python.md", "docs/serving.md")
            for command in commands(ROOT / page)]  # fmt: skip
    made = road.index("dist-train create photos/ --out animals")
    with_model = ("adapt", "classify", "evaluate-model", "export", "serve")
    used = {words[2] for words in map(shlex.split, road[made:]) if words[0] == "dist-train" and words[1] in with_model}
    assert used == {"animals"}  # the models of the demo of README come before
    again = [command for command in road[made + 1 :] if re.search(r"--out animals\b", command)]
    assert set(again) == {"dist-train create photos/ --out animals"}  # photos.md begins with it, as README does


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_within_the_text_are_possible(page: Path) -> None:
    """Those between ` and `: options that exist, tools that are there. And no link leads nowhere."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for code in re.findall(r"`([^`\n]+)`", text):
        words = shlex.split(code) if re.match(r"(dist-train|python tools/|tools/)", code) else []
        for word in words:
            assert "tools/" not in word or (ROOT / word).exists(), code
        if len(words) > 1 and words[0] == "dist-train" and words[1].islower():
            known = build_parser(words[1:2]).format_help()
            assert words[1] in known, code
            parser = build_parser(words[1:])
            sub = parser._subcommands_action._name_parser_map[words[1]]  # type: ignore[union-attr]
            if words[1] == "launch" and len(words) > 2:
                sub = sub._subcommands_action._name_parser_map[words[2]]
            for option in (word for word in words if word.startswith("--")):
                name = option.partition("=")[0].replace("-", "_").replace("__", "--", 1)
                assert name in sub._option_string_actions or option in sub._option_string_actions, code
    for link in re.findall(r"\]\(([^)#\s]+)", text):
        assert link.startswith("http") or (page.parent / link).exists(), f"{page.name}: {link}"


def test_quickstart_then_python(drawn: Path, tmp_path: Path, shell: Shell) -> None:
    novel = json.loads((drawn / "split.json").read_text())["novel"]
    photos = {name: sorted((drawn / "train" / wnid).iterdir()) for name, wnid in
              zip(("owls", "tapirs", "zebras"), novel, strict=True)}  # fmt: skip
    for name, some in photos.items():
        (tmp_path / name).mkdir()
        for number, photo in enumerate(some[:4]):
            shutil.copy(photo, tmp_path / name / f"{number}.jpg")
    shutil.copy(photos["zebras"][5], tmp_path / "okapi.jpg")
    for command in commands(ROOT / "docs" / "quickstart.md"):
        if "held_out" in command:  # of the run's classes, which are there by now
            shutil.copytree(tmp_path / "photos", tmp_path / "held_out", dirs_exist_ok=True)
        shell.run(command)
    names = shell.run("dist-train adapt animals --list")
    assert [line.split("\t")[0] for line in names.splitlines()[-3:]] == ["okapi", "owl", "tapir"]

    # docs/python.md, its commands between its examples.
    page = (ROOT / "docs" / "python.md").read_text()
    code = ["import os"]
    for language, block in re.findall(r"^```(python|bash)\n(.*?)^```", page, re.MULTILINE | re.DOTALL):
        code += [block] if language == "python" else [f"assert os.system({line!r}) == 0" for line in block.splitlines()]
    (tmp_path / "page.py").write_text("\n".join(code))
    said = shell.run("python -W error page.py").splitlines()
    assert any("class 'zebra': exists already; take another name" in line for line in said), said


def test_imagenet(tmp_path: Path, shell: Shell) -> None:
    """The archives have the official layout, with four classes of twelve images; the photo is of the novel class."""
    sources = make_sources(tmp_path)
    names = {"ILSVRC2012_img_train.tar": sources.train_tar, "ILSVRC2012_img_val.tar": sources.val_tar,
             "ILSVRC2012_devkit_t12.tar.gz": sources.devkit}  # fmt: skip
    for name, make in names.items():
        make().rename(tmp_path / name)
    (tmp_path / "okapi.jpg").write_bytes(next(iter(next(iter(sources.train.values())).values())))
    sources.kaggle(), sources.train_folder(), sources.val_folder()
    sources.parquet().rename(sources.hugging_face_tars("imagenet-1k") / "data")
    for command in commands(ROOT / "docs" / "imagenet.md"):
        if "--dry-run" in command:
            shell.run("dist-train split --shards shards/imagenet --novel 1 --out split.json")
        if command not in ELSEWHERE:
            shell.run(command)
    shards = tmp_path / "shards"
    hashes = {open_shards(shards / name).hash for name in ("imagenet", "kaggle", "folders", "parquet", "tars")}
    assert len(hashes) == 1
    table = (tmp_path / "runs" / "imagenet" / "evaluate" / "table.md").read_text()
    assert "Linear classifier" in table and "φ+" in table


def test_photos(drawn: Path, tmp_path: Path, shell: Shell) -> None:
    classes = sorted(folder for folder in (drawn / "train").iterdir() if folder.is_dir())
    copy_photos(classes[:3], tmp_path / "photos", range(4))
    copy_photos(classes[3:5], tmp_path / "more", range(4))
    copy_photos(classes[:2], tmp_path / "test", range(4, 6))
    shutil.copytree(classes[5], tmp_path / "okapis")
    shutil.copytree(classes[6], tmp_path / "owls")
    shutil.copytree(classes[8], tmp_path / "elsewhere")
    (tmp_path / "more-okapis").mkdir()
    for number, photo in enumerate(sorted(classes[7].iterdir())[:4], 1):
        shutil.copy(photo, tmp_path / "more-okapis" / f"{number}.jpg")
    shell.run_page("docs/photos.md")


def copy_photos(classes: list[Path], folder: Path, places: range) -> None:
    """Copy the photos at these places of each class into a folder of its name."""
    for source in classes:
        (folder / source.name).mkdir(parents=True)
        for photo in sorted(source.iterdir())[places.start : places.stop]:
            shutil.copy(photo, folder / source.name)


def test_the_others(whole_run: Run, drawn: Path, tmp_path: Path, shell: Shell) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "demo").symlink_to(whole_run.dir)
    shutil.copytree(next((drawn / "train").iterdir()), tmp_path / "runs" / "demo-data" / "train" / "bar-dots-sunset")
    copy_photos(
        sorted(folder for folder in (drawn / "train").iterdir() if folder.is_dir())[:3], tmp_path / "photos", range(4)
    )
    shell.run_page("README.md")
    shell.run_page("docs/training.md")
    shell.run_page("docs/troubleshooting.md")
