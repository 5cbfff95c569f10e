"""Checkpoints that stop all ranks of a job while they are written."""

from unidle_collector.simulator.mechanisms.variant import NONE, Cycle, Host, Levels, Variant

TRUTH = "starvation.checkpoint"
WAITS = Levels(NONE, NONE, NONE, NONE, (0.18, 0.22), (0.0, 0.01), (0.5, 3.0), NONE)

VARIANTS = (
    Variant(
        "a large model to NFS each few minutes", "tuning", TRUTH, wait=WAITS, said=True,
        wait_host=Host(iowait=(0.05, 0.3), psi_io=(0.2, 0.6), disk_written=(400, 1500), ethernet_sent=(300, 1400)),
        cycle=Cycle((240, 360), (70, 115)), before=NONE,
    ),
    Variant(
        "optimizer states to local disk", "tuning", TRUTH, wait=WAITS, said=True, nodes=2,
        wait_host=Host(iowait=(0.1, 0.3), psi_io=(0.3, 0.7), disk_written=(1500, 5000)),
        cycle=Cycle((300, 420), (60, 100)), before=(300, 500),
    ),
    Variant(
        "a barrier in which all but one rank spin", "held_out", TRUTH,
        wait=Levels((0.99, 1.0), (0.01, 0.05), NONE, (0.0, 0.01), (0.2, 0.28), (0.0, 0.01), (0.0, 0.4), (0.0, 0.1)),
        said=True, wait_host=Host(iowait=(0.01, 0.04), disk_written=(5100, 9000)),
        cycle=Cycle((430, 520), (120, 200)), before=NONE, models=("NVIDIA B200", "NVIDIA A100-SXM4-80GB"),
    ),
    Variant(
        "fine-tuning that saves too often, slowly", "held_out", TRUTH, Levels(sm=(0.7, 0.81)), WAITS, said=True,
        wait_host=Host(iowait=(0.31, 0.5), psi_io=(0.71, 0.95), disk_written=(160, 390), ethernet_sent=(1, 10)),
        cycle=Cycle((150, 230), (62, 69)), before=(510, 700),
    ),
)  # fmt: skip
