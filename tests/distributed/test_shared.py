"""Arrays that the ranks of a node share: the index, its views and orders are in memory once, with the same values."""

import fcntl
import json
import logging
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dist_train.data.loading.order import Order, block_permutation, permutation
from dist_train.data.shards import index as indexes
from dist_train.data.shards.index import Shard, ShardSet, open_shards, sample_dtype, write_index
from dist_train.data.splits import make_view
from dist_train.distributed import shared as sharing
from dist_train.errors import UserError

ROWS = 2 * sharing.LARGE
RANKS = {
    "RANK": "0",
    "WORLD_SIZE": "2",
    "LOCAL_RANK": "0",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "h",
    "MASTER_PORT": "1",
}


def write(root: Path, rows: int, classes: int = 10) -> ShardSet:
    """Write an index of ``rows`` samples in shards without content; sample 5 is stored rotated."""
    random, place = np.random.RandomState(0), np.arange(rows)
    table = np.zeros(rows, sample_dtype(16))
    table["shard"], table["offset"] = place * 4 // rows, 512
    table["size"], table["width"], table["height"], table["orientation"] = 100, 30, 20, 1
    table["label"], table["orientation"][5] = random.randint(0, classes, rows), 6
    counts = np.bincount(table["shard"], minlength=4)
    shards = [Shard(f"{n:06}.tar", int(count), 1024, f"{n:064x}") for n, count in enumerate(counts)]
    (root / "train").mkdir(parents=True)
    for shard in shards:
        (root / "train" / shard.name).write_bytes(bytes(shard.bytes))
    return write_index(root, [f"c{n}" for n in range(classes)], "stored", {"train": (shards, table, [])}, {})


@pytest.fixture
def rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Make this process a rank of two on its node, and return the folder that they share."""
    for name, value in RANKS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    sharing._folder.cache_clear()
    yield tmp_path / "tmp" / f"dist_train-{os.getuid()}" / socket.gethostname()
    sharing._folder.cache_clear()


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a large index, which tests must not change."""
    return write(tmp_path_factory.mktemp("large") / "index", ROWS).root


RANK = """
import json, os, sys
from pathlib import Path
from dist_train.data.shards import index as indexes
from dist_train.data.loading.plan import train_windows
from dist_train.data.loading.order import Order, rank_slice
from dist_train.data.splits import make_view
from dist_train.config import DataConfig

def anonymous():
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("Anonymous:"))

number, block = int(os.environ["RANK"]), int(sys.argv[2])
checked = []
inner = indexes._check_table
indexes._check_table = lambda *given: (checked.append(1), inner(*given))
small = indexes.open_shards(sys.argv[3])  # first: libraries load their parts
make_view(small["train"], small.classes, small.classes, "s")
checked.clear()  # whichever rank looked at the small index
before = anonymous()
shards = indexes.open_shards(sys.argv[1])
view = make_view(shards["train"], shards.classes, shards.classes[1:], "s")
order = Order(len(view), 64, 0, view.shards() if block else None, block)
ids = []
for step in (0, 1, len(view) // 64, 2 * (len(view) // 64) + 1):
    positions, epochs = (rank_slice(part, number, 2) for part in order.batch(step))
    ids.append(view.ids[positions].tolist())
    train_windows(view, view.ids[positions], epochs, DataConfig(), 0)
said = {"ids": ids, "private": anonymous() - before, "checked": len(checked), "turned": view.turned}
print(json.dumps(said), flush=True)
sys.stdin.read()  # the other rank may still map the files of this rank
"""


def ranks(large: Path, tmp_path: Path, block: int) -> list[dict[str, Any]]:
    """Return the reports of two ranks that open the index at the same time."""
    small = write(tmp_path / "small", 100).root
    running = []
    for number in range(2):
        # Freed memory goes back to the system at any size; otherwise the process keeps some memory of small arrays.
        env = {
            **os.environ,
            "MALLOC_MMAP_THRESHOLD_": "65536",
            **RANKS,
            "RANK": str(number),
            "LOCAL_RANK": str(number),
            "TMPDIR": str(tmp_path),
        }
        line = [sys.executable, "-c", RANK, str(large), str(block), str(small)]
        running.append(subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env))
    said = [json.loads(process.stdout.readline()) for process in running if process.stdout]
    for process in running:
        process.communicate(timeout=60)
    assert [process.returncode for process in running] == [0, 0]
    return said


@pytest.mark.parametrize("block", [0, 2])
def test_two_ranks_hold_the_index_once_and_train_on_the_samples_of_a_lone_process(
    large: Path, tmp_path: Path, block: int
) -> None:
    said = ranks(large, tmp_path, block)
    # Ids take 8 bytes a row, labels took 8 more, an epoch's order takes 4: none of them is private memory.
    assert all(rank["private"] < 2 * ROWS for rank in said), [rank["private"] / ROWS for rank in said]
    assert sorted(rank["checked"] for rank in said) == [0, 1], "one looks for both"
    assert {rank["turned"] for rank in said} == {5 in plain_ids(large)}

    ids, shards = plain_ids(large), np.load(large / "train.samples.npy")["shard"]
    row = np.concatenate([ids[plain_order(shards[ids], block, epoch)] for epoch in range(3)])
    for number, step in enumerate((0, 1, len(ids) // 64, 2 * (len(ids) // 64) + 1)):
        for rank in range(2):
            assert said[rank]["ids"][number] == row[step * 64 : (step + 1) * 64][rank::2].tolist()
    assert not list(tmp_path.glob("dist_train-*/*/*")), "both have left; so has what they shared"


def plain_ids(root: Path) -> np.ndarray:
    """Return the samples of all classes but the first, by class, then id, as each rank computed them alone before."""
    labels = np.load(root / "train.samples.npy")["label"].astype(np.int64) - 1
    ids = np.flatnonzero(labels >= 0)
    return ids[np.argsort(labels[ids], kind="stable")]


def plain_order(shards: np.ndarray, block: int, epoch: int) -> np.ndarray:
    """Return the order of an epoch, as each rank computed it alone before."""
    random = np.random.RandomState([0, epoch])
    if not block:
        return random.permutation(len(shards))
    place = random.permutation(int(shards.max()) + 1)
    shuffled = random.permutation(len(shards))
    return shuffled[np.argsort(place[shards[shuffled]] // block, kind="stable")]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 300), st.integers(0, 2**31), st.integers(0, 50), st.integers(1, 9), st.integers(1, 30))
def test_orders_equal_those_of_earlier_versions(rows: int, seed: int, epoch: int, block: int, count: int) -> None:
    assert np.array_equal(permutation(rows, seed, epoch), np.random.RandomState([seed, epoch]).permutation(rows))
    shards = np.arange(rows, dtype=np.int32) % count
    random = np.random.RandomState([seed, epoch])
    place, shuffled = random.permutation(int(shards.max()) + 1), random.permutation(rows)
    expected = shuffled[np.argsort(place[shards[shuffled]] // block, kind="stable")]
    assert np.array_equal(block_permutation(shards, block, seed, epoch), expected)


@pytest.mark.parametrize("chosen", [["c0"], ["c3", "c1"], [f"c{n}" for n in range(10)], ["c9", "c0", "c5"]])
def test_a_view_equals_that_of_earlier_versions(tmp_path: Path, chosen: list[str]) -> None:
    shards = write(tmp_path / "index", 500)
    view = make_view(shards["train"], shards.classes, chosen, "s")
    labels = np.array([chosen.index(f"c{n}") if f"c{n}" in chosen else -1 for n in shards["train"].samples["label"]])
    ids = np.flatnonzero(labels >= 0)
    ids = ids[np.argsort(labels[ids], kind="stable")]
    assert np.array_equal(view.ids, ids) and np.array_equal(view.labels, labels[ids]) and view.ids.dtype == np.int64
    assert view.turned is (5 in ids) and np.array_equal(ids[view.by_shard()], np.sort(ids))
    assert np.array_equal(view.shards(), shards["train"].samples["shard"][ids])


def damage(root: Path, how: str) -> None:
    table = root / "train.samples.npy"
    content = table.read_bytes()
    if how == "cut":
        table.write_bytes(content[:-44])
    elif how == "changed":
        table.write_bytes(content[:-1] + b"x")
    elif how == "gone":
        table.unlink()
    elif how == "shard cut":
        os.truncate(root / "train" / "000002.tar", 1000)
    elif how == "shard gone":
        (root / "train" / "000003.tar").unlink()


@pytest.mark.parametrize("how", ["cut", "changed", "gone", "shard cut", "shard gone"])
def test_damage_is_refused_in_a_line_where_ranks_share_too(rank: Path, tmp_path: Path, how: str) -> None:
    root = write(tmp_path / "index", 500).root
    damage(root, how)
    for _ in range(2):  # the second time as the second rank: a failed check does not count as passed
        with pytest.raises(UserError, match=r"again") as refused:
            open_shards(root)
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize("how", ["cut", "changed", "gone"])
def test_a_passed_check_counts_for_its_own_file_only(
    rank: Path, tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, looks = write(tmp_path / "index", 500).root, []
    inner = indexes._check_table
    monkeypatch.setattr(indexes, "_check_table", lambda *given: (looks.append(1), inner(*given)))
    open_shards(root), open_shards(root)
    assert len(looks) == 1
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    sharing._folder.cache_clear()
    open_shards(root)
    assert len(looks) == 2, "a new start looks anew"
    damage(root, how)
    with pytest.raises(UserError):
        open_shards(root)


def test_a_lone_process_leaves_no_files(rank: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in RANKS:
        monkeypatch.delenv(name)
    assert sharing.shared_array("name", ROWS, lambda: np.arange(3)).tolist() == [0, 1, 2]
    assert not rank.exists()


def test_a_small_array_is_no_file_and_a_large_one_is_made_once_and_cannot_be_written(rank: Path) -> None:
    assert sharing.shared_array("small", 10, lambda: np.arange(3)).flags.writeable
    made = []
    first, second = (sharing.shared_array("large", ROWS, lambda: made.append(1) or np.arange(3)) for _ in range(2))
    assert made == [1] and first.tolist() == second.tolist() == [0, 1, 2] and type(second) is np.ndarray
    with pytest.raises(ValueError, match="read-only"):
        second[0] = 1
    sharing.discard_array("large")
    assert second.tolist() == [0, 1, 2], "what is mapped stays"
    assert sorted(path.name for path in rank.rglob("*") if path.is_file()) == ["alive", "large.lock"]


@pytest.mark.parametrize(
    "trouble", ["full", "another's", "no locks", "no flock", "not writable", "a file", "gone meanwhile"]
)
def test_a_rank_that_cannot_share_has_a_copy(rank: Path, trouble: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise NotImplementedError if trouble == "no locks" else OSError(28, "No space left on device")

    if trouble == "full":
        monkeypatch.setattr(np, "save", fail)
    elif trouble == "another's":
        monkeypatch.setattr(os, "getuid", lambda: 4711)
    elif trouble == "no locks":
        monkeypatch.setattr(sharing.FileLock, "acquire", fail)
    elif trouble == "no flock":  # as on Lustre, unless it is mounted with it
        monkeypatch.setattr(fcntl, "flock", fail)
    elif trouble == "not writable":
        monkeypatch.setattr(Path, "mkdir", fail)
    elif trouble == "a file":
        rank.parent.write_text("")

    def make() -> np.ndarray:
        if trouble == "gone meanwhile":
            sharing.shutil.rmtree(rank)
        return np.arange(3)

    assert sharing.shared_array("name", ROWS, make).tolist() == [0, 1, 2]
    looks: list[int] = []
    sharing.check_once("check", lambda: looks.append(1))
    assert looks == [1]
    assert not list(rank.rglob(".*")) if rank.is_dir() else True


HOLDER = """
import os, sys
import numpy as np
from dist_train.distributed import shared as sharing
print(sharing.shared_array(sys.argv[1], sharing.LARGE, lambda: np.full(3, int(sys.argv[2])))[0], flush=True)
sys.stdin.read()
"""


def holder(tmp: Path, number: int, shell: bool = False, **env: str) -> subprocess.Popen[str]:
    """Start a rank that shares "held", and holds it until its input ends. ``shell`` puts a process between this process
    and the rank, as a container may do."""
    line = [sys.executable, "-c", HOLDER, "held", str(number)]
    every = {**{key: value for key, value in os.environ.items() if key not in RANKS}, "TMPDIR": str(tmp), **env}
    rank = subprocess.Popen(
        ["sh", "-c", '"$@"; exit', "sh", *line] if shell else line,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=every, start_new_session=True,
    )  # fmt: skip
    return rank


def said(rank: subprocess.Popen[str]) -> int:
    assert rank.stdout
    return int(rank.stdout.readline())


def slurm(rank: int, step: int = 0) -> dict[str, str]:
    """Return the variables that srun sets for a rank of two on a node."""
    return {
        "SLURM_PROCID": str(rank),
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_LOCALID": str(rank),
        "SLURM_STEP_TASKS_PER_NODE": "2",
        "SLURM_NODEID": "0",
        "SLURM_JOB_ID": "7",
        "SLURM_STEP_ID": str(step),
    }


def test_ranks_of_a_slurm_step_share_whatever_stands_between_srun_and_them(rank: Path) -> None:
    tmp = rank.parents[1]
    first = holder(tmp, 1, shell=True, **slurm(0))
    assert said(first) == 1
    second = holder(tmp, 2, shell=True, **slurm(1))
    assert said(second) == 1, "what the first has made"
    other = holder(tmp, 3, **slurm(0, step=1))
    assert said(other) == 3, "another step is another start"
    assert sorted(path.name for path in rank.iterdir()) == ["7-0-0", "7-1-0"]
    first.communicate()
    assert (rank / "7-0-0" / "held.npy").exists(), "the second still lives"
    second.communicate(), other.communicate()
    assert not list(rank.iterdir())


def test_files_of_a_killed_start_are_removed_and_those_of_a_living_start_are_not(rank: Path) -> None:
    tmp = rank.parents[1]
    killed, lives = (holder(tmp, 1, **slurm(0, step)) for step in (0, 1))
    assert said(killed) == said(lives) == 1
    elsewhere = rank.with_name("another-node") / "7-0-0"  # its ranks' locks cannot be seen from here, on some systems
    for folder in (rank / "strange", elsewhere):
        folder.mkdir(parents=True)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    assert (rank / "7-0-0" / "held.npy").exists()
    sharing.shared_array("name", ROWS, lambda: np.arange(3))
    mine = f"{os.getppid()}-{sharing._born(os.getppid())}-0"
    assert sorted(path.name for path in rank.iterdir()) == sorted(["7-1-0", mine]) and elsewhere.exists()
    lives.communicate()


def test_a_folder_that_is_removed_while_a_rank_comes_is_made_again(rank: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner, removed = fcntl.flock, []

    def flock(file: Any, kind: int) -> None:
        if kind == fcntl.LOCK_SH and not removed:
            removed.append(file)
            sharing._remove(Path(file.name).parent)
        inner(file, kind)

    monkeypatch.setattr(fcntl, "flock", flock)
    folder = sharing._folder()
    assert removed and folder is not None and folder.exists()
    sharing._remove(folder)
    assert folder.exists(), "this rank lives"


def test_a_full_disk_is_named(rank: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))  # NumPy writes only a part, as on a full disk
    try:
        with caplog.at_level(logging.WARNING):
            assert len(sharing.shared_array("name", ROWS, lambda: np.arange(ROWS))) == ROWS
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    (message,) = caplog.messages
    assert "name.npy" in message and "written" in message and "None" not in message


def test_a_finished_epoch_takes_no_memory(rank: Path) -> None:
    order = Order(sharing.LARGE, sharing.LARGE, 0)
    for number in range(5):
        order.batch(number)
    names = {path.name for path in rank.rglob("order-*.npy")}
    assert names == {f"order-{sharing.LARGE}-0-{epoch}.npy" for epoch in (2, 3, 4)}
