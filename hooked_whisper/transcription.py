"""From audio of any length to text, segments and words with times."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from jaxtyping import Float
from torch import Tensor

from hooked_whisper.audio import AudioInput, load_batch
from hooked_whisper.errors import ConfigError
from hooked_whisper.inputs import check_task, language_codes
from hooked_whisper.mel import HOP_LENGTH, SAMPLE_RATE, SAMPLES_PER_FRAME
from hooked_whisper.run import Run

if TYPE_CHECKING:
    from hooked_whisper.alignment import Word
    from hooked_whisper.cache import WhisperCache
    from hooked_whisper.generation import Window
    from hooked_whisper.model import HookedWhisper

# Where a transcript repeats itself or is improbable it is decoded again, warmer each time (Radford et al. 2022, 4.5).
FALLBACK_TEMPERATURES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


@dataclass
class Segment:
    """A stretch of a transcript; times in seconds of the clip."""

    start: float
    end: float
    text: str
    tokens: list[int]


@dataclass
class Transcript:
    """What was said in one clip.

    Attributes:
        text: the whole transcript.
        language: code of its language; None for an English-only checkpoint.
        tokens: all tokens, timestamps included where they were asked for; no prompt, no end token.
        segments: with times; one for the whole clip where timestamps were not asked for.
        words: with times, or None unless asked for.
        seconds: length of the clip.
    """

    text: str
    language: str | None
    tokens: list[int]
    segments: list[Segment]
    words: list[Word] | None
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and dictionaries, for JSON."""
        return asdict(self)


@dataclass
class _Options:
    task: str
    timestamps: bool
    word_timestamps: bool
    generate: dict[str, Any] = field(default_factory=dict)


@torch.no_grad()
def transcribe(
    model: HookedWhisper,
    audio: AudioInput,
    *,
    sampling_rate: int = SAMPLE_RATE,
    language: str | Sequence[str | None] | None = None,
    task: str = "transcribe",
    timestamps: bool = False,
    word_timestamps: bool = False,
    prompt: str | None = None,
    num_beams: int = 1,
    temperature: float | Sequence[float] | None = None,
    condition_on_prev_tokens: bool = False,
    compression_ratio_threshold: float | None = None,
    logprob_threshold: float | None = None,
    no_speech_threshold: float | None = None,
    max_new_tokens: int | None = None,
    batch_size: int = 8,
) -> Transcript | list[Transcript]:
    """Transcribes audio of any length with transformers' `generate`, every hook of the model active.

    A clip of at most 30 s is one window; a longer one goes on window by window, as Whisper does, and
    then always with timestamps. See `hooked_whisper.generation` for what hooks see at each step.

    Args:
        audio: as `HookedWhisper.forward` takes it, but of any length. A list gives a list of transcripts.
        language: name or code, or one for each clip; None detects it from the first 30 s.
        task: "transcribe" or "translate" (to English).
        timestamps: let the model mark segments with timestamp tokens.
        word_timestamps: times of each word, from the cross-attention heads that follow the audio.
        prompt: text that the model takes for what was said before: names, spelling, style.
        num_beams: 1 is greedy.
        temperature: one, or a sequence of fallbacks to go through; above 0 samples. Fallbacks need the thresholds
            that tell when a transcript has failed.
        condition_on_prev_tokens: let each window of long audio read the text of the one before.
        compression_ratio_threshold, logprob_threshold, no_speech_threshold: as in transformers' `generate`.
        max_new_tokens: bound for each window.
        batch_size: clips of at most 30 s that are decoded together.

    Raises:
        AudioError, LanguageError, GenerationError: input or options that do not fit.
    """
    check_task(task)
    for name, count in (("batch_size", batch_size), ("num_beams", num_beams), ("max_new_tokens", max_new_tokens)):
        if count is not None and (not isinstance(count, int) or count < 1):
            raise ConfigError(f"{name} must be a whole number of at least 1, got {count!r}.")
    _check_fallback(
        temperature,
        {
            "compression_ratio_threshold": compression_ratio_threshold,
            "logprob_threshold": logprob_threshold,
            "no_speech_threshold": no_speech_threshold,
        },
    )
    clips = [clip.to(model.device) for clip in load_batch(audio, sampling_rate)]
    codes = language_codes(language, len(clips), model.tokenizer)
    generate: dict[str, Any] = {"num_beams": num_beams, "temperature": temperature}
    optional = {
        "condition_on_prev_tokens": condition_on_prev_tokens or None,
        "compression_ratio_threshold": compression_ratio_threshold,
        "logprob_threshold": logprob_threshold,
        "no_speech_threshold": no_speech_threshold,
        "max_new_tokens": max_new_tokens,
    }
    generate |= {name: value for name, value in optional.items() if value is not None}
    if prompt is not None:
        _check_prompt(model, prompt)
        ids = model._need_tokenizer().hf.get_prompt_ids(prompt, return_tensors="pt")
        generate["prompt_ids"] = torch.as_tensor(ids, device=model.device)
    options = _Options(task, timestamps, word_timestamps, generate)

    window = model.cfg.n_mel_frames * HOP_LENGTH
    short = [i for i, clip in enumerate(clips) if len(clip) <= window]
    done: dict[int, Transcript] = {}
    for at in range(0, len(short), batch_size):
        group = short[at : at + batch_size]
        mel = model.log_mel([clips[i] for i in group], model.cfg.n_mel_frames)
        found = _transcribe(model, mel, [len(clips[i]) for i in group], [codes[i] for i in group], options)
        done.update(zip(group, found, strict=True))
    for i, clip in enumerate(clips):
        if i not in done:
            mel = model.log_mel([clip], -(-len(clip) // HOP_LENGTH))
            done[i] = _transcribe(model, mel, [len(clip)], [codes[i]], options)[0]
    transcripts = [done[i] for i in range(len(clips))]
    return transcripts if isinstance(audio, (list, tuple)) else transcripts[0]


def _check_fallback(temperature: object, thresholds: dict[str, float | None]) -> None:
    """Raises ConfigError unless temperatures and thresholds are numbers that transformers can go by together."""
    given = list(temperature) if isinstance(temperature, Sequence) else [0.0 if temperature is None else temperature]
    if isinstance(temperature, str) or not given or not all(_is_number(one) and one >= 0 for one in given):
        raise ConfigError(f"temperature is a number of at least 0, or a sequence of them, got {temperature!r}.")
    for name, threshold in thresholds.items():
        if threshold is not None and not _is_number(threshold):
            raise ConfigError(f"{name} must be a number, got {threshold!r}.")
    if thresholds["no_speech_threshold"] is not None and thresholds["logprob_threshold"] is None:
        raise ConfigError("no_speech_threshold works only together with logprob_threshold: pass both, as 0.6 and -1.")
    if thresholds["logprob_threshold"] is not None and len(given) < 2:
        raise ConfigError(
            "logprob_threshold tells when to decode again, warmer: pass temperature=FALLBACK_TEMPERATURES, or another "
            "sequence of two or more."
        )


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _check_prompt(model: HookedWhisper, prompt: object) -> None:
    """Raises ConfigError unless `prompt` is a text without special tokens."""
    if not isinstance(prompt, str):
        raise ConfigError(f"prompt is a text that the model takes for what was said before, got {prompt!r}.")
    if "<|" not in prompt:
        return
    special = sorted(str(model.to_string([token])) for token in model._need_tokenizer().special_ids)
    found = next((token for token in special if token in prompt), None)
    if found is not None:
        raise ConfigError(f"The prompt holds the special token {found}: expected plain text.")


def _transcribe(
    model: HookedWhisper,
    mel: Float[Tensor, "batch mel mel_frame"],
    n_samples: list[int],
    codes: list[str | None],
    options: _Options,
) -> list[Transcript]:
    """Clips of one spectrogram, in one call of `generate`."""
    adapter = model.generation_adapter()
    tokenizer = model._need_tokenizer()
    mel = mel.to(model.dtype)
    timestamps = options.timestamps or mel.shape[2] > model.cfg.n_mel_frames
    with model._as_generation():
        languages: dict[str, Any] = {}
        if tokenizer.is_multilingual:
            codes = adapter.detect_missing(mel[:, :, : model.cfg.n_mel_frames], codes)
            languages = {"language": codes, "task": options.task}
        adapter.generate(
            input_features=mel, return_timestamps=timestamps, return_segments=True, **languages, **options.generate
        )
    transcripts = []
    for i, code in enumerate(codes):
        windows = [window for window in adapter.windows if window.clip == i]
        words = _words(model, windows, code, options.task) if options.word_timestamps else None
        transcripts.append(_transcript(model, windows, code, words, n_samples[i] / SAMPLE_RATE))
    return transcripts


def _transcript(
    model: HookedWhisper, windows: list[Window], code: str | None, words: list[Word] | None, seconds: float
) -> Transcript:
    tokenizer = model._need_tokenizer()
    segments, tokens = [], []
    for segment in (segment for window in windows for segment in window.segments):
        ids = [token for token in segment["tokens"].tolist() if token != tokenizer.eot]
        spoken = [token for token in ids if token < tokenizer.timestamp_begin]
        text = str(tokenizer.to_string(spoken, skip_special_tokens=True))
        tokens += ids
        segments.append(Segment(float(segment["start"]), min(float(segment["end"]), seconds), text, ids))
    return Transcript("".join(s.text for s in segments).strip(), code, tokens, segments, words, seconds)


def _words(model: HookedWhisper, windows: list[Window], code: str | None, task: str) -> list[Word]:
    """Words of a clip with times: each window's text is read once more, watching the alignment heads."""
    from hooked_whisper.alignment import align_words

    if not model.cfg.alignment_heads:
        raise ConfigError(
            f"{model.cfg.model_name} names no alignment heads, so words have no times: set model.cfg.alignment_heads "
            "to the (layer, head) pairs of cross-attention that follow the audio, or leave word_timestamps out."
        )
    tokenizer = model._need_tokenizer()
    words: list[Word] = []
    for window in windows:
        ids = [token for segment in window.segments for token in segment["tokens"].tolist()]
        text = [token for token in ids if token < tokenizer.eot]
        if text:
            prompt = tokenizer.prompt(code, task, timestamps=False)
            cache = _read_again(model, window, prompt, text, code)
            words += [
                replace(word, start=word.start + window.start, end=word.end + window.start)
                for word in align_words(model, cache)
            ]
    return words


def _read_again(
    model: HookedWhisper, window: Window, prompt: list[int], text: list[int], code: str | None
) -> WhisperCache:
    """A cache of cross-attention and logits of one window's transcript, hooks active."""
    from hooked_whisper.cache import WhisperCache

    tokens = torch.tensor([[*prompt, *text][: model.cfg.n_ctx]], device=model.device)
    run = Run(
        frame_mask=torch.arange(len(window.encoder_out), device=model.device)[None] < window.n_frames,
        n_samples=[window.n_frames * SAMPLES_PER_FRAME],
        tokens=tokens,
        token_mask=torch.ones_like(tokens, dtype=torch.bool),
        prompt_lengths=[len(prompt)],
        languages=[code],
        texts=[str(model.to_string(text))],
    )
    layers = sorted({layer for layer, _ in model.cfg.alignment_heads})
    names = [f"decoder.blocks.{layer}.cross_attn.hook_pattern" for layer in layers]
    kept, hooks, _ = model.get_caching_hooks([*names, "hook_logits"])
    with model.hooks(fwd_hooks=hooks):
        model.decode(tokens, window.encoder_out[None])
    return WhisperCache(kept, model, run)
