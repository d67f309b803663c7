# OS disks of generation 2 guests that are started differently; sourced by build-guest.sh, whose variables and helpers it uses.
#
#   esp      one EFI system partition with GRUB, its menu, kernel and initramfs
#   debian   a small EFI system partition whose menu points to an ext4 root with /boot/grub/grub.cfg, as Debian installs
#   entries  kernel, initramfs and loader/entries on the EFI system partition, no menu, as for systemd-boot
#   blscfg   an ext4 /boot with grub2/grub.cfg that calls blscfg, grubenv and loader/entries, as Fedora installs
#   tight    as esp, from LBA 64 on: no room in front of the first partition, but behind the last
#
# For `entries` and `blscfg` the EFI program has its own commands inside: it stands for systemd-boot and for Fedora's GRUB,
# which know by themselves what ours must be told.

options="console=ttyS0 quiet panic=5 lab.id=$id $append"

# A FAT file system of the whole partition: make_fat FILE SIZE-IN-SECTORS
make_fat() {
    truncate -s $(($2 * 512)) "$1"
    mkfs.vfat --invariant -F 32 -s 1 -n LAB -i "${id:0:8}" "$1" >/dev/null
    mmd -i "$1" ::/EFI ::/EFI/BOOT
}

# An ext4 file system of the whole partition with a folder's files: make_ext4 FILE SIZE-IN-MIB FOLDER
make_ext4() {
    find "$3" -exec touch -d @0 {} +
    truncate -s "$2M" "$1"
    # What GRUB 2.06 can read.
    E2FSPROGS_FAKE_TIME=1 mke2fs -q -F -t ext4 -b 4096 -m 0 -I 256 -N 64 -L root -U "$id" \
        -O '^metadata_csum_seed,^orphan_file' -E "hash_seed=$id,lazy_itable_init=0,root_owner=0:0" -d "$3" "$1"
}

# One entry file: entry_file FILE TITLE KERNEL INITRD OPTIONS
entry_file() {
    printf 'title %s\nversion 1\nlinux %s\ninitrd %s\noptions %s\n' "$2" "$3" "$4" "$5" >"$1"
}

# The EFI program with commands inside: embedded_loader COMMANDS
embedded_loader() {
    printf '%s\n' "$1" >"$build/embedded.cfg"
    grub-mkimage --output "$build/embedded.efi" --format x86_64-efi --prefix / --config "$build/embedded.cfg" \
        part_gpt fat ext2 search search_fs_uuid normal linux configfile
}

# The table: table START-SECTOR SIZE-IN-SECTORS [ROOT-START ROOT-SIZE]
table() {
    local second=()
    if (($# > 2)); then
        second=(--new=2:$3:+$4 --typecode=2:8300 --change-name=2:root --partition-guid=2:"${id%?}2")
    fi
    # Boundaries as given: sgdisk would move them to whole MiB.
    sgdisk --set-alignment=1 --disk-guid="$id" \
        --new=1:$1:+$2 --typecode=1:ef00 --change-name=1:esp --partition-guid=1:"${id%?}1" "${second[@]}" \
        --new=3:$((stamps_at_mib * 2048)):+$((stamps_mib * 2048)) --typecode=3:8301 --change-name=3:stamps \
        --partition-guid=3:"${id%?}3" "$disk" >/dev/null
    # sgdisk may end well without having written anything.
    sgdisk --verify "$disk" | grep -q '^No problems found' || {
        echo "sgdisk wrote no valid partition table" >&2
        exit 1
    }
}

esp=$build/esp.fat
root=$build/root
esp_start=2048
case $layout in
    esp | tight)
        [[ $layout == tight ]] && esp_start=64
        # Up to the stamps.
        esp_size=$((stamps_at_mib * 2048 - esp_start))
        make_fat "$esp" $esp_size
        mmd -i "$esp" ::/grub
        mcopy -m -i "$esp" "$work/bootx64.efi" ::/EFI/BOOT/BOOTX64.EFI
        mcopy -m -i "$esp" "$boot/vmlinuz" "$boot/initrd" ::/
        mcopy -m -i "$esp" "$boot/grub/grub.cfg" ::/grub/
        table $esp_start $esp_size
        ;;
    debian)
        esp_size=$((40 * 2048)) root_at_mib=41 root_mib=82
        make_fat "$esp" $esp_size
        mmd -i "$esp" ::/EFI/debian
        cat >"$build/stub.cfg" <<CFG
search.fs_uuid $id root
set prefix=(\$root)'/boot/grub'
configfile \$prefix/grub.cfg
CFG
        embedded_loader 'configfile /EFI/debian/grub.cfg'
        mcopy -m -i "$esp" "$build/embedded.efi" ::/EFI/BOOT/BOOTX64.EFI
        mcopy -m -i "$esp" "$build/embedded.efi" ::/EFI/debian/grubx64.efi
        mcopy -m -i "$esp" "$build/stub.cfg" ::/EFI/debian/grub.cfg
        mkdir -p "$root/boot/grub"
        cp "$boot/vmlinuz" "$root/boot/vmlinuz-1"
        cp "$boot/initrd" "$root/boot/initrd.img-1"
        # The lines of Debian's generated menu that a machine without a screen comes through.
        cat >"$root/boot/grub/grub.cfg" <<CFG
if [ -s \$prefix/grubenv ]; then
  set have_grubenv=true
  load_env
fi
set default="0"
if [ x"\${feature_menuentry_id}" = xy ]; then
  menuentry_id_option="--id"
else
  menuentry_id_option=""
fi
export menuentry_id_option
function load_video {
  if [ x\$feature_all_video_module = xy ]; then
    insmod all_video
  fi
}
set timeout=0
function gfxmode {
  set gfxpayload="\${1}"
}
menuentry 'Debian GNU/Linux' --class debian --class gnu-linux --class gnu --class os \$menuentry_id_option 'gnulinux-simple-$id' {
  load_video
  insmod gzio
  if [ x\$grub_platform = xxen ]; then insmod xzio; insmod lzopio; fi
  insmod part_gpt
  insmod ext2
  search --no-floppy --fs-uuid --set=root $id
  echo 'Loading Linux 1 ...'
  linux /boot/vmlinuz-1 $options
  echo 'Loading initial ramdisk ...'
  initrd /boot/initrd.img-1
}
CFG
        make_ext4 "$build/root.ext4" $root_mib "$root"
        place "$build/root.ext4" "$disk" $((root_at_mib * 2048))
        table $esp_start $esp_size $((root_at_mib * 2048)) $((root_mib * 2048))
        ;;
    entries)
        esp_size=$((boot_mib * 2048))
        make_fat "$esp" $esp_size
        embedded_loader "linux /lab/1/linux $options
initrd /lab/1/initrd
boot"
        mmd -i "$esp" ::/loader ::/loader/entries ::/lab ::/lab/1
        mcopy -m -i "$esp" "$build/embedded.efi" ::/EFI/BOOT/BOOTX64.EFI
        mcopy -m -i "$esp" "$boot/vmlinuz" ::/lab/1/linux
        mcopy -m -i "$esp" "$boot/initrd" ::/lab/1/initrd
        entry_file "$build/lab-0.conf" 'Lab (broken)' /lab/0/linux /lab/0/initrd 'quiet'
        entry_file "$build/lab-1.conf" 'Lab Linux (1)' /lab/1/linux /lab/1/initrd "$options"
        printf 'timeout 0\ndefault lab-1.conf\n' >"$build/loader.conf"
        mcopy -i "$esp" "$build/lab-0.conf" "$build/lab-1.conf" ::/loader/entries/
        mcopy -i "$esp" "$build/loader.conf" ::/loader/
        table $esp_start $esp_size
        ;;
    blscfg)
        esp_size=$((40 * 2048)) root_at_mib=41 root_mib=82
        make_fat "$esp" $esp_size
        embedded_loader "search.fs_uuid $id root
linux /vmlinuz-1 $options
initrd /initramfs-1.img
boot"
        mcopy -m -i "$esp" "$build/embedded.efi" ::/EFI/BOOT/BOOTX64.EFI
        mkdir -p "$root/grub2" "$root/loader/entries"
        cp "$boot/vmlinuz" "$root/vmlinuz-1"
        cp "$boot/initrd" "$root/initramfs-1.img"
        entry_file "$root/loader/entries/lab-0.conf" 'Lab Linux (0)' /vmlinuz-0 /initramfs-0.img 'quiet'
        entry_file "$root/loader/entries/lab-0-rescue.conf" 'Lab Linux (0-rescue)' /vmlinuz-0 /initramfs-0.img 'quiet'
        entry_file "$root/loader/entries/lab-1.conf" 'Lab Linux (1)' /vmlinuz-1 /initramfs-1.img '$kernelopts'
        cat >>"$root/loader/entries/lab-1.conf" <<'CFG'
grub_users $grub_users
grub_arg --unrestricted
grub_class fedora
CFG
        # As Fedora's generated menu: the saved choice, the boot partition, the entries.
        cat >"$root/grub2/grub.cfg" <<CFG
set pager=1
if [ -f \${config_directory}/grubenv ]; then
  load_env -f \${config_directory}/grubenv
elif [ -s \$prefix/grubenv ]; then
  load_env
fi
set default="\${saved_entry}"
set timeout=0
insmod part_gpt
insmod ext2
search --no-floppy --fs-uuid --set=root $id
set boot=\$root
insmod blscfg
blscfg
CFG
        grub-editenv "$root/grub2/grubenv" create
        grub-editenv "$root/grub2/grubenv" set saved_entry=lab-1 "kernelopts=$options"
        make_ext4 "$build/root.ext4" $root_mib "$root"
        place "$build/root.ext4" "$disk" $((root_at_mib * 2048))
        table $esp_start $esp_size $((root_at_mib * 2048)) $((root_mib * 2048))
        ;;
esac
place "$esp" "$disk" $esp_start
