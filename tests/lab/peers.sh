#!/usr/bin/env bash
# Installs programs that the benchmarks compare with, by Debian package, when they are missing.
#
#   peers.sh nbdcopy restic rsync
set -euo pipefail

declare -A package=([nbdcopy]=libnbd-bin [restic]=restic [rsync]=rsync [qemu-img]=qemu-utils [qemu-nbd]=qemu-utils
    [libsecret]=libsecret-1-0)

present() {
    case $1 in
        libsecret) ldconfig -p 2>/dev/null | grep -q 'libsecret-1\.so\.0' ;;
        *) command -v "$1" >/dev/null ;;
    esac
}
# Tools in sbin are not on an ordinary user's PATH.
PATH=$PATH:/usr/sbin:/sbin
missing=()
for program in "$@"; do
    if [[ -z ${package[$program]:-} ]]; then
        echo "peers.sh knows no $program; it knows: ${!package[*]}" >&2
        exit 2
    fi
    present "$program" || missing+=("${package[$program]}")
done
if ((${#missing[@]} == 0)); then
    exit 0
fi
if ! command -v apt-get >/dev/null; then
    echo "missing: ${missing[*]} (no apt-get here: install them yourself)" >&2
    exit 1
fi
as_root=(env DEBIAN_FRONTEND=noninteractive)
if ((EUID != 0)); then
    if ! command -v sudo >/dev/null; then
        echo "install as root:  apt-get install ${missing[*]}" >&2
        exit 1
    fi
    as_root=(sudo env DEBIAN_FRONTEND=noninteractive)
fi
"${as_root[@]}" apt-get update -q >&2
"${as_root[@]}" apt-get install -y -q --no-install-recommends "${missing[@]}" >&2
