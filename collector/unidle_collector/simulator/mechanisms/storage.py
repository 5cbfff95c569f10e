"""Storage-bound loading: the loader waits for bytes, in waves or at a plateau of the server."""

from unidle_collector.simulator.mechanisms.variant import NONE, Cycle, Host, Levels, Variant

TRUTH = "starvation.storage"

VARIANTS = (
    Variant(
        "NFS plateau, sawtooth", "tuning", TRUTH, Levels(sm=(0.65, 0.8), power=(0.75, 0.95)),
        host=Host((0.04, 0.12), (0.15, 0.35), (0.4, 0.8), nfs_read=(250, 1100), ethernet=(260, 1200)),
        cycle=Cycle((1, 3), (5, 11)), before=(300, 600),
    ),
    Variant(
        "local disk pinned", "tuning", TRUTH, Levels(sm=(0.6, 0.75), power=(0.7, 0.9)),
        host=Host((0.05, 0.1), (0.12, 0.25), (0.5, 0.9), disk_read=(450, 3000)),
        cycle=Cycle((0.3, 0.8), (0.8, 2.5), together=False), before=NONE,
    ),
    Variant(
        "metadata storms of small files", "held_out", TRUTH, Levels(sm=(0.7, 0.9), power=(0.8, 1.1)),
        host=Host((0.13, 0.3), (0.04, 0.1), (0.3, 0.6), nfs_read=(20, 120), ethernet=(30, 150)),
        cycle=Cycle((4, 9), (12, 30)), before=(610, 900), models=("NVIDIA A100-SXM4-80GB",),
    ),
    Variant(
        "object store over the network, many cores wait", "held_out", TRUTH,
        Levels(sm=(0.81, 0.92), power=(0.9, 1.1)),
        host=Host((0.02, 0.039), (0.36, 0.6), (0.81, 0.98), ethernet=(1300, 2500)),
        cycle=Cycle((0.1, 0.29), (0.3, 0.79), together=False), before=NONE, models=("NVIDIA B200",),
    ),
    Variant(
        "pages of a mapped file read again and again", "held_out", TRUTH, Levels(sm=(0.5, 0.64)),
        host=Host((0.03, 0.09), (0.06, 0.14), (0.2, 0.45), disk_read=(3100, 6000)),
        cycle=Cycle((2, 6), (3, 8), together=False), before=(120, 290),
    ),
)  # fmt: skip
