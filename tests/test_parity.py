"""whisper-base on real speech against transformers: every layer, every decoder length, padded batches, float32."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from hooked_whisper import HookedWhisper
from hooked_whisper.checkpoints import load_checkpoint, to_transformers
from hooked_whisper.speech import clips

LANGUAGES = ("en", "es", "fr", "it", "ru")
CLIPS_EACH = 2  # benchmarks.parity takes four of each language
LENGTHS = (1, 2, 3, 7, 64, 448)
TOLERANCE = 1e-4  # of the largest activation


@pytest.fixture(scope="module")
def reference() -> Any:
    return to_transformers(load_checkpoint("openai/whisper-base"))


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def relative(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max() / theirs.abs().max())


def layer_outputs(layers: Any, call: Any) -> tuple[list[Tensor], Any]:
    """What each of transformers' layers returns during `call`."""
    seen: list[Tensor] = []

    def keep(_module: Any, _inputs: Any, output: Any) -> None:
        seen.append(output[0] if isinstance(output, tuple) else output)

    handles = [layer.register_forward_hook(keep) for layer in layers]
    try:
        return seen, call()
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.slow
@pytest.mark.parametrize("language", LANGUAGES)
def test_every_layer_and_length(whisper_base: HookedWhisper, reference: Any, language: str) -> None:
    chosen = clips(language=language)[:CLIPS_EACH]
    waveforms = [clip.load() for clip in chosen]
    assert len({len(w) for w in waveforms}) == CLIPS_EACH  # unequal lengths: the batch is padded
    mel = whisper_base.to_mel(waveforms)
    theirs, encoded = layer_outputs(reference.model.encoder.layers, lambda: reference.model.encoder(mel))

    names = [f"encoder.blocks.{i}.hook_resid_post" for i in range(6)]
    _, cache = whisper_base.run_with_cache(waveforms, names_filter=[*names, "encoder.hook_out"])
    for name, layer in zip(names, theirs, strict=True):
        assert relative(cache[name], layer) < TOLERANCE, name
    frames = cache["encoder.hook_out"]
    assert relative(frames, encoded.last_hidden_state) < TOLERANCE

    names = [f"decoder.blocks.{i}.hook_resid_post" for i in range(6)]
    generator = torch.Generator().manual_seed(len(language))
    for length in LENGTHS:
        tokens = torch.randint(0, 51865, (CLIPS_EACH, length), generator=generator)
        tokens[:, 0] = whisper_base.tokenizer.sot  # so that the tokens are taken whole
        theirs, out = layer_outputs(
            reference.model.decoder.layers,
            functools.partial(reference, encoder_outputs=(frames,), decoder_input_ids=tokens),
        )
        kept, hooks, _ = whisper_base.get_caching_hooks(names)
        with whisper_base.hooks(fwd_hooks=hooks):
            logits = whisper_base.decode(tokens, frames)
        for name, layer in zip(names, theirs, strict=True):
            assert relative(kept[name], layer) < TOLERANCE, (name, length)
        assert relative(logits, out.logits) < TOLERANCE, length


def test_forward_with_text_given_and_left_out(whisper_base: HookedWhisper, reference: Any) -> None:
    chosen = [clips(language=language)[5] for language in ("en", "ru")]
    waveforms = [clip.load() for clip in chosen]
    mel = whisper_base.to_mel(waveforms)
    for text in ([clip.text for clip in chosen], None, ""):
        logits, cache = whisper_base.run_with_cache(waveforms, text, language=["en", "ru"], names_filter="hook_logits")
        theirs = reference(input_features=mel, decoder_input_ids=cache.tokens).logits
        for ours, right, mask in zip(logits, theirs, cache.token_mask, strict=True):
            assert relative(ours[mask], right[mask]) < TOLERANCE
        if text is None:
            generated = reference.generate(mel, language=["en", "ru"], task="transcribe")
            for row, mask, start, own in zip(
                cache.tokens, cache.token_mask, cache.prompt_lengths, generated, strict=True
            ):
                spoken = row[mask][start:].tolist()
                assert spoken == [token for token in own.tolist() if token != whisper_base.tokenizer.eot]
                assert len(spoken) > 3


def test_one_clip_is_the_same_alone_and_in_a_padded_batch(whisper_base: HookedWhisper) -> None:
    chosen = [clips(language="it")[i] for i in (0, 7)]
    texts = [clip.text for clip in chosen]
    together = whisper_base([clip.load() for clip in chosen], texts, language="it")
    for i, clip in enumerate(chosen):
        alone = whisper_base(clip.load(), clip.text, language="it")
        assert relative(together[i : i + 1, : alone.shape[1]], alone) < 1e-5
