"""Make ``artefacts.tar.xz`` and ``expected.json``: what commit b756132 (version 0.1.0) wrote, and how it went on.

Run it with that commit checked out and first on PYTHONPATH:

    python tests/compatibility/make.py OUT

The smallest backbone has 4.9 million weights, too many for a repository. So that the archive stays small, most weights
of the checkpoints are set to zero after pretrain, and the optimiser's state too; the files keep their layout, and all
later stages run on these weights.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import torch
import yaml
from PIL import Image
from torchvision.models.resnet import BasicBlock, ResNet
from torchvision.transforms.functional import normalize, to_tensor

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]  # ImageNet's

OPTIONS = {
    "name": "whole",
    "runs": "runs",
    "data": {"shards": "shards", "split": "split.json", "train_size": 32, "eval_resize": 32, "eval_size": 32},
    "pretrain": {
        "model": "resnet10", "epochs": 3, "global_batch": 12, "lr": 0.02, "warmup_epochs": 0, "precision": "fp32",
        "log_every": 1, "checkpoint_every": 4, "keep": 9,
    },
    "extract": {"batch": 16, "block": 16, "precision": "fp32"},
    "learn": {
        "methods": ["phi1", "phi2"], "steps": 20, "precision": "fp32", "log_every": 10, "checkpoint_every": 20,
    },
    "evaluate": {"draws": 4, "shots": [1, 2], "methods": ["nn", "mean", "phi1", "phi2"]},
}  # fmt: skip
MIDWAY = 4  # the checkpoint from which the run "stopped" continues


def dist_train(folder: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "dist_train", *arguments]
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout


def thin(weights: dict[str, torch.Tensor], photos: Path) -> None:
    """Keep the largest of each layer's weights, at one magnitude, and few channels of the last layer; then measure the
    statistics of batch norm again, so that activations still differ from photo to photo."""
    for name, value in weights.items():
        if value.ndim == 4:
            kept = max(64, value.numel() // 350)
            smallest = value.abs().flatten().topk(kept).values[-1]
            level = value.abs().mean().item() * (value.numel() / kept) ** 0.5
            value.copy_(torch.where(value.abs() >= smallest, value.sign() * level, torch.zeros_like(value)))
        if name.startswith("body.layer4") and name.endswith(("bn2.weight", "bn2.bias", "1.weight", "1.bias")):
            value[24:] = 0
        if name == "head.weight":
            value[:, 24:] = 0
    network = ResNet(BasicBlock, [1, 1, 1, 1])
    network.fc = torch.nn.Identity()
    network.load_state_dict(
        {name.removeprefix("body."): value for name, value in weights.items() if "head" not in name}
    )
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = None  # the mean over all that follows
            layer.reset_running_stats()
    images = [Image.open(path).convert("RGB").resize((32, 32)) for path in sorted(photos.rglob("*.JPEG"))]
    with torch.no_grad():
        network.train()(torch.stack([normalize(to_tensor(image), MEAN, STD) for image in images]))
    for name, value in network.state_dict().items():
        weights[f"body.{name}"].copy_(value.to(torch.bfloat16) if "running" in name else value)


def zero(value: object) -> None:
    if isinstance(value, torch.Tensor) and value.ndim:
        value.zero_()
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        zero(item)


def rewrite(checkpoint: Path, photos: Path) -> None:
    """Thin a checkpoint in place; its manifest says the new hashes."""
    tensors = torch.load(checkpoint / "tensors.pt", weights_only=True)
    thin(tensors["model"], photos)
    for name in tensors.keys() - {"model"}:
        zero(tensors[name])
    torch.save(tensors, checkpoint / "tensors.pt")
    content = (checkpoint / "tensors.pt").read_bytes()
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    manifest["tensors.pt"] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (checkpoint / "manifest.json").write_text(json.dumps(manifest, indent=1))


def losses(run: Path) -> list[float]:
    rows = map(json.loads, (run / "pretrain" / "metrics.jsonl").read_text().splitlines())
    return [row["train/loss"] for row in rows if "train/loss" in row]


def make(root: Path) -> dict[str, object]:
    (root / "config.yaml").write_text(yaml.safe_dump(OPTIONS))
    dist_train(root, "draw", "--out", "drawn", "--base_classes", "4", "--novel_classes", "2", "--train_per_class", "12",
               "--val_per_class", "3", "--size", "32")  # fmt: skip
    shutil.copy(root / "drawn" / "split.json", root / "split.json")
    dist_train(root, "pack", "--train", "drawn/train", "--val", "drawn/val", "--shard_mb", "0.02", "--out", "shards")
    run, stopped = root / "runs" / "whole", root / "runs" / "stopped"

    dist_train(root, "pretrain", "--config", "config.yaml")
    for checkpoint in (*(run / "pretrain" / "checkpoints").glob("step-*"), run / "pretrain" / "final"):
        rewrite(checkpoint, root / "drawn" / "train")
    shutil.rmtree(run / "pretrain" / "best")

    # As an interruption leaves it: the checkpoint of its last step, and no mark that the stage is done.
    shutil.copytree(run, stopped)
    for folder in (*(stopped / "pretrain" / "checkpoints").glob("step-*"), stopped / "pretrain" / "final"):
        if folder.name != f"step-{MIDWAY:08d}":
            shutil.rmtree(folder)
    (stopped / "pretrain" / "done.json").unlink()
    (stopped / "config.yaml").write_text((stopped / "config.yaml").read_text().replace("name: whole", "name: stopped"))
    kept = [row for row in (stopped / "pretrain" / "metrics.jsonl").read_text().splitlines()
            if json.loads(row)["step"] <= MIDWAY]  # fmt: skip
    (stopped / "pretrain" / "metrics.jsonl").write_text("\n".join(kept) + "\n")
    for folder in list((run / "pretrain" / "checkpoints").glob("step-*"))[:]:
        if folder != max((run / "pretrain" / "checkpoints").glob("step-*")):
            shutil.rmtree(folder)

    dist_train(root, "run", "--config", "config.yaml")
    swept = ["launch", "slurm", "--here", "--cluster", "dev", "--tasks-per-node", "1", "--config", "config.yaml"]
    dist_train(root, *swept, "--stages", "evaluate", "--sweep", "evaluate.rule=max,mean")
    okapi, photos = (sorted((root / "drawn" / "train" / name).iterdir())
                     for name in json.loads((root / "split.json").read_text())["novel"])  # fmt: skip
    (root / "photos").mkdir()
    for number, photo in enumerate([okapi[3], okapi[4], photos[0]]):
        shutil.copy(photo, root / "photos" / f"{number}.jpg")
    dist_train(root, "adapt", "runs/whole", "--out", "model", "--method", "phi2",
               "--class", f"okapi={okapi[0]}", "--class", f"okapi={okapi[1]}")  # fmt: skip
    for gone in ("drawn", "runs/whole/evaluate/report.html", "runs/whole/launch", "runs/stopped/launch"):
        path = root / gone
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    for path in root.glob("runs/**/*"):  # neither is read again
        if path.name.startswith("events.") or path.name == ".lock":
            path.unlink()
    with tarfile.open(root.parent / "artefacts.tar.xz", "w:xz", preset=9) as tar:
        for name in ("config.yaml", "split.json", "shards", "runs", "model", "photos"):
            tar.add(root / name, name)

    answers = dist_train(root, "classify", "model", *(f"photos/{number}.jpg" for number in range(3)), "--json")
    dist_train(root, "pretrain", "--config", "runs/stopped/config.yaml")
    return {
        "losses": losses(stopped),
        "methods": json.loads((run / "evaluate" / "results.json").read_text())["methods"],
        "answers": answers,
        "sweep": dist_train(root, "collect", "runs/whole"),
    }


if __name__ == "__main__":
    out = Path(sys.argv[1])
    (out / "root").mkdir(parents=True)
    expected = make((out / "root").absolute())
    (out / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")
