"""Checks of SLURM's settings: whether it answers, and what they mean for requeueing, preemption and CPUs."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping

from launch.doctor.line import Line
from launch.slurm.scheduler import NoAnswer, NoCluster, ask


def settings() -> Iterator[Line]:
    """Check the SLURM that this machine belongs to."""
    if shutil.which("sbatch") is None:
        yield Line("warning", "slurm", "no sbatch here; dist-train launch local and torchrun work without")
        return
    try:
        version = " ".join(ask(["sinfo", "-V"]))
        config = "\n".join(ask(["scontrol", "show", "config"]))
    except NoCluster:  # no error on a machine that only has the programs
        text = "programs without a configuration of a cluster; launch local works without one"
        yield Line("warning", "slurm", text)
        return
    except NoAnswer as error:
        yield Line("error", "slurm", f"{error}; ask its administrators")
        return
    values = dict(re.findall(r"^(\w+)\s*= (.*?)\s*$", config, re.MULTILINE))
    yield Line("ok", "slurm", f"{version}, cluster {values.get('ClusterName', '?')}")
    yield _accounting()
    if values.get("JobRequeue") == "0":
        yield Line("ok", "requeue", "off by default here (JobRequeue=0); our jobs ask for it with --requeue")
    yield _preemption(values)
    plugin = values.get("TaskPlugin", "")
    if "affinity" not in plugin and "cgroup" not in plugin:
        yield Line("warning", "task plugin", f"{plugin or None}: tasks are not bound to the CPUs they asked for")


def _accounting() -> Line:
    try:
        ask(["sacct", "-n", "-X", "-S", "now"])
    except NoAnswer as error:
        return Line("warning", "sacct", f"{error}: status then knows queued and running jobs only")
    return Line("ok", "sacct", "answers")


def _preemption(values: Mapping[str, str]) -> Line:
    mode = values.get("PreemptMode", "")
    if "OFF" in mode:
        return Line("ok", "preemption", "off: only time limits and failures end a job")
    if "send_user_signal" in values.get("PreemptParameters", "") + values.get("SlurmctldParameters", ""):
        return Line("ok", "preemption", f"{mode}; jobs get USR2 first")
    return Line("ok", "preemption", f"{mode}; jobs get TERM, and KillWait={values.get('KillWait', '?')} to save")
