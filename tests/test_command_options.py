"""Options that several commands share."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import typer

from hooked_whisper import cli

COMMANDS: dict[str, Any] = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]

# Commands in which a flag means another thing than in most.
OTHERWISE: dict[str, set[str]] = {
    "--model": {"evaluate", "dashboard", "features", "steer", "explore"},  # the SAE's own when left out
    "--device": {"train"},  # not tried on mps
    "--language": {"transcribe", "patch", "attribute"},  # of the prompt
    "--where": set(),
    "--hook": {"harvest", "sensitivity", "train", "publish"},  # what to store, to train on, to choose
}


@pytest.mark.parametrize("flag", list(OTHERWISE))
def test_a_flag_says_the_same_wherever_it_means_the_same(flag: str) -> None:
    texts = {
        name: str(option.help)
        for name, command in COMMANDS.items()
        for option in command.params
        if flag in option.opts and hasattr(option, "help")
    }
    usual, times = Counter(texts.values()).most_common(1)[0]
    assert times > 1
    assert {name for name, text in texts.items() if text != usual} == OTHERWISE[flag], texts
