#!/usr/bin/env bash
# Before PyTorch is installed on a Linux machine without an NVIDIA GPU: says how to get its CPU build.
set -euo pipefail

if [ -z "${1:-}" ] && [ "$(uname -s)" = Linux ] && ! compgen -G '/dev/nvidia[0-9]*' >/dev/null; then
    cat <<'NOTICE'
No NVIDIA GPU here. If pip now fetches gigabytes of CUDA libraries, stop it, take the --index-url of the
CPU build from pytorch.org ("Get Started"), and run  make demo TORCH_ARGS="--index-url URL"
NOTICE
fi
