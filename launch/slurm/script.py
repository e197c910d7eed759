"""Write what sbatch gets for a job: its options, and the shell around its ranks (``job_script.sh``)."""

from __future__ import annotations

import re
import shlex
import string
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dist_train.config import Config
from dist_train.distributed.stopping import margin
from dist_train.errors import FAILED, STOPPED
from launch.slurm.chain import PlannedJob
from launch.slurm.profile import Cluster, Resources

_TEMPLATE = Path(__file__).with_name("job_script.sh")
_PART = re.compile(r"^# ---- .*\n", re.MULTILINE)


class _JobScript(string.Template):
    """A template whose variables begin with %: a $ belongs to the shell."""

    delimiter = "%"


def python_command(cluster: Cluster) -> str:
    """Return the shell's words that start Python on a compute node, inside the site's container."""
    return " ".join(filter(None, [cluster.container, cluster.python or shlex.quote(sys.executable)]))


def sbatch_parameters(
    config: Config, cluster: Cluster, job: PlannedJob, code: Path, dependency: str | None
) -> dict[str, Any]:
    """Return the parameters of submitit's executor for a job.

    Args:
        code: the snapshot of the code that the job runs.
        dependency: sbatch's ``--dependency``.
    """
    wanted = job.resources
    before, after = _shell(config, cluster, job, code)
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
        "signal_delay_s": int(margin(60 * (wanted.minutes or 60))),
        "stderr_to_stdout": True,
        "srun_args": _srun_options(config, cluster, wanted),
        "setup": before,
        "teardown": after,
        "additional_parameters": {
            "requeue": True,
            **({"kill-on-invalid-dep": "yes"} if dependency else {}),
            **{name: value for name, value in cluster.sbatch.items() if value is not False},
        },
    }
    return {key: value for key, value in parameters.items() if value is not None}


def _srun_options(config: Config, cluster: Cluster, wanted: Resources) -> list[str]:
    # srun does not inherit sbatch's --cpus-per-task.
    cpus = [f"--cpus-per-task={wanted.cpus_per_task}"] if wanted.cpus_per_task else []
    # A rank that leaves must not take the others along while they save, and the others must not wait for long for a
    # rank that was killed before it could meet them.
    wait = int(2 * config.monitor.rank_timeout) + 30
    return [*cpus, "--kill-on-bad-exit=0", f"--wait={wait}", *cluster.srun]


def _shell(config: Config, cluster: Cluster, job: PlannedJob, code: Path) -> tuple[list[str], list[str]]:
    """Return the lines of shell before and after the ranks. They run around srun in the job's own shell, which
    outlives every rank and has scontrol at hand."""
    shards = shlex.quote(str(Path(config.data.shards).absolute())) if job.stage == "prepare" else ""
    values = {
        "setup": "\n".join(cluster.setup) or ":",
        "exports": "\n".join(_exports(cluster, job.resources, code)),
        "runs": " ".join(shlex.quote(str(task.run.absolute())) for task in job.tasks),
        "python": python_command(cluster),
        "starts": cluster.starts,
        "shards": shards,
        "FAILED": FAILED,
        "STOPPED": STOPPED,
    }
    _, *parts = _PART.split(_TEMPLATE.read_text())
    before, after = (_JobScript(part).substitute(values).splitlines() for part in parts)
    return before, after


def _exports(cluster: Cluster, wanted: Resources, code: Path) -> Sequence[str]:
    """Return the lines that set the ranks' environment; the site's variables take the place of ours."""
    variables: dict[str, str | float | None] = {
        "PYTHONPATH": f"{code}${{PYTHONPATH:+:$PYTHONPATH}}",
        "PYTHONSAFEPATH": "1",  # without it the code in the working directory would win over the snapshot
        "OMP_NUM_THREADS": None,
        **cluster.environment,
    }
    if wanted.gpus_per_node == 0:
        # A submission from within a job with GPUs hands that job's variables on, and they say that there are GPUs.
        variables = {"CUDA_VISIBLE_DEVICES": "", **variables}
    if wanted.cpus_per_task:
        variables["SRUN_CPUS_PER_TASK"] = str(wanted.cpus_per_task)
    return [_export(name, value) for name, value in variables.items()]


def _export(name: str, value: str | float | None) -> str:
    """Return the line that sets a variable, or that unsets it where its value is None."""
    if value is None:
        return f"unset {name}"
    text = str(value)
    for special in '\\"`':  # but not $: a $VARIABLE in a value is expanded
        text = text.replace(special, "\\" + special)
    return f'export {name}="{text}"'
