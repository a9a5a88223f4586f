#!/usr/bin/env bash
# The whole federation on this machine, for a first try: a SuperLink and three SuperNodes with keys,
# data, TLS and authentication, kept running until Ctrl-C.
#
#   one_machine.sh FOLDER [PORT]
#
# Everything is made in FOLDER the first time, and found there again the next. The SuperLink listens
# on PORT (8000), the SuperNodes on the three after it, all on 127.0.0.1.
set -euo pipefail

if (($# < 1 || $# > 2)); then
    sed -n '2,8s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
here=$(dirname -- "$(realpath -- "$0")")
folder=$(realpath -m -- "$1")
port=${2:-8000}
sites=(site-1 site-2 site-3)
# The environment that this shell finds Flower in is the one to run it from.
if ! command -v flower-superlink >/dev/null; then
    echo "one_machine.sh: no flower-superlink on PATH: activate the environment first" >&2
    exit 1
fi
bin=$(dirname -- "$(command -v flower-superlink)")
export FLWR_HOME=$folder/operator FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1

settings() {
    local line
    for line in "$@"; do
        printf '%s=%q\n' "${line%%=*}" "${line#*=}"
    done
}

# Start a command again 5 seconds after it ends, as systemd does, its log beside it.
keep() {
    local name=$1
    shift
    (
        trap 'kill "$child" 2>/dev/null; wait; exit' TERM
        while :; do
            "$@" >>"$folder/$name.log" 2>&1 &
            child=$!
            echo "$child" >"$folder/$name.pid"
            wait "$child" || true
            sleep 5 &
            child=$!
            wait "$child" || true
        done
    ) 2>>"$folder/$name.log" &
    kept+=($!)
}

kept=()
trap 'exit 130' INT
trap 'exit 143' TERM
trap 'if ((${#kept[@]})); then kill "${kept[@]}" 2>/dev/null; wait; fi' EXIT

mkdir -p "$folder" "$FLWR_HOME"
# Private keys do not belong into a repository.
echo '*' >"$folder/.gitignore"
if [[ ! -e $folder/complete ]]; then
    if [[ -e $folder/keys ]]; then
        echo "one_machine.sh: $folder was begun and not finished: remove it, or choose another" >&2
        exit 1
    fi
    "$bin/python" "$here/make_data.py" "$folder/data"
    "$here/make_keys.sh" "$folder/keys" ca
    "$here/make_keys.sh" "$folder/keys" server 127.0.0.1
    "$here/make_keys.sh" "$folder/keys" site "${sites[@]}"
fi
settings BIN="$bin" KEYS="$folder/keys" STATE="$folder/server" PORT="$port" >"$folder/superlink.env"
for site in 1 2 3; do
    settings BIN="$bin" KEYS="$folder/keys" STATE="$folder/state-$site" KEY="site-$site.key" \
        SUPERLINK="127.0.0.1:$port" PORT="$((port + site))" \
        DATA="$folder/data/site-$site" SITE="$site" >"$folder/site-$site.env"
done
cat >"$FLWR_HOME/config.toml" <<EOF
[superlink]
default = "fedpw"

[superlink.fedpw]
address = "127.0.0.1:$port"
root-certificates = "$folder/keys/ca.crt"
EOF

keep superlink "$here/superlink.sh" "$folder/superlink.env"
deadline=$((SECONDS + 120))
until "$bin/flwr" supernode list fedpw >/dev/null 2>&1; do
    if ((SECONDS > deadline)); then
        echo "one_machine.sh: the SuperLink does not answer; the end of $folder/superlink.log:" >&2
        tail -n 20 "$folder/superlink.log" >&2
        exit 1
    fi
    sleep 1
done
if [[ ! -e $folder/complete ]]; then
    for site in "${sites[@]}"; do
        "$bin/flwr" supernode register "$folder/keys/$site.pub" fedpw --name "$site"
    done
    touch "$folder/complete"
fi
for site in "${sites[@]}"; do
    keep "$site" "$here/supernode.sh" "$folder/$site.env"
done

online() {
    "$bin/flwr" supernode list fedpw --format json | grep -c '"status": "online"' || true
}
for _ in {1..60}; do
    (($(online) < ${#sites[@]})) || break
    sleep 1
done

cat <<EOF

Running. Logs and process ids: $folder/*.log, $folder/*.pid. Ctrl-C stops everything.
In another terminal, with the same environment:

  export FLWR_HOME="$FLWR_HOME"
  flwr run "$here" fedpw --stream --run-config "folder='$folder/server/digits'"

EOF
wait
