import pytest

from dist_train.distributed.cpus import cpus_per_rank, usable_cpus
from dist_train.distributed.rendezvous import Place, read_environment
from dist_train.errors import UserError

TORCHRUN = {
    "RANK": "3",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "h",
    "MASTER_PORT": "1",
}
SLURM = {
    "SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "8", "SLURM_LOCALID": "1", "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
    "SLURM_NODEID": "1",
}  # fmt: skip


def test_torchruns_slurms_and_submitits_environments_are_read() -> None:
    assert read_environment({}) == Place()
    assert read_environment(TORCHRUN) == Place(3, 8, 1, 2, "torchrun")
    assert read_environment(SLURM) == Place(5, 8, 1, 4, "slurm")
    assert read_environment({**SLURM, **TORCHRUN}) == Place(3, 8, 1, 2, "torchrun")
    assert read_environment({"SLURM_PROCID": "0", "SLURM_NTASKS": "1"}) == Place()  # a shell inside a job
    local = {"SUBMITIT_LOCAL_GLOBALID": "1", "SUBMITIT_LOCAL_NTASKS": "2", "SUBMITIT_LOCAL_LOCALID": "1"}
    assert read_environment(local) == Place(1, 2, 1, 2, "submitit")


@pytest.mark.parametrize("gone", ["WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT"])
def test_a_half_set_environment_is_an_error(gone: str) -> None:
    env = {k: v for k, v in TORCHRUN.items() if k != gone}
    with pytest.raises(UserError, match=f"{gone} not; start with torchrun"):
        read_environment(env)


def test_contradictions_are_errors() -> None:
    with pytest.raises(UserError, match="contradict"):
        read_environment({**TORCHRUN, "RANK": "9"})
    with pytest.raises(UserError, match="whole numbers"):
        read_environment({**TORCHRUN, "RANK": "x"})


def test_a_ranks_share_of_the_cpus() -> None:
    assert cpus_per_rank(1, {}) == usable_cpus()
    assert cpus_per_rank(1000, {}) == 1
    assert cpus_per_rank(1, {**SLURM, "SLURM_CPUS_PER_TASK": "1"}) == 1
    assert cpus_per_rank(1, {**SLURM, "SLURM_CPUS_PER_TASK": "999"}) == usable_cpus()
    assert cpus_per_rank(1, {"SLURM_CPUS_PER_TASK": "1"}) == usable_cpus(), "a shell inside a job is no task of it"
