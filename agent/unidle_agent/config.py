"""Settings of the agent: section `[agent]` of the settings file."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path

from unidle_agent.settings import Secret, setting

PRESENCE = ("auto", "on", "off")
NAMES = ("own", "dcgm", "dcgm49")
PRIVACY = ("pseudonymous", "internal")


@dataclass(frozen=True, slots=True)
class AgentSettings:
    """What an agent samples, serves and sends. All durations are seconds."""

    node: str = setting("", "name of this node, as the scheduler knows it; empty is the hostname")
    period_s: float = setting(1.0, "seconds between samples", low=0.1, high=60)
    batch_s: float = setting(
        5.0, "seconds of samples in one batch; a GPU that changes state goes at once", low=0.1, high=60
    )
    push_url: str = setting(
        "",
        "address of the collector, e.g. http://10.0.0.1:9470, or of NATS, e.g. nats://10.0.0.1:4222 (more by "
        "commas; tls:// for TLS; needs unidle[nats]); empty: do not push",
    )
    push_token: Secret = setting(
        Secret(), "token that the collector takes pushes with; NATS: or USER:PASSWORD"
    )
    push_creds_file: str = setting("", "NATS: file of the node's credentials (.creds), instead of a token")
    push_ca_file: str = setting(
        "", "PEM file of the authority that signed the collector's certificate; empty: the system's"
    )
    push_cert_file: str = setting(
        "", "PEM file of this node's client certificate, whose CN is its name: instead of a push_token"
    )
    push_key_file: str = setting("", "PEM file of its key; empty: the key is in push_cert_file")
    bind: str = setting(
        "127.0.0.1", "address that /metrics and /health listen on; others than loopback need metrics_token"
    )
    port: int = setting(9471, "port that /metrics and /health listen on; 0 is a free one", low=0, high=65535)
    names: str = setting(
        "own", "names on /metrics; dcgm: those of dcgm-exporter before 4.9, dcgm49: since", choices=NAMES
    )
    metrics_token: Secret = setting(Secret(), "bearer token that /metrics is read with")
    tls_cert_file: str = setting("", "PEM file of the certificate to serve /metrics with; empty: no TLS")
    tls_key_file: str = setting("", "PEM file of its key; empty: the key is in tls_cert_file")
    otlp_endpoint: str = setting(
        "", "OpenTelemetry collector, e.g. http://127.0.0.1:4318; empty: none (needs unidle[otlp])"
    )
    otlp_period_s: float = setting(15.0, "seconds between exports by OTLP", low=1, high=3600)
    dcgm_urls: tuple[str, ...] = setting(
        (), "pages of running dcgm-exporters, e.g. http://127.0.0.1:9400/metrics"
    )
    dcgm_scrape_s: float = setting(
        5.0, "seconds between scrapes of a dcgm-exporter (itself it samples every 30)", low=0.1, high=300
    )
    nvml: str = setting(
        "auto", "read GPUs by NVML; auto takes no driver for a fact, on for a problem", choices=PRESENCE
    )
    gpm: str = setting(
        "auto", "read SM, tensor and DRAM activity by GPM (Hopper and newer)", choices=PRESENCE
    )
    fast_hz: float = setting(
        5.0, "looks per second at what moves within one, a jumping utilization at 20; 0: none", low=0, high=20
    )
    kernel_log: str = setting(
        "/dev/kmsg",
        "the kernel log: process and words of XIDs, errors of NVSwitches; read where it may be; empty: never",
    )
    slow_s: float = setting(15.0, "seconds between two looks at errors, repairs and links", low=1, high=600)
    replay: str = setting(
        "", "file of `unidle agent record` that answers instead of this machine's driver: SIMULATED rows"
    )
    nvml_deadline_s: float = setting(
        0.75, "seconds after which the driver counts as hung for this sample", low=0.01, high=60
    )
    owner_s: float = setting(
        15.0, "seconds between looks at who holds the GPUs; a new process is looked at once", low=1, high=600
    )
    owner_stale_s: float = setting(
        86400.0, "age at which a prolog's job file is doubted, when its job is not seen", low=60, high=10**8
    )
    job_map_dir: str = setting(
        "", "folder of dcgm-exporter's job mapping (its --hpc-job-mapping-dir); empty: there is none"
    )
    gpustat_dir: str = setting("/run/gpustat", "folder of jobstats' prolog files; empty: do not look")
    podresources_socket: str = setting(
        "/var/lib/kubelet/pod-resources/kubelet.sock", "the kubelet's socket; empty: do not ask it"
    )
    privacy: str = setting(
        "pseudonymous",
        "pseudonymous: users and names of jobs and pods leave this process as pseudonyms only; internal: as "
        "they are",
        choices=PRIVACY,
    )
    privacy_key: Secret = setting(
        Secret(),
        "site key of the pseudonyms, the same on all nodes; empty: one is made in state_dir",
    )
    state_dir: str = setting(
        "", "folder of the spool; empty: /var/lib/unidle/agent for root, else ~/.local/state/unidle/agent"
    )
    reporter_socket: str = setting(
        "auto",
        "Unix socket that in-job reporters write to; auto: reporter.sock in state_dir, or for root without "
        "a state_dir /run/unidle/reporter.sock; empty: none",
    )
    spool_max_bytes: int = setting(
        256 * 1024 * 1024, "most bytes that wait on disk for the collector", low=65536, high=2**40
    )
    spool_max_age_s: float = setting(
        7 * 86400.0, "age after which a waiting batch is dropped", low=1, high=10**9
    )

    @property
    def node_name(self) -> str:
        """The name that this node goes by."""
        return self.node or socket.gethostname()

    @property
    def state_path(self) -> Path:
        """The folder that holds the spool."""
        if self.state_dir:
            return Path(self.state_dir).expanduser()
        if os.geteuid() == 0:
            return Path("/var/lib/unidle/agent")
        return Path(os.environ.get("XDG_STATE_HOME") or "~/.local/state").expanduser() / "unidle" / "agent"

    @property
    def reporter_path(self) -> Path | None:
        """The socket of in-job reporters, None where there shall be none."""
        if self.reporter_socket != "auto":
            return Path(self.reporter_socket).expanduser() if self.reporter_socket else None
        if os.geteuid() == 0 and not self.state_dir:
            return Path("/run/unidle/reporter.sock")
        return self.state_path / "reporter.sock"
