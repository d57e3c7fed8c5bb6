"""Generation: transformers' own `generate`, run over this model's forward, so that every hook fires.

`GenerationAdapter` is what transformers sees: a Whisper with its configuration, an encoder to call
and a forward with a cache. It holds no weights. What a hook sees at each step:

- encoder hooks: all frames of the window, once a window;
- decoder hooks: at the first step all positions of the prompt, then the one new position;
  with beams, the batch dimension is clips x beams;
- `attn.hook_k` and `hook_v`: the new positions only; scores and patterns run over all keys;
- `cross_attn.hook_k` and `hook_v`: all frames, at every step.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import GenerationConfig, WhisperConfig, WhisperPreTrainedModel
from transformers.generation.logits_process import SuppressTokensAtBeginLogitsProcessor, SuppressTokensLogitsProcessor
from transformers.modeling_outputs import BaseModelOutput, Seq2SeqLMOutput
from transformers.models.whisper.generation_whisper import WhisperGenerationMixin

from hooked_whisper.config import HookedWhisperConfig
from hooked_whisper.errors import GenerationError, HookedWhisperError
from hooked_whisper.kv_cache import KeyValueCache

if TYPE_CHECKING:
    from hooked_whisper.model import HookedWhisper


def transformers_config(cfg: HookedWhisperConfig, generation: GenerationConfig | None) -> WhisperConfig:
    """The transformers configuration of the same architecture, special tokens taken from `generation`."""
    special = {
        name: getattr(generation, name)
        for name in ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
        if generation is not None and getattr(generation, name, None) is not None
    }
    return WhisperConfig(
        vocab_size=cfg.d_vocab,
        num_mel_bins=cfg.n_mels,
        d_model=cfg.d_model,
        encoder_layers=cfg.encoder.n_layers,
        encoder_attention_heads=cfg.encoder.n_heads,
        encoder_ffn_dim=cfg.encoder.d_mlp,
        max_source_positions=cfg.encoder.n_ctx,
        decoder_layers=cfg.decoder.n_layers,
        decoder_attention_heads=cfg.decoder.n_heads,
        decoder_ffn_dim=cfg.decoder.d_mlp,
        max_target_positions=cfg.decoder.n_ctx,
        **special,
    )


@dataclass
class Window:
    """One window of a clip as `generate` went through it.

    Attributes:
        clip: index of the clip in the batch.
        start: where the window begins in the clip, in seconds.
        n_frames: encoder frames of it that hold audio.
        encoder_out: what cross-attention read.
        segments: transformers' segments of this window: "start" and "end" in seconds of the clip, "tokens".
    """

    clip: int
    start: float
    n_frames: int
    encoder_out: Float[Tensor, "frame d_model"]
    segments: list[dict[str, Any]]


class _Encoder:
    """The encoder as transformers calls it; windows just encoded are kept, so that each is encoded once.

    Language detection, silence detection and each temperature of the fallback ask for the same
    windows again; hooks would otherwise fire a different number of times with every option.
    """

    main_input_name = "input_features"

    def __init__(self, model: HookedWhisper) -> None:
        self.model = model
        self.mel: Tensor | None = None
        self.out: Tensor | None = None

    def forward(self, input_features: Float[Tensor, "batch mel mel_frame"]) -> Float[Tensor, "batch frame d_model"]:
        mel = input_features.to(self.model.device, self.model.dtype)
        rows = self._known_rows(mel)
        if rows is not None and self.out is not None:
            return self.out if rows == list(range(len(self.out))) else self.out[rows]
        self.mel, self.out = mel, self.model.encode_mel(mel)
        return self.out

    def _known_rows(self, mel: Tensor) -> list[int] | None:
        """For each window, which of the kept ones it equals; None if one is new."""
        if self.mel is None or self.mel.shape[1:] != mel.shape[1:]:
            return None
        rows = []
        for window in mel:
            row = next((i for i, kept in enumerate(self.mel) if torch.equal(kept, window)), None)
            if row is None:
                return None
            rows.append(row)
        return rows

    def __call__(self, input_features: Tensor, **unused: Any) -> BaseModelOutput:
        return BaseModelOutput(last_hidden_state=self.forward(input_features))  # type: ignore[arg-type]

    def forget(self) -> None:
        self.mel = self.out = None


class _Suppress(SuppressTokensLogitsProcessor):
    """transformers' processor, which sorts the vocabulary anew at every step, with the same result in one write."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # type: ignore[override]
        return scores.index_fill(1, self.suppress_tokens.to(scores.device), -torch.inf)


class _SuppressAtBegin(SuppressTokensAtBeginLogitsProcessor):
    """Likewise, for the tokens that must not come first."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # type: ignore[override]
        if input_ids.shape[-1] != self.begin_index:
            return scores
        return scores.index_fill(1, self.begin_suppress_tokens.to(scores.device), -torch.inf)


# Options that need more than the adapter gives, and what to do instead.
_NOT_HERE = {
    "assistant_model": "leave it out: one model writes here",
    "prompt_lookup_num_tokens": "leave it out: the model writes token by token, so that hooks see each",
    "past_key_values": "leave it out: generation keeps a key/value cache of its own",
    "cache_implementation": "leave it out: generation keeps a key/value cache of its own",
    "output_hidden_states": "use hooks or run_with_cache, which see every activation",
    "output_attentions": "use hooks or run_with_cache, which see every activation",
    "word_timestamps": "use transcribe(..., word_timestamps=True)",
}
_TOKENS = ("prompt_ids", "decoder_input_ids", "suppress_tokens", "begin_suppress_tokens")


def _check_options(options: dict[str, Any], d_vocab: int) -> None:
    """Raises GenerationError for options of `generate` that would fail inside, or be passed over in silence."""
    for name, advice in _NOT_HERE.items():
        if options.get(name) is not None and options[name] is not False:
            raise GenerationError(f"{name}={options[name]!r} cannot be had here: {advice}.")
    for name in _TOKENS:
        if options.get(name) is None:
            continue
        tokens = torch.as_tensor(options[name])
        if name.endswith("_ids") and not isinstance(options[name], Tensor):
            raise GenerationError(f"{name} is a tensor of token ids, got {type(options[name]).__name__}.")
        known = tokens.numel() == 0 or -1 <= int(tokens.min()) <= int(tokens.max()) < d_vocab
        if tokens.is_floating_point() or not known:
            raise GenerationError(f"{name} holds what is no token: expected whole numbers from 0 to {d_vocab - 1}.")
    beams, language = options.get("num_beams"), options.get("language")
    if beams is not None and (not isinstance(beams, int) or beams < 1):
        raise GenerationError(f"num_beams must be a whole number of at least 1, got {beams!r}.")
    if not all(isinstance(one, str | None) for one in (language if isinstance(language, list | tuple) else [language])):
        raise GenerationError(f"language is a name or a code, or a list of one for each clip, got {language!r}.")


class GenerationAdapter(WhisperGenerationMixin, WhisperPreTrainedModel):
    """A `HookedWhisper` in the clothes of transformers' Whisper, for `generate` alone."""

    main_input_name = "input_features"
    if TYPE_CHECKING:  # transformers resolves a class's annotations when it is made, before the model's module is there
        hooked: HookedWhisper
        encoder: _Encoder

    def __init__(self, hooked: HookedWhisper, generation_config: GenerationConfig) -> None:
        super().__init__(transformers_config(hooked.cfg, generation_config))
        self.generation_config = generation_config
        # Plain attributes, not submodules: the weights belong to the hooked model alone.
        object.__setattr__(self, "hooked", hooked)
        object.__setattr__(self, "encoder", _Encoder(hooked))
        self.windows: list[Window] = []
        self._window_frames: Tensor | None = None
        strides = SimpleNamespace(conv1=SimpleNamespace(stride=(1,)), conv2=SimpleNamespace(stride=(2,)))
        object.__setattr__(self, "model", SimpleNamespace(encoder=strides, config=self.config))

    def fresh(self) -> GenerationAdapter:
        """The same without memory of windows: for one call, so that neither an error nor another thread leaves any."""
        found = copy.copy(self)
        object.__setattr__(found, "encoder", _Encoder(self.hooked))
        found.windows, found._window_frames = [], None
        return found

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return self.hooked.device

    @property
    def dtype(self) -> torch.dtype:  # type: ignore[override]
        return self.hooked.dtype

    def get_encoder(self, modality: str | None = None) -> _Encoder:  # type: ignore[override]
        return self.encoder

    def get_output_embeddings(self) -> Any:
        return self.hooked.decoder.unembed

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """transformers' `WhisperGenerationMixin.generate`; afterwards `windows` tells what it went through.

        Raises:
            GenerationError: options that transformers or this model refuses.
        """
        self.windows = []
        _check_options(kwargs, self.hooked.cfg.d_vocab)
        try:
            return super().generate(*args, **kwargs)
        except ValueError as error:
            if isinstance(error, HookedWhisperError):
                raise
            raise GenerationError(f"transformers' generate refused these options: {error}") from error
        finally:
            self.encoder.forget()
            self._window_frames = None

    def detect_missing(self, mel: Float[Tensor, "batch mel mel_frame"], codes: list[str | None]) -> list[str | None]:
        """The languages given, and detected ones where None is."""
        if None not in codes:
            return codes
        self.encoder.forget()
        return self.hooked._complete_languages(self.encoder.forward(mel), codes)

    def generate_with_fallback(self, segment_input: Tensor | None, *args: Any, **kwargs: Any) -> Any:
        if segment_input is not None:
            self._window_frames = self.encoder.forward(segment_input)
        return super().generate_with_fallback(segment_input, *args, **kwargs)

    def _retrieve_segment(self, **about: Any) -> tuple[list[dict[str, Any]], Any]:  # type: ignore[override]
        segments, offset = super()._retrieve_segment(**about)
        if self._window_frames is not None:
            clip = about["prev_idx"]
            window = Window(
                clip=int(clip),
                start=float(about["time_offset"][clip]),
                n_frames=int(about["seek_num_frames"][clip]) // 2,
                encoder_out=self._window_frames[about["idx"]],
                segments=segments,
            )
            self.windows.append(window)
        return segments, offset

    def _prepare_cache_for_generation(
        self, generation_config: GenerationConfig, model_kwargs: dict[str, Any], *unused: Any, **also_unused: Any
    ) -> Any:
        if generation_config.use_cache is not False and model_kwargs.get("past_key_values") is None:
            model_kwargs["past_key_values"] = KeyValueCache()

    def prepare_inputs_for_generation(  # type: ignore[override]
        self,
        input_ids: Int[Tensor, "batch pos"],
        next_sequence_length: int | None = None,
        past_key_values: KeyValueCache | None = None,
        encoder_outputs: BaseModelOutput | None = None,
        decoder_attention_mask: Tensor | None = None,
        use_cache: bool | None = True,
        **options: Any,
    ) -> dict[str, Any]:
        """What `forward` is given at one step: the positions that the cache has not seen."""
        tokens = input_ids[:, past_key_values.get_seq_length() :] if past_key_values is not None else input_ids
        return {
            "decoder_input_ids": tokens,
            "past_key_values": past_key_values if use_cache else None,
            "encoder_outputs": encoder_outputs,
            "decoder_attention_mask": decoder_attention_mask,
            "output_attentions": options.get("output_attentions"),
        }

    def forward(  # type: ignore[override]
        self,
        input_features: Tensor | None = None,
        decoder_input_ids: Int[Tensor, "batch pos"] | None = None,
        encoder_outputs: BaseModelOutput | Tensor | None = None,
        past_key_values: KeyValueCache | None = None,
        decoder_attention_mask: Tensor | None = None,
        attention_mask: Tensor | None = None,
        output_attentions: bool | None = None,
        use_cache: bool | None = None,
        return_dict: bool | None = None,
    ) -> Seq2SeqLMOutput:
        """One step: logits of the last position, the cache brought forward.

        transformers reads only the last position's logits at each step, so only those are computed.
        """
        if decoder_input_ids is None:
            raise GenerationError("generate called the model without decoder_input_ids.")
        if encoder_outputs is None:
            if input_features is None:
                raise GenerationError("generate called the model with neither audio nor encoder output.")
            frames = self.encoder.forward(input_features)
        else:
            frames = encoder_outputs if isinstance(encoder_outputs, Tensor) else encoder_outputs[0]
        token_mask = positions = None
        if decoder_attention_mask is not None and not bool(decoder_attention_mask.all()):
            token_mask = decoder_attention_mask.bool()
            positions = (token_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -decoder_input_ids.shape[1] :]
        options: dict[str, Any] = {"past": past_key_values, "token_mask": token_mask, "positions": positions}
        if not output_attentions:
            return Seq2SeqLMOutput(
                logits=self.hooked.decode(decoder_input_ids, frames, last_only=True, **options),
                past_key_values=past_key_values,  # type: ignore[arg-type]
            )
        logits, patterns = self._with_patterns(decoder_input_ids, frames, options)
        return Seq2SeqLMOutput(
            logits=logits,
            past_key_values=past_key_values,  # type: ignore[arg-type]
            cross_attentions=patterns,  # type: ignore[arg-type]
        )

    def _with_patterns(
        self, tokens: Tensor, frames: Tensor, options: dict[str, Any]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """One step that also returns each layer's cross-attention pattern, [batch head pos frame]."""
        seen: dict[str, Tensor] = {}

        def keep(pattern: Tensor, hook: Any) -> None:
            seen[hook.name] = pattern

        names = [f"decoder.blocks.{i}.cross_attn.hook_pattern" for i in range(self.hooked.cfg.decoder.n_layers)]
        with self.hooked.hooks(fwd_hooks=[(name, keep) for name in names]):
            logits = self.hooked.decode(tokens, frames, last_only=True, **options)
        return logits, tuple(seen[name] for name in names)

    def _retrieve_logit_processors(self, *args: Any, **kwargs: Any) -> Any:
        processors = super()._retrieve_logit_processors(*args, **kwargs)
        for processor in processors or ():
            if type(processor) is SuppressTokensLogitsProcessor:
                processor.__class__ = _Suppress
            elif type(processor) is SuppressTokensAtBeginLogitsProcessor:
                processor.__class__ = _SuppressAtBegin
        return processors

    def _postprocess_outputs(self, seek_outputs: Any, *args: Any, **kwargs: Any) -> Any:
        # transformers would split these by clip: its own cache class, which ours is not, and self-attention
        # patterns, which the adapter does not return.
        if not isinstance(seek_outputs, Tensor):
            unsplit = ("past_key_values", "decoder_attentions")
            seek_outputs = type(seek_outputs)(**{k: v for k, v in seek_outputs.items() if k not in unsplit})
        return super()._postprocess_outputs(seek_outputs, *args, **kwargs)


def greedy_tokens(
    adapter: GenerationAdapter,
    encoder_out: Float[Tensor, "batch frame d_model"],
    *,
    languages: list[str] | None,
    task: str,
    timestamps: bool,
) -> list[list[int]]:
    """The model's own greedy transcript of each window as tokens, without prompt and end token.

    `languages` has one code for each window, or is None for an English-only checkpoint.
    """
    config = adapter.generation_config
    known = {} if languages is None else {"language": languages, "task": task}
    out = adapter.generate(
        encoder_outputs=BaseModelOutput(last_hidden_state=encoder_out),  # type: ignore[arg-type]
        return_timestamps=timestamps,
        force_unique_generate_call=True,  # one window, one transcript: no seeking on after it
        num_beams=1,
        do_sample=False,
        **known,
    )
    ends = {config.eos_token_id} if isinstance(config.eos_token_id, int) else set(config.eos_token_id or ())
    rows = []
    for row in out.tolist():
        stop = next((i for i, token in enumerate(row) if token in ends), len(row))
        rows.append(row[:stop])
    return rows
