"""The SLURM testbed itself: what the other cluster tests stand on."""

from __future__ import annotations

import pytest
from cluster_testbed import Testbed, wait_until

# Runs until it is started a second time. Its tasks stay at the first SIGTERM, the warning: a job that ends in
# its grace time counts as ended and isn't started again. The second one comes at the end of the grace time.
UNTIL_RESTARTED = """
echo "start ${SLURM_RESTART_COUNT:-0}"
[ "${SLURM_RESTART_COUNT:-0}" -gt 0 ] && exit 0
srun bash -c 'trap "echo got TERM on $(hostname); ((terms++)) && exit 1" TERM
              echo working on $(hostname)
              while true; do sleep 0.1; done'
"""


def test_two_nodes_have_their_own_names_and_reach_each_other(testbed: Testbed) -> None:
    script = "hostname; for node in node1 node2; do exec 3<>/dev/tcp/$node/16818 && echo reached $node; done"
    lines = testbed.srun("--nodes=2", "--ntasks-per-node=1", "bash", "-c", script).split("\n")
    assert sorted(filter(None, lines)) == ["node1", "node2"] + 2 * ["reached node1"] + 2 * ["reached node2"]


def test_unknown_names_fail_at_once_inside_a_node(testbed: Testbed) -> None:
    script = "SECONDS=0; getent hosts nowhere.example.org; echo $? after $SECONDS"
    assert testbed.srun("--nodes=1", "bash", "-c", script).strip() == "2 after 0"


def test_accounting_knows_an_ended_job(testbed: Testbed) -> None:
    job = testbed.sbatch("true")
    testbed.wait_for_state(job, "COMPLETED", seconds=20)
    wait_until("COMPLETED by sacct", lambda: testbed.accounted(job) == ["COMPLETED"], 20)


def test_a_job_sees_the_gpus_that_it_asked_for(testbed: Testbed) -> None:
    gpus = testbed.srun("--nodes=2", "--gpus-per-node=2", "bash", "-c", "echo $CUDA_VISIBLE_DEVICES").split()
    assert gpus == ["0,1", "0,1"]


def test_a_time_beyond_the_partition_s_is_refused(testbed: Testbed) -> None:
    refused = testbed.try_srun("--partition=short", "--time=10", "true", seconds=10)
    assert refused.returncode and "time limit" in refused.stderr


def test_an_urgent_job_preempts_and_the_preempted_one_starts_again(testbed: Testbed) -> None:
    job = testbed.sbatch(UNTIL_RESTARTED, "--partition=preemptible", "--nodes=2", "--exclusive")
    wait_until("both tasks", lambda: testbed.output(job).count("working on") == 2, 20)
    assert "up" in testbed.srun("--partition=urgent", "--nodes=2", "--exclusive", "uptime", seconds=60)
    assert testbed.output(job).count("got TERM on") >= 2
    testbed.wait_for_state(job, "COMPLETED", seconds=30)
    assert "start 1" in testbed.output(job)
    wait_until("both starts by sacct", lambda: testbed.accounted(job) == ["PREEMPTED", "COMPLETED"], 20)


@pytest.mark.parametrize(
    ("harm", "seen", "mend", "node"),
    [
        ("cut-link", "link cut", "restore-link", "node2"),
        ("kill-node", "slurmd down", "restore-node", "node1"),
    ],
)
def test_a_node_works_again(testbed: Testbed, harm: str, seen: str, mend: str, node: str) -> None:
    testbed.verb(harm, node)
    well, said = testbed.status()
    assert not well and seen in said
    testbed.verb(mend, node)
    assert testbed.srun(f"--nodelist={node}", "hostname", seconds=20).strip() == node
