"""The model's own contract: loading, forward and its outputs, what a cache run computes, devices, dtypes, languages."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from small import small_inputs, small_model
from torch import Tensor

from hooked_whisper import ConfigError, GenerationError, HookedWhisper, HookNameError, TextError
from hooked_whisper.checkpoints import load_checkpoint
from hooked_whisper.run import Run
from hooked_whisper.speech import clips


def count(model: HookedWhisper, prefix: str) -> tuple[list[str], list[tuple[Any, Any]]]:
    """Hooks that note which points of a stack fire."""
    fired: list[str] = []

    def note(activation: Tensor, hook: Any) -> None:
        fired.append(hook.name)

    return fired, [(lambda name: name.startswith(prefix), note)]


@pytest.mark.parametrize("return_type", ["logits", "loss", "both", None])
def test_return_types(return_type: Any) -> None:
    model = small_model()
    mel, tokens = small_inputs(model.cfg)
    out = model(mel, tokens, return_type=return_type)
    logits, loss = model(mel, tokens, return_type="both")
    assert logits.shape == (2, 5, model.cfg.d_vocab) and loss.ndim == 0 and loss > 0
    wanted = {"logits": logits, "loss": loss, None: None}
    if return_type != "both":
        assert out is None if return_type is None else torch.equal(out, wanted[return_type])
    each = model(mel, tokens, return_type="loss", loss_per_token=True)
    assert each.shape == tokens.shape
    with pytest.raises(ConfigError, match="Unknown return_type 'loose'"):
        inspect.unwrap(HookedWhisper.forward)(model, mel, tokens, return_type="loose")


def test_encoder_hooks_alone_never_run_the_decoder(whisper_base: HookedWhisper) -> None:
    fired, hooks = count(whisper_base, "decoder")
    clip = clips(language="en")[0]
    value, cache = whisper_base.run_with_cache(
        clip.path, names_filter=["encoder.blocks.1.hook_resid_post", "hook_mel"], fwd_hooks=hooks
    )
    assert value is None and fired == []
    assert sorted(cache.keys()) == ["encoder.blocks.1.hook_resid_post", "hook_mel"]
    fired, hooks = count(whisper_base, "encoder.blocks.2")
    whisper_base.run_with_cache(clip.path, names_filter="encoder.blocks.1.hook_resid_post", fwd_hooks=hooks)
    assert fired == []  # nor what lies past the last of the names
    logits, _ = whisper_base.run_with_cache(
        clip.path, "", language="en", names_filter="encoder.hook_out", return_type="logits"
    )
    assert logits.shape == (1, 4, 51865)


def test_scores_and_patterns_are_stored_only_when_asked_for() -> None:
    model = small_model()
    mel, tokens = small_inputs(model.cfg)
    _, cache = model.run_with_cache(mel, tokens)
    assert not any(name.endswith(("hook_pattern", "hook_attn_scores")) for name in cache.keys())  # noqa: SIM118
    _, named = model.run_with_cache(mel, tokens, names_filter="*hook_pattern")
    names = list(named.keys())
    assert len(names) == 2 + 3 + 3
    for name in names:
        torch.testing.assert_close(cache[name], named[name], atol=1e-12, rtol=1e-9)


def test_an_edited_pattern_is_stored_because_it_cannot_be_derived() -> None:
    model = small_model()
    mel, tokens = small_inputs(model.cfg)
    name = "decoder.blocks.1.cross_attn.hook_pattern"
    _, cache = model.run_with_cache(mel, tokens, fwd_hooks=[(name, lambda pattern, hook: torch.zeros_like(pattern))])
    assert float(cache[name].abs().max()) == 0
    assert float(cache["decoder.blocks.1.cross_attn.hook_attn_scores"].abs().max()) > 0
    assert float(cache["decoder.blocks.0.cross_attn.hook_pattern"].abs().max()) > 0


def test_backward_through_the_cache_run() -> None:
    model = small_model()
    mel, tokens = small_inputs(model.cfg)
    loss, cache = model.run_with_cache(
        mel, tokens, names_filter="encoder.blocks.0.hook_resid_post", incl_bwd=True, return_type="loss"
    )
    gradient = cache["encoder.blocks.0.hook_resid_post_grad"]
    assert gradient.shape == cache["encoder.blocks.0.hook_resid_post"].shape and float(gradient.abs().max()) > 0
    assert loss.ndim == 0
    with pytest.raises(ConfigError, match="incl_bwd calls backward on the output"):
        model.run_with_cache(mel, tokens, incl_bwd=True)


def test_gradients_reach_the_waveform(whisper_base: HookedWhisper) -> None:
    waveform = clips(language="en")[0].load().requires_grad_()
    whisper_base(waveform, "password", language="en", return_type="loss").backward()
    assert waveform.grad is not None and float(waveform.grad.abs().max()) > 0


def test_remove_batch_dim_and_device() -> None:
    model = small_model()
    mel, tokens = small_inputs(model.cfg, batch=1)
    _, cache = model.run_with_cache(mel, tokens, remove_batch_dim=True, device="cpu")
    assert cache["encoder.hook_out"].shape == (10, 16)
    assert cache["encoder.hook_pos_embed"].shape == (10, 16)
    mel, tokens = small_inputs(model.cfg, batch=2)
    with pytest.raises(ValueError, match="remove_batch_dim needs one clip, got 2"):
        model.run_with_cache(mel, tokens, remove_batch_dim=True)


def test_tokens_of_a_cache_can_be_fed_back(whisper_base: HookedWhisper) -> None:
    clip = clips(language="es")[1]
    with torch.no_grad():
        logits, cache = whisper_base.run_with_cache(clip.path, names_filter="hook_logits")
        again = whisper_base(clip.path, cache.tokens)
    assert torch.equal(logits, again)
    assert cache.languages == ["es"] and cache.text


def test_detect_language(whisper_base: HookedWhisper) -> None:
    chosen = [clips(language=language)[0] for language in ("fr", "ru")]
    with torch.no_grad():
        found = whisper_base.detect_language([clip.path for clip in chosen])
    assert [next(iter(row)) for row in found] == ["fr", "ru"]
    for row in found:
        assert len(row) == 99 and abs(sum(row.values()) - 1) < 1e-4
        assert list(row.values()) == sorted(row.values(), reverse=True)


def test_languages_missing_from_a_list_are_detected(whisper_base: HookedWhisper) -> None:
    chosen = [clips(language=language)[0] for language in ("fr", "ru")]
    with torch.no_grad():
        _, cache = whisper_base.run_with_cache(
            [clip.path for clip in chosen], "", language=["it", None], names_filter="hook_logits"
        )
    assert cache.languages == ["it", "ru"]


def test_half_precision_runs_and_is_near(whisper_base: HookedWhisper) -> None:
    checkpoint = load_checkpoint("openai/whisper-base")
    clip = clips(language="en")[2]
    with torch.no_grad():
        exact = whisper_base(clip.path, clip.text, language="en").softmax(-1)
        for dtype in ("bfloat16", "float16"):
            half = HookedWhisper.from_checkpoint(checkpoint, device="cpu", dtype=dtype)
            near, cache = half.run_with_cache(clip.path, clip.text, language="en", names_filter="encoder.hook_out")
            near = half(clip.path, clip.text, language="en").float().softmax(-1)
            assert float((exact - near).abs().mean(1).sum(-1)) < 0.2  # total variation over a vocabulary of 51,865
            assert cache["encoder.hook_out"].dtype == getattr(torch, dtype)
            agree = (exact.argmax(-1) == near.argmax(-1)).float().mean()
            assert float(agree) > 0.9


def test_bad_devices_dtypes_and_names(whisper_base: HookedWhisper) -> None:
    checkpoint = load_checkpoint("openai/whisper-base")
    with pytest.raises(ConfigError, match="Unknown device 'gpu0'"):
        HookedWhisper.from_checkpoint(checkpoint, device="gpu0")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="'cuda' is not available on this machine"):
            HookedWhisper.from_checkpoint(checkpoint, device="cuda")
    with pytest.raises(ConfigError, match="Unknown dtype 'int8'"):
        HookedWhisper.from_checkpoint(checkpoint, dtype="int8")
    with pytest.raises(HookNameError, match="hook_resid_post"):
        whisper_base.run_with_cache(clips()[0].path, names_filter="encoder.blocks.3.hook_resid_pots")


def test_a_model_without_tokenizer_or_generation() -> None:
    model = small_model()
    mel, _ = small_inputs(model.cfg)
    for attempt in (lambda: model(mel, "hello"), lambda: model.to_tokens("hello"), lambda: model.detect_language(mel)):
        with pytest.raises(TextError, match="tokenizer"):
            attempt()
    with pytest.raises(TextError, match="no tokenizer"):
        model(mel)
    with pytest.raises(GenerationError, match="no generation configuration"):
        model.generation_adapter()


COMPILED = """
import torch
from small import small_config, small_inputs, small_model

model = small_model(small_config(), dtype=torch.float32)
mel, tokens = small_inputs(model.cfg, dtype=torch.float32)
with torch.no_grad():
    plain = model(mel, tokens)
    decoder = torch.compile(model.decoder, backend="eager", fullgraph=True)
    encoder = torch.compile(model.encoder, backend="eager", fullgraph=True)
    assert torch.equal(decoder(tokens, encoder(mel)), plain)
print("the same")
"""


def test_compiled_stacks_agree(root: Path) -> None:
    """In a process of its own: the shape checks that tests run under cannot be compiled."""
    run = subprocess.run(
        [sys.executable, "-c", COMPILED],
        cwd=root,
        env={**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{root / 'tests'}"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.stdout == "the same\n", run.stderr


def test_a_run_starts_empty() -> None:
    run = Run()
    assert run.tokens is None and run.prompt_lengths == [] and run.frame_mask is None


def test_single_tokens_and_their_directions(whisper_base: HookedWhisper) -> None:
    the, spaced = whisper_base.to_single_token("the"), whisper_base.to_single_token(" the")
    assert the != spaced
    assert whisper_base.to_string([spaced]) == " the"
    assert torch.equal(whisper_base.tokens_to_residual_directions(" the"), whisper_base.W_U[:, spaced])
    assert whisper_base.tokens_to_residual_directions(torch.tensor([[the, spaced]])).shape == (1, 2, 512)
    with pytest.raises(TextError, match="is 2 tokens, .*: give one; mind the space"):
        whisper_base.to_single_token(" conference call")
