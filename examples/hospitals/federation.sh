#!/usr/bin/env bash
# A SuperLink and a SuperNode for each of the four hospitals, on this machine and in the background.
#
#   federation.sh DATA FOLDER [PORT]
#
# DATA holds UCI's files processed.cleveland.data, ... ; logs and process ids go into FOLDER. The
# SuperLink listens on PORT (8000), the SuperNodes on the four after it, all on 127.0.0.1 and without
# TLS: examples/deployment shows how it is done between machines.
set -euo pipefail

if (($# < 2 || $# > 3)); then
    sed -n '2,8s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
data=$(realpath -- "$1")
folder=$(realpath -m -- "$2")
port=${3:-8000}
for hospital in cleveland hungarian switzerland va; do
    file=$data/processed.$hospital.data
    if [[ ! -f $file ]]; then
        echo "federation.sh: there is no $file: get it from UCI, see README.md" >&2
        exit 1
    fi
done
mkdir -p "$folder/flwr"
export FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1 FLWR_HOME="$folder/flwr"
cat >"$FLWR_HOME/config.toml" <<EOF
[superlink]
default = "hospitals"

[superlink.hospitals]
address = "127.0.0.1:$port"
insecure = true
EOF

start() {
    local name=$1
    shift
    nohup "$@" >"$folder/$name.log" 2>&1 </dev/null &
    echo $! >"$folder/$name.pid"
}

start superlink flower-superlink --insecure --port "$port" --disable-runtime-dependency-installation
number=0
for hospital in cleveland hungarian switzerland va; do
    number=$((number + 1))
    start "$hospital" flower-supernode --insecure --superlink "127.0.0.1:$port" \
        --port "$((port + number))" --node-config "file='$data/processed.$hospital.data'"
done
online() {
    flwr supernode list hospitals --format json 2>/dev/null | grep -c '"status": "online"' || true
}
for _ in {1..60}; do
    (($(online) < 4)) || break
    sleep 1
done
if (($(online) < 4)); then
    echo "federation.sh: not all SuperNodes came: see $folder/*.log; is port $port free?" >&2
    exit 1
fi
echo "Running. Logs and process ids: $folder/*.log, $folder/*.pid"
