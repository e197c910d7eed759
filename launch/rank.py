"""Run the stages of a run from its frozen configuration: the work of every rank of every launcher.

``python -m launch.rank CONFIG.yaml COMMAND`` starts one rank; launchers call ``start``, the command line ``work``.
"""

from __future__ import annotations

import importlib
import logging
import sys
import traceback
from pathlib import Path
from typing import NoReturn

import torch

from dist_train.config import Config
from dist_train.config.io import read_config
from dist_train.data.loading.dali_errors import PipelineError
from dist_train.distributed import context as contexts
from dist_train.distributed.context import Context
from dist_train.distributed.monitor import Monitor
from dist_train.distributed.stopping import StopFlag, Stopped
from dist_train.errors import CRASHED, FAILED, STOPPED, UserError
from dist_train.files import outermost_missing
from dist_train.names import shown
from dist_train.runs.lock import RunLock
from dist_train.runs.run import check_config, check_device, check_networks, open_run
from dist_train.stages.prepare import prepare
from dist_train.stages.share import Share
from launch import terminal
from launch.out_of_memory import explain_out_of_memory

log = logging.getLogger("dist_train")


def start(config_file: Path, command: str, share: str | None = None) -> int:
    """Run a command of a frozen configuration on this rank, and return the exit code (``dist_train.errors``).

    Args:
        config_file: the file that ``dist_train.config.io.freeze`` has written.
        command: "run", "prepare" or a stage.
        share: of ``evaluate``: find this share of the draws alone (``Share.parse``).
    """
    terminal.set_up()
    # The same command as a person would type it: the record of a number and the remedies in error lines print it.
    sys.argv = ["dist-train", command, "--config", str(config_file), *(["--share", share] if share else [])]
    try:
        return work(read_config(config_file), command, share=Share.parse(share) if share else None)
    except KeyboardInterrupt:
        return terminal.interrupted()
    except Exception as error:
        code = terminal.report(error)
        if code is None:  # a crash has a code of its own: launchers start it again
            traceback.print_exc()
            return CRASHED
        return code


def work(config: Config, command: str, redo: bool = False, share: Share | None = None) -> int:
    """Meet the other ranks, watch them, run the stages of ``command``, and leave in order.

    Args:
        redo: delete the results of the stage and of those after it, and start again.
        share: of ``evaluate``: find this share of the draws alone. It has a lock and signs of life of its own, because
            other shares of the run may be at work.

    Returns:
        0, or ``STOPPED``.

    Raises:
        UserError: bad input. LostError: another rank is gone.
    """
    made = outermost_missing(config.run_dir)  # now: under SLURM the ranks meet there
    folder = share.folder(config.run_dir) if share else config.run_dir
    with (
        contexts.start(timeout=config.monitor.start_timeout, join=False, folder=config.run_dir / "launch") as context,
        Monitor(context, config.monitor, folder) as monitor,
        RunLock(folder, context, made, of_share=share is not None) as lock,
    ):
        monitor.discard = lock.discard
        if not context.main:
            log.setLevel(logging.WARNING)
        try:
            _meet(config, context, lock)
            monitor.publish()  # not earlier: another start may be at work, and the published record would be its own
            return _run(config, command, redo, share, context, lock)
        except Exception as error:
            try:
                _leave(error, config, context, monitor)
            except UserError as refused:
                if refused.code == FAILED:
                    monitor.refuse()
                raise
        finally:
            monitor.report_end()


def _meet(config: Config, context: Context, lock: RunLock) -> None:
    """Join the process group, say where each rank is, and take the run for this start."""
    contexts.join_group(context, config.monitor.hang_timeout)
    for line in contexts.placement(context):
        log.info("%s", line)
    if config.run_dir.is_dir():
        lock.acquire()
    context.barrier("locked")


def _run(config: Config, command: str, redo: bool, share: Share | None, context: Context, lock: RunLock) -> int:
    """Check the configuration and run the stages of ``command``; return 0, or ``STOPPED``."""
    # Only the batch of a training on images depends on the number of ranks.
    ranks = context.world if command in ("run", "prepare", "pretrain") else 1
    check_config(config, ranks)
    if command in ("run", "networks"):
        check_networks(config, context.world)
    context.report_progress("looking for weights", patient=True)  # which may have to be downloaded
    check_device(config)
    context.report_progress("starting")
    if command in ("run", "prepare"):
        prepare(config, context)
    if command == "prepare":
        return 0
    with StopFlag(context, config.max_minutes) as stop:
        try:
            run = open_run(config, ranks)
            lock.acquire()
            for name in config.stages if command == "run" else (command,):
                # Imported when its turn comes: the first two stages need torchvision, which takes seconds to import.
                stage = getattr(importlib.import_module(f"dist_train.stages.{name}"), name)
                with explain_out_of_memory(config, name, context, len(run.base)):
                    # Redoing a stage deletes the later stages too, so under "run" only the first stage is redone.
                    again = redo and name in (command, config.stages[0])
                    stage(run, context, stop, again, **({"share": share} if share else {}))
        except Stopped as stopped:
            if context.main:
                why = stop.reason or "another rank was told to"
                print(f"dist-train: stopped ({why}); {stopped}; the same command continues", file=sys.stderr)
            return STOPPED
    return 0


def _leave(error: Exception, config: Config, context: Context, monitor: Monitor) -> NoReturn:
    """Record why this rank fails, print bad input once for all ranks, and raise the error that names the culprit."""
    if isinstance(error, (UserError, OSError)):
        first = monitor.report_failure(str(error))
        if isinstance(error, UserError):
            if first:  # now: when another rank with the same error has left, a launcher may end this one
                who = f"rank {context.rank}: " if context.world > 1 else ""
                print(f"dist-train: error: {who}{shown(error)}", file=sys.stderr, flush=True)
            error.printed = True
        raise error
    # When a rank goes, the exchanges of the others break with a RuntimeError: say which rank it was, not where that
    # was noticed. A GPU that failed, a loader that failed and a defect are this rank's own.
    own = not isinstance(error, RuntimeError) or isinstance(error, (torch.AcceleratorError, PipelineError))
    culprit = monitor.find_culprit(config.monitor.rank_timeout) if context.world > 1 and not own else None
    if culprit is None:
        monitor.report_failure(f"{type(error).__name__}: {error}".splitlines()[0], crashed=True)
        raise error
    raise type(culprit)(monitor.farewell(culprit)) from None


if __name__ == "__main__":
    sys.exit(start(Path(sys.argv[1]), sys.argv[2]))
