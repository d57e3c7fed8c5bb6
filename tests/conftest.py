"""What every test runs under: shapes checked at run time, one thread, no network.

The import hook has to be in place before `hooked_whisper` is first imported, so it is installed when pytest
reads this file, not in a fixture.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

# A test that would reach for the hub must fail at once and everywhere, also where there is a network.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["MPLBACKEND"] = "agg"

from jaxtyping import install_import_hook

if "hooked_whisper" in sys.modules:
    raise RuntimeError("hooked_whisper was imported before its shapes could be checked: look for an early plugin.")
install_import_hook("hooked_whisper", "shape_checks.checked")

import pytest
import torch

if TYPE_CHECKING:
    from hooked_whisper import HookedWhisper

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "tests" / "data"
LOCAL_HOSTS = {"127.0.0.1", "::1", "localhost"}

torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def no_network() -> Iterator[None]:
    """Connections leave this machine for no test; local ones (a worker pool, a test's own server) pass."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in LOCAL_HOSTS:
            raise RuntimeError(f"a test tried to connect to {address[0]!r}: tests run without a network.")
        connect(self, address)

    socket.socket.connect = guarded  # type: ignore[method-assign]
    yield
    socket.socket.connect = connect  # type: ignore[method-assign]


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Each test starts from the same random state, whatever ran before it."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's root."""
    return ROOT


@pytest.fixture(scope="session")
def data() -> Path:
    """Real speech and other files that tests read."""
    return DATA


@pytest.fixture(scope="session")
def shared_whisper_base() -> HookedWhisper:
    """whisper-base, loaded once for all tests of a worker. Use `whisper_base`, which cleans it up."""
    from hooked_whisper import HookedWhisper

    return HookedWhisper.from_pretrained("openai/whisper-base", device="cpu", dtype="float32")


@pytest.fixture(scope="session")
def shared_short_whisper_base(shared_whisper_base: HookedWhisper) -> HookedWhisper:
    """The same weights with a window of 4 s, which costs that much less to encode and to read."""
    from hooked_whisper.windows import with_window

    return with_window(shared_whisper_base, 4)


@pytest.fixture
def commands_load_it(shared_short_whisper_base: HookedWhisper, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands find whisper-base with a window of 4 s, whatever model they ask for."""
    from hooked_whisper import HookedWhisper

    monkeypatch.setattr(HookedWhisper, "from_pretrained", lambda name, **options: shared_short_whisper_base)


@pytest.fixture
def whisper_base(shared_whisper_base: HookedWhisper) -> Iterator[HookedWhisper]:
    """whisper-base in float32 on the CPU, without hooks. Don't change its weights: it is shared."""
    shared_whisper_base.reset_hooks(including_permanent=True)
    shared_whisper_base.zero_grad(set_to_none=True)
    yield shared_whisper_base
    shared_whisper_base.reset_hooks(including_permanent=True)
    shared_whisper_base.zero_grad(set_to_none=True)
