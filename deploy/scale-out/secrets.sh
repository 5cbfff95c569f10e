#!/bin/sh
# Makes the secrets of compose.yaml and kustomization.yaml in the folder `secrets` beside it; keeps those that are there.
set -eu
umask 077
mkdir -p "${1:-$(dirname "$0")/secrets}"
cd "${1:-$(dirname "$0")/secrets}"
[ -e users.conf ] && exit 0
new() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }
collector=$(new) agents=$(new) postgres=$(new)
printf 'collector:%s' "$collector" >collector
printf 'agents:%s' "$agents" >agents
printf '%s' "$postgres" >postgres
printf 'postgresql://unidle:%s@unidle-postgres/unidle' "$postgres" >postgres.url
new >read.token
cat >users.conf <<USERS
# All agents share a user here, so a node could write another's rows: ../nats.conf gives each its own.
authorization {
  users: [
    {user: collector, password: "$collector", permissions: {publish: ["\$JS.API.>", "unidle.reply.*"], subscribe: ["_INBOX.>"]}}
    {user: agents, password: "$agents", permissions: {publish: ["unidle.rows.*.*"], subscribe: ["unidle.reply.*", "_INBOX.>"]}}
  ]
}
USERS
# Containers read them as other users, by way of mounts; on this machine the folder keeps others out.
chmod 644 ./*
