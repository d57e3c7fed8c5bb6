"""Two runs that differ in one thing: a clean input and a corrupted one, of the same shape.

    pair = Contrast.of(model, clean="ten.wav", corrupted="two.wav", text="Please press", language="en")
    pair.clean.logits(model), pair.corrupted.logits(model)

Patching and attribution take a contrast: what they say is about the difference between its two runs and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hooked_whisper.analysis.checks import check_clips, expect
from hooked_whisper.audio import SAMPLE_RATE, AudioInput
from hooked_whisper.errors import AnalysisError
from hooked_whisper.inputs import TextInput, language_codes, split_text, with_prompts
from hooked_whisper.model import HookedWhisper
from hooked_whisper.run import Run


@dataclass(frozen=True)
class ModelInput:
    """What one run is given: spectrograms and the tokens that the decoder is fed, prompt included.

    `frame_mask` is False where a clip's window is padded, `token_mask` where its tokens are; None where nothing tells.
    """

    mel: Float[Tensor, "batch mel mel_frame"]
    tokens: Int[Tensor, "batch pos"]
    frame_mask: Bool[Tensor, "batch frame"] | None = None
    token_mask: Bool[Tensor, "batch pos"] | None = None

    @classmethod
    def of(
        cls,
        model: HookedWhisper,
        audio: AudioInput,
        text: TextInput = "",
        *,
        language: str | Sequence[str | None] | None = None,
        task: str = "transcribe",
        timestamps: bool = False,
    ) -> ModelInput:
        """From audio and text, as `Contrast.of` takes them.

        Raises:
            AnalysisError: no language, and a text without a prompt of its own.
        """
        mel, frame_mask = _spectrograms(model, audio)
        tokens, token_mask, _ = _tokens(model, text, len(mel), language, task, timestamps)
        return cls(mel, tokens, frame_mask, token_mask)

    def logits(self, model: HookedWhisper) -> Float[Tensor, "batch pos vocab"]:
        """The model's logits, hooks active; with a gradient unless it is switched off."""
        return model.decode(self.tokens, model.encode_mel(self.mel))

    def __len__(self) -> int:
        return len(self.tokens)

    def select(self, clips: Sequence[int]) -> ModelInput:
        """The same for some of the clips, by their numbers.

        Raises:
            AnalysisError: no clips, or one that is not there.
        """
        rows = check_clips(clips, len(self))
        masks = (None if mask is None else mask[rows] for mask in (self.frame_mask, self.token_mask))
        return ModelInput(self.mel[rows], self.tokens[rows], *masks)


@dataclass(frozen=True)
class Contrast:
    """A clean and a corrupted input, of the same shape.

    Attributes:
        clean, corrupted: the two.
        token_mask: [batch pos], False where a clip's tokens are padding.
        prompt_lengths: for each clip, how many of its first tokens are the prompt.

    Raises:
        AnalysisError: sides of different shapes.
    """

    clean: ModelInput
    corrupted: ModelInput
    token_mask: Bool[Tensor, "batch pos"]
    prompt_lengths: tuple[int, ...]

    def __post_init__(self) -> None:
        for side in (self.clean, self.corrupted):
            expect(side, ModelInput, "a ModelInput as each side; Contrast.of(model, ...) makes them of audio and text")
        for what in ("mel", "tokens"):
            one, other = (tuple(getattr(side, what).shape) for side in (self.clean, self.corrupted))
            if one != other:
                raise AnalysisError(
                    f"The clean side's {what} have shape {one}, the corrupted one's {other}: expected one."
                )
        shape = tuple(self.clean.tokens.shape)
        if tuple(self.token_mask.shape) != shape or len(self.prompt_lengths) != shape[0]:
            raise AnalysisError(
                f"The tokens are {shape}, the mask {tuple(self.token_mask.shape)}, and {len(self.prompt_lengths)} "
                "lengths of prompts were given: expected a mask of the tokens' shape, and a length for each clip."
            )

    @classmethod
    def of(
        cls,
        model: HookedWhisper,
        *,
        clean: AudioInput,
        corrupted: AudioInput | None = None,
        text: TextInput = "",
        corrupted_text: TextInput = None,
        language: str | Sequence[str | None] | None = None,
        task: str = "transcribe",
        timestamps: bool = False,
    ) -> Contrast:
        """From audio and text, as `HookedWhisper.forward` takes them; what the corrupted side lacks is the clean's.

        Args:
            language: of the prompt, which both sides share; needed unless the text brings its own prompt (tokens that
                begin with `<|startoftranscript|>`) or the checkpoint is English only.

        Raises:
            AnalysisError: other numbers of clips or tokens on the two sides, nothing that differs, or no language.
        """
        if corrupted is None and corrupted_text is None:
            raise AnalysisError("Nothing differs: pass corrupted=, corrupted_text=, or both.")
        mel, frames = _spectrograms(model, clean)
        other, other_frames = (mel, frames) if corrupted is None else _spectrograms(model, corrupted)
        if mel.shape != other.shape:
            raise AnalysisError(
                f"The clean side has spectrograms {tuple(mel.shape)}, the corrupted one {tuple(other.shape)}: expected "
                "a corrupted clip for each clean one."
            )
        fed = [
            _tokens(model, given, len(mel), language, task, timestamps)
            for given in (text, text if corrupted_text is None else corrupted_text)
        ]
        (tokens, mask, lengths), (other_tokens, other_mask, _) = fed
        if tokens.shape != other_tokens.shape or not torch.equal(mask, other_mask):
            raise AnalysisError(
                f"The clean text is {mask.sum(1).tolist()} tokens long, the corrupted one "
                f"{other_mask.sum(1).tolist()}, prompt included: positions can be compared only if the two are of the "
                "same length. Choose words of as many tokens (model.to_str_tokens shows them)."
            )
        if torch.equal(mel, other) and torch.equal(tokens, other_tokens):
            raise AnalysisError("Nothing differs: both sides have the same sound and the same text.")
        sides = ModelInput(mel, tokens, frames, mask), ModelInput(other, other_tokens, other_frames, mask)
        return cls(*sides, mask, lengths)

    def __len__(self) -> int:
        return len(self.clean)

    def select(self, clips: Sequence[int]) -> Contrast:
        """The same for some of the clips, by their numbers.

        Raises:
            AnalysisError: no clips, or one that is not there.
        """
        rows = check_clips(clips, len(self))
        lengths = tuple(self.prompt_lengths[i] for i in rows)
        return Contrast(self.clean.select(rows), self.corrupted.select(rows), self.token_mask[rows], lengths)

    @property
    def prompt_length(self) -> int:
        """How many tokens the prompt has, where all clips agree.

        Raises:
            AnalysisError: they do not.
        """
        if len(set(self.prompt_lengths)) > 1:
            raise AnalysisError(f"The clips' prompts are of different lengths: {list(self.prompt_lengths)}.")
        return self.prompt_lengths[0]


def _spectrograms(model: HookedWhisper, audio: AudioInput) -> tuple[Tensor, Tensor | None]:
    """Spectrograms, and where they hold audio; nothing tells that of audio that comes as spectrograms."""
    run = Run()
    mel = model._prepare_audio(run, audio, SAMPLE_RATE)
    return mel, None if run.n_samples is None else run.frame_mask


def _tokens(
    model: HookedWhisper,
    text: TextInput,
    batch: int,
    language: str | Sequence[str | None] | None,
    task: str,
    timestamps: bool,
) -> tuple[Tensor, Tensor, tuple[int, ...]]:
    """Tokens with their prompts, the mask, and the prompts' lengths."""
    tokenizer = model.tokenizer
    rows = split_text(text, batch, tokenizer, model.cfg.d_vocab)
    whole = all(tokenizer is None or (bool(row) and row[0] in (tokenizer.sot, tokenizer.sot_prev)) for row in rows)
    prompts: list[list[int]] = [[] for _ in rows]
    if not whole:
        assert tokenizer is not None
        codes = language_codes(language, batch, tokenizer)
        if tokenizer.is_multilingual and None in codes:
            raise AnalysisError(
                "No language was given: pass language=, so that both sides get the same prompt, or tokens that begin "
                "with <|startoftranscript|>."
            )
        prompts = [tokenizer.prompt(code, task, timestamps) for code in codes]
    fed = with_prompts(rows, prompts, tokenizer, model.cfg.n_ctx, model.device)
    return fed.tokens, fed.token_mask, tuple(fed.prompt_lengths)
