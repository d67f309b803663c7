#!/bin/bash
# Installs, by Debian package name, what the lab needs and is missing.
#
#   prerequisites.sh [WHAT]            install what is missing
#   prerequisites.sh [WHAT] --check    only say what is missing (exit 1 if anything is)
#
# WHAT: vms (default); windows (C compiler for Windows, Wine); windows-std (Rust's standard library for Windows as sources, with
# the compiler that they belong to); signing.
#
# Quick and silent when everything is there: it looks for the files first and asks apt only then.
set -euo pipefail

what=vms
if [[ ${1:-} != --* && -n ${1:-} ]]; then
    what=$1
    shift
fi

# What proves that a package is there : the package
vms=(
    qemu-system-x86_64:qemu-system-x86
    qemu-img:qemu-utils
    /usr/share/OVMF/OVMF_CODE_4M.fd:ovmf
    sgdisk:gdisk
    mcopy:mtools
    mkfs.vfat:dosfstools
    mke2fs:e2fsprogs
    cpio:cpio
    zstd:zstd
    flock:util-linux
    /usr/lib/grub/i386-pc/boot.img:grub-pc-bin
    /usr/lib/grub/x86_64-efi/linux.mod:grub-efi-amd64-bin
    grub-mkimage:grub-common
    python3:python3
    node:nodejs
    npm:npm
    openssl:openssl
    /usr/sbin/sshd:openssh-server
    ssh-keygen:openssh-client
    ENSUREPIP:python3-venv
    BUSYBOX_STATIC:busybox-static
    CC:build-essential
)
windows=(
    CC:build-essential
    x86_64-w64-mingw32-gcc:gcc-mingw-w64-x86-64-win32
    /usr/lib/wine/wine64:wine64
    flock:util-linux
)
# By dpkg's own lists: other packages have programs of these names, too old ones.
windows_std=(
    /var/lib/dpkg/info/rustc-web.list:rustc-web
    /var/lib/dpkg/info/cargo-web.list:cargo-web
    /var/lib/dpkg/info/rust-web-src.list:rust-web-src
)
signing=(
    osslsigncode:osslsigncode
)
case $what in
    vms) needed=("${vms[@]}") ;;
    windows) needed=("${windows[@]}") ;;
    windows-std) needed=("${windows_std[@]}") ;;
    signing) needed=("${signing[@]}") ;;
    *)
        echo "prerequisites: there is no list $what; there are: vms windows windows-std signing" >&2
        exit 2
        ;;
esac

# Tools in sbin are not on an ordinary user's PATH.
PATH=$PATH:/usr/sbin:/sbin

present() {
    case $1 in
        ENSUREPIP) python3 -c 'import ensurepip, venv' 2>/dev/null ;;
        # The package busybox has the same file, but linked against libc.
        BUSYBOX_STATIC) [[ -x /bin/busybox ]] && ! ldd /bin/busybox >/dev/null 2>&1 ;;
        CC) command -v cc >/dev/null && command -v make >/dev/null ;;
        /*) [[ -e $1 ]] ;;
        *) command -v "$1" >/dev/null ;;
    esac
}

missing=()
for entry in "${needed[@]}"; do
    present "${entry%:*}" || missing+=("${entry##*:}")
done
if ((${#missing[@]} == 0)); then
    exit 0
fi
if [[ ${1:-} == --check ]]; then
    echo "missing packages: ${missing[*]}" >&2
    exit 1
fi

if ! command -v apt-get >/dev/null; then
    echo "the lab needs a Debian system (apt-get); missing here: ${missing[*]}" >&2
    exit 1
fi
as_root=(env DEBIAN_FRONTEND=noninteractive)
if ((EUID != 0)); then
    if ! command -v sudo >/dev/null; then
        echo "missing packages: ${missing[*]}" >&2
        echo "install them as root:  apt-get install ${missing[*]}" >&2
        exit 1
    fi
    as_root=(sudo env DEBIAN_FRONTEND=noninteractive)
fi

# qemu-system-x86 and qemu-utils come from one source: installing the one alone, where the other is
# there from backports, makes apt remove the other.
if [[ " ${missing[*]} " =~ " qemu-"(system-x86|utils)" " ]]; then
    for package in qemu-system-x86 qemu-utils; do
        [[ " ${missing[*]} " == *" $package "* ]] || missing+=("$package")
    done
fi

echo "installing ${missing[*]}" >&2
install=("${as_root[@]}" apt-get install -y -q --no-install-recommends)
"${as_root[@]}" apt-get update -q >&2
if "${install[@]}" "${missing[@]}" >&2 && "$0" "$what" --check; then
    exit 0
fi
if [[ " ${missing[*]} " != *" qemu-system-x86 "* ]]; then
    echo "install by hand what is missing: apt-get install ${missing[*]}" >&2
    exit 1
fi
# The newest qemu-utils that is installed has no qemu-system-x86 of its version: take both in the
# version that has one.
version=$(apt-cache madison qemu-system-x86 | awk -F'|' 'NR == 1 { gsub(/ /, "", $2); print $2 }')
if [[ -z $version ]]; then
    echo "no package source offers qemu-system-x86: check /etc/apt/sources.list" >&2
    exit 1
fi
pinned=()
for package in "${missing[@]}"; do
    case $package in
        qemu-system-x86 | qemu-utils) pinned+=("$package=$version") ;;
        *) pinned+=("$package") ;;
    esac
done
# Their shared parts must be of the same version too.
for package in qemu-system-common qemu-system-data; do
    if apt-cache madison "$package" | grep -qF " $version "; then
        pinned+=("$package=$version")
    fi
done
"${install[@]}" --allow-downgrades "${pinned[@]}" >&2
"$0" "$what" --check
