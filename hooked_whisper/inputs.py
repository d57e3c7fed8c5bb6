"""From what a user passes as text to what the decoder is fed: prompt, tokens, padding, language."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hooked_whisper.errors import AudioError, LanguageError, TextError
from hooked_whisper.tokenizer import Tokenizer

# A string, tokens, one of either for each clip, or None for the model's own greedy transcript.
TextInput = str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]] | Tensor | None

TASKS = ("transcribe", "translate")
_NUMBERS = int | np.integer


@dataclass
class DecoderInput:
    """Tokens padded on the right, with what is prompt and what is padding."""

    tokens: Int[Tensor, "batch pos"]
    token_mask: Bool[Tensor, "batch pos"]
    prompt_lengths: list[int]


def check_mel(mel: Tensor) -> Float[Tensor, "batch mel mel_frame"]:
    """The spectrogram, if a model can read it.

    Raises:
        AudioError: not dense floats, no clip, no frame, or NaN and infinity in it.
    """
    if not mel.is_floating_point() or mel.layout != torch.strided or mel.is_meta:
        raise AudioError(
            f"A spectrogram of {mel.dtype} ({mel.layout}, on {mel.device}): expected dense floats, as `to_mel` gives."
        )
    if mel.shape[0] < 1 or mel.shape[2] < 1:
        raise AudioError(
            f"A spectrogram of shape {tuple(mel.shape)}: expected [batch, mel bins, frames of 10 ms] with at least one "
            "clip and one frame."
        )
    if not torch.isfinite(mel).all():
        raise AudioError("The spectrogram holds NaN or infinity: expected finite numbers. Find where they come from.")
    return mel


def check_task(task: str) -> None:
    """Raises LanguageError unless `task` is one that Whisper knows."""
    if task not in TASKS:
        raise LanguageError(f"Unknown task {task!r}: expected one of {', '.join(map(repr, TASKS))}.")


def language_codes(
    language: str | Sequence[str | None] | None, batch: int, tokenizer: Tokenizer | None
) -> list[str | None]:
    """One language code for each clip; None where it is to be detected.

    Raises:
        LanguageError: an unknown language, or a list that does not match the batch.
    """
    if language is None or isinstance(language, str):
        given: list[str | None] = [language] * batch
    elif isinstance(language, Sequence):
        given = list(language)
    else:
        raise LanguageError(f"A language is a name or a code, or a list of one for each clip; got {language!r}.")
    for entry in given:
        if entry is not None and not isinstance(entry, str):
            raise LanguageError(f"A language is a name or a code, such as 'french' or 'fr'; got {entry!r}.")
    if len(given) != batch:
        raise LanguageError(f"{len(given)} languages were given for {batch} clips: give one, or one for each clip.")
    if all(entry is None for entry in given):
        return given
    if tokenizer is None:
        raise LanguageError("A language needs a tokenizer, and this model has none: pass tokenizer= when you load it.")
    return [None if entry is None else tokenizer.language_code(entry) for entry in given]


def split_text(text: TextInput, batch: int, tokenizer: Tokenizer | None, d_vocab: int) -> list[list[int]]:
    """Tokens of each clip's text, no prompt added; one text for several clips serves all of them.

    Raises:
        TextError: strings without a tokenizer, a number of texts that is not the number of clips, or
            tokens outside the vocabulary.
    """
    rows = _rows(text, tokenizer)
    if len(rows) == 1 and batch > 1:
        rows = rows * batch
    if len(rows) != batch:
        raise TextError(f"{len(rows)} texts were given for {batch} clips: give one, or one for each clip.")
    for row in rows:
        outside = next((token for token in row if not 0 <= token < d_vocab), None)
        if outside is not None:
            raise TextError(f"Token {outside} is outside the vocabulary: expected 0 to {d_vocab - 1}.")
    return rows


def _rows(text: object, tokenizer: Tokenizer | None) -> list[list[int]]:
    if isinstance(text, Tensor):
        if text.is_floating_point() or text.ndim not in (1, 2):
            raise TextError(
                f"Tokens must be whole numbers of shape [pos] or [batch, pos], got {text.dtype} of shape "
                f"{tuple(text.shape)}."
            )
        return text.long().tolist() if text.ndim == 2 else [text.long().tolist()]
    if isinstance(text, str):
        return [_tokens(text, tokenizer)]
    if not isinstance(text, Sequence):
        raise TextError(f"Text must be a string, tokens, or a list of either, got {type(text).__name__}.")
    if all(isinstance(token, _NUMBERS) for token in text):
        return [_numbers(text)]
    return [_tokens(row, tokenizer) if isinstance(row, str) else _numbers(row) for row in text]


def _numbers(row: object) -> list[int]:
    """Tokens of one clip, given as whole numbers."""
    if isinstance(row, Tensor):
        row = row.tolist()
    if not isinstance(row, Sequence | np.ndarray) or not all(isinstance(token, _NUMBERS) for token in row):
        raise TextError(
            f"Expected a text, tokens as whole numbers, or a list of either, one for each clip; got {row!r} among them."
        )
    return [int(token) for token in row]


def _tokens(text: str, tokenizer: Tokenizer | None) -> list[int]:
    if tokenizer is None:
        raise TextError("Text needs a tokenizer, and this model has none: pass tokens, or tokenizer= when you load it.")
    return list(tokenizer.to_tokens(text))  # type: ignore[arg-type]


def with_prompts(
    rows: list[list[int]], prompts: list[list[int]], tokenizer: Tokenizer | None, n_ctx: int, device: torch.device
) -> DecoderInput:
    """Prompt and text of each clip, padded on the right with the end token to one length.

    A row that begins with `<|startoftranscript|>` or `<|startofprev|>` brings its own prompt and is
    taken whole, so that `cache.tokens` can be fed back as it is.

    Raises:
        TextError: over the context, or nothing to feed.
    """
    full, lengths = [], []
    for row, prompt in zip(rows, prompts, strict=True):
        own = tokenizer is None or (bool(row) and row[0] in (tokenizer.sot, tokenizer.sot_prev))
        full.append(list(row) if own else prompt + list(row))
        lengths.append(_own_prompt_length(row, tokenizer) if own else len(prompt))
    longest = max(len(row) for row in full)
    if min(len(row) for row in full) == 0:
        raise TextError("Nothing to feed the decoder: this model has no tokenizer, so pass tokens, prompt included.")
    if longest > n_ctx:
        raise TextError(
            f"{longest} tokens (prompt included) do not fit the decoder's context of {n_ctx}. "
            "Shorten the text, or split the audio: one window holds at most 30 s."
        )
    pad = tokenizer.eot if tokenizer is not None else 0
    tokens = torch.tensor([row + [pad] * (longest - len(row)) for row in full], device=device)
    ends = torch.tensor([len(row) for row in full], device=device)
    mask = torch.arange(longest, device=device) < ends[:, None]
    return DecoderInput(tokens=tokens, token_mask=mask, prompt_lengths=lengths)


def _own_prompt_length(row: list[int], tokenizer: Tokenizer | None) -> int:
    """How many tokens at the start are prompt: up to the last special one of the start sequence."""
    if tokenizer is None:
        return 1
    start = row.index(tokenizer.sot) if tokenizer.sot in row else 0
    special = tokenizer.special_ids
    length = start + 1
    while length < len(row) and row[length] in special and row[length] != tokenizer.eot:
        length += 1
    return length


def text_loss(
    logits: Float[Tensor, "batch pos vocab"], fed: DecoderInput, eot: int, *, per_token: bool = False
) -> Float[Tensor, "batch pos"] | Float[Tensor, ""]:
    """Cross-entropy of the text and of the end token after it, given the prompt, in nats.

    Position p of the result holds the loss of token p+1; prompt and padding positions hold 0. The mean is
    over all text and end tokens of the batch.
    """
    batch, n_pos = fed.tokens.shape
    device = fed.tokens.device
    ends = fed.token_mask.sum(-1)
    following = torch.cat([fed.tokens[:, 1:], fed.tokens.new_full((batch, 1), eot)], dim=1)
    at = torch.arange(n_pos, device=device)
    following = torch.where(at == ends[:, None] - 1, eot, following)
    starts = torch.tensor(fed.prompt_lengths, device=device)[:, None] - 1
    counted = (at >= starts) & (at < ends[:, None])
    losses = F.cross_entropy(logits.float().transpose(1, 2), following, reduction="none") * counted
    return losses if per_token else losses.sum() / counted.sum()
