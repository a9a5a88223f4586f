#!/usr/bin/env bash
# A SuperNode, in the foreground: supernode.sh SETTINGS (see systemd/supernode.env)
set -euo pipefail
umask 077

if (($# != 1)); then
    echo "usage: supernode.sh SETTINGS" >&2
    exit 2
fi
set -a
PORT=9094
FLWR_TELEMETRY_ENABLED=0
FLWR_DISABLE_UPDATE_CHECK=1
# shellcheck disable=SC1090
. "$(realpath -- "$1")"
# Where Flower unpacks the apps that it is sent.
FLWR_HOME=$STATE/flwr
# Flower starts its other commands by their names.
PATH=$BIN:$PATH
set +a
mkdir -p "$STATE"

exec flower-supernode \
    --superlink "$SUPERLINK" \
    --root-certificates "$KEYS/ca.crt" \
    --auth-supernode-private-key "$KEYS/$KEY" \
    --port "$PORT" \
    --node-config "data='$DATA' site=$SITE"
