"""Ranks find each other under torchrun and under Slurm, and an error on one of them ends them all."""

import pytest
import torch
from ranks import free_port, on_ranks, torchrun_variables

from open_flamingo.instruction_tuning.distributed import Launch, Ranks, first_host, launch_of

TASK = {
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_NTASKS": "8",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_ID": "0",
    "SLURM_JOB_ID": "120345",
    "SLURM_JOB_NODELIST": "gpu[03-05,07],login1",
}
"""What `srun` tells one of eight tasks on two nodes."""


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ("gpu[03-05,07],login1", "gpu03"),
        ("gpu7", "gpu7"),
        ("a1,b[2-3]", "a1"),
        ("rack[1-2]-node[08,09]", "rack1-node08"),
        ("n[5,7-9].cluster,m1", "n5.cluster"),
    ],
)
def test_the_first_host_of_a_node_list_is_found(nodes, host):
    assert first_host(nodes) == host


def test_a_process_without_a_launcher_is_alone():
    assert launch_of({}) == Launch(rank=0, world_size=1, local_rank=0, node_size=1, meeting_point=None)


def test_torchrun_says_who_i_am_also_inside_a_slurm_job():
    torchrun = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    assert launch_of(TASK | torchrun) == Launch(3, 4, 1, 2, None)


def test_a_task_of_srun_meets_the_others_on_the_first_node():
    assert launch_of(TASK) == Launch(5, 8, 1, 4, "tcp://gpu03:15345")


@pytest.mark.parametrize(
    ("change", "meeting_point"),
    [
        ({"SLURM_STEP_NODELIST": "gpu[04-05]"}, "tcp://gpu04:15345"),
        ({"MASTER_ADDR": "head", "MASTER_PORT": "29500"}, "tcp://head:29500"),
        ({"SLURM_JOB_NODELIST": "", "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.1"}, "tcp://10.0.0.1:15345"),
    ],
)
def test_tasks_meet_where_the_environment_says(change, meeting_point):
    assert launch_of(TASK | change).meeting_point == meeting_point


@pytest.mark.parametrize(
    "change",
    [
        {"SLURM_STEP_ID": ""},
        {"SLURM_STEP_ID": str(0xFFFFFFFB)},
        {"SLURM_STEP_ID": str(0xFFFFFFFA)},
        {"SLURM_PTY_PORT": "40000"},
        {"SLURM_STEP_NUM_TASKS": "1"},
    ],
    ids=["no step", "batch script", "interactive step", "terminal", "one task"],
)
def test_a_shell_inside_a_slurm_job_waits_for_nobody(change):
    assert launch_of(TASK | change) == Launch()


def test_a_slurm_task_that_knows_no_host_says_so():
    with pytest.raises(ValueError, match="set MASTER_ADDR"):
        launch_of(TASK | {"SLURM_JOB_NODELIST": ""})


def about(ranks: Ranks) -> dict:
    """What a rank knows of itself and of the others."""
    total = ranks.sum(torch.tensor(ranks.rank + 1)).item()
    return {"size": ranks.world_size, "node": ranks.node_size, "sum": total, "all": ranks.gather(f"rank {ranks.rank}")}


def test_tasks_of_srun_join(tmp_path):
    shared = {"SLURM_NTASKS": "2", "SLURM_STEP_ID": "0", "SLURM_JOB_NODELIST": "127.0.0.1,other"}
    shared["MASTER_PORT"] = str(free_port())
    envs = [shared | {"SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)} for i in range(2)]
    assert (
        on_ranks(envs, tmp_path / "slurm", about) == [{"size": 2, "node": 2, "sum": 3, "all": ["rank 0", "rank 1"]}] * 2
    )


def test_one_rank_gathers_what_it_gives():
    assert Ranks(0, 1, torch.device("cpu")).gather("alone") == ["alone"]


def fail_on_the_second(ranks: Ranks) -> None:
    """The second rank begins a sum that nobody joins and fails, while the first waits for it."""
    if ranks.rank == 1:
        torch.distributed.all_reduce(torch.ones(1000), async_op=True)
        raise ValueError("an error on one rank, on purpose")
    ranks.gather("waiting")
    ranks.barrier()


def test_an_error_on_one_rank_ends_all_ranks_soon(tmp_path):
    envs = torchrun_variables(2, 2)
    assert on_ranks(envs, tmp_path / "error", fail_on_the_second, patience=60) == [None, None]
