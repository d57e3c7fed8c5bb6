"""Whisper with a window of fewer seconds: the same weights at a fraction of the cost, for runs by the hundred."""

from __future__ import annotations

from dataclasses import replace

import torch

from hooked_whisper.errors import ConfigError
from hooked_whisper.mel import FRAMES_PER_SECOND
from hooked_whisper.model import HookedWhisper


def with_window(model: HookedWhisper, seconds: int) -> HookedWhisper:
    """The same weights, shared, with a window of `seconds` in the place of 30: 50 encoder frames a second.

    Whisper was trained on windows of 30 s and pads shorter speech with silence, which its encoder attends to, so
    activations differ from the model's own; transcripts of clips that fit mostly do not. Say so beside what was
    measured with it. Hooks and SAEs that are attached to `model` do not come along.

    Raises:
        ConfigError: fewer seconds than 1, or more than the model's own window has.
    """
    own = model.cfg.encoder.n_ctx // FRAMES_PER_SECOND
    if not 1 <= seconds <= own:
        raise ConfigError(f"A window of {seconds} s: expected 1 to {own}, the model's own.")
    n_frames = seconds * FRAMES_PER_SECOND
    cfg = model.cfg.with_options(encoder=replace(model.cfg.encoder, n_ctx=n_frames))
    with torch.device("meta"):
        shorter = HookedWhisper(cfg, model.tokenizer, model.generation_config)
    shorter.log_mel = model.log_mel
    state = dict(model.state_dict())
    state["encoder.W_pos"] = state["encoder.W_pos"][:n_frames]
    shorter.load_state_dict(state, assign=True)
    if model.decoder.unembed.weight is model.decoder.W_E:
        shorter.decoder.unembed.weight = shorter.decoder.W_E  # one parameter, as in the model
    shorter.source = model.source
    shorter.setup()
    return shorter.eval()
