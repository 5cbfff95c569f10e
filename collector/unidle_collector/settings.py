"""Settings of the collector: `[collector]` in the TOML file, UNIDLE_COLLECTOR_* , flags."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from unidle_agent.config import PRIVACY
from unidle_agent.settings import Secret, setting

SCHEDULERS = ("none", "slurm", "kubernetes")


@dataclass(frozen=True, slots=True)
class CollectorSettings:
    """What can be set; every default is safe on a machine that others use too."""

    bind: str = setting("127.0.0.1", "address to listen on")
    port: int = setting(9470, "port to listen on", low=1, high=65535)
    tls_cert_file: str = setting("", "PEM file of the certificate to serve with; empty: no TLS")
    tls_key_file: str = setting("", "PEM file of its key; empty: the key is in tls_cert_file")
    tls_client_ca_file: str = setting(
        "",
        "PEM file of the authority of client certificates: one whose CN or DNS name is a node pushes that "
        "node's rows without a token; empty: none",
    )
    data_dir: Path = setting(Path(".unidle/collector"), "folder of the store")
    state_url: Secret = setting(
        Secret(),
        "database of incidents and tokens: postgresql://USER:PASSWORD@HOST/DATABASE (unidle[postgres]); "
        "empty: SQLite in data_dir",
    )
    nats_url: tuple[str, ...] = setting(
        (),
        "NATS servers to take rows from, shared with other collectors: nats://10.0.0.1:4222 (unidle[nats], "
        "and a PostgreSQL as state_url); empty: agents push here",
    )
    nats_token: Secret = setting(Secret(), "token that NATS is entered with, or USER:PASSWORD")
    nats_creds_file: str = setting("", "file of credentials (.creds) for NATS, instead of a token")
    nats_ca_file: str = setting(
        "", "PEM file of the authority that signed NATS's certificate; empty: the system's"
    )
    nats_replicas: int = setting(
        1,
        "servers that hold each message of a stream that is made anew; 3 where three form a cluster",
        low=1,
        high=5,
    )
    nats_keep_h: float = setting(
        72.0, "hours that a stream that is made anew keeps messages", low=0.1, high=8760
    )
    advertise_url: str = setting(
        "", "where other collectors find this one, e.g. http://10.0.0.5:9470; empty: its own bind and port"
    )
    advertise_ca_file: str = setting(
        "",
        "PEM file of the authority that signed the certificates of collectors that share a site; empty: the "
        "system's",
    )
    site: str = setting("local", "name of this site, shown in findings and messages")
    jurisdiction: str = setting("", "whose law holds at this site, e.g. EU; empty: the same as nobody's")
    federation_file: str = setting(
        "", "TOML file of what crosses to which federation, see docs/federation.md; empty: nothing crosses"
    )
    push_token: Secret = setting(
        Secret(),
        "one token that any node pushes with, for small sites (`unidle tokens` gives each its own); without "
        "one, a token is made and kept in data_dir/push.token",
    )
    read_token: Secret = setting(
        Secret(),
        "token that readers of the API need; without one, and without any of `unidle tokens`, reading is "
        "open on a loopback address only",
    )
    allowed_hosts: tuple[str, ...] = setting(
        ("127.0.0.1", "localhost", "::1"),
        "Host headers that are answered while reading needs no token, against DNS rebinding",
    )
    silence: tuple[str, ...] = setting((), "findings that nobody is told: kind:subject, e.g. idle:4711")
    keep_days: float = setting(30.0, "days that raw rows are kept", low=0.01, high=3650)
    keep_gb: float = setting(100.0, "most disk that raw rows take, GB", low=0.01, high=1e6)
    keep_10s_days: float = setting(30.0, "days that roll-ups of 10 s are kept", low=0.01, high=3650)
    keep_1m_days: float = setting(400.0, "days that roll-ups of 1 min are kept", low=0.01, high=3650)
    keep_1h_days: float = setting(
        1500.0, "days that roll-ups of 1 h and the histograms of jobs are kept", low=0.01, high=36500
    )
    keep_rollups_gb: float = setting(
        100.0, "most disk that all roll-ups take, GB; over it the finest go first", low=0.01, high=1e6
    )
    keep_state_days: float = setting(
        400.0,
        "days that accounts and resolved incidents are kept; eight days of accounts are held in memory, what "
        "is older is read from disk",
        low=8,
        high=36500,
    )
    clock_skew_s: float = setting(
        60.0, "a node's clock that is off by more than this is corrected and reported, s", low=1, high=3600
    )
    scheduler: str = setting(
        "none", "scheduler that is asked who holds the GPUs; none: nothing is called", choices=SCHEDULERS
    )
    scheduler_poll_s: float = setting(
        30.0, "seconds between two looks at the scheduler; after three its word is stale", low=5, high=3600
    )
    scheduler_deadline_s: float = setting(
        20.0, "seconds after which one question to the scheduler is given up", low=0.5, high=300
    )
    slurm_bin_dir: str = setting("", "folder of squeue, sinfo, scontrol and sacct; empty: on PATH")
    slurm_cluster: str = setting("", "name that the cluster is shown by; empty: Slurm's own")
    kubernetes_url: str = setting("", "API server, https://HOST:6443; empty: that of the pod it runs in")
    kubernetes_token_file: str = setting(
        "", "file of a token that may list pods and nodes, read anew each time; empty: the service account's"
    )
    kubernetes_ca_file: str = setting(
        "", "PEM file of the API server's authority; empty: the service account's, else the system's"
    )
    kubernetes_selector: str = setting("", "label selector of the pods that are listed; empty: all")
    kubernetes_team_label: str = setting(
        "", "label of a pod that names its team; empty: its namespace is the team"
    )
    kubernetes_queue_label: str = setting(
        "kueue.x-k8s.io/queue-name", "label of a pod that names its queue, shown as its partition"
    )
    privacy: str = setting(
        "pseudonymous",
        "pseudonymous: users, pods and namespaces of the scheduler are kept as pseudonyms only; internal: as "
        "they are",
        choices=PRIVACY,
    )
    privacy_key: Secret = setting(
        Secret(), "site key of the pseudonyms, that of the agents; empty: one is made in data_dir"
    )
    remote_write: bool = setting(
        False, "take samples of a Prometheus at /api/v1/prometheus/write, with the push token"
    )
    scrape_targets: tuple[str, ...] = setting(
        (), "dcgm-exporters to scrape, for nodes without an agent: host:port, or whole URLs"
    )
    scrape_file_sd: tuple[str, ...] = setting(
        (), "files that name such exporters, in Prometheus's file_sd form (JSON or YAML); *.json names many"
    )
    scrape_http_sd: tuple[str, ...] = setting(
        (), "URLs that name such exporters, in Prometheus's http_sd form"
    )
    scrape_interval_s: float = setting(15.0, "seconds between two scrapes of a target", low=1, high=300)
    scrape_token: Secret = setting(Secret(), "bearer token that targets and scrape_http_sd are asked with")
    scrape_ca_file: str = setting("", "https targets: file of the authority that signed their certificates")
    window_mb: float = setting(
        384.0,
        "memory of the live window, MiB; it holds as many seconds as fit, 64 to 256 behind and 128 ahead",
        low=16,
        high=1e6,
    )
    series: str = setting(
        "embedded",
        "where series are kept and read: here, or written to an engine and read from there",
        choices=("embedded", "influxdb2", "influxdb3", "victoriametrics"),
    )
    series_url: str = setting("", "the engine, e.g. http://127.0.0.1:8428; a base path is kept")
    series_read_url: str = setting("", "where it is read, if not at series_url: a cluster's select path")
    series_bucket: str = setting("unidle", "bucket (InfluxDB 3: database) that is written and read")
    series_org: str = setting("", "organization, of InfluxDB 2")
    series_token: Secret = setting(Secret(), "token of the engine that may write and read the bucket")
    series_verify: bool = setting(True, "check the engine's certificate")
    series_ca_file: str = setting("", "the authority that signed it, if not one the system knows")
    series_gzip: bool = setting(False, "compress what is written: for an engine that is far away")
    series_step_s: float = setting(
        10.0, "rows of a batch within this time are written as one; 0 writes every row, s", low=0, high=3600
    )
    series_timeout_s: float = setting(10.0, "longest wait for the engine's answer, s", low=0.1, high=300)
    series_queue_gb: float = setting(
        10.0, "most disk that rows take that the engine has not taken yet, GB", low=0.01, high=1e6
    )
