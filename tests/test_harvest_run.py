"""Rows are what the hooks hold: compared with the model's own cache, clip by clip."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from small import DECODER, ENCODER, small_config, small_model
from torch import Tensor

from hooked_whisper import HookedWhisper
from hooked_whisper.errors import ConfigError, CorpusError, HookNameError
from hooked_whisper.saes.corpus_item import CorpusItem
from hooked_whisper.saes.harvest_run import BlockRows, Runner, RunOptions, position_of, row_width
from hooked_whisper.speech import clips

WINDOW = ENCODER.n_ctx * 320  # samples of a small model's window: 0.2 s
LENGTHS = (1_000, WINDOW, 320, 321, 2 * WINDOW + 700, 1)


@pytest.fixture(scope="module")
def small() -> HookedWhisper:
    return small_model(dtype=torch.float32)


@pytest.fixture(scope="module")
def sounds() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [0.1 * torch.randn(n, generator=generator) for n in LENGTHS]


ITEMS = [CorpusItem(str(n), "") for n in LENGTHS]


def run(model: HookedWhisper, hooks: list[str], sounds: list[Tensor], **options) -> BlockRows:
    names = model.resolve_names(hooks)
    return Runner(model, names, RunOptions(**options)).run(ITEMS[: len(sounds)], sounds)


def expected(model: HookedWhisper, hooks: list[str], sounds: list[Tensor], rate: int = 50) -> dict[str, Tensor]:
    """Rows of clips, one 0.2 s window after the other, from the cache."""
    found: dict[str, list[Tensor]] = {hook: [] for hook in hooks}
    for piece in (piece for sound in sounds for piece in sound.split(WINDOW)):
        _, cache = model.run_with_cache(piece, [0], names_filter=hooks, return_type=None)
        for hook in hooks:
            value = cache[hook].transpose(1, 2) if hook == "hook_mel" else cache[hook]
            found[hook].append(value[0, : -(-len(piece) * rate // 16_000)].flatten(1))
    return {hook: torch.cat(rows) for hook, rows in found.items()}


FRAME_HOOKS = [
    "encoder.hook_conv2",
    "encoder.blocks.0.attn.hook_k",
    "encoder.blocks.1.attn.hook_z",
    "encoder.blocks.1.ln2.hook_scale",
    "encoder.blocks.1.mlp.hook_post",
    "encoder.blocks.1.hook_resid_post",
    "encoder.hook_out",
    "decoder.blocks.1.cross_attn.hook_v",
]


@pytest.mark.parametrize("batch_size", [1, 4])
def test_rows_of_frames(small: HookedWhisper, sounds: list[Tensor], batch_size: int) -> None:
    found = run(small, FRAME_HOOKS, sounds, batch_size=batch_size)
    assert found.n_rows == [4, 10, 1, 2, 23, 1]
    assert found.n_windows == 8
    torch.testing.assert_close(found.rows, expected(small, FRAME_HOOKS, sounds), rtol=1e-4, atol=1e-5)
    assert found.per_row["frame"].tolist() == [i for n in found.n_rows for i in range(n)]
    assert found.per_row["time"].tolist() == pytest.approx([i / 50 for n in found.n_rows for i in range(n)])
    long = found.per_row["position"][17:40].tolist()
    assert long == [*range(10), *range(10), *range(3)]
    windows = [[window] * n for window, n in enumerate((4, 10, 1, 2, 10, 10, 3, 1))]
    assert found.per_row["window"].tolist() == [window for of_piece in windows for window in of_piece]


def test_rows_of_the_spectrogram(small: HookedWhisper, sounds: list[Tensor]) -> None:
    hooks = ["hook_mel", "encoder.hook_conv1"]
    found = run(small, hooks, sounds)
    assert found.n_rows == [7, 20, 2, 3, 45, 1]
    torch.testing.assert_close(found.rows, expected(small, hooks, sounds, rate=100), rtol=1e-4, atol=1e-5)
    assert found.per_row["time"][:30].tolist() == pytest.approx([i / 100 for n in (7, 20, 2, 1) for i in range(n)])
    assert found.per_row["position"][32:77].tolist() == [*range(20), *range(20), *range(5)]


def test_packed_clips_are_one_sound(small: HookedWhisper) -> None:
    generator = torch.Generator().manual_seed(0)
    sounds = [0.1 * torch.randn(n, generator=generator) for n in (1_000, 640, 900)]  # 4, 2 and 3 frames of 10
    found = run(small, ["encoder.hook_out"], sounds, packing="windows")
    assert (found.n_windows, found.n_rows) == (1, [4, 2, 3])
    together = torch.cat([F.pad(sound, (0, -len(sound) % 320)) for sound in sounds])
    torch.testing.assert_close(found.rows["encoder.hook_out"], small.encode(together)[0, :9])
    assert found.per_row["position"].tolist() == list(range(9))
    assert found.per_row["frame"].tolist() == [0, 1, 2, 3, 0, 1, 0, 1, 2]
    alone = run(small, ["encoder.hook_out"], sounds)
    assert alone.n_windows == 3
    assert not torch.allclose(alone.rows["encoder.hook_out"], found.rows["encoder.hook_out"], atol=0.1)


def test_true_length(small: HookedWhisper, whisper_base: HookedWhisper) -> None:
    del small  # its windows are shorter than half a second
    clip = clips("it", key="vm-sorry")[0].load()
    frames = -(-len(clip) // 320)
    found = run(whisper_base, ["encoder.hook_out"], [clip], window="true_length").rows["encoder.hook_out"]
    upto = -(-frames // 25) * 25
    mel = whisper_base.log_mel([clip], 2 * upto)
    torch.testing.assert_close(found, whisper_base.encode_mel(mel)[0, :frames], rtol=1e-4, atol=1e-4)
    full = whisper_base.encode(clip)[0, :frames]
    assert not torch.allclose(found, full, atol=0.1)
    # What the documentation says: other activations, but of the same sound.
    assert F.cosine_similarity(found, full).median() > 0.9


def test_several_kinds_of_batches_give_the_same_rows(small: HookedWhisper, sounds: list[Tensor]) -> None:
    whole = run(small, ["encoder.hook_out"], sounds, batch_size=16)
    for options in ({"batch_size": 1}, {"batch_size": 3, "window": "true_length"}):
        found = run(small, ["encoder.hook_out"], sounds, **options)
        torch.testing.assert_close(found.rows, whole.rows, rtol=1e-4, atol=1e-5)


DECODER_HOOKS = ["decoder.blocks.0.cross_attn.hook_z", "decoder.blocks.2.hook_resid_post"]


def speech_items(*keys: str) -> tuple[list[CorpusItem], list[Tensor]]:
    found = [clips(language, key="vm-sorry")[0] for language in keys]
    return [CorpusItem(c.language, c.path, c.text, c.language) for c in found], [clip.load() for clip in found]


def test_rows_of_tokens(whisper_base: HookedWhisper) -> None:
    items, sounds = speech_items("en", "fr")
    names = whisper_base.resolve_names(DECODER_HOOKS)
    options = RunOptions(window="true_length")  # of the two, the encoder is the part that takes long
    found = Runner(whisper_base, names, options).run(items, sounds)
    start = 0
    for item, sound, count in zip(items, sounds, found.n_rows, strict=True):
        mel = whisper_base.log_mel([sound], -(-len(sound) // 8_000) * 50)
        _, cache = whisper_base.run_with_cache(mel, item.text, language=item.language, names_filter=names)
        for hook in names:
            torch.testing.assert_close(
                found.rows[hook][start : start + count], cache[hook][0, 4:].flatten(1), rtol=1e-3, atol=1e-3
            )
        tokens = whisper_base.to_tokens(item.text)
        assert found.per_row["token"][start : start + count].tolist() == tokens
        assert "".join(found.per_row["string"][start : start + count].tolist()).strip() == item.text
        assert found.per_row["position"][start : start + count].tolist() == list(range(4, 4 + count))
        start += count


def test_rows_of_the_prompt(whisper_base: HookedWhisper) -> None:
    items, sounds = speech_items("en")
    hooks = ["decoder.hook_embed"]
    runner = Runner(whisper_base, hooks, RunOptions(window="true_length", prompt=True))
    found = runner.run(items, sounds)
    tokens = whisper_base.to_tokens(items[0].text)
    assert found.n_rows == [4 + len(tokens)] == [runner.count_rows(items[0], len(sounds[0]))]
    assert found.per_row["string"][:4].tolist() == [
        "<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>",
    ]  # fmt: skip
    assert torch.equal(found.rows["decoder.hook_embed"][4:], whisper_base.decoder.W_E[tokens])


def test_rows_of_the_models_own_transcript(whisper_base: HookedWhisper) -> None:
    item = CorpusItem("x", "")
    sound = clips("en", key="vm-sorry")[0].load()
    found = Runner(whisper_base, DECODER_HOOKS[1:], RunOptions(text="own")).run([item], [sound])
    assert "".join(found.per_row["string"].tolist()) == " I'm sorry I did not understand your response."


def test_nothing_after_the_deepest_hook_is_computed(small: HookedWhisper, sounds: list[Tensor]) -> None:
    seen: list[str] = []
    handles = [
        module.register_forward_hook(lambda *_, name=name: seen.append(name))
        for name, module in [
            ("encoder 0", small.encoder.blocks[0]),
            ("encoder 1", small.encoder.blocks[1]),
            ("decoder 0", small.decoder.blocks[0]),
            ("decoder 1", small.decoder.blocks[1]),
        ]
    ]
    run(small, ["encoder.blocks.0.hook_resid_post", "encoder.blocks.0.hook_resid_pre"], sounds[:1])
    assert seen == []  # stopped inside block 0
    run(small, ["encoder.blocks.0.mlp.hook_post", "encoder.blocks.1.hook_resid_pre"], sounds[:1])
    assert seen == ["encoder 0"]
    seen.clear()
    run(small, ["encoder.hook_out", "decoder.blocks.0.cross_attn.hook_k"], sounds[:1])
    assert seen == ["encoder 0", "encoder 1"]
    for handle in handles:
        handle.remove()


def test_widths(small: HookedWhisper) -> None:
    widths = row_width(small, [*FRAME_HOOKS, "hook_mel", "encoder.blocks.0.attn.hook_z"])
    assert widths["encoder.hook_out"] == 16
    assert widths["encoder.blocks.0.attn.hook_z"] == 2 * 8
    assert widths["encoder.blocks.1.mlp.hook_post"] == 24
    assert widths["encoder.blocks.1.ln2.hook_scale"] == 1
    assert widths["hook_mel"] == 6
    assert row_width(small, ["decoder.blocks.2.mlp.hook_pre", "hook_logits"]) == {
        "decoder.blocks.2.mlp.hook_pre": DECODER.d_mlp,
        "hook_logits": 31,
    }


def test_widths_where_heads_have_inputs_of_their_own() -> None:
    model = small_model(small_config(), dtype=torch.float32)
    model.set_use_split_qkv_input(True)
    assert row_width(model, ["encoder.blocks.0.hook_q_input"]) == {"encoder.blocks.0.hook_q_input": 32}


NO_ROWS = ["encoder.blocks.0.attn.hook_pattern", "decoder.blocks.0.attn.hook_attn_scores", "encoder.hook_pos_embed"]


def test_kinds_of_rows() -> None:
    assert position_of(["encoder.hook_out", "decoder.blocks.0.cross_attn.hook_k"]) == "frame"
    assert position_of(["hook_mel", "encoder.hook_conv1"]) == "mel_frame"
    assert position_of(["decoder.blocks.0.attn.hook_k", "decoder.hook_embed"]) == "token"
    for hook in NO_ROWS:
        with pytest.raises(ConfigError, match=rf"'{hook}' has the axes .*: expected one of frames or tokens"):
            position_of([hook])
    with pytest.raises(ConfigError, match=r"\('encoder.hook_out' for each frame, 'decoder.*' for each token"):
        position_of(["encoder.hook_out", "decoder.blocks.0.hook_resid_post"])


@pytest.mark.parametrize(
    ("hook", "options", "message"),
    [
        ("encoder.hook_out", {"packing": "tight"}, "Unknown packing 'tight': expected 'none' or 'windows'"),
        ("encoder.hook_out", {"window": "short"}, "Unknown window 'short': expected 'full' or 'true_length'"),
        ("encoder.hook_out", {"text": "none"}, "Unknown text 'none': expected 'corpus' or 'own'"),
        ("encoder.hook_out", {"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ("encoder.hook_out", {"text": "own"}, "text= and prompt= are about decoder tokens"),
        ("encoder.hook_out", {"prompt": True}, "text= and prompt= are about decoder tokens"),
        ("decoder.hook_embed", {"packing": "windows"}, "harvest decoder hooks with packing='none'"),
        ("decoder.hook_embed", {}, "Rows of tokens need the model's tokenizer, and this model has none"),
    ],
)
def test_options_that_do_not_fit(small: HookedWhisper, hook: str, options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Runner(small, [hook], RunOptions(**options))


def test_hooks_that_do_not_exist(small: HookedWhisper) -> None:
    with pytest.raises(HookNameError, match="Did you mean"):
        run(small, ["encoder.hook_ot"], [])


@pytest.mark.parametrize(
    ("item", "n_samples", "message"),
    [
        (CorpusItem("x", ""), 1_000, "Clip 'x' has no text to feed the decoder: give it one, or use text='own'"),
        (CorpusItem("x", "", "hi"), 480_001, "Clip 'x' is longer than a window, so its text does not fit"),
        (CorpusItem("x", "", "hi " * 600), 1_000, "Clip 'x' has a text of .* tokens, prompt included: .* holds 448"),
        (CorpusItem("x", "", "hi", "Klingon"), 1_000, "Clip 'x': .*Klingon"),
    ],
)
def test_clips_that_cannot_be_fed(whisper_base: HookedWhisper, item: CorpusItem, n_samples: int, message: str) -> None:
    runner = Runner(whisper_base, ["decoder.hook_embed"], RunOptions())
    with pytest.raises(CorpusError, match=message):
        runner.check_clip(item, n_samples)
    own = Runner(whisper_base, ["decoder.hook_embed"], RunOptions(text="own"))
    if item.language is None:
        own.check_clip(item, n_samples)


def test_rows_are_counted_without_the_model(whisper_base: HookedWhisper, small: HookedWhisper) -> None:
    runner = Runner(small, ["encoder.hook_out"], RunOptions())
    assert [runner.count_rows(item, n) for item, n in zip(ITEMS, LENGTHS, strict=True)] == [4, 10, 1, 2, 23, 1]
    tokens = Runner(whisper_base, ["decoder.hook_embed"], RunOptions())
    hello = CorpusItem("x", "", "hello there", "en")
    assert tokens.count_rows(hello, 1_000) == len(whisper_base.to_tokens("hello there"))
    own = Runner(whisper_base, ["decoder.hook_embed"], RunOptions(text="own"))
    assert own.count_rows(hello, 1_000) is None


def test_no_clips(small: HookedWhisper) -> None:
    found = run(small, ["encoder.hook_out"], [])
    assert (found.rows, found.n_rows, found.n_windows) == ({}, [], 0)
