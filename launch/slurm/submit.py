"""Submit a chain of jobs through submitit: to SLURM, or one after the other on this machine.

srun starts the task of a job on each rank. When all ranks have left, whether done, stopped or dead, the job's script
decides what follows (``launch/restart.py``).
"""

from __future__ import annotations

import io
import os
import pkgutil
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, suppress
from pathlib import Path
from typing import Any

import submitit
from submitit.core import utils as submitit_utils

from dist_train.config import Config
from dist_train.errors import CRASHED, STOPPED, UserError, counted
from launch import terminal
from launch.slurm import jobs, scheduler
from launch.slurm.chain import PlannedJob, Task
from launch.slurm.jobs import Job
from launch.slurm.profile import Cluster
from launch.slurm.script import python_command, sbatch_parameters
from launch.slurm.snapshot import take_snapshot


def run_on_rank(function: str, arguments: Sequence[Any]) -> None:
    """Call a task's function on a rank of a SLURM job. Any exit code but 0 ends the process with it."""
    code = exit_code(function, arguments)
    if code:
        sys.stdout.flush()
        sys.exit(code)


def exit_code(function: str, arguments: Sequence[Any]) -> int:
    """Call a task's function on a rank, and return the exit code (``dist_train.errors``).

    Args:
        function: MODULE:FUNCTION, as in ``chain.Task``.
    """
    # Until that function has handlers of its own there is nothing to save: leave, to be started again. submitit's
    # handlers would act on rank 0 alone.
    for number in (signal.SIGUSR2, signal.SIGTERM):
        signal.signal(number, lambda *_: os._exit(STOPPED))
    environment = submitit.JobEnvironment()
    for stale in environment.paths.folder.glob(f"{environment.job_id}_{environment.global_rank}_*.save_tmp"):
        stale.unlink(missing_ok=True)  # a kill while submitit wrote it would make every later start fail
    terminal.set_up()
    try:
        return pkgutil.resolve_name(function)(*arguments) or 0
    except SystemExit as left:
        return int(left.code or 0)
    except Exception as error:
        code = terminal.report(error)
        if code is None:
            traceback.print_exc()
            return CRASHED
        return code


class _Executor(submitit.SlurmExecutor):
    """submitit's executor, which also works where there is no SLURM, to show the scripts."""

    @classmethod
    def affinity(cls) -> int:
        return 2

    def script(self, array_size: int) -> str:
        """Return the script of a job, or of an array of more than one."""
        if array_size > 1:
            self.parameters["map_count"] = array_size
        return self._make_submission_file_text(self._submitit_command_str, "")


def _executor(config: Config, cluster: Cluster, job: PlannedJob, code: Path, dependency: str | None) -> _Executor:
    executor = _Executor(jobs.folder(config.run_dir), python=python_command(cluster))
    executor.update_parameters(**sbatch_parameters(config, cluster, job, code, dependency))
    return executor


def describe_chain(config: Config, cluster: Cluster, chain: Sequence[PlannedJob]) -> str:
    """Return every script and the chain, as ``submit`` would hand them to sbatch."""
    code = jobs.folder(config.run_dir).parent / "code"
    lines = []
    for job in chain:
        dependency = job.dependency({stage.stage: f"<{stage.stage}>" for stage in chain})
        executor = _executor(config, cluster, job, code, dependency)
        lines.append(f"# ---- {job.stage}\n{executor.script(len(job.tasks))}")
        lines += [f"# {task.name or job.stage}: {task.command}" for task in job.tasks]
    arrows = (f"{job.stage} x {len(job.tasks)}" if len(job.tasks) > 1 else job.stage for job in chain)
    return "\n".join([*lines, "", f"chain: {' -> '.join(arrows)}"])


def require_sbatch() -> None:
    """Refuse to submit from a machine that has no sbatch.

    Raises:
        UserError: it has none.
    """
    if shutil.which("sbatch") is None:
        raise UserError(
            "no sbatch on this machine: go to a login node of the cluster, or add --here to run on this machine"
        )


def submit(config: Config, cluster: Cluster, chain: Sequence[PlannedJob]) -> dict[str, str]:
    """Hand the chain to SLURM: all of it, or nothing. Return the job id of each stage.

    Raises:
        UserError: this machine has no sbatch, or sbatch refused a job.
    """
    require_sbatch()
    code = take_snapshot(config.run_dir / "launch")
    ids: dict[str, str] = {}
    for job in chain:
        executor = _executor(config, cluster, job, code, job.dependency(ids))
        try:
            # Several tasks become an array. What sbatch prints is in the error too.
            with redirect_stderr(io.StringIO()), executor.batch():
                submitted = [executor.submit(run_on_rank, task.function, task.arguments) for task in job.tasks]
        except (submitit_utils.FailedJobError, submitit_utils.FailedSubmissionError, OSError) as error:
            scheduler.scancel(list(ids.values()))
            shutil.rmtree(code)
            raise UserError(f"sbatch refused {job.stage}: {_reason(str(error))}; nothing was submitted") from None
        ids[job.stage] = scheduler.array_id(submitted[0].job_id)
        names, ranks = _names(job.tasks), job.resources.ranks
        jobs.record(config.run_dir, Job(job.stage, ids[job.stage], names, size=len(job.tasks), ranks=ranks))
    return ids


def _names(tasks: Sequence[Task]) -> list[str]:
    """Return the names of a sweep's members; none where the tasks are no members."""
    return [task.name for task in tasks if task.name]


def _reason(text: str) -> str:
    """Return sbatch's own words from submitit's message: the first line that is an error, else the first line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    own = [line.removeprefix("sbatch: ").removeprefix("error: ") for line in lines if line.startswith("sbatch: ")]
    errors = [line.partition("error: ")[2] or line for line in lines if "error" in line.lower()]
    return next(iter([*errors, *own, *lines[-1:], "?"]))


def run_here(config: Config, chain: Sequence[PlannedJob]) -> int:
    """Run the chain on this machine without SLURM, one job after the other, by submitit's local executor.

    Returns:
        0, or ``STOPPED`` where a job was stopped.

    Raises:
        UserError: a job failed.
    """
    code = take_snapshot(config.run_dir / "launch")
    path = os.pathsep.join(filter(None, [str(code), os.environ.get("PYTHONPATH")]))
    with _environment(PYTHONPATH=path, PYTHONSAFEPATH="1"):
        for job in chain:
            for task in job.tasks:
                codes, log = _run_local(config, job, task)
                if not any(codes):
                    continue
                reason = _first_message(log)
                if set(codes) <= {0, STOPPED}:
                    print(f"{job.stage}: {reason}", file=sys.stderr)
                    return STOPPED
                raise UserError(f"{job.stage} did not end well: {reason} ({log})")
    return 0


def _run_local(config: Config, job: PlannedJob, task: Task) -> tuple[list[int], Path]:
    """Run a task of a job in local processes; return the exit codes of its ranks, and the log of rank 0."""
    ranks = job.resources.ranks_per_node
    executor = submitit.LocalExecutor(jobs.folder(config.run_dir))
    executor.update_parameters(timeout_min=60 * 24 * 365, tasks_per_node=ranks, stderr_to_stdout=True)
    # On Ctrl-C submitit's process would end its tasks at once; the ranks have handlers of their own.
    with _handler(signal.SIGINT, signal.SIG_IGN):
        work = executor.submit(exit_code, task.function, task.arguments)
    log = Path(work.paths.stdout)
    jobs.record(config.run_dir, Job(job.stage, work.job_id, _names([task]), ranks=ranks, local=True))
    print(f"{job.stage}: {counted(ranks, 'process')}, log {log}", flush=True)
    with _handler(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT)):
        try:
            _wait(work)
        except KeyboardInterrupt:
            os.kill(int(work.job_id), signal.SIGTERM)  # submitit hands it on to the ranks
            _wait(work)
    return _exit_codes(work), log


def _wait(work: submitit.Job[int]) -> None:
    while not work.done():
        time.sleep(0.3)
    with suppress(Exception):
        work.wait()


def _exit_codes(work: submitit.Job[int]) -> list[int]:
    """Return the exit codes of a job's ranks; where a rank was killed or raised an error, that of a crash."""
    try:
        return list(work.results())
    except (submitit_utils.UncompletedJobError, submitit_utils.FailedJobError):
        return [CRASHED]


def _first_message(log: Path) -> str:
    """Return the first line of a log that is this program's own."""
    with suppress(OSError):
        for line in log.read_text(errors="replace").splitlines():
            if line.startswith("dist-train: "):
                return line
    return "no reason in its log"


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    """Set variables for processes that are started within the block."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _handler(number: signal.Signals, handler: Callable[..., Any] | signal.Handlers) -> Iterator[None]:
    """Handle a signal in another way within the block."""
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)
