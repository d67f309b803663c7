#!/usr/bin/env bash
# AzCopy, Microsoft's uploader, for the benchmarks: installs it from npm into target/azcopy, unless this version is there
# already, and prints the program's path.
set -euo pipefail
version=10.32.2
root=$(cd "$(dirname "$0")/../.." && pwd)
folder=${AZCOPY_FOLDER:-$root/target/azcopy}
program() {
    find "$folder/node_modules/@azure-tools/azcopy-linux" -type f -name 'azcopy*' -size +1M 2>/dev/null | head -n 1
}
if [[ -z "$(program)" || "$(cat "$folder/version" 2>/dev/null)" != "$version" ]]; then
    if ! command -v npm >/dev/null; then
        echo "npm is missing: run tests/lab/prerequisites.sh" >&2
        exit 1
    fi
    echo "installing azcopy $version into $folder" >&2
    mkdir -p "$folder"
    npm install --silent --no-audit --no-fund --omit=dev --prefix "$folder" "@azure-tools/azcopy-linux@$version" >&2
    echo "$version" >"$folder/version"
fi
found=$(program)
if [[ -z $found ]]; then
    echo "the npm package of azcopy holds no program for this machine" >&2
    exit 1
fi
chmod +x "$found"
# It is linked with the library of the desktop's key ring, also where nobody asks for that.
"$root/tests/lab/peers.sh" libsecret
echo "$found"
