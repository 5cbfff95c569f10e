"""TCP fallback: a job over several nodes reduces over Ethernet sockets although the nodes have InfiniBand.

What it means
    NCCL found no usable InfiniBand or RoCE device and took TCP, without an error: a container without
    /dev/infiniband, a limit on locked memory, NCCL_IB_DISABLE in an image, ports that are down. Each
    all-reduce then takes many times as long, and the GPUs spin meanwhile: they look fully busy.

Evidence
    net_received_bytes and net_sent_bytes of each node (the lesser of both, without NFS), ib_received_bytes
    and ib_sent_bytes, ib_ports_active and ib_ports_inactive; gpu_util_ratio, sm_active_ratio,
    tensor_active_ratio and dram_active_ratio of the job's GPUs.

How it decides
    Jobs known by name, on two nodes or more, by means over 60 s. Nine in ten of its GPUs wait in collectives
    (utilization 90 % or more, tensor activity below 20 %, SM activity 15 to 70 %, DRAM below 60 %), and each
    node both sends and receives 0.25 GB/s or more over its network interfaces. `tcp_fallback`: each node has
    InfiniBand or RoCE ports, and they carry a tenth of that or less; or each way within 15 % of what the
    interfaces do (sockets over IPoIB). Where they carry more the job uses them, and nothing is said.
    `undetermined`: it is not known whether a node has such ports or uses them, or it has none. Held for 35 s
    and 6 samples; over after 60 s. Booked within 90 s: 1 - tensor activity over its reference. A person is
    told after 10 min.

What to do
    Read which network NCCL took (NCCL_DEBUG=INFO), give the job the devices, and set NCCL_NET=IB, which fails
    at the start rather than fall back.

How to silence it
    `silence = ["tcp_fallback:JOB"]` in `[collector]`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unidle_collector.catalogue import catalogue
from unidle_collector.detectors import About, Detector, Verdict, enough_ns, mean_of, percent, plural
from unidle_collector.model import Evidence
from unidle_collector.pergpu import NEVER, SECOND_NS, Bools, Floats, Hold, PerGpu, Positions, known_or
from unidle_collector.signals import View
from unidle_collector.signs.jobmates import both_ways

FALLBACK, UNDETERMINED = range(2)
FEW = 4
"""Most nodes that are named."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Seconds, ratios 0-1, bytes per second."""

    on_after_s: float = 35.0
    least_samples: int = 6
    off_after_s: float = 60.0
    ethernet_bytes_per_s: float = 2.5e8
    fabric_share: float = 0.1
    """Of what the interfaces carry: InfiniBand that carries less is not used."""
    ipoib_share: float = 1.15
    """InfiniBand that carries up to this much of what the interfaces carry, carries their packets; it counts
    the headers, too."""
    waiting_share: float = 0.9
    util: float = 0.9
    tensor: float = 0.2
    sm: tuple[float, float] = (0.15, 0.7)
    dram_bound: float = 0.6


class TcpFallback(Detector):
    """The condition, vectorised up to the jobs that look like it."""

    kind = "tcp_fallback"
    state = "starved"
    causes = ("tcp_fallback", "undetermined")
    explains = ("starvation",)
    groups_by = "job"
    compares_gpus = True
    finding_delay_s = 600.0
    accounting_delay_s = 90.0
    grace = "until a job has started (activity 10 % over 30 s, and 60 s more), at most 10 min"

    def __init__(self, size: int, period_s: float, settings: Settings) -> None:
        self._settings = settings
        self._reference = catalogue().reference.tensor
        self._hold = Hold(size, max(settings.off_after_s, 2 * period_s), forget_s=1800.0)
        self._a = PerGpu(size)
        self._a.make("ports", np.float64, np.nan)  # of its node, active or not
        self._a.make("down", np.float64, np.nan)
        self._a.make("cause", np.int16, UNDETERMINED)

    def look(self, view: View) -> Verdict:
        """See the module's docstring."""
        a, step, m = self._a, view.step, view.means
        active, down = step.get("ib_ports_active"), step.get("ib_ports_inactive")
        np.copyto(a["ports"], active + known_or(down), where=~np.isnan(active))
        np.copyto(a["down"], down, where=~np.isnan(down))
        waits = self._waiting(view)
        found = np.zeros_like(waits)
        if waits.any():
            for gpus in self._jobs(view, waits):
                cause = self._cause(view, gpus)
                if cause is not None:
                    found[gpus], a["cause"][gpus] = True, cause
        known = view.alive & ~np.isnan(m.mean("tensor_active_ratio"))
        enough = enough_ns(view, self._settings.on_after_s, self._settings.least_samples)
        self._hold.update(found, known, step.start_ns, step.end_ns, enough)
        on, lag = self._hold.on, np.int64(m.window_s / 2 * SECOND_NS)
        since = np.where(on, np.maximum(self._hold.since - lag, view.held_since), NEVER)
        loss = 1.0 - np.minimum(1.0, known_or(m.mean("tensor_active_ratio"), 1.0) / self._reference)
        return Verdict(on, since, a["cause"], np.where(on, loss, 0.0), explains=on)

    def _waiting(self, view: View) -> Bools:
        """[GPUs] spinning while their node sends and receives."""
        m, s = view.means, self._settings
        sm = m.mean("sm_active_ratio")
        out: Bools = view.alive & view.allocated & ~view.in_grace & (view.inventory.a["job"] > 0)
        out = out & (both_ways(view, "net") >= s.ethernet_bytes_per_s)
        out &= (m.mean("gpu_util_ratio") >= s.util) & (m.mean("tensor_active_ratio") < s.tensor)
        out &= (sm >= s.sm[0]) & (sm <= s.sm[1]) & ~(m.mean("dram_active_ratio") >= s.dram_bound)
        return out

    def _jobs(self, view: View, waits: Bools) -> list[Positions]:
        """GPUs of each job on several nodes of which nearly all wait, on every node."""
        job, node = view.inventory.a["job"], view.inventory.a["node"]
        out = []
        for number in np.unique(job[waits]):
            members = np.flatnonzero((job == number) & view.alive)
            nodes = np.unique(node[members])
            if nodes.size < 2 or np.unique(node[members][waits[members]]).size < nodes.size:
                continue
            if waits[members].mean() >= self._settings.waiting_share:
                out.append(members[waits[members]])
        return out

    def _cause(self, view: View, gpus: Positions) -> int | None:
        """Fallback where each node has ports that do not carry the job's traffic, None where one's do."""
        s = self._settings
        fabric, ethernet = _traffic(view, gpus)
        unused = (fabric <= s.fabric_share * ethernet) | _same_packets(view, gpus, s.ipoib_share)
        has = self._a["ports"][gpus] > 0
        if bool((has & ~unused & ~np.isnan(fabric)).any()):
            return None
        return FALLBACK if bool((has & unused).all()) else UNDETERMINED

    def about(self, view: View, gpus: Positions, cause: str, lasted_s: float) -> About:
        """What a colleague would say."""
        s, m, window_s = self._settings, view.means, view.means.window_s
        nodes = sorted({view.inventory.refs[int(gpu)].node for gpu in gpus})
        fabric, ethernet = (mean_of(values, np.arange(gpus.size)) for values in _traffic(view, gpus))
        ports, down = mean_of(self._a["ports"], gpus), mean_of(self._a["down"], gpus)
        tensor, util = mean_of(m.mean("tensor_active_ratio"), gpus), mean_of(m.mean("gpu_util_ratio"), gpus)
        unused = None if ethernet is None else s.fabric_share * ethernet
        evidence = (
            Evidence(
                "net_sent_bytes", ethernet, "By/s", s.ethernet_bytes_per_s, window_s,
                f"{_rate(ethernet)} each way over the network interfaces of each node (collectives: "
                f"{_rate(s.ethernet_bytes_per_s)} or more)",
            ),
            Evidence(
                "ib_sent_bytes", fabric, "By/s", unused, window_s,
                f"{_rate(fabric)} over InfiniBand or RoCE (not used: a tenth of that or less, or the same "
                "packets)",
            ),
            Evidence(
                "ib_ports_active", ports, "{port}", 1.0, 0.0,
                "ports of InfiniBand or RoCE are not known" if ports is None
                else f"{ports:.0f} ports of InfiniBand or RoCE a node" + _state(ports, down),
            ),
            Evidence(
                "tensor_active_ratio", tensor, "1", s.tensor, window_s,
                f"tensor activity {percent(tensor)} at GPU utilization {percent(util)} (waiting in "
                f"collectives: below {percent(s.tensor)} at {percent(s.util)} or more)",
            ),
        )  # fmt: skip
        sure = cause == "tcp_fallback"
        who = f"{plural(gpus.size, 'GPU')} on {plural(len(nodes), 'node')}"
        slow = f"{who} reduce over TCP at {_rate(ethernet)} a node"
        return About(
            title=(
                f"{slow} instead of InfiniBand"
                if sure
                else f"{slow}; cannot tell whether they have a faster fabric"
            ),
            severity="warning",
            confidence=0.9 if sure else 0.5,
            evidence=evidence,
            advice=_advice(sure, ports, down, nodes),
            confirm="NCCL_DEBUG=INFO in the job: NET/Socket is TCP, NET/IB is InfiniBand or RoCE",
            runners_up=(("communication", 0.05 if sure else 0.45),),
        )

    def reset(self, gpus: Bools) -> None:
        """Another job: anew."""
        self._hold.reset(gpus)


def _traffic(view: View, gpus: Positions) -> tuple[Floats, Floats]:
    """([gpus] InfiniBand, [gpus] interfaces) bytes per second of their nodes."""
    return (
        view.means.mean("ib_bytes_per_s")[gpus],
        both_ways(view, "net")[gpus],
    )


def _same_packets(view: View, gpus: Positions, most: float) -> Bools:
    """[gpus] do the ports of its node carry, each way, up to `most` times what the interfaces do, or that
    much less: then it is the interfaces' packets that they carry."""
    out = np.ones(gpus.shape, dtype=np.bool_)
    for way in ("received", "sent"):
        fabric, ethernet = (view.means.mean(f"{name}_{way}_bytes_per_s")[gpus] for name in ("ib", "net"))
        out &= (fabric >= ethernet / most) & (fabric <= ethernet * most)
    return out


def _rate(bytes_per_s: float | None) -> str:
    return "an unknown rate" if bytes_per_s is None else f"{bytes_per_s / 1e9:.2f} GB/s"


def _state(ports: float, down: float | None) -> str:
    return "" if not ports else f", {down:.0f} of them not active" if down else ", all active"


def _advice(sure: bool, ports: float | None, down: float | None, nodes: list[str]) -> str:
    ibstat = f"ibstat on {', '.join(nodes[:FEW])}" + (" ..." if len(nodes) > FEW else "")
    if not sure and ports is None:
        return (
            "Cannot tell, because the nodes send no ib_ports_active: run the agent where it sees "
            "/sys/class/infiniband; meanwhile NCCL_DEBUG=INFO shows which network NCCL took."
        )
    if not sure and not ports:
        return (
            "Cannot tell, because the nodes show no InfiniBand or RoCE port. If they should have one, run "
            f"{ibstat}; if they have none, use fewer nodes, larger batches, or gradient accumulation."
        )
    repair = f"Bring the ports up first ({ibstat}). " if down else ""
    return (
        f"{repair}Set NCCL_NET=IB, so that the job fails at its start rather than fall back, and remove "
        "NCCL_IB_DISABLE; in a container pass /dev/infiniband and ulimit -l unlimited; name the devices by "
        "NCCL_IB_HCA where they are not found."
    )


def make(size: int, period_s: float) -> TcpFallback:
    """The detector with the product's defaults."""
    return TcpFallback(size, period_s, Settings())
