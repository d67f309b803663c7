#!/bin/bash
# Boots guests of both generations straight with QEMU, without anything of Site Recovery:
#
#   boot-test.sh [--accel tcg|kvm] [--work FOLDER] [--keep]
#
# For each generation, on copy-on-write overlays of freshly built disks:
#   1. first boot: "LAB check empty", then stamps
#   2. kill -9 of QEMU in the middle of stamping, second boot: "LAB check ok", the sequence goes on
#   3. the power button (generation 2: the line "poweroff" on COM2): the guest ends by itself; lab-guest on this machine agrees about its disks
#   4. the data disk set back to an older instant: "LAB check FAILED"
# Says how long each boot took. Ends non-zero when anything does not hold.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
limit_seconds=180 accel=tcg work='' keep=''
while (($# > 0)); do
    case $1 in
        --accel) accel=$2; shift 2 ;;
        --work) work=$2; shift 2 ;;
        --keep) keep=1; shift ;;
        *) sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0" >&2; exit 2 ;;
    esac
done
"$here/prerequisites.sh"

scratch=$(mktemp -d)
work=${work:-$scratch/work}
qemu_pid=''
clean_up() {
    [[ -n $qemu_pid ]] && kill -9 "$qemu_pid" 2>/dev/null
    [[ -n $keep ]] && echo "kept: $scratch" || rm -rf "$scratch"
}
trap clean_up EXIT

fail() {
    echo "FAILED: $*" >&2
    [[ -e $scratch/console.log ]] && sed 's/^/  console: /' "$scratch/console.log" | tail -n 20 >&2
    exit 1
}

now_ms() { date +%s%3N; }

start() { # start GENERATION DISK...
    local generation=$1 os=$2 data=$3
    rm -f "$scratch/console.log" "$scratch/qmp.sock" "$scratch/com2.sock"
    # As the qemu driver starts its machines.
    local options=(-nodefaults -no-user-config -display none -accel "$accel" -cpu max -m 256 -smp 1 -rtc base=utc
        -serial "file:$scratch/console.log"
        -serial "unix:$scratch/com2.sock,server=on,wait=off"
        -qmp "unix:$scratch/qmp.sock,server=on,wait=off"
        -blockdev "driver=qcow2,node-name=os,file.driver=file,file.filename=$os"
        -blockdev "driver=qcow2,node-name=data,file.driver=file,file.filename=$data")
    if ((generation == 1)); then
        options+=(-machine pc -device ide-hd,drive=os,bus=ide.0,unit=0,bootindex=0
            -device ide-hd,drive=data,bus=ide.0,unit=1)
    else
        cp /usr/share/OVMF/OVMF_VARS_4M.fd "$scratch/vars.fd"
        options+=(-machine q35
            -drive if=pflash,format=raw,readonly=on,file=/usr/share/OVMF/OVMF_CODE_4M.fd
            -drive "if=pflash,format=raw,file=$scratch/vars.fd"
            -device virtio-scsi-pci,id=scsi0
            -device scsi-hd,drive=os,bus=scsi0.0,channel=0,scsi-id=0,lun=0,bootindex=0
            -device scsi-hd,drive=data,bus=scsi0.0,channel=0,scsi-id=0,lun=1)
    fi
    started_ms=$(now_ms)
    qemu-system-x86_64 "${options[@]}" &
    qemu_pid=$!
}

# Waits until the console has a line matching a pattern.
wait_for() {
    local until=$((SECONDS + limit_seconds))
    until grep -aqE "$1" "$scratch/console.log" 2>/dev/null; do
        kill -0 "$qemu_pid" 2>/dev/null || fail "QEMU ended before the console said '$1'"
        ((SECONDS < until)) || fail "the console did not say '$1' within $limit_seconds s"
        sleep 0.05
    done
}

end_by_force() {
    kill -9 "$qemu_pid"
    wait "$qemu_pid" 2>/dev/null || true
    qemu_pid=''
}

ask_for_the_end() { # ask_for_the_end GENERATION
    python3 - "$1" "$scratch" <<'PY'
import socket, sys
generation, scratch = sys.argv[1:]
s = socket.socket(socket.AF_UNIX)
if generation == "2":
    s.connect(scratch + "/com2.sock")
    s.sendall(b"poweroff\n")
    # QEMU drops what the guest has not read when the connection ends: hold it until QEMU itself ends.
    s.settimeout(180)
    try:
        while s.recv(4096):
            pass
    except ConnectionResetError:
        pass
    sys.exit()
s.connect(scratch + "/qmp.sock")
f = s.makefile("rw")
f.readline()
for command in ("qmp_capabilities", "system_powerdown"):
    f.write('{"execute": "%s"}\n' % command)
    f.flush()
    # Events may come between a command and its answer.
    answer = next(line for line in f if '"event"' not in line)
    if '"return"' not in answer:
        sys.exit(command + " was refused: " + answer)
PY
    local until=$((SECONDS + limit_seconds))
    while kill -0 "$qemu_pid" 2>/dev/null; do
        ((SECONDS < until)) || fail "the guest did not end when asked to"
        sleep 0.05
    done
    wait "$qemu_pid" || fail "QEMU ended with an error"
    qemu_pid=''
}

sequence() { # the last sequence that the console reports, or that its check found
    local found
    found=$(grep -aoE "$1=[0-9]+" "$scratch/console.log" | tail -n 1 | cut -d= -f2) || true
    echo "${found:-0}"
}

overlay() { # overlay DISK BACKING FORMAT
    qemu-img create -q -f qcow2 -b "$2" -F "$3" "$1"
}

program=${LAB_GUEST_PROGRAM:-$here/../../target/guest/x86_64-unknown-linux-gnu/release/lab-guest}
for generation in 1 2; do
    id=5c1a0000-0000-4000-8000-00000000000$generation
    name=boot-test-$generation
    "$here/build-guest.sh" --generation $generation --name $name --id $id \
        --out "$scratch/vms" --work "$work" --append 'lab.rate=2000 lab.marker=BOOT-TEST lab.fill_mib=8'
    os=$scratch/os-$generation.qcow2 data=$scratch/data-$generation.qcow2
    overlay "$os" "$scratch/vms/$name/$name-os.vhdx" vhdx
    overlay "$data" "$scratch/vms/$name/$name-data.vhdx" vhdx

    start $generation "$os" "$data"
    wait_for '^LAB boot'
    boot_ms=$(($(now_ms) - started_ms))
    wait_for '^LAB check empty'
    wait_for '^LAB filled mib=8'
    wait_for '^LAB sequence='
    first_ms=$(($(now_ms) - started_ms))
    # Far enough that the ring of the data disk (4096 records) went round.
    wait_for '^LAB sequence=([5-9][0-9]{3}|[0-9]{5})'
    end_by_force
    before=$(sequence "^LAB sequence")

    cp "$data" "$scratch/older.qcow2"
    start $generation "$os" "$data"
    # A line grows character by character: wait for its end.
    wait_for '^LAB check (ok .* fill_mib=[0-9]|FAILED|empty)'
    again_until=$((SECONDS + limit_seconds))
    again_ms=$(($(now_ms) - started_ms))
    grep -aE '^LAB check ok disk=data last_sequence=[0-9]+ epoch=[0-9]+ stamped_unix_ms=[0-9]+ age_ms=[0-9]+ records=[0-9]+ os_epoch=[0-9]+ fill_mib=8' \
        "$scratch/console.log" || fail "the disks after kill -9 are not consistent"
    after=$(sequence last_sequence)
    ((after >= before)) || fail "sequence $before was reported, but only $after is on the disk"
    # The first report may name the epoch that was cut and is written again.
    until (($(sequence '^LAB sequence') > after)); do
        kill -0 "$qemu_pid" 2>/dev/null && ((SECONDS < again_until)) || fail "stamping did not go on"
        sleep 0.05
    done
    ask_for_the_end $generation
    ended_at=$(grep -aoE '^LAB poweroff sequence=[0-9]+' "$scratch/console.log" | cut -d= -f2)
    [[ -n $ended_at ]] || fail "the guest did not say why it ended"

    for disk in os data; do
        qemu-img convert -q -O raw "$scratch/$disk-$generation.qcow2" "$scratch/$disk.raw"
    done
    "$program" check --os "$scratch/os.raw" --os-offset $((123 << 20)) --data "$scratch/data.raw" --id $id |
        grep -E "^LAB check ok disk=data last_sequence=$ended_at " || fail "lab-guest here does not agree with the guest"
    grep -qa BOOT-TEST "$scratch/data.raw" || fail "the marker is not on the data disk"

    start $generation "$os" "$scratch/older.qcow2"
    wait_for '^LAB (stopped|sequence=)'
    grep -aE '^LAB check FAILED reason=.*different instants' "$scratch/console.log" ||
        fail "an older data disk beside a newer OS disk passed the check"
    end_by_force
    echo "generation $generation: first line ${boot_ms} ms, first stamp ${first_ms} ms, check after kill -9 ${again_ms} ms"
done
echo "boot test passed"
