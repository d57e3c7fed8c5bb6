"""What a model writes by itself: languages, transcripts, and transformers' `generate`, every hook active."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hooked_whisper.audio import SAMPLE_RATE, AudioInput
from hooked_whisper.config import HookedWhisperConfig
from hooked_whisper.errors import GenerationError
from hooked_whisper.hooks import GENERATING
from hooked_whisper.tokenizer import Tokenizer

if TYPE_CHECKING:
    from transformers import GenerationConfig

    from hooked_whisper.generation import GenerationAdapter
    from hooked_whisper.transcription import Transcript


class GenerativeModel:
    """What gives a `HookedWhisper` its `transcribe`, `generate` and `detect_language`."""

    cfg: HookedWhisperConfig
    tokenizer: Tokenizer | None
    generation_config: GenerationConfig | None
    _adapter: GenerationAdapter | None

    if TYPE_CHECKING:  # what HookedWhisper has
        encode: Any
        decode: Any
        to_mel: Any
        _need_tokenizer: Any

        @property
        def device(self) -> torch.device: ...

    def transcribe(self, audio: AudioInput, **options: Any) -> Transcript | list[Transcript]:
        """Text, segments and words of audio of any length; options as in `hooked_whisper.transcription.transcribe`."""
        from hooked_whisper.transcription import transcribe

        return transcribe(self, audio, **options)  # type: ignore[arg-type]

    def generate(self, audio: AudioInput, *, sampling_rate: int = SAMPLE_RATE, **options: Any) -> Any:
        """transformers' own `generate` for clips of at most 30 s, every hook of this model active at every step.

        Args:
            audio: as `forward` takes it.
            sampling_rate: of raw arrays and tensors, in Hz.
            options: any that transformers' Whisper takes: `language`, `task`, `num_beams`, `do_sample`, `temperature`,
                `return_timestamps`, `prompt_ids`, `output_logits`, `return_dict_in_generate`, ...

        Returns:
            What transformers returns: tokens [batch pos], or with `return_dict_in_generate` an object that has more.

        Raises:
            AudioError: audio that cannot be read, or over 30 s (`transcribe` takes longer).
            GenerationError: options that transformers refuses, or a model without a generation configuration.
        """
        return self.generation_adapter().generate(self.to_mel(audio, sampling_rate=sampling_rate), **options)

    def generation_adapter(self) -> GenerationAdapter:
        """This model as transformers' `generate` sees it, with a memory of its own: one for each call, and each thread.

        Raises:
            GenerationError: a model built without a generation configuration.
        """
        from hooked_whisper.generation import GenerationAdapter

        if self.generation_config is None:
            raise GenerationError(
                "This model has no generation configuration, so it cannot generate: load a checkpoint that has one, "
                "or pass generation_config= when you build it, or pass the text yourself."
            )
        if self._adapter is None:
            object.__setattr__(self, "_adapter", GenerationAdapter(self, self.generation_config))  # type: ignore[arg-type]
        assert self._adapter is not None
        return self._adapter.fresh()

    @contextmanager
    def _as_generation(self) -> Iterator[None]:
        """While it lasts, caching and stop_at hold still in this thread: the pass that counts comes after."""
        before = GENERATING.set(GENERATING.get() | {id(self)})
        try:
            yield
        finally:
            GENERATING.reset(before)

    def _own_transcript(self, frames: Tensor, codes: list[str | None], task: str, timestamps: bool) -> list[list[int]]:
        """The greedy transcript of each window, as tokens without prompt and end token."""
        from hooked_whisper.generation import greedy_tokens

        languages = [code for code in codes if code is not None]
        with self._as_generation():
            return greedy_tokens(
                self.generation_adapter(),
                frames.detach(),
                languages=languages or None,
                task=task,
                timestamps=timestamps,
            )

    # Language

    def detect_language(self, audio: AudioInput, *, sampling_rate: int = SAMPLE_RATE) -> list[dict[str, float]]:
        """For each clip, the probability of every language, likeliest first.

        Raises:
            TextError: a model without a tokenizer. GenerationError: an English-only model.
        """
        frames = self.encode(audio, sampling_rate=sampling_rate)
        if not self._need_tokenizer().is_multilingual:
            raise GenerationError(f"{self.cfg.model_name} knows English only: there is no language to detect.")
        _, probabilities = self._detect(frames)
        return probabilities

    def _complete_languages(self, frames: Tensor, codes: list[str | None]) -> list[str | None]:
        """The languages given, and detected ones where None is."""
        assert self.tokenizer is not None
        if not self.tokenizer.is_multilingual or None not in codes:
            return codes
        with self._as_generation():
            found, _ = self._detect(frames)
        return [given or detected for given, detected in zip(codes, found, strict=True)]

    @torch.no_grad()
    def _detect(self, frames: Tensor) -> tuple[list[str], list[dict[str, float]]]:
        tokenizer = self._need_tokenizer()
        start = torch.full((frames.shape[0], 1), tokenizer.sot, device=self.device)
        logits = self.decode(start, frames)[:, -1]
        ids = torch.tensor(list(tokenizer.languages.values()), device=self.device)
        rows = logits[:, ids].float().softmax(-1).tolist()
        ranked = [dict(sorted(zip(tokenizer.languages, row, strict=True), key=lambda pair: -pair[1])) for row in rows]
        return [next(iter(row)) for row in ranked], ranked
