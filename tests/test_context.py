import pytest

from dist_train.context import read_environment
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
    "SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1", "SLURM_NTASKS_PER_NODE": "4",
    "MASTER_ADDR": "h", "MASTER_PORT": "1",
}  # fmt: skip


def test_three_sources() -> None:
    assert read_environment({}) == (0, 1, 0, 1)
    assert read_environment(TORCHRUN) == (3, 8, 1, 2)
    assert read_environment(SLURM) == (5, 8, 1, 4)
    assert read_environment({**SLURM, **TORCHRUN}) == (3, 8, 1, 2)
    assert read_environment({"SLURM_PROCID": "0", "SLURM_NTASKS": "1"}) == (0, 1, 0, 1)  # a shell inside a job


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
