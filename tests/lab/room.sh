#!/bin/bash
# Says at once when the disk has no room for what follows, rather than in the middle of a build.
#
#   room.sh GIB     exit 1 unless GIB are free where the project builds
set -euo pipefail
cd "$(dirname "$0")/../.."

needed=$1
built=$(du -s --block-size=1G target 2>/dev/null | cut -f1 || true)
free=$(df --output=avail --block-size=1G . | tail -1 | tr -d ' ')
# What is built already needs no room again.
if ((free + ${built:-0} < needed)); then
    echo "room: $needed GiB are needed to build and test, $free GiB are free in $PWD" >&2
    echo "room: remove what other builds left (cargo clean in other checkouts), then run this again" >&2
    exit 1
fi
