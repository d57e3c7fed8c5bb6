"""Who may read what is written: safetensors makes files that only their owner can read, whatever the umask says."""

from __future__ import annotations

import os
import stat
import uuid
from pathlib import Path


def as_new_file(path: str | os.PathLike[str]) -> Path:
    """Gives a file the mode that a new file gets in its folder; returns its path.

    The umask cannot be read without setting it, which another thread would notice: a file is made, looked at, removed.
    A kill in between leaves it behind, under a name by which unfinished files are cleared away.
    """
    path = Path(path)
    beside = path.parent / f".mode-{uuid.uuid4().hex}.partial"
    try:
        beside.touch()
        path.chmod(stat.S_IMODE(beside.stat().st_mode))
    finally:
        beside.unlink(missing_ok=True)
    return path
