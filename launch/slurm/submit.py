"""A run as a chain of SLURM jobs, through submitit: each stage waits for the one before it.

A job's tasks, one a rank, are started by srun and call the same command line as everywhere. What
happens when they have left, done or stopped or dead, the job's script decides (``launch/restart.py``).
"""

from __future__ import annotations

import io
import os
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import submitit
from submitit.core import utils as submitit_utils

from dist_train.config import Config
from dist_train.distributed.stopping import margin
from dist_train.errors import CRASHED, FAILED, STOPPED, UserError, command
from launch.slurm import jobs, snapshot
from launch.slurm.profile import Cluster, Resources


@dataclass
class Start:
    """What each rank of a job calls.

    Attributes:
        arguments: of the command line.
    """

    arguments: list[str]

    def __call__(self) -> None:
        # Until the command line has handlers of its own there is nothing to save: leave, to be started
        # again. submitit's would act on rank 0 alone.
        for number in (signal.SIGUSR2, signal.SIGTERM):
            signal.signal(number, lambda *_: os._exit(STOPPED))
        environment = submitit.JobEnvironment()
        for stale in environment.paths.folder.glob(f"{environment.job_id}_{environment.global_rank}_*.save_tmp"):
            stale.unlink(missing_ok=True)  # a kill while submitit wrote it would fail every later start
        from launch.cli.main import main_of_rank

        code = main_of_rank(self.arguments)
        if code:
            sys.stdout.flush()
            sys.exit(code)


def code_of(start: Start) -> int:
    """Make a start, and return the exit code that it leaves with."""
    try:
        start()
    except SystemExit as left:
        return int(left.code or 0)
    return 0


@dataclass
class Job:
    """One job, or an array of them.

    Attributes:
        stage: its name in the chain.
        starts: what it runs; several are an array.
        after: the stage it waits for; None: nothing.
        matching: each member of the array waits for its own of ``after`` only.
        anyhow: runs even where ``after`` failed.
        names, runs: of the members, and their folders.
    """

    stage: str
    resources: Resources
    starts: list[Start]
    after: str | None = None
    matching: bool = False
    anyhow: bool = False
    names: list[str] = field(default_factory=list)
    runs: list[Path] = field(default_factory=list)


class _Executor(submitit.SlurmExecutor):
    """submitit's, which may also be made where there is no SLURM, to show the scripts."""

    @classmethod
    def affinity(cls) -> int:
        return 2

    def script(self, array: int) -> str:
        if array > 1:
            self.parameters["map_count"] = array
        return self._make_submission_file_text(self._submitit_command_str, "")


def executor(config: Config, cluster: Cluster, job: Job, code: Path, dependency: str | None) -> _Executor:
    """submitit's executor with everything a job is told."""
    wanted = job.resources
    packing = f" {shlex.quote(str(Path(config.data.shards).absolute()))}" if job.stage == "prepare" else ""
    python = " ".join(filter(None, [cluster.container, cluster.python or shlex.quote(sys.executable)]))
    made = _Executor(jobs.folder(config.run_dir), python=python)
    limit = 60 * (wanted.minutes or 60)
    variables: dict[str, str | float | None] = {
        "PYTHONPATH": f"{code}${{PYTHONPATH:+:$PYTHONPATH}}",
        "PYTHONSAFEPATH": "1",  # or the working directory's code would win over the snapshot
        "OMP_NUM_THREADS": None,
        **cluster.environment,
    }
    if wanted.gpus_per_node == 0:
        # Where it is submitted from within a job that has GPUs, that job's variables come along, and say that it has.
        variables = {"CUDA_VISIBLE_DEVICES": "", **variables}
    if wanted.cpus_per_task:
        variables["SRUN_CPUS_PER_TASK"] = str(wanted.cpus_per_task)
    # Around srun, in the job's own shell: it outlives every rank, and scontrol is at hand. The only member
    # of an array whose job id is the array's is its last one: name members in full.
    runs = " ".join(shlex.quote(str(run)) for run in job.runs or [config.run_dir.absolute()])
    before = [
        "job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}; job=${job:-$SLURM_JOB_ID}",
        f"runs=({runs}); run=${{runs[${{SLURM_ARRAY_TASK_ID:-0}}]}}",
        f'{python} -m launch.restart begin "$run" "$job"',
        "trap ended=1 TERM  # cancelled, out of time or preempted: let the ranks save first",
    ]
    after = [
        "code=$?",
        'state=$(scontrol -o show job "$job")',
        'if [ -n "$ended" ] && [[ $state != *Reason=TimeLimit* && ! $state =~ PreemptTime=[0-9] ]]; then',
        f'    {python} -m launch.restart cancelled "$run" "$job"',
        "else",
        f'    {python} -m launch.restart again "$run" "$job" $code {cluster.starts}{packing}; code=$?',
        f'    [ $code -ne {STOPPED} ] || {{ scontrol requeue "$job" && sleep 60; }}',
        "fi",
        "exit $code",
    ]
    parameters: dict[str, Any] = {
        "job_name": f"{config.name}.{job.stage}",
        "partition": wanted.partition,
        "account": cluster.account,
        "qos": wanted.qos,
        "constraint": wanted.constraint,
        "time": wanted.minutes,
        "nodes": wanted.nodes or 1,
        "ntasks_per_node": wanted.ranks_per_node,
        "gpus_per_node": wanted.gpus_per_node or None,
        "cpus_per_task": wanted.cpus_per_task,
        "mem": f"{wanted.mem_gb * 1024:.0f}M" if wanted.mem_gb else None,
        "dependency": dependency,
        "signal_delay_s": int(margin(limit)),
        "stderr_to_stdout": True,
        # One rank that leaves must not take the others along while they save, nor let them wait for long for
        # one that was killed before it could meet them.
        "srun_args": [*([f"--cpus-per-task={wanted.cpus_per_task}"] if wanted.cpus_per_task else []),
                      "--kill-on-bad-exit=0", f"--wait={int(2 * config.monitor.rank_timeout) + 30}", *cluster.srun],
        "setup": [*_setup(cluster.setup), *(_export(name, value) for name, value in variables.items()),
                  *before],
        "teardown": after,
        "additional_parameters": {"requeue": True, **({"kill-on-invalid-dep": "yes"} if dependency else {}),
                                  **{name: value for name, value in cluster.sbatch.items() if value is not False}},
    }  # fmt: skip
    made.update_parameters(**{key: value for key, value in parameters.items() if value is not None})
    return made


def _setup(lines: list[str]) -> list[str]:
    """A site's lines: the first that fails is named, and ends the job. What they source may do as it likes."""
    told = "dist-train: error: setup: $BASH_COMMAND: exit code $code; mend it in the profile, or add || true"
    trap = f"trap 'code=$?; [ ${{#BASH_SOURCE[@]}} -gt 1 ] || {{ echo \"{told}\"; exit {FAILED}; }}' ERR"
    return [trap, *lines, "trap - ERR"] if lines else []


def _export(name: str, value: str | float | None) -> str:
    if value is None:
        return f"unset {name}"
    value = str(value)
    for special in '\\"`':  # a $VARIABLE is meant
        value = value.replace(special, "\\" + special)
    return f'export {name}="{value}"'


def show(config: Config, cluster: Cluster, chain: list[Job]) -> str:
    """Every script and the chain, as ``submit`` would hand them to sbatch."""
    code = jobs.folder(config.run_dir).parent / "code"
    parts = []
    for job in chain:
        script = executor(
            config, cluster, job, code, _dependency(job, {job.after: f"<{job.after}>"} if job.after else {})
        )
        parts.append(f"# ---- {job.stage}\n{script.script(len(job.starts))}")
        for name, start in zip(job.names or [job.stage], job.starts, strict=True):
            parts.append(f"# {name}: {command(*start.arguments)}")
    arrows = " -> ".join(f"{job.stage}{f' x {len(job.starts)}' if len(job.starts) > 1 else ''}" for job in chain)
    return "\n".join([*parts, "", f"chain: {arrows}"])


def _dependency(job: Job, ids: Mapping[str | None, str]) -> str | None:
    if job.after not in ids:
        return None
    kind = "aftercorr" if job.matching else "afterany" if job.anyhow else "afterok"
    return f"{kind}:{ids[job.after]}"


def require_sbatch() -> None:
    """Raises UserError where this machine has none."""
    if shutil.which("sbatch") is None:
        raise UserError(
            "no sbatch on this machine: go to a login node of the cluster, or add --here to run on this machine"
        )


def submit(config: Config, cluster: Cluster, chain: list[Job]) -> list[tuple[str, str]]:
    """Hand the chain to SLURM: all of it, or nothing. Returns (stage, job id).

    Raises:
        UserError: no sbatch here, or it refused a job.
    """
    require_sbatch()
    code = snapshot.take(config.run_dir / "launch")
    ids: dict[str | None, str] = {}
    for job in chain:
        made = executor(config, cluster, job, code, _dependency(job, ids))
        try:
            # Several become an array; what sbatch says is in the error too.
            with redirect_stderr(io.StringIO()), made.batch():
                found = [made.submit(start) for start in job.starts]
        except (submitit_utils.FailedJobError, submitit_utils.FailedSubmissionError, OSError) as error:
            jobs.cancel_ids(list(ids.values()))
            shutil.rmtree(code)
            raise UserError(f"sbatch refused {job.stage}: {_reason(str(error))}; nothing was submitted") from None
        ids[job.stage] = found[0].job_id.split("_")[0]
        ranks = (job.resources.nodes or 1) * job.resources.ranks_per_node
        jobs.record(config.run_dir, job.stage, ids[job.stage], job.names, len(job.starts), ranks)
    return [(str(stage), job_id) for stage, job_id in ids.items()]


def run_here(config: Config, chain: list[Job]) -> int:
    """The same chain by submitit's local executor, one job after the other, where there is no SLURM."""
    code = snapshot.take(config.run_dir / "launch")
    path = os.pathsep.join(filter(None, [str(code), os.environ.get("PYTHONPATH")]))
    with _environment(PYTHONPATH=path, PYTHONSAFEPATH="1"):
        return _run_jobs(config, chain)


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


def _run_jobs(config: Config, chain: list[Job]) -> int:
    """Run each job's starts, one after the other; return 0, or ``STOPPED`` where one stopped."""
    for job in chain:
        for start in job.starts:
            made = submitit.LocalExecutor(jobs.folder(config.run_dir))
            made.update_parameters(
                timeout_min=60 * 24 * 365, tasks_per_node=job.resources.ranks_per_node, stderr_to_stdout=True
            )
            # submitit's process ends its tasks at once on Ctrl-C; the ranks have handlers of their own.
            with _handler(signal.SIGINT, signal.SIG_IGN):
                work = made.submit(code_of, start)
            ranks = job.resources.ranks_per_node
            jobs.record(config.run_dir, job.stage, work.job_id, job.names, 1, ranks, local=True)
            print(f"{job.stage}: {ranks} process(es), log {work.paths.stdout}", flush=True)
            with _handler(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT)):
                try:
                    _wait(work)
                except KeyboardInterrupt:
                    os.kill(int(work.job_id), signal.SIGTERM)  # goes on to the ranks
                    _wait(work)
            codes = _codes(work)
            if any(codes):
                reason = _last_line(work.paths.stdout)
                if set(codes) <= {0, STOPPED}:
                    print(f"{job.stage}: {reason}", file=sys.stderr)
                    return STOPPED
                raise UserError(f"{job.stage} did not end well: {reason} ({work.paths.stdout})")
    return 0


@contextmanager
def _handler(number: signal.Signals, handler: Any) -> Iterator[None]:
    """Handle a signal in another way within the block."""
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)


def _codes(work: Any) -> list[int]:
    """Exit codes of the tasks; of one that was killed, or raised, that of a crash."""
    try:
        return list(work.results())
    except (submitit_utils.UncompletedJobError, submitit_utils.FailedJobError):
        return [CRASHED]


def _wait(work: Any) -> None:
    while not work.done():
        time.sleep(0.3)
    with suppress(Exception):
        work.wait()


def _reason(text: str) -> str:
    """sbatch's own word in what submitit says: its first line of error, or its first line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    own = [line.removeprefix("sbatch: ").removeprefix("error: ") for line in lines if line.startswith("sbatch: ")]
    errors = [line.partition("error: ")[2] or line for line in lines if "error" in line.lower()]
    return next(iter([*errors, *own, *lines[-1:], "?"]))


def _last_line(path: Path) -> str:
    try:
        lines = [line for line in path.read_text(errors="replace").splitlines() if line.startswith("dist-train: ")]
    except OSError:
        lines = []
    return lines[0] if lines else "no reason in its log"
