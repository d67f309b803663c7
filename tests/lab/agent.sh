#!/bin/bash
# Fetches Debian's guest agent and gathers it with the libraries it needs, for a guest's root file system:
#
#   agent.sh WORK   ->   WORK/agent/  (bin/qemu-ga, lib/..., lib64/...)
#
# The package is unpacked, never installed. QEMU itself needs the agent's libraries, so they are on this machine; one
# that is not is taken from the packages that the agent depends on.
set -euo pipefail
work=$1
mkdir -p "$work"
exec 8>"$work/agent.lock"
flock 8
[[ -e $work/agent/bin/qemu-ga ]] && exit 0

rm -rf "$work/agent" "$work/agent.fetch"
mkdir -p "$work/agent.fetch"
fetch() {
    if ! (cd "$work/agent.fetch" && apt-get download -qq "$@" >&2 2>fetch.log); then
        cat "$work/agent.fetch/fetch.log" >&2
        echo "can't download $*: run 'apt-get update' as root and try again" >&2
        exit 1
    fi
}
unpack() {
    local package
    for package in "$work"/agent.fetch/*.deb; do
        dpkg-deb -x "$package" "$work/agent.fetch/root"
        rm "$package"
    done
}
fetch qemu-guest-agent
unpack
program=$(find "$work/agent.fetch/root" -name qemu-ga -type f | head -n 1)
libraries=$work/agent.fetch/root/usr/lib/x86_64-linux-gnu:$work/agent.fetch/root/lib/x86_64-linux-gnu
if LD_LIBRARY_PATH=$libraries ldd "$program" | grep -q 'not found'; then
    mapfile -t needed < <(apt-cache depends --recurse --no-recommends --no-suggests --no-conflicts --no-breaks \
        --no-replaces --no-enhances --no-pre-depends qemu-guest-agent | grep -E '^lib[a-z0-9.+-]*$' | sort -u)
    fetch "${needed[@]}"
    unpack
fi
root=$work/agent.new
rm -rf "$root"
mkdir -p "$root/bin"
cp "$program" "$root/bin/qemu-ga"
LD_LIBRARY_PATH=$libraries ldd "$program" | while read -r name arrow path _; do
    case $name:$arrow in
        linux-vdso*) ;;
        # The loader is named by its path, and must lie there.
        /*) install -D "$name" "$root$name" ;;
        *:=\>)
            if [[ $path != /* ]]; then
                echo "the guest agent's library $name is nowhere to be found" >&2
                exit 1
            fi
            install -D -m 644 "$path" "$root/lib/$name"
            ;;
    esac
done
mv "$root" "$work/agent"
rm -rf "$work/agent.fetch"
