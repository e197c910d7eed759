"""The stages of a run, on this rank: meet the others, watch them, work, and leave in order."""

from __future__ import annotations

import importlib
import logging
import sys

import torch

from dist_train.config import STAGES, Config
from dist_train.data.loading.dali_errors import PipelineError
from dist_train.distributed import context as contexts
from dist_train.distributed.monitor import Monitor
from dist_train.distributed.stopping import StopFlag, Stopped
from dist_train.errors import STOPPED, UserError
from dist_train.names import shown
from dist_train.runs.lock import RunLock
from dist_train.runs.run import check_device, check_options, open_run
from dist_train.stages.prepare import prepare
from launch.memory import explained

log = logging.getLogger("dist_train")


def work(config: Config, command: str, redo: bool) -> int:
    """``run``, ``prepare`` or one stage; returns 0, or ``STOPPED``.

    Raises:
        UserError: bad input; LostError: another rank is gone.
    """
    with (
        contexts.start(timeout=config.monitor.start_timeout, join=False, folder=config.run_dir / "launch") as context,
        Monitor(context, config.monitor, config.run_dir) as monitor,
        RunLock(config.run_dir, context) as lock,
    ):
        if not context.main:
            log.setLevel(logging.WARNING)
        try:
            contexts.join_group(context, config.monitor.hang_timeout)
            for line in contexts.placement(context):
                log.info("%s", line)
            if config.run_dir.is_dir():
                lock.acquire()
            context.barrier("locked")
            monitor.publish()  # not before: another start may be at work, and the record is its own
            # Only training's batch depends on the number of ranks.
            ranks = context.world if command in ("run", "prepare", "pretrain") else 1
            check_options(config, ranks)
            check_device(config)
            if command in ("run", "prepare"):
                prepare(config, context)
            if command == "prepare":
                return 0
            with StopFlag(context, config.max_minutes) as stop:
                run = open_run(config, ranks)
                lock.acquire()
                for name in STAGES if command == "run" else (command,):
                    # Imported when it is due: torchvision, of the first two, takes seconds.
                    stage = getattr(importlib.import_module(f"dist_train.stages.{name}"), name)
                    with explained(config, name, context, len(run.base)):
                        # redo takes the later ones along
                        stage(run, context, stop, redo and name in (command, STAGES[0]))
        except Stopped as reason:
            if context.main:
                why = stop.reason or "another rank was told to"
                print(f"dist-train: stopped ({why}); {reason}; the same command continues", file=sys.stderr)
            return STOPPED
        except (UserError, OSError) as error:
            first = monitor.failed(str(error))
            if isinstance(error, UserError):
                if first:  # at once: a launcher may end this rank when another that has found the same is gone
                    who = f"rank {context.rank}: " if context.world > 1 else ""
                    print(f"dist-train: error: {who}{shown(error)}", file=sys.stderr, flush=True)
                error.told = True
            raise
        except Exception as error:
            # An exchange that broke because another rank went is a RuntimeError: say which, not where it was noticed. A
            # GPU that failed, a loader that failed and a defect are this rank's own.
            own = not isinstance(error, RuntimeError) or isinstance(error, (torch.AcceleratorError, PipelineError))
            culprit = monitor.culprit(config.monitor.rank_timeout) if context.world > 1 and not own else None
            if culprit is None:
                monitor.failed(f"{type(error).__name__}: {error}".splitlines()[0], crashed=True)
                raise
            raise type(culprit)(monitor.farewell(culprit)) from None
        finally:
            monitor.left()
    return 0
