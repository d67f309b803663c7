#!/usr/bin/env bash
# Azurite, Microsoft's emulator of Azure Storage, for the tests.
#
#   azurite.sh install            into target/azurite, unless this version is there already
#   azurite.sh start [OPTIONS]    installs, then runs the blob service in front (Ctrl-C ends it); blobs are kept in memory
#   azurite.sh start-tls FOLDER   the same over TLS, tokens accepted; FOLDER gets ca.pem, which clients must trust
#
# The version is pinned: 3.36 and later need a newer Node than Debian 12 has.
set -euo pipefail
version=3.35.0
root=$(cd "$(dirname "$0")/../.." && pwd)
folder=${AZURITE_FOLDER:-$root/target/azurite}
program=$folder/node_modules/.bin/azurite-blob

install() {
    if [[ -x $program && "$(cat "$folder/version" 2>/dev/null)" == "$version" ]]; then
        return
    fi
    if ! command -v node >/dev/null || ! command -v npm >/dev/null; then
        echo "node and npm are missing: run tests/lab/prerequisites.sh" >&2
        exit 1
    fi
    echo "installing azurite $version into $folder" >&2
    mkdir -p "$folder"
    npm install --silent --no-audit --no-fund --omit=dev --prefix "$folder" "azurite@$version" >&2
    echo "$version" >"$folder/version"
}

# --loose stays off: what the emulator doesn't know must fail. Its telemetry would try to reach a host of its own.
options=(--blobHost 127.0.0.1 --disableTelemetry --skipApiVersionCheck --inMemoryPersistence)

case ${1:-} in
install)
    install
    ;;
start)
    install
    shift
    exec "$program" "${options[@]}" "$@"
    ;;
start-tls)
    install
    certificates=${2:?start-tls needs a folder for certificates}
    mkdir -p "$certificates"
    # An authority and a leaf of it: TLS libraries refuse a leaf that is its own authority.
    openssl req -x509 -newkey rsa:2048 -nodes -days 30 -subj "/CN=Azurite test authority" \
        -keyout "$certificates/ca.key" -out "$certificates/ca.pem" 2>/dev/null
    openssl req -newkey rsa:2048 -nodes -subj "/CN=localhost" \
        -keyout "$certificates/server.key" -out "$certificates/server.csr" 2>/dev/null
    openssl x509 -req -in "$certificates/server.csr" -CA "$certificates/ca.pem" -CAkey "$certificates/ca.key" \
        -CAcreateserial -days 30 -out "$certificates/server.pem" \
        -extfile <(echo "subjectAltName=DNS:localhost,IP:127.0.0.1") 2>/dev/null
    shift 2
    exec "$program" "${options[@]}" --cert "$certificates/server.pem" --key "$certificates/server.key" --oauth basic "$@"
    ;;
*)
    sed -n '2,7p' "$0" | sed 's/^# \{0,1\}//' >&2
    exit 2
    ;;
esac
