#!/usr/bin/env bash
# Prints a Python that can make the virtual environment: the one asked for, or the first of the usual names
# that is 3.10 or newer.
set -euo pipefail

asked="${1:-}"
new_enough='import sys; sys.exit(sys.version_info < (3, 10))'

if [ -n "$asked" ]; then candidates="$asked"; else candidates="python3 python3.13 python3.12 python3.11 python3.10 python"; fi
for candidate in $candidates; do
    if "$candidate" -c "$new_enough" >/dev/null 2>&1; then
        if ! "$candidate" -c 'import ensurepip, venv' >/dev/null 2>&1; then
            echo "$candidate has no venv module; on Debian and Ubuntu: apt install python3-venv" >&2
            exit 1
        fi
        command -v "$candidate"
        exit 0
    fi
done

found="$(python3 --version 2>/dev/null || echo "no python3 at all")"
echo "hooked-whisper needs Python 3.10 or newer; tried: $candidates; python3 is: $found." >&2
echo "Install one, or name it: make demo PYTHON=/path/to/python3.12" >&2
exit 1
