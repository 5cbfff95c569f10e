"""Several collectors for one fleet: nodes in shards, shards under leases, rows from NATS JetStream.

A shard is a whole small collector (`unidle_collector.live`) with its own accounts, timers and incidents. Who
holds a shard's lease reads its rows from the broker and keeps its checkpoint in PostgreSQL; when it is lost,
another takes up the checkpoint and reads on from the position in it.
"""
