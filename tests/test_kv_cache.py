"""Decoding step by step under the key/value cache is one pass over all tokens, with and without edits."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from reference import ALL_OPTIONS
from small import small_config, small_inputs, small_model
from torch import Tensor

from hooked_whisper import HookedWhisper, StackConfig
from hooked_whisper.kv_cache import KeyValueCache

CFG = small_config(
    StackConfig(n_layers=1, n_heads=2, d_model=16, d_mlp=24, n_ctx=7),
    StackConfig(n_layers=2, n_heads=4, d_model=16, d_mlp=20, n_ctx=96),
)
STEPS = (4, 1, 1, 3, 1, 2)  # a prompt, single tokens, and a few at a time
N_POS = sum(STEPS)
OPTIONS = {"off": (), "on": ALL_OPTIONS}


@cache
def model_with(options: str) -> HookedWhisper:
    model = small_model(CFG)
    for option in OPTIONS[options]:
        getattr(model, f"set_{option}")(True)
    return model


@pytest.fixture
def model() -> HookedWhisper:
    return model_with("off")


@cache
def inputs(batch: int = 2, n_pos: int = N_POS) -> tuple[Tensor, Tensor]:
    """Encoder output and tokens."""
    mel, tokens = small_inputs(CFG, batch, n_pos)
    with torch.no_grad():
        return model_with("off").encode_mel(mel), tokens


@torch.no_grad()
def in_steps(
    model: HookedWhisper,
    frames: Tensor,
    tokens: Tensor,
    steps: tuple[int, ...],
    hooks: Callable[[int], list[Any]] = lambda start: [],
    past: KeyValueCache | None = None,
) -> Tensor:
    """Logits of all positions; `hooks` gives the hooks of the step that begins at a position."""
    past, logits, start = past or KeyValueCache(), [], 0
    for n in steps:
        with model.hooks(fwd_hooks=hooks(start)):
            logits.append(model.decode(tokens[:, start : start + n], frames, past=past))
        start += n
        assert past.get_seq_length() == start
    return torch.cat(logits, dim=1)


class EditByPosition:
    """Multiplies an activation by random numbers that belong to positions, whatever part of them a pass computes."""

    def __init__(self, name: str) -> None:
        leaf = name.rpartition(".")[2]
        self.cross = ".cross_attn." in name
        self.name = name
        self.by_query = leaf in ("hook_attn_scores", "hook_pattern")
        frames_only = ("hook_k", "hook_v") if self.cross else ("hook_cross_k_input", "hook_cross_v_input")
        self.whole = leaf in frames_only  # positions of the encoder: a step sees all of them

    def factors(self, x: Tensor, start: int) -> Tensor:
        axis = 2 if self.by_query else 1
        shape = list(x.shape)
        stop = start + shape[axis]
        if not self.whole:
            shape[axis] = N_POS
        if self.by_query and not self.cross:
            shape[3] = N_POS
        generator = torch.Generator().manual_seed(zlib.crc32(self.name.encode()))
        table = 0.5 + torch.rand(shape, generator=generator, dtype=x.dtype)
        if not self.whole:
            table = table.narrow(axis, start, stop - start)
        return table[..., : x.shape[3]] if self.by_query else table

    def hook(self, start: int) -> tuple[str, Callable[..., None]]:
        def in_place(x: Tensor, hook: Any) -> None:
            x.mul_(self.factors(x, start))

        return self.name, in_place


CASES = [
    pytest.param(options, name, id=f"{options}-{name}")
    for options in OPTIONS
    for name in model_with(options).hook_names("decoder.*") + ["hook_logits"]
    if ".blocks." not in name or ".blocks.1." in name
]


@pytest.mark.parametrize(("options", "name"), CASES)
def test_an_edit_takes_in_every_step_as_in_one_pass(options: str, name: str) -> None:
    model, edit = model_with(options), EditByPosition(name)
    frames, tokens = inputs()
    with torch.no_grad():
        plain = model.decode(tokens, frames)
        with model.hooks(fwd_hooks=[edit.hook(0)]):
            at_once = model.decode(tokens, frames)
    stepwise = in_steps(model, frames, tokens, STEPS, lambda start: [edit.hook(start)])
    torch.testing.assert_close(stepwise, at_once, rtol=0, atol=1e-9)
    assert not torch.allclose(at_once, plain, rtol=0, atol=1e-4)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("steps", [STEPS, (1,) * N_POS, (N_POS,), (5, 7)])
def test_steps_are_one_pass(options: str, steps: tuple[int, ...]) -> None:
    model = model_with(options)
    frames, tokens = inputs()
    with torch.no_grad():
        at_once = model.decode(tokens, frames)
    torch.testing.assert_close(in_steps(model, frames, tokens, steps), at_once, rtol=0, atol=1e-10)


def test_many_steps_outgrow_the_first_buffers(model: HookedWhisper) -> None:
    frames, tokens = inputs(1, 96)
    with torch.no_grad():
        at_once = model.decode(tokens, frames)
    torch.testing.assert_close(in_steps(model, frames, tokens, (60,) + (1,) * 36), at_once, rtol=0, atol=1e-10)


@pytest.mark.parametrize("leaf", ["hook_k", "hook_v"])
def test_frames_are_kept_as_projected(model: HookedWhisper, leaf: str) -> None:
    """A hook that leaves between two steps leaves nothing behind."""
    frames, tokens = inputs()
    past, untouched = KeyValueCache(), KeyValueCache()
    name = f"decoder.blocks.*.cross_attn.{leaf}"
    in_steps(model, frames, tokens, (2, 1), lambda start: [(name, lambda x, hook: x.zero_())], past)
    in_steps(model, frames, tokens, (2, 1), past=untouched)
    for layer in range(2):
        kept, expected = past.frames(layer), untouched.frames(layer)
        assert kept is not None
        assert expected is not None
        assert all(torch.equal(one, other) for one, other in zip(kept, expected, strict=True))


@torch.no_grad()
def test_hooks_see_new_positions_and_all_keys(model: HookedWhisper) -> None:
    """What the generation page says that a hook sees at a step."""
    frames, tokens = inputs()
    past = KeyValueCache()
    model.decode(tokens[:, :5], frames, past=past)
    kept, hooks, _ = model.get_caching_hooks("decoder.blocks.1.*")
    with model.hooks(fwd_hooks=hooks):
        model.decode(tokens[:, 5:6], frames, past=past)
    shapes = {name.removeprefix("decoder.blocks.1."): tuple(x.shape) for name, x in kept.items()}
    assert shapes["hook_resid_post"] == (2, 1, 16)
    assert shapes["attn.hook_k"] == shapes["attn.hook_v"] == (2, 1, 4, 4)
    assert shapes["attn.hook_pattern"] == (2, 4, 1, 6)
    assert shapes["cross_attn.hook_k"] == (2, 7, 4, 4)
    assert shapes["cross_attn.hook_pattern"] == (2, 4, 1, 7)


@torch.no_grad()
def test_a_step_that_was_stopped_can_be_taken_again(model: HookedWhisper) -> None:
    frames, tokens = inputs()
    past = KeyValueCache()
    model.decode(tokens[:, :5], frames, past=past)
    stopped = model._stoppable("decoder.blocks.1.hook_resid_mid", model.decode, tokens[:, 5:6], frames, past=past)
    assert stopped.shape == (2, 1, 16)
    assert past.get_seq_length() == 5
    step = model.decode(tokens[:, 5:6], frames, past=past)
    torch.testing.assert_close(step, model.decode(tokens[:, :6], frames)[:, 5:], rtol=0, atol=1e-10)


@torch.no_grad()
def test_padding_on_the_left_changes_nothing_in_any_step(model: HookedWhisper) -> None:
    frames, tokens = inputs(3)
    mask = torch.ones(3, N_POS, dtype=torch.bool)
    mask[1, :2] = mask[2, :3] = False
    positions = (mask.long().cumsum(-1) - 1).clamp(min=0)
    past, start = KeyValueCache(), 0
    for n in STEPS:
        new = slice(start, start + n)
        logits = model.decode(
            tokens[:, new], frames, past=past, token_mask=mask[:, : start + n], positions=positions[:, new]
        )
        for row in range(3):
            alone = model.decode(tokens[row : row + 1, : start + n][:, mask[row, : start + n]], frames[row : row + 1])
            real = mask[row, new]
            torch.testing.assert_close(logits[row, real], alone[0][-int(real.sum()) :], rtol=0, atol=1e-10)
        start += n


# What transformers' generate asks of a cache


@torch.no_grad()
def test_beams_follow_the_rows_they_continue(model: HookedWhisper) -> None:
    frames, tokens = inputs(3)
    frames = frames[:1].expand(3, -1, -1)  # three beams of one clip
    past = KeyValueCache()
    model.decode(tokens[:, :4], frames, past=past)
    rows = torch.tensor([2, 0, 0])
    past.reorder_cache(rows)
    step = model.decode(tokens[:, 4:5], frames, past=past)
    histories = torch.cat([tokens[rows, :4], tokens[:, 4:5]], dim=1)
    torch.testing.assert_close(step, model.decode(histories, frames)[:, 4:], rtol=0, atol=1e-10)


@torch.no_grad()
@pytest.mark.parametrize("how", ["repeat", "select"])
def test_rows_are_repeated_and_selected(model: HookedWhisper, how: str) -> None:
    frames, tokens = inputs()
    past = KeyValueCache()
    model.decode(tokens[:, :4], frames, past=past)
    rows = torch.tensor([0, 0, 1, 1] if how == "repeat" else [1])
    if how == "repeat":
        past.batch_repeat_interleave(2)
    else:
        past.batch_select_indices(rows)
    step = model.decode(tokens[rows, 4:5], frames[rows], past=past)
    torch.testing.assert_close(step, model.decode(tokens, frames)[rows, 4:5], rtol=0, atol=1e-10)


@torch.no_grad()
@pytest.mark.parametrize(("crop", "left"), [(3, 3), (-2, 4), (99, 6), (-99, 0)])
def test_cropping_forgets_the_last_tokens(model: HookedWhisper, crop: int, left: int) -> None:
    frames, tokens = inputs()
    past = KeyValueCache()
    model.decode(tokens[:, :6], frames, past=past)
    past.crop(crop)
    assert past.get_seq_length() == left
    other = (tokens + 1) % CFG.d_vocab
    step = model.decode(other[:, left : left + 2], frames, past=past)
    history = torch.cat([tokens[:, :left], other[:, left : left + 2]], dim=1)
    torch.testing.assert_close(step, model.decode(history, frames)[:, left:], rtol=0, atol=1e-10)


def test_an_empty_cache() -> None:
    past = KeyValueCache()
    assert past.get_seq_length() == 0
    assert past.get_max_cache_shape() == -1
    assert past.frames(0) is None
    past.crop(5)
    past.reorder_cache(torch.tensor([0]))
    assert past.get_seq_length() == 0
