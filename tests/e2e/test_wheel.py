"""The wheel stands alone: built from the tree, used outside of it, it runs the demo (a small one)."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SMALL = {
    "pack.draw.base_classes": 6, "pack.draw.novel_classes": 3, "pack.draw.train_per_class": 12,
    "pack.draw.val_per_class": 4, "pretrain.epochs": 1.5, "pretrain.warmup_epochs": 0.5,
    "pretrain.global_batch": 16, "learn.steps": 30, "evaluate.draws": 3,
}  # fmt: skip


def test_wheel_runs_the_demo_outside_the_checkout(tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--quiet"]
    tree = tmp_path / "tree"  # a copy, for setuptools builds in the tree
    for part in ("dist_train", "launch", "configs"):
        shutil.copytree(ROOT / part, tree / part)
    for part in ("setup.py", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / part, tree)
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", str(tmp_path), str(tree)], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    subprocess.run([*pip, "install", "--no-deps", "--target", str(site), str(wheel)], check=True)
    options = [word for key, value in SMALL.items() for word in (f"--{key}", str(value))]
    env = {**os.environ, "PYTHONPATH": str(site), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    where = [sys.executable, "-c", "import dist_train, launch; print(dist_train.__file__, launch.__file__)"]
    found = subprocess.run(where, cwd=tmp_path, env=env, check=True, capture_output=True, text=True).stdout
    assert found.count(str(site)) == 2
    command = [sys.executable, "-m", "dist_train", "run", "--config", "demo", *options]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "φ2" in done.stdout and (tmp_path / "runs" / "demo" / "evaluate" / "report.html").is_file()
