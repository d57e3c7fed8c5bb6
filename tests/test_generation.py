"""Generation through the adapter, token for token against transformers' own; hooks at each step."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hooked_whisper import GenerationError, HookedWhisper
from hooked_whisper.checkpoints import load_checkpoint, to_transformers
from hooked_whisper.speech import clips

LANGUAGES = ("en", "es", "fr", "it", "ru")


@pytest.fixture(scope="module")
def reference() -> Any:
    return to_transformers(load_checkpoint("openai/whisper-base"))


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def same_rows(ours: Tensor, theirs: Tensor) -> bool:
    return ours.tolist() == theirs.tolist()


@pytest.mark.slow
@pytest.mark.parametrize("language", LANGUAGES)
def test_greedy_is_token_for_token_transformers(whisper_base: HookedWhisper, reference: Any, language: str) -> None:
    """Five of each language; `python -m benchmarks.parity` compares all hundred."""
    mel = whisper_base.to_mel([clip.path for clip in clips(language=language)[1::4]])
    assert len(mel) == 5
    options = {"language": language, "task": "transcribe"}
    assert same_rows(whisper_base.generation_adapter().generate(mel, **options), reference.generate(mel, **options))


@pytest.mark.slow
@pytest.mark.parametrize("language", LANGUAGES)
def test_beams_and_timestamps_are_token_for_token_transformers(
    whisper_base: HookedWhisper, reference: Any, language: str
) -> None:
    mel = whisper_base.to_mel([clip.path for clip in clips(language=language)[:1]])  # benchmarks.parity takes 20 clips
    adapter = whisper_base.generation_adapter()
    options: dict[str, Any] = {"language": language, "task": "transcribe", "num_beams": 5}
    assert same_rows(adapter.generate(mel, **options), reference.generate(mel, **options))
    options = {"language": language, "task": "transcribe", "return_timestamps": True}
    ours, theirs = adapter.generate(mel, **options), reference.generate(mel, **options)
    assert same_rows(ours, theirs)
    assert (ours >= whisper_base.tokenizer.timestamp_begin).any()


def test_translation_prompt_and_token_timestamps(whisper_base: HookedWhisper, reference: Any) -> None:
    mel = whisper_base.to_mel(clips(language="fr")[2].path)
    adapter = whisper_base.generation_adapter()
    prompt = torch.tensor(whisper_base.tokenizer.hf.get_prompt_ids("Conference desk."))
    for options in (
        {"language": "fr", "task": "translate"},
        {"language": "fr", "task": "transcribe", "prompt_ids": prompt},
        {"language": "fr", "task": "transcribe", "use_cache": False},
    ):
        assert same_rows(adapter.generate(mel, **options), reference.generate(mel, **options))
    options = {"language": "fr", "task": "transcribe", "return_token_timestamps": True}
    ours = adapter.generate(mel, **options)
    eager = to_transformers(load_checkpoint("openai/whisper-base"))
    eager.set_attn_implementation("eager")
    theirs = eager.generate(mel, **options)
    assert same_rows(ours["sequences"], theirs["sequences"])
    torch.testing.assert_close(ours["token_timestamps"], theirs["token_timestamps"], atol=0.021, rtol=0)


def test_sampling_follows_the_same_random_numbers(whisper_base: HookedWhisper, reference: Any) -> None:
    mel = whisper_base.to_mel(clips(language="en")[1].path)
    options: dict[str, Any] = {"language": "en", "task": "transcribe", "do_sample": True, "temperature": 0.8}
    rows = []
    for model in (whisper_base.generation_adapter(), reference):
        torch.manual_seed(3)
        rows.append(model.generate(mel, **options))
    assert same_rows(*rows)


EDITS = [
    "encoder.blocks.2.hook_resid_post",
    "encoder.blocks.1.attn.hook_pattern",
    "encoder.hook_out",
    "decoder.blocks.1.hook_resid_mid",
    "decoder.blocks.3.attn.hook_v",
    "decoder.blocks.3.attn.hook_z",
    "decoder.blocks.2.cross_attn.hook_k",
    "decoder.blocks.2.cross_attn.hook_v",
    "decoder.blocks.4.cross_attn.hook_pattern",
    "decoder.blocks.4.cross_attn.hook_attn_scores",
    "decoder.blocks.5.mlp.hook_post",
    "decoder.ln_final.hook_normalized",
]


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_under_cached_generation_gives_the_logits_of_one_teacher_forced_pass(
    whisper_base: HookedWhisper, name: str
) -> None:
    """The edit halves every second channel (or key), in place or not, so it does not depend on the position."""

    def edit(activation: Tensor, hook: Any) -> Tensor:
        changed = activation.clone()
        changed[..., ::2] *= 0.5
        return changed

    clip = clips(language="es")[4]
    mel = whisper_base.to_mel(clip.path)
    plain = whisper_base(mel, "", language="es")
    adapter = whisper_base.generation_adapter()
    with whisper_base.hooks(fwd_hooks=[(name, edit)]):
        out = adapter.generate(
            mel,
            language="es",
            task="transcribe",
            max_new_tokens=6,
            return_dict_in_generate=True,
            output_logits=True,
        )
        prompt = whisper_base.tokenizer.prompt("es")
        tokens = out.sequences[0].tolist()
        tokens = tokens if tokens[0] == whisper_base.tokenizer.sot else prompt + tokens
        forced = whisper_base(mel, torch.tensor([tokens]))
    stepwise = torch.stack(out.logits, dim=1)
    forced = forced[:, len(prompt) - 1 :][:, : stepwise.shape[1]]
    assert float((stepwise - forced).abs().max() / forced.abs().max()) < 1e-4
    assert float((plain[:, -1] - forced[:, 0]).abs().max()) > 1e-3  # the edit took


def test_what_hooks_see_at_each_step(whisper_base: HookedWhisper) -> None:
    """As documented: the prompt, then one position; all frames of the cross-attention; the encoder once."""
    seen: dict[str, list[tuple[int, ...]]] = {}

    def look(activation: Tensor, hook: Any) -> None:
        seen.setdefault(hook.name, []).append(tuple(activation.shape))

    names = [
        "encoder.hook_out",
        "decoder.blocks.0.hook_resid_pre",
        "decoder.blocks.0.attn.hook_k",
        "decoder.blocks.0.attn.hook_pattern",
        "decoder.blocks.0.cross_attn.hook_k",
        "hook_logits",
    ]
    mel = whisper_base.to_mel(clips(language="en")[0].path)
    with whisper_base.hooks(fwd_hooks=[(name, look) for name in names]):
        whisper_base.generation_adapter().generate(mel, language="en", task="transcribe", max_new_tokens=3)
    assert seen["encoder.hook_out"] == [(1, 1500, 512)]
    assert seen["decoder.blocks.0.hook_resid_pre"] == [(1, 4, 512), (1, 1, 512), (1, 1, 512)]
    assert seen["decoder.blocks.0.attn.hook_k"] == [(1, 4, 8, 64), (1, 1, 8, 64), (1, 1, 8, 64)]
    assert seen["decoder.blocks.0.attn.hook_pattern"] == [(1, 8, 4, 4), (1, 8, 1, 5), (1, 8, 1, 6)]
    assert seen["decoder.blocks.0.cross_attn.hook_k"] == [(1, 1500, 8, 64)] * 3
    assert seen["hook_logits"] == [(1, 1, 51865)] * 3


@pytest.mark.parametrize("leaf", ["hook_k", "hook_v"])
def test_an_edit_in_place_of_cached_frames_does_not_pile_up(whisper_base: HookedWhisper, leaf: str) -> None:
    """Cross-attention's keys are kept between steps: halving them in place must halve them once, not at every step."""

    def halve_in_place(activation: Tensor, hook: Any) -> None:
        activation.mul_(0.5)

    def halve(activation: Tensor, hook: Any) -> Tensor:
        return activation * 0.5

    mel = whisper_base.to_mel(clips(language="en")[2].path)
    rows = []
    for edit in (halve_in_place, halve):
        with whisper_base.hooks(fwd_hooks=[(f"decoder.blocks.*.cross_attn.{leaf}".replace("*", "3"), edit)]):
            out = whisper_base.generation_adapter().generate(
                mel,
                language="en",
                task="transcribe",
                max_new_tokens=6,
                return_dict_in_generate=True,
                output_logits=True,
            )
        rows.append(torch.stack(out.logits))
    torch.testing.assert_close(rows[0], rows[1], atol=1e-4, rtol=1e-4)


def test_observing_generation_changes_nothing(whisper_base: HookedWhisper) -> None:
    mel = whisper_base.to_mel(clips(language="ru")[0].path)
    adapter = whisper_base.generation_adapter()
    options: dict[str, Any] = {"language": "ru", "task": "transcribe", "return_dict_in_generate": True}
    plain = adapter.generate(mel, output_logits=True, max_new_tokens=5, **options)

    def look(activation: Tensor, hook: Any) -> None:
        pass

    names = whisper_base.resolve_names(None)
    with whisper_base.hooks(fwd_hooks=[(name, look) for name in names]):
        watched = adapter.generate(mel, output_logits=True, max_new_tokens=5, **options)
    assert all(torch.equal(a, b) for a, b in zip(plain.logits, watched.logits, strict=True))


def test_refused_options_and_missing_configuration(whisper_base: HookedWhisper) -> None:
    mel = whisper_base.to_mel(clips(language="en")[0].path)
    with pytest.raises(GenerationError, match="refused these options"):
        whisper_base.generation_adapter().generate(mel, language="xx")
    bare = HookedWhisper(whisper_base.cfg)
    with pytest.raises(GenerationError, match="no generation configuration"):
        bare.generation_adapter()


def test_an_error_in_a_hook_leaves_no_window_behind(whisper_base: HookedWhisper) -> None:
    """While the language is detected, the encoder has run, edited, and the decoder has not."""
    path = clips("it")[0].path
    clean = whisper_base.transcribe(path, language="it", max_new_tokens=6)

    def boom(value: torch.Tensor, hook: Any) -> None:
        raise KeyError("boom")

    fired = []
    with (
        pytest.raises(KeyError, match="boom"),
        whisper_base.hooks([("encoder.hook_out", lambda v, hook: v * 0 + 7), ("decoder.hook_embed", boom)]),
    ):
        whisper_base.transcribe(path)
    with whisper_base.hooks([("encoder.hook_out", lambda v, hook: fired.append(1))]):
        assert whisper_base.transcribe(path, language="it", max_new_tokens=6) == clean
    assert fired == [1]


def test_threads_share_a_model(whisper_base: HookedWhisper) -> None:
    """Each thread gets its own clip's transcript, and what one generates does not silence another's cache."""
    paths = [clips(language, "vm-sorry")[0].path for language in ("en", "it")]
    alone = [whisper_base.transcribe(path, language="en", max_new_tokens=4) for path in paths]
    start = threading.Barrier(3)

    def transcripts(path: Path) -> list[Any]:
        start.wait()
        return [whisper_base.transcribe(path, language="en", max_new_tokens=4) for _ in range(3)]

    def caches() -> list[int]:
        start.wait()
        mel = whisper_base.to_mel(paths[0])[:, :, :200]
        names = "decoder.blocks.*.hook_resid_post"
        runs = [whisper_base.run_with_cache(mel, "", language="en", names_filter=names)[1] for _ in range(6)]
        return [len(cache) for cache in runs]

    with ThreadPoolExecutor(3) as pool:
        found = [pool.submit(transcripts, path) for path in paths]
        sizes = pool.submit(caches)
        assert [one.result() for one in found] == [[each] * 3 for each in alone]
        assert sizes.result() == [6] * 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt_lookup_num_tokens": 3}, "prompt_lookup_num_tokens=3 cannot be had here: leave it out"),
        ({"output_hidden_states": True}, "use hooks or run_with_cache"),
        ({"word_timestamps": True}, r"use transcribe\(..., word_timestamps=True\)"),
        ({"cache_implementation": "static"}, "a key/value cache of its own"),
        (
            {"suppress_tokens": [10**6]},
            "holds what is no token: expected whole numbers from 0 to 51864",
        ),
        ({"prompt_ids": torch.tensor([50361, 10**6])}, "prompt_ids holds what is no token"),
        ({"prompt_ids": [1, 2]}, "prompt_ids is a tensor of token ids, got list"),
        ({"decoder_input_ids": torch.tensor([[1.5]])}, "decoder_input_ids holds what is no token"),
        ({"num_beams": "2"}, "num_beams must be a whole number of at least 1, got '2'"),
        ({"language": 5}, "language is a name or a code, .*, got 5"),
    ],
)
def test_options_that_cannot_be_had_say_what_to_do(whisper_base: HookedWhisper, options: Any, message: str) -> None:
    with pytest.raises(GenerationError, match=message):
        whisper_base.generation_adapter().generate(torch.zeros(1, 80, 3000), **options)
