"""Runs a function in processes of their own, without importing everything again: by fork."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable

import pytest

needs_fork = pytest.mark.skipif(not hasattr(os, "fork") or sys.platform == "darwin", reason="needs fork()")


def start(call: Callable[[], None], **environment: str) -> int:
    """Starts `call` in a process; returns its number."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.environ.update(environment)
            call()
            code = 0
        finally:
            if code:
                traceback.print_exc()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return pid


def finish(pid: int) -> int:
    """Waits for a process; returns its exit status, negative if it was killed."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def kill_after(seconds: float, call: Callable[[], None]) -> bool:
    """Starts `call` and kills it with SIGKILL after a while; True if it was still at work."""
    pid = start(call)
    time.sleep(seconds)
    os.kill(pid, signal.SIGKILL)
    return finish(pid) == -signal.SIGKILL


def team(call: Callable[[], None], size: int = 2) -> list[int]:
    """Runs `call` in processes that find each other as torchrun's do; their exit statuses."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    pids = [start(call, RANK=str(rank), LOCAL_RANK=str(rank), **shared) for rank in range(size)]
    return [finish(pid) for pid in pids]
