"""Contrasts: both sides are what the model would be given, and what does not pair is refused."""

from __future__ import annotations

import pytest
import torch
from small import small_config, small_inputs

from hooked_whisper import AnalysisError, HookedWhisper
from hooked_whisper.analysis.contrast import Contrast, ModelInput
from hooked_whisper.speech import clips


def test_both_sides_are_what_the_model_is_given(whisper_base: HookedWhisper) -> None:
    clean, corrupted = (clips(language, "vm-sorry")[0].path for language in ("en", "fr"))
    pair = Contrast.of(whisper_base, clean=clean, corrupted=corrupted, text=" Sorry", language="en")
    assert (len(pair), pair.prompt_length) == (1, 4)
    with torch.no_grad():
        for side, path in ((pair.clean, clean), (pair.corrupted, corrupted)):
            assert torch.equal(side.logits(whisper_base), whisper_base(path, " Sorry", language="en"))


def test_text_can_be_what_differs(whisper_base: HookedWhisper) -> None:
    path = clips("en", "vm-sorry")[0].path
    pair = Contrast.of(whisper_base, clean=path, text=" yes", corrupted_text=" no", language="en")
    assert pair.clean.mel is pair.corrupted.mel
    assert (pair.clean.tokens != pair.corrupted.tokens).sum() == 1
    whole = pair.clean.tokens.tolist()
    again = Contrast.of(whisper_base, clean=path, text=whole, corrupted_text=" no", language="en")
    assert torch.equal(again.clean.tokens, pair.clean.tokens)


def test_masks_tell_where_a_clip_ends(whisper_base: HookedWhisper) -> None:
    chosen = clips("en")[:2]
    pair = Contrast.of(whisper_base, clean=chosen[0].path, corrupted=chosen[1].path, text=" yes", language="en")
    for side, clip in ((pair.clean, chosen[0]), (pair.corrupted, chosen[1])):
        assert side.frame_mask.sum() == pytest.approx(clip.seconds * 50, abs=1)
        one = ModelInput.of(whisper_base, clip.path, " yes", language="en")
        assert torch.equal(one.mel, side.mel)
        assert torch.equal(one.tokens, side.tokens)
        assert torch.equal(one.frame_mask, side.frame_mask)
        assert one.token_mask.all()
    assert ModelInput.of(whisper_base, pair.clean.mel, " yes", language="en").frame_mask is None


def test_some_of_the_clips(whisper_base: HookedWhisper) -> None:
    paths = [clip.path for clip in clips("en")[:3]]
    pair = Contrast.of(
        whisper_base, clean=paths, corrupted=[paths[1], paths[2], paths[0]], text=["a", "a b c", "a"], language="en"
    )
    some = pair.select([2, 0])
    assert torch.equal(some.clean.mel, pair.clean.mel[[2, 0]])
    assert torch.equal(some.token_mask, pair.token_mask[[2, 0]])
    assert pair.clean.frame_mask is not None
    assert torch.equal(some.clean.frame_mask, pair.clean.frame_mask[[2, 0]])
    assert not some.token_mask.all()


@pytest.mark.parametrize("clips", [[2], [-1], []])
def test_clips_that_are_not_there(clips: list[int]) -> None:
    side = ModelInput(*small_inputs(small_config()))
    pair = Contrast(side, side, torch.ones(2, 5, dtype=torch.bool), (1, 1))
    for one in (pair, side):
        with pytest.raises(AnalysisError, match=r"There is no clip .*: there are 2|No clips were chosen"):
            one.select(clips)


@pytest.mark.parametrize(
    ("frames", "n_pos", "lengths", "message"),
    [
        (16, 5, (1, 1), r"side's mel have shape \(2, 6, 20\), the corrupted one's \(2, 6, 16\)"),
        (20, 4, (1, 1), "side's tokens have shape"),
        (20, 5, (1,), "1 lengths of prompts were given"),
    ],
)
def test_sides_of_other_shapes_are_refused(frames: int, n_pos: int, lengths: tuple[int, ...], message: str) -> None:
    mel, tokens = small_inputs(small_config())
    other = ModelInput(mel[..., :frames], tokens[:, :n_pos])
    with pytest.raises(AnalysisError, match=message):
        Contrast(ModelInput(mel, tokens), other, torch.ones(2, 5, dtype=torch.bool), lengths)


def test_what_does_not_pair_is_refused(whisper_base: HookedWhisper) -> None:
    a, b = (clip.path for clip in clips("en")[:2])
    for options, message in (
        ({"clean": a}, "Nothing differs: pass corrupted=, corrupted_text=, or both"),
        (
            {"clean": a, "corrupted": a, "language": "en"},
            "Nothing differs: both sides have the same sound and the same",
        ),
        ({"clean": [a, b], "corrupted": [a], "language": "en"}, "expected a corrupted clip for each clean one"),
        ({"clean": a, "corrupted": b}, "No language was given: pass language="),
        (
            {"clean": a, "text": "one", "corrupted_text": "one and two", "language": "en"},
            r"The clean text is \[5\] tokens long, the corrupted one \[7\], prompt included",
        ),
    ):
        with pytest.raises(AnalysisError, match=message):
            Contrast.of(whisper_base, **options)
    ragged = [*whisper_base.tokenizer.prompt("en", "transcribe", False)]  # type: ignore[union-attr]
    pair = Contrast.of(whisper_base, clean=[a, b], corrupted=[b, a], text=[ragged, [*ragged[:1], *ragged[3:], 5]])
    with pytest.raises(AnalysisError, match="prompts are of different lengths"):
        _ = pair.prompt_length
