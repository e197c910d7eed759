"""The commands of a run: run and its stages, study, and what a person asks of a run that was started."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from dist_train.config import Config, configs_dir
from dist_train.config.io import find_yaml, load_config
from dist_train.errors import UserError, counted
from launch.cli.signature import Keys, Option

if TYPE_CHECKING:
    from dist_train.stages.share import Share


def run(config: Config, *, redo: bool = False, dry_run: bool = False, ranks: int = 1) -> int:
    """Run all stages in turn: prepare, pretrain, extract, networks, learn, evaluate.

    Stages that are done are skipped; prepare draws and packs images where the configuration asks for it, networks
    trains where a row of evaluate.methods needs it.

    Args:
        redo: Delete the results of all stages and start again.
        dry_run: Print steps, memory and time; start nothing.
        ranks: Ranks to plan for, with --dry-run.
    """
    if not dry_run:
        return _work(config, "run", redo)
    from dist_train.stages import dry_run as planner

    if ranks < 1:
        raise UserError(f"--ranks {ranks}: must be >= 1")
    print("\n".join(planner.dry_run(config, ranks)))
    return 0


def prepare(config: Config, *, redo: bool = False) -> int:
    """Draw and pack images, where the configuration asks for it.

    Args:
        redo: Has no effect: to pack again, delete the shards.
    """
    return _work(config, "prepare", redo)


def pretrain(config: Config, *, redo: bool = False) -> int:
    """Run the stage pretrain alone: train the backbone on the base classes.

    Args:
        redo: Delete the results of this stage and of those after it, and start again.
    """
    return _work(config, "pretrain", redo)


def extract(config: Config, *, redo: bool = False) -> int:
    """Run the stage extract alone: compute the activations of every image.

    Args:
        redo: Delete the results of this stage and of those after it, and start again.
    """
    return _work(config, "extract", redo)


def networks(config: Config, *, redo: bool = False) -> int:
    """Run the stage networks alone: train the whole network for the rows of the table that need it.

    Args:
        redo: Delete the networks and train them again; evaluate then makes their rows again.
    """
    return _work(config, "networks", redo)


def learn(config: Config, *, redo: bool = False) -> int:
    """Run the stage learn alone: train the predictors.

    Args:
        redo: Delete the results of this stage and of those after it, and start again.
    """
    return _work(config, "learn", redo)


def evaluate(config: Config, *, redo: bool = False, share: str | None = None) -> int:
    """Run the stage evaluate alone: make the table and the report.

    Args:
        redo: Delete the results of this stage and start again.
        share: Only find the draws of this share, as in 0/3, 1/3 and 2/3: the command without it then makes the table.
    """
    from dist_train.stages.share import Share

    if share is None:
        return _work(config, "evaluate", redo)
    if redo:
        raise UserError(
            f"--share {share}: --redo would delete {config.run_dir / 'evaluate'}, which has other shares too; delete "
            "it yourself, then find all shares again"
        )
    found = Share.parse(share)
    found.check(config)
    return _work(config, "evaluate", redo, found)


def _work(config: Config, command: str, redo: bool, share: Share | None = None) -> int:
    from launch.rank import work

    return work(config, command, redo, share)


def study(
    study: str, config: Annotated[Config, Keys(defaults={"data.holdout": "pseudo-novel"})], *, seeds: int = 1
) -> int:
    """Compare choices: which choice matters, and by how much.

    Varies choices one at a time over one backbone, on the split's pseudo-novel classes, and writes a table of what each
    choice changes, compared draw by draw, to RUN/study/. Members run one after the other; the same command continues.

    Args:
        study: YAML file, or the name of one in configs/studies/.
        seeds: Learn each setting this many times, and take the mean.
    """
    from launch.grid.run_study import run_study

    return run_study(config, find_yaml("study", study, configs_dir() / "studies", "*.yaml"), seeds)


def collect(runs: list[Path]) -> int:
    """Print the table of a sweep, or of several runs that differ in their seeds.

    Of one run, it has the results of all members, and is written to RUN/sweep/table.md too. Of several, each with a
    sweep over learn.seed, it has means with intervals over the seeds of backbones and predictors, and over draws.

    Args:
        runs: RUNS/NAME; two or more that differ in seed and evaluate.seed.
    """
    from launch.grid.report import print_sweep_table
    from launch.grid.seeds import seeds_table

    if len(runs) == 1:
        return print_sweep_table(runs[0])
    print(seeds_table(runs))
    return 0


def status(run: Path = Path("runs"), *, watch: bool = False) -> int:
    """Show what a run, or every run of a folder, is doing.

    Prints stages, step, epoch, loss, images/s, time left, last checkpoint, last sign of life, and the error that ended
    it. Reads the run's folder, and asks SLURM about its jobs.

    Args:
        run: RUNS/NAME, or RUNS for all.
        watch: Repeat every few seconds, until Ctrl-C.
    """
    from launch.status import show

    if not watch:
        print(show(run))
        return 0
    with suppress(KeyboardInterrupt):
        while True:
            print(f"\x1b[2J\x1b[H{show(run)}", flush=True)
            time.sleep(5)
    return 0


def verify_resume(run: Path, *, batches: int = 4) -> int:
    """Prove that resuming is exact.

    Compares the batches after the run's newest checkpoint, by sample ids, crop windows and checksums of pixels: as made
    by a stream that begins before the checkpoint, and by new streams on 1, 2 and 4 ranks.

    Args:
        run: Folder of the run (RUNS/NAME).
        batches: Global batches to compare.
    """
    from dist_train.runs.run import open_run
    from dist_train.stages.verify_resume import verify_resume

    if batches < 1:
        raise UserError(f"--batches {batches}: must be >= 1")
    lines, differences = verify_resume(open_run(load_config(run)), batches)
    print("batch  first sample (window)  uninterrupted  resumed")
    for line in lines:
        print(f"{line.number}  {line.sample} ({line.window})  {line.before}  {line.after}")
    for difference in differences:
        print(difference)
    state = counted(len(differences), "difference") if differences else "resuming is exact, on 1, 2 and 4 ranks"
    print(f"{run}: {state}")
    return 1 if differences else 0


def logs(
    run: Path,
    *,
    stage: str | None = None,
    rank: int = 0,
    member: int = 0,
    follow: Annotated[bool, Option(short="-f")] = False,
) -> int:
    """Print the log of a rank, by default of the newest job.

    Args:
        run: RUNS/NAME.
        stage: Take the newest job of this stage.
        rank: Take the log of this rank.
        member: Take this member of an array.
        follow: Go on until the job has ended.
    """
    from launch.slurm.logs import print_log

    with suppress(KeyboardInterrupt):
        print_log(run, stage, rank, follow, member)
    return 0


def cancel(run: Path) -> int:
    """End a run's jobs, queued and running; a running job saves first.

    Args:
        run: RUNS/NAME.
    """
    from launch.slurm import jobs

    print(f"{run}: cancelled {', '.join(jobs.cancel(run))}")
    return 0
