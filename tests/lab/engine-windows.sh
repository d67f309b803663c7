#!/bin/bash
# Builds the engine for Windows and says how large it is.
#
#   engine-windows.sh [PROFILE]     PROFILE: windows-test (default; quick to build) or windows-release (to ship: small)
#
# The program: target/windows/x86_64-pc-windows-gnu/PROFILE/siterecovery-engine.exe
#
# The goal for one that is shipped is 12 MiB, which a host may have to fetch through WinRM: it is said when it is missed.
# Signed when SIGNING_CERTIFICATE and SIGNING_KEY name a certificate and its key (PEM).
set -euo pipefail
cd "$(dirname "$0")/../.."

profile=${1:-windows-test}
target=x86_64-pc-windows-gnu
goal_bytes=$((12 << 20))

tests/lab/cargo-windows.sh build --package engine --profile "$profile"

program=target/windows/$target/$profile/siterecovery-engine.exe
if [[ -n ${SIGNING_CERTIFICATE:-} ]]; then
    : "${SIGNING_KEY:?SIGNING_CERTIFICATE is set: set SIGNING_KEY to the file of its key, too}"
    tests/lab/prerequisites.sh signing
    osslsigncode sign -certs "$SIGNING_CERTIFICATE" -key "$SIGNING_KEY" -h sha256 \
        -n "Site Recovery Engine" -in "$program" -out "$program.signed" >&2
    mv "$program.signed" "$program"
fi

bytes=$(stat --format=%s "$program")
printf 'engine for Windows: %s, %s bytes (%s MiB)\n' "$program" "$bytes" "$(awk "BEGIN { printf \"%.1f\", $bytes / 1048576 }")"
if [[ $profile == windows-release ]] && ((bytes > goal_bytes)); then
    echo "the goal of $((goal_bytes >> 20)) MiB is missed: look at what was linked into it (cargo tree --package engine --target $target)" >&2
fi
