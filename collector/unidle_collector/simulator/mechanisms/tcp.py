"""Collectives over TCP sockets although the nodes have InfiniBand: the GPUs spin at the pace of Ethernet."""

from unidle_collector.simulator.mechanisms.variant import HEALTHY, NONE, Host, Levels, Variant

TRUTH = "starvation.tcp_fallback"

VARIANTS = (
    Variant(
        "a container without its InfiniBand devices", "tuning", TRUTH,
        Levels((0.97, 1.0), (0.35, 0.55), (0.05, 0.12), (0.08, 0.2), (0.45, 0.6), (0.5, 2), (0.5, 2), (1, 4)),
        host=Host(ethernet=(1800, 2900), ethernet_sent=(1800, 2900), infiniband=(0.0, 5.0)), nodes=2, said=True,
        before=NONE,
    ),
    Variant(
        "sockets over 10 Gbit/s, four nodes", "tuning", TRUTH,
        Levels((0.98, 1.0), (0.3, 0.4), (0.02, 0.06), (0.03, 0.1), (0.38, 0.48), (0.2, 0.8), (0.2, 0.8), (0.5, 2)),
        host=Host(ethernet=(600, 1150), ethernet_sent=(600, 1150), infiniband=NONE), nodes=4, said=True, before=NONE,
    ),
    Variant(
        "sockets over IPoIB in datagram mode", "tuning", TRUTH,
        Levels((0.97, 1.0), (0.3, 0.62), (0.03, 0.12), (0.05, 0.2), (0.4, 0.55), (0.5, 2), (0.5, 2), (0.5, 4)),
        host=Host(ethernet=(900, 2900), ethernet_sent=(900, 2900)), ipoib=(1.03, 1.08), nodes=2, said=True, before=NONE,
    ),
    Variant(
        "overlapped data parallel over InfiniBand", "tuning", HEALTHY, nodes=2, said=True, before=NONE,
        host=Host(infiniband=(2000, 12_000), ethernet=(20, 120), ethernet_sent=(10, 60)),
    ),
    Variant(
        "sockets over IPoIB", "held_out", TRUTH,
        Levels((0.94, 0.969), (0.4, 0.6), (0.121, 0.17), (0.21, 0.3), (0.49, 0.6), (2.1, 4), (2.1, 4), (4.1, 9)),
        host=Host(ethernet=(3000, 4000), ethernet_sent=(3000, 4000)), ipoib=(1.005, 1.025), nodes=2, said=True,
        before=NONE, models=("NVIDIA A100-SXM4-80GB",),
    ),
    Variant(
        "NCCL_IB_DISABLE left in an image", "held_out", TRUTH,
        Levels((0.99, 1.0), (0.2, 0.29), (0.005, 0.019), (0.01, 0.029), (0.3, 0.37), (0.05, 0.19), (0.05, 0.19), (0.1, 0.4)),
        host=Host(ethernet=(280, 560), ethernet_sent=(280, 560), infiniband=(5.1, 15)), nodes=4, said=True, before=NONE,
        models=("NVIDIA B200", "NVIDIA H100 80GB HBM3"),
    ),
    Variant(
        "an MPI code in double precision on two nodes", "held_out", HEALTHY,
        Levels((0.93, 0.99), (0.7, 0.85), (0.0, 0.01), (0.3, 0.55), (0.6, 0.8), (0.5, 3), (0.5, 3), (0.0, 2.0)),
        host=Host(infiniband=(100, 1500), ethernet=(20, 240), ethernet_sent=(20, 240)), nodes=2, said=True,
        before=NONE, models=("NVIDIA A100-SXM4-80GB", "NVIDIA H100 80GB HBM3"),
    ),
)  # fmt: skip
