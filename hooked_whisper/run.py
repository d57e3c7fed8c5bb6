"""What one pass of the model was about: the audio's extent, the decoder's tokens, language and text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Int
from torch import Tensor


@dataclass
class Run:
    """Filled in by `HookedWhisper.forward` as it goes; fields that were not reached stay None.

    Attributes:
        frame_mask: [batch frame], True where there is audio, False where the window is padded.
        n_samples: samples of each clip at 16 kHz; None where a spectrogram was given.
        tokens: what the decoder was fed, prompt included, padded on the right.
        token_mask: [batch pos], False at that padding.
        prompt_lengths: for each clip, how many of its first tokens are the prompt.
        languages: code of each clip's language; None where the checkpoint is English only.
        texts: what was fed after the prompt, as text.
        hooked: points that had hooks of their own, so that other activations do not tell what they became.
    """

    frame_mask: Bool[Tensor, "batch frame"] | None = None
    n_samples: list[int] | None = None
    tokens: Int[Tensor, "batch pos"] | None = None
    token_mask: Bool[Tensor, "batch pos"] | None = None
    prompt_lengths: list[int] = field(default_factory=list)
    languages: list[str | None] | None = None
    texts: list[str] | None = None
    hooked: frozenset[str] = frozenset()

    def select(self, clips: Sequence[int]) -> Run:
        """The same for some of the clips."""
        rows = list(clips)
        return replace(
            self,
            frame_mask=None if self.frame_mask is None else self.frame_mask[rows],
            n_samples=None if self.n_samples is None else [self.n_samples[i] for i in rows],
            tokens=None if self.tokens is None else self.tokens[rows],
            token_mask=None if self.token_mask is None else self.token_mask[rows],
            prompt_lengths=[self.prompt_lengths[i] for i in rows] if self.prompt_lengths else [],
            languages=None if self.languages is None else [self.languages[i] for i in rows],
            texts=None if self.texts is None else [self.texts[i] for i in rows],
        )

    def to(self, device: torch.device) -> Run:
        """The same on another device."""
        return replace(
            self,
            frame_mask=None if self.frame_mask is None else self.frame_mask.to(device),
            tokens=None if self.tokens is None else self.tokens.to(device),
            token_mask=None if self.token_mask is None else self.token_mask.to(device),
        )
