"""The wheel stands alone: built from a copy of the tree and used outside of it, it runs a small demo."""

import os
import shutil
import subprocess
import sys
from email.parser import HeaderParser
from pathlib import Path

import dist_train

ROOT = Path(__file__).parents[2]
SMALL = {
    "pack.draw.base_classes": 6, "pack.draw.novel_classes": 3, "pack.draw.train_per_class": 12,
    "pack.draw.val_per_class": 4, "pretrain.model": "conv4", "pretrain.epochs": 1.5, "pretrain.warmup_epochs": 0.5,
    "pretrain.global_batch": 16, "learn.steps": 30, "evaluate.draws": 3,
}  # fmt: skip


def test_the_wheel_runs_the_demo_outside_the_checkout(tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--quiet"]
    tree = tmp_path / "tree"  # a copy, as setuptools builds inside the tree
    tree.mkdir()
    for name in ("dist_train", "launch", "configs"):
        shutil.copytree(ROOT / name, tree / name)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    build = [*pip, "wheel", "--no-deps", "--wheel-dir", str(tmp_path), str(tree)]
    built = subprocess.run(build, check=True, capture_output=True, text=True)
    assert "is absent from the `packages`" not in built.stderr + built.stdout
    (wheel,) = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    subprocess.run([*pip, "install", "--no-deps", "--target", str(site), str(wheel)], check=True)

    (metadata,) = site.glob("*.dist-info/METADATA")
    described = HeaderParser().parsestr(metadata.read_text())
    assert described["Version"] == dist_train.__version__
    assert {"serve", "export", "s3", "gs", "parquet"} <= set(described.get_all("Provides-Extra") or [])
    assert (site / "dist_train" / "classifier" / "serving" / "page" / "examples" / "cat.jpg").is_file()

    env = {**os.environ, "PYTHONPATH": str(site), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    code = "import dist_train, launch; print(dist_train.__file__, launch.__file__, dist_train.__version__)"
    places = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, check=True, capture_output=True, text=True
    )
    assert places.stdout.count(str(site)) == 2, places.stdout
    assert places.stdout.split()[-1] == dist_train.__version__
    options = [word for key, value in SMALL.items() for word in (f"--{key}", str(value))]
    command = [sys.executable, "-m", "dist_train", "run", "--config", "demo", *options]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "φ2" in done.stdout and (tmp_path / "runs" / "demo" / "evaluate" / "report.html").is_file()
