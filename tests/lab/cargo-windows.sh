#!/bin/bash
# Runs cargo for Windows.
#
#   cargo-windows.sh COMMAND [ARGUMENT ...]     such as: build --package engine --profile windows-test
#
# What it makes is in target/windows/x86_64-pc-windows-gnu. Programs that cargo starts (tests) run under Wine.
#
# The toolchain is rustup's where its standard library for the target is there or can be had; else Debian's newest one
# (rustc-web), which has no such library and builds it from its sources. C code is compiled by MinGW in both cases.
set -euo pipefail
cd "$(dirname "$0")/../.."

target=x86_64-pc-windows-gnu
tests/lab/prerequisites.sh windows

installed() {
    command -v rustup >/dev/null && rustup target list --installed 2>/dev/null | grep -qx "$target"
}

export CARGO_TARGET_X86_64_PC_WINDOWS_GNU_RUNNER=$PWD/tests/lab/wine.sh
command=$1
shift
arguments=("$command" --locked --target "$target" --target-dir target/windows)
if installed || { command -v rustup >/dev/null && rustup target add "$target" 2>/dev/null; }; then
    exec cargo "${arguments[@]}" "$@"
fi
tests/lab/prerequisites.sh windows-std
# All three: with another toolchain first on PATH the wrong parts would be mixed.
RUSTC=/usr/bin/rustc RUSTDOC=/usr/bin/rustdoc RUSTC_BOOTSTRAP=1 exec /usr/bin/cargo "${arguments[@]}" -Zbuild-std "$@"
