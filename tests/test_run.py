"""What one pass was about, for some of its clips and on another device."""

from __future__ import annotations

import torch

from hooked_whisper.run import Run


def filled() -> Run:
    return Run(
        frame_mask=torch.tensor([[True, True], [True, False], [False, False]]),
        n_samples=[640, 320, 1],
        tokens=torch.tensor([[1, 2], [3, 4], [5, 6]]),
        token_mask=torch.tensor([[True, True], [True, False], [True, True]]),
        prompt_lengths=[1, 2, 1],
        languages=["en", "fr", None],
        texts=["a", "b", "c"],
        hooked=frozenset({"hook_mel"}),
    )


def test_some_clips_with_all_that_belongs_to_them() -> None:
    some = filled().select([2, 0])
    assert some.frame_mask is not None and some.frame_mask.tolist() == [[False, False], [True, True]]
    assert some.tokens is not None and some.tokens.tolist() == [[5, 6], [1, 2]]
    assert some.token_mask is not None and some.token_mask.all()
    assert (some.n_samples, some.prompt_lengths, some.languages, some.texts) == (
        [1, 640],
        [1, 1],
        [None, "en"],
        ["c", "a"],
    )
    assert some.hooked == {"hook_mel"}


def test_fields_that_were_not_reached_stay_none() -> None:
    assert Run().select([0]) == Run()
    assert Run().to(torch.device("cpu")) == Run()


def test_tensors_move_and_nothing_else() -> None:
    moved = filled().to(torch.device("meta"))
    for tensor in (moved.frame_mask, moved.tokens, moved.token_mask):
        assert tensor is not None and tensor.device.type == "meta"
    assert moved.texts == ["a", "b", "c"]
