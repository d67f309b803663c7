#!/bin/bash
# Fetches Debian's cloud kernel and makes the guests' kernel and initramfs in a work folder:
#
#   kernel.sh WORK PROGRAM         ->   WORK/vmlinuz  WORK/initrd
#   kernel.sh WORK PROGRAM agent   ->   WORK/vmlinuz  WORK/initrd-agent, which has the guest agent too
#
# The package is unpacked, never installed. PROGRAM is the static lab-guest binary. Both files are
# made again only when their ingredients changed; a lock lets several builds share the folder.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
work=$1 program=$2 agent=${3:-}
initrd=$work/initrd${agent:+-agent}

# Drivers: disks of both generations, the power button, and the network card of generation 2 (the cloud kernel has no e1000).
modules=(virtio_pci virtio_scsi ata_piix sd_mod button evdev virtio_net)

mkdir -p "$work"
if [[ -n $agent ]]; then
    "$here/agent.sh" "$work"
    agent_files=("$work/agent/bin/qemu-ga" "$here/agent-hook")
fi
exec 9>"$work/kernel.lock"
flock 9

if [[ ! -e $work/vmlinuz ]]; then
    rm -rf "$work/kernel"
    mkdir -p "$work/kernel"
    package=$(apt-cache depends linux-image-cloud-amd64 2>/dev/null |
        awk '$1 == "Depends:" && $2 ~ /^linux-image-[0-9]/ { print $2; exit }')
    if [[ -z $package ]]; then
        echo "the package lists have no linux-image-cloud-amd64: run 'apt-get update' as root" >&2
        exit 1
    fi
    # A package list may be older than the archive, which keeps only the newest kernel.
    if ! (cd "$work/kernel" && apt-get download -qq "$package" >&2 2>fetch.log); then
        cat "$work/kernel/fetch.log" >&2
        echo "can't download $package: run 'apt-get update' as root and try again" >&2
        exit 1
    fi
    dpkg-deb -x "$work"/kernel/*.deb "$work/kernel/root"
    rm "$work"/kernel/*.deb
    # Last, by rename: its presence says that all of it is there.
    cp "$work"/kernel/root/boot/vmlinuz-* "$work/vmlinuz.new"
    mv "$work/vmlinuz.new" "$work/vmlinuz"
fi

ingredients=$(cat "$work/vmlinuz" "$program" "$here/init" "$here/kernel.sh" /bin/busybox "${agent_files[@]}" | sha256sum)
if [[ -e $initrd && $(cat "$initrd.of" 2>/dev/null) == "$ingredients" ]]; then
    exit 0
fi

module_folder=("$work"/kernel/root/lib/modules/*)
ordered=()
# A module after those it needs. Module names know no difference between - and _.
add_module() {
    local name=${1//-/_} file needs need
    file=$(find "${module_folder[0]}" -name "*.ko*" | awk -F/ -v name="$name" \
        '{ file = $NF; sub(/\.ko.*/, "", file); gsub("-", "_", file); if (file == name) print }')
    if [[ -z $file ]]; then
        echo "the kernel has no module $1" >&2
        exit 1
    fi
    [[ " ${ordered[*]} " == *" $name.ko "* ]] && return
    case $file in
        *.xz) xz -dc "$file" >"$root/modules/$name.ko" ;;
        *.zst) zstd -qdc "$file" >"$root/modules/$name.ko" ;;
        *) cp "$file" "$root/modules/$name.ko" ;;
    esac
    # The same field that depmod reads.
    needs=$(tr '\0' '\n' <"$root/modules/$name.ko" | sed -n 's/^depends=//p' | head -n 1)
    for need in ${needs//,/ }; do
        add_module "$need"
    done
    ordered+=("$name.ko")
}

root=$work/initramfs
rm -rf "$root"
mkdir -p "$root"/{bin,dev,proc,sys,modules}
cp /bin/busybox "$root/bin/busybox"
cp "$program" "$root/bin/lab-guest"
cp "$here/init" "$root/init"
if [[ -n $agent ]]; then
    cp -r "$work/agent/." "$root/"
    cp "$here/agent-hook" "$root/bin/agent-hook"
    mkdir -p "$root"/{run,app}
fi
chmod 755 "$root"/bin/* "$root/init"
for module in "${modules[@]}"; do
    add_module "$module"
done
printf '%s\n' "${ordered[@]}" >"$root/modules/order"
find "$root" -exec touch -h -d @0 {} +
(cd "$root" && find . | LC_ALL=C sort | cpio --quiet -o -H newc --reproducible -R 0:0) |
    zstd -q -19 -o "$work/initrd.new" -f
mv "$work/initrd.new" "$initrd"
echo "$ingredients" >"$initrd.of"
