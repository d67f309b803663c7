#!/bin/bash
# Runs a program for Windows under Wine, with a prefix of its own in target/wine.
#
#   wine.sh PROGRAM [ARGUMENT ...]     run it
#   wine.sh --end                      end all that runs in the prefix
#   wine.sh --system                   say where the folder of the system's libraries is
#
# The prefix is made at the first start (about 15 s, 0.7 GB). Wine before 9 has no ProcessPrng, which Rust's standard library
# wants for random numbers: process-prng.c stands in for it. WINE_LIBRARIES says which libraries are Wine's own (NAME=b), files
# in the prefix (NAME=n), or not there (NAME=).
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)

export WINEPREFIX=${WINEPREFIX:-$root/target/wine}
# Nothing of ours needs .NET or a browser; without this Wine would ask whether to fetch them.
export WINEDLLOVERRIDES="mscoree,mshtml=${WINE_LIBRARIES:+;$WINE_LIBRARIES}"
# Else file names outside of ASCII would not be the same on both sides.
export LC_ALL=C.UTF-8
export WINEDEBUG=${WINEDEBUG:--all}
wine=/usr/lib/wine/wine64

if [[ ${1:-} == --end ]]; then
    # An exit code other than 0 says that nothing ran.
    /usr/lib/wine/wineserver64 --kill || true
    exit 0
fi

ready=$WINEPREFIX/site-recovery-ready
system=$WINEPREFIX/drive_c/windows/system32
if [[ ! -e $ready ]]; then
    mkdir -p "$WINEPREFIX"
    exec 9>"$WINEPREFIX.lock"
    flock 9
    if [[ ! -e $ready ]]; then
        "$wine" wineboot --init >/dev/null 2>&1
        # The set-up goes on behind its end; a service that is installed meanwhile is lost.
        /usr/lib/wine/wineserver64 --wait
        if ! grep -q ProcessPrng "$system/bcryptprimitives.dll" 2>/dev/null; then
            x86_64-w64-mingw32-gcc -shared -O1 -o "$system/bcryptprimitives.dll" "$root/tests/lab/process-prng.c" -ladvapi32
        fi
        touch "$ready"
    fi
    flock --unlock 9
    exec 9>&-
fi
if [[ ${1:-} == --system ]]; then
    echo "$system"
    exit 0
fi
exec "$wine" "$@"
