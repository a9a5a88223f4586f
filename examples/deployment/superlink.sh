#!/usr/bin/env bash
# The SuperLink, in the foreground: superlink.sh SETTINGS (see systemd/superlink.env)
set -euo pipefail
umask 077

if (($# != 1)); then
    echo "usage: superlink.sh SETTINGS" >&2
    exit 2
fi
set -a
HOST=127.0.0.1
PORT=8000
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

exec flower-superlink \
    --host "$HOST" \
    --port "$PORT" \
    --ssl-ca-certfile "$KEYS/ca.crt" \
    --ssl-certfile "$KEYS/server.crt" \
    --ssl-keyfile "$KEYS/server.key" \
    --enable-supernode-auth \
    --database "$STATE/superlink.db" \
    --disable-runtime-dependency-installation
