#!/bin/bash
# The foreign functions of the hyperv driver under Wine: COM and WMI as Wine has them, virtdisk.dll by a stand-in.
#
# The driver loads virtdisk.dll out of the system's folder and from nowhere else, so that is where the stand-in goes, for as
# long as this runs.
set -euo pipefail
cd "$(dirname "$0")/../.."

build=target/windows/stand-in
mkdir -p "$build"

# Runs the tests of one module; there must be some. One at a time: Wine's WMI is not made for several queries at once.
module() {
    local name=$1
    echo "── $name"
    tests/lab/cargo-windows.sh test --quiet --package hypervisor --lib --profile windows-test -- \
        --test-threads 1 --ignored "hyperv::system::tests::$name::" | tee "$build/$name.txt"
    if ! grep -q '^test result: ok. [1-9]' "$build/$name.txt"; then
        echo "driver.sh: no test of $name ran" >&2
        exit 1
    fi
}

tests/lab/prerequisites.sh windows
library=$(tests/lab/wine.sh --system)/virtdisk.dll
[[ -e $build/wine.dll ]] || cp "$library" "$build/wine.dll"
trap 'cp "$build/wine.dll" "$library"' EXIT

module com
WINE_LIBRARIES="virtdisk=" module virtdisk_missing
for kind in 2012r2:virtdisk_old 2016:stand_in; do
    file=$build/${kind%:*}.dll
    x86_64-w64-mingw32-gcc -std=c11 -shared -O1 -Wall -Wextra -Werror -o "$file" tests/windows/virtdisk.c \
        "tests/windows/virtdisk-${kind%:*}.def"
    cp "$file" "$library"
    WINE_LIBRARIES="virtdisk=n" module "${kind#*:}"
done
