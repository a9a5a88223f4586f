#!/usr/bin/env bash
# Keys and certificates of a federation. Nothing that exists is overwritten.
#
#   make_keys.sh FOLDER ca                    the certificate authority: once, on the operator's machine
#   make_keys.sh FOLDER server NAME_OR_IP...  the SuperLink's certificate, for every name and address
#                                             under which sites and operators reach it
#   make_keys.sh FOLDER site NAME...          a SuperNode's key, one for each site: best on its own machine
set -euo pipefail
umask 077

CA_DAYS=3650
SERVER_DAYS=825

usage() {
    sed -n '2,7s/^# \{0,1\}//p' "$0" >&2
    exit 2
}

refuse() {
    echo "make_keys.sh: $*" >&2
    exit 1
}

# What openssl said, where it failed; nothing half-made is left.
failed() {
    cat "$errors" >&2
    rm -f "$folder/.server.key" "$unfinished"
    refuse "openssl could not make it"
}

new() {
    if [[ -e $1 ]]; then
        refuse "$1 exists: move it away first, or choose another name"
    fi
}

make_ca() {
    new "$folder/ca.key"
    new "$folder/ca.crt"
    # A configuration of its own: what the system's adds differs from one to another.
    openssl req -x509 -new -newkey ec -pkeyopt ec_paramgen_curve:P-384 -nodes -sha384 \
        -days "$CA_DAYS" -keyout "$folder/ca.key" -out "$folder/ca.crt" -config - 2>"$errors" <<'EOF' || failed
[req]
prompt = no
distinguished_name = name
x509_extensions = authority
[name]
CN = FedPW federation
[authority]
basicConstraints = critical, CA:TRUE, pathlen:0
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
EOF
    chmod 644 "$folder/ca.crt"
    echo "$folder/ca.key    stays with the operator, best offline: who has it can pose as the SuperLink"
    echo "$folder/ca.crt    to every machine, valid until $(valid_until "$folder/ca.crt")"
}

make_server() {
    [[ -e $folder/ca.key ]] || refuse "no $folder/ca.key: make_keys.sh $folder ca"
    new "$folder/server.key"
    new "$folder/server.crt"
    # The ServerApp reaches its SuperLink over the loopback address.
    local names=DNS:localhost,IP:127.0.0.1 name request
    for name in "$@"; do
        case $name in
        "" | *[!A-Za-z0-9.:-]* | *:*[!0-9A-Fa-f:.]*)
            refuse "'$name' is no host name or address: give it without https:// and port"
            ;;
        localhost | 127.0.0.1) ;;
        *:*) names+=,IP:$name ;;
        *[!0-9.]*) names+=,DNS:$name ;;
        *) names+=,IP:$name ;;
        esac
    done
    request=$(
        openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-384 -nodes \
            -keyout "$folder/.server.key" -config - 2>"$errors" <<'EOF'
[req]
prompt = no
distinguished_name = name
[name]
CN = SuperLink
EOF
    ) || failed
    openssl x509 -req -sha384 -days "$SERVER_DAYS" -CA "$folder/ca.crt" -CAkey "$folder/ca.key" \
        -set_serial "0x$(openssl rand -hex 16)" -out "$folder/server.crt" \
        -extfile <(
            echo "basicConstraints = critical, CA:FALSE"
            echo "keyUsage = critical, digitalSignature"
            echo "extendedKeyUsage = serverAuth"
            echo "subjectKeyIdentifier = hash"
            echo "authorityKeyIdentifier = keyid"
            echo "subjectAltName = $names"
        ) 2>"$errors" <<<"$request" || failed
    mv "$folder/.server.key" "$folder/server.key"
    chmod 644 "$folder/server.crt"
    echo "$folder/server.key    to the server, nowhere else"
    echo "$folder/server.crt    to the server, for $names, valid until $(valid_until "$folder/server.crt")"
}

make_sites() {
    local name
    for name in "$@"; do
        case $name in
        ca | server) refuse "a site cannot be called $name" ;;
        *[!A-Za-z0-9._-]* | .* | -*) refuse "'$name': letters, digits, '.', '_' and '-' make a name" ;;
        esac
        new "$folder/$name.key"
        new "$folder/$name.pub"
    done
    for name in "$@"; do
        ssh-keygen -q -t ecdsa -b 384 -N "" -C "$name" -f "$folder/$name.key"
        mv "$folder/$name.key.pub" "$folder/$name.pub"
        chmod 644 "$folder/$name.pub"
        echo "$folder/$name.key    to the machine of $name, nowhere else"
        echo "$folder/$name.pub    to the operator: flwr supernode register $name.pub fedpw --name $name"
    done
}

valid_until() {
    openssl x509 -noout -enddate -in "$1" | cut -d= -f2
}

(($# >= 2)) || usage
folder=$1 what=$2
shift 2
command -v openssl >/dev/null || refuse "openssl is not installed"
mkdir -p "$folder"
chmod 700 "$folder"
errors=$(mktemp)
unfinished=$folder/$what.crt
trap 'rm -f "$errors"' EXIT
case $what:$# in
ca:0) make_ca ;;
server:0 | site:0 | ca:*) usage ;;
server:*) make_server "$@" ;;
site:*) make_sites "$@" ;;
*) usage ;;
esac
