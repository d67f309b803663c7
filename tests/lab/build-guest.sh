#!/bin/bash
# Builds one bootable guest for the `qemu` driver, without root, loop devices or mounts:
#
#   build-guest.sh --generation 1|2 --name N --id GUID --out FOLDER --work FOLDER
#                  [--memory-mib 256] [--data-mib 128] [--append 'lab.rate=50 lab.marker=TEXT']
#                  [--app-mib N] [--layout esp|debian|entries|blscfg|tight]
#
#   FOLDER/N/vm.toml        the machine
#   FOLDER/N/N-os.vhdx      128 MiB:  generation 1: MBR, GRUB in the gap, ext4 with kernel and grub.cfg
#                                     generation 2: GPT, ESP with GRUB, kernel and grub.cfg
#                                     generation 2 with --layout: as uefi-layouts.sh says
#                                     all: the last partition (4 MiB at 123 MiB) takes the OS stamps
#   FOLDER/N/N-data.vhdx    raw stamps, thin
#   FOLDER/N/N-app.vhdx     with --app-mib (16 or more): an ext4 file system; the guest then has the guest agent on COM2,
#                           which can bring this file system to rest
#
# The same arguments give the same disk contents. --work is a cache (kernel, initramfs, boot
# loaders) that any number of builds may share, also at the same time. LAB_GUEST_PROGRAM names a
# lab-guest binary that is already built.
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin
# For mtools, which puts the time into folders.
export SOURCE_DATE_EPOCH=315532800 TZ=UTC
here=$(cd "$(dirname "$0")" && pwd)

usage() {
    sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0" >&2
    exit 2
}

generation='' name='' id='' out='' work='' memory_mib=256 data_mib=128 append='' app_mib=0 layout=''
while (($# > 0)); do
    (($# > 1)) || usage
    case $1 in
        --generation) generation=$2 ;;
        --name) name=$2 ;;
        --id) id=${2,,} ;;
        --out) out=$2 ;;
        --work) work=$2 ;;
        --memory-mib) memory_mib=$2 ;;
        --data-mib) data_mib=$2 ;;
        --append) append=$2 ;;
        --app-mib) app_mib=$2 ;;
        --layout) layout=$2 ;;
        *) usage ;;
    esac
    shift 2
done
[[ $generation =~ ^[12]$ && $name =~ ^[A-Za-z0-9][A-Za-z0-9-]*$ && -n $out && -n $work ]] || usage
if [[ ! $id =~ ^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$ ]]; then
    echo "--id $id is no GUID" >&2
    exit 2
fi
if [[ ! $data_mib =~ ^[0-9]+$ ]] || ((data_mib < 32)); then
    echo "--data-mib $data_mib: the data disk needs 32 MiB or more" >&2
    exit 2
fi
if [[ ! $app_mib =~ ^[0-9]+$ ]] || ((app_mib > 0 && app_mib < 16)); then
    echo "--app-mib $app_mib: the application's disk needs 16 MiB or more" >&2
    exit 2
fi
if [[ -n $layout && ! ($generation == 2 && $layout =~ ^(esp|debian|entries|blscfg|tight)$) ]]; then
    echo "--layout $layout: generation 2 has esp, debian, entries, blscfg, tight" >&2
    exit 2
fi
if [[ -e $out/$name ]]; then
    echo "$out/$name is already there" >&2
    exit 1
fi

os_mib=128 boot_mib=122 stamps_at_mib=123 stamps_mib=4
mkdir -p "$work" "$out"
work=$(cd "$work" && pwd)
# Made aside and renamed: a half-built machine never shows in the VM folder.
build=$(mktemp -d "$work/build.XXXXXX")
trap 'rm -rf "$build"' EXIT

# --- ingredients, cached -------------------------------------------------------------------------

if [[ -n ${LAB_GUEST_PROGRAM:-} ]]; then
    program=$LAB_GUEST_PROGRAM
else
    target=x86_64-unknown-linux-gnu
    # A target folder of its own: the static flag would make everything else be built twice.
    (cd "$here/../.." && RUSTFLAGS='-C target-feature=+crt-static' cargo build --quiet --locked \
        --package lab-guest --release --target $target --target-dir target/guest)
    program=$here/../../target/guest/$target/release/lab-guest
fi
initrd=$work/initrd
if ((app_mib > 0)); then
    "$here/kernel.sh" "$work" "$program" agent
    initrd=$work/initrd-agent append="lab.agent=1 $append"
else
    "$here/kernel.sh" "$work" "$program"
fi

# GRUB's core, which finds its menu on the boot disk. The modules are all in it: modules of another
# GRUB build must never be loaded.
boot_loader() {
    local file=$1 recipe
    shift
    set -- "$@" normal linux echo serial terminal minicmd
    recipe="$(grub-mkimage --version) $*"
    # Two builds may both make it: the results are the same, and a rename is whole.
    [[ -e $work/$file && $(cat "$work/$file.of" 2>/dev/null) == "$recipe" ]] && return
    grub-mkimage --output "$build/$file" "$@"
    mv "$build/$file" "$work/$file"
    echo "$recipe" >"$work/$file.of"
}
boot_loader core.img --format i386-pc --prefix '(hd0,msdos1)/grub' biosdisk part_msdos ext2
boot_loader bootx64.efi --format x86_64-efi --prefix /grub part_gpt fat

# --- helpers -------------------------------------------------------------------------------------

# A little-endian number of BYTES bytes, as printf escapes: le BYTES VALUE
le() {
    local value=$2 i
    for ((i = 0; i < $1; i++)); do
        printf '\\x%02x' $((value & 255))
        value=$((value >> 8))
    done
}
# Overwrites bytes: patch FILE OFFSET ESCAPES
patch() {
    printf "$3" | dd of="$1" bs=1 seek="$2" conv=notrunc status=none
}
# Puts a file into another: place FILE INTO OFFSET-IN-SECTORS
place() {
    dd if="$1" of="$2" bs=512 seek="$3" conv=notrunc,sparse status=none
}
# One MBR entry: entry FILE NUMBER ACTIVE(0|128) TYPE START-MIB SIZE-MIB
entry() {
    # Cylinders, heads and sectors at their maximum say: look at the block numbers.
    patch "$1" $((446 + ($2 - 1) * 16)) \
        "$(le 1 "$3")\\xfe\\xff\\xff$(le 1 "$4")\\xfe\\xff\\xff$(le 4 $(($5 * 2048)))$(le 4 $(($6 * 2048)))"
}

# --- the OS disk ---------------------------------------------------------------------------------

disk=$build/os.raw
truncate -s ${os_mib}M "$disk"

boot=$build/boot
mkdir -p "$boot/grub"
cp "$work/vmlinuz" "$boot/vmlinuz"
cp "$initrd" "$boot/initrd"
cat >"$boot/grub/grub.cfg" <<CFG
set timeout=0
linux /vmlinuz console=ttyS0 quiet panic=5 lab.id=$id $append
initrd /initrd
boot
CFG
find "$boot" -exec touch -d @0 {} +

if ((generation == 1)); then
    filesystem=$build/boot.ext4
    truncate -s ${boot_mib}M "$filesystem"
    # No journal: the partition is never mounted for writing. The rest is what any GRUB 2 can read.
    E2FSPROGS_FAKE_TIME=1 mke2fs -q -F -t ext4 -b 4096 -m 0 -I 256 -N 64 -L boot -U "$id" \
        -O '^has_journal,^metadata_csum,^metadata_csum_seed,^orphan_file,^64bit,^resize_inode' \
        -E "hash_seed=$id,lazy_itable_init=0,root_owner=0:0" -d "$boot" "$filesystem"
    # What mke2fs copies from the files and nobody can set there: the time of the last change.
    for file in / /grub /grub/grub.cfg /vmlinuz /initrd; do
        printf 'set_inode_field %s ctime @1\nset_inode_field %s ctime_extra 0\n' $file $file
    done | E2FSPROGS_FAKE_TIME=1 debugfs -w -f - "$filesystem" >/dev/null 2>&1
    place "$filesystem" "$disk" 2048

    # MBR: GRUB's boot.img, told where core.img is (LBA 1, one run) and to use the BIOS's drive.
    dd if=/usr/lib/grub/i386-pc/boot.img of="$disk" bs=440 count=1 conv=notrunc status=none
    patch "$disk" $((0x5c)) "$(le 8 1)"
    patch "$disk" $((0x64)) '\xff'
    patch "$disk" $((0x66)) '\x90\x90'
    patch "$disk" 440 "$(le 4 0x${id:0:8})"
    entry "$disk" 1 128 0x83 1 $boot_mib
    entry "$disk" 2 0 0xda $stamps_at_mib $stamps_mib
    patch "$disk" 510 '\x55\xaa'
    if (($(stat -c %s "$work/core.img") > 2047 * 512)); then
        echo "GRUB's core.img is too large for the gap before the first partition" >&2
        exit 1
    fi
    place "$work/core.img" "$disk" 1
    # core.img's first sector loads the rest: its block list says where that starts.
    patch "$disk" $((512 + 0x1f4)) "$(le 8 2)"
elif [[ -n $layout ]]; then
    . "$here/uefi-layouts.sh"
else
    filesystem=$build/esp.fat
    truncate -s ${boot_mib}M "$filesystem"
    mkfs.vfat --invariant -F 32 -s 1 -n LAB -i "${id:0:8}" "$filesystem" >/dev/null
    mmd -i "$filesystem" ::/EFI ::/EFI/BOOT ::/grub
    mcopy -m -i "$filesystem" "$work/bootx64.efi" ::/EFI/BOOT/BOOTX64.EFI
    mcopy -m -i "$filesystem" "$boot/vmlinuz" "$boot/initrd" ::/
    mcopy -m -i "$filesystem" "$boot/grub/grub.cfg" ::/grub/
    place "$filesystem" "$disk" 2048
    sgdisk --disk-guid="$id" \
        --new=1:1M:+${boot_mib}M --typecode=1:ef00 --change-name=1:esp --partition-guid=1:"${id%?}1" \
        --new=2:${stamps_at_mib}M:+${stamps_mib}M --typecode=2:8301 --change-name=2:stamps \
        --partition-guid=2:"${id%?}2" "$disk" >/dev/null
    # sgdisk may end well without having written anything.
    sgdisk --verify "$disk" | grep -q '^No problems found' || {
        echo "sgdisk wrote no valid partition table" >&2
        exit 1
    }
fi

# --- the machine ---------------------------------------------------------------------------------

machine=$build/machine
mkdir "$machine"
# Blocks of 1 MiB keep the files thin.
qemu-img convert -q -f raw -O vhdx -o subformat=dynamic,block_size=1M "$disk" "$machine/$name-os.vhdx"
qemu-img create -q -f vhdx -o subformat=dynamic,block_size=1M "$machine/$name-data.vhdx" "${data_mib}M"
app=''
if ((app_mib > 0)); then
    truncate -s "${app_mib}M" "$build/app.raw"
    E2FSPROGS_FAKE_TIME=1 mke2fs -q -F -t ext4 -b 4096 -m 0 -L app -U "${id%?}9" \
        -E "hash_seed=$id,lazy_itable_init=0,root_owner=0:0" "$build/app.raw"
    qemu-img convert -q -f raw -O vhdx -o subformat=dynamic,block_size=1M "$build/app.raw" "$machine/$name-app.vhdx"
    app="
[[disk]]
file = \"$name-app.vhdx\"
"
fi
mac=52:54:00:${id:0:2}:${id:2:2}:${id:4:2}
cat >"$machine/vm.toml" <<TOML
id = "$id"
name = "$name"
generation = $generation
memory_mib = $memory_mib
processors = 1
os_type = "Linux"

[[disk]]
file = "$name-os.vhdx"

[[disk]]
file = "$name-data.vhdx"
$app
[[network]]
name = "lan"
mac = "$mac"
TOML
mv "$machine" "$out/$name"
