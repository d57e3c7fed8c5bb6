"""HookedWhisper: OpenAI's Whisper with a name, a cache and a hook on every activation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hooked_whisper.audio import SAMPLE_RATE, AudioInput, frame_mask, load_batch
from hooked_whisper.components import ActivationPoint, see
from hooked_whisper.config import HookedWhisperConfig, resolve_device, resolve_dtype
from hooked_whisper.errors import AudioError, ConfigError, TextError
from hooked_whisper.generative import GenerativeModel
from hooked_whisper.hooks import HookList, NamesFilter
from hooked_whisper.inputs import (
    DecoderInput,
    TextInput,
    check_mel,
    check_task,
    language_codes,
    split_text,
    text_loss,
    with_prompts,
)
from hooked_whisper.kv_cache import KeyValueCache
from hooked_whisper.mel import LogMel
from hooked_whisper.processing import WeightProcessing
from hooked_whisper.run import Run
from hooked_whisper.splicing import SaeSplicing
from hooked_whisper.stacks import AudioEncoder, TextDecoder
from hooked_whisper.tokenizer import Tokenizer
from hooked_whisper.weights import ModelWeights

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel

    from hooked_whisper.cache import WhisperCache
    from hooked_whisper.checkpoints import Checkpoint
    from hooked_whisper.generation import GenerationAdapter

ReturnType = Literal["logits", "loss", "both"]


class HookedWhisper(SaeSplicing, GenerativeModel, ModelWeights, WeightProcessing):
    """A Whisper whose every activation can be read, cached and edited by name.

    Build one with `HookedWhisper.from_pretrained("openai/whisper-base")`. `model.hook_names()` lists
    the hook points; `run_with_cache`, `run_with_hooks`, `hooks` and `add_hook` work as in TransformerLens.

    Attributes:
        cfg: shapes and options.
        tokenizer: text to tokens and back; None for a model built without one.
        source: which copy of the weights was loaded, one line.
    """

    def __init__(
        self,
        cfg: HookedWhisperConfig,
        tokenizer: Tokenizer | None = None,
        generation_config: GenerationConfig | None = None,
    ) -> None:
        super().__init__()
        cfg = cfg.with_options()  # a copy: two models of one configuration each have options of their own
        self.cfg = cfg
        self.tokenizer = tokenizer
        self.generation_config = generation_config
        self.source = "built from a configuration, weights not trained"
        self._adapter: GenerationAdapter | None = None
        self.log_mel = LogMel(cfg.n_mels)
        self.hook_mel = ActivationPoint()
        self.encoder = AudioEncoder(cfg)
        self.decoder = TextDecoder(cfg)
        self.hook_logits = ActivationPoint()
        self.setup()

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path | PreTrainedModel,
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        revision: str | None = None,
        tokenizer: Tokenizer | None = None,
        local_files_only: bool = False,
        fold_ln: bool = False,
        center_writing_weights: bool = False,
        fold_value_biases: bool = False,
    ) -> HookedWhisper:
        """Loads a Whisper from the hub, a folder, an OpenAI `.pt`, a CTranslate2 folder or a live model.

        Args:
            name: "openai/whisper-base" or any hub id, a path, or a transformers model.
            device: where to put it; None takes CUDA or MPS where there is one, else the CPU.
            dtype: "float32" (when None), "float16", "bfloat16".
            fold_ln, center_writing_weights, fold_value_biases: weight processing as in TransformerLens, off
                unless asked for; logits stay the same.

        Raises:
            CheckpointError: nothing loadable there. ConfigError: no such device or dtype.
        """
        from hooked_whisper.checkpoints import load_checkpoint

        target, precision = resolve_device(device), resolve_dtype(dtype)
        checkpoint = load_checkpoint(name, revision=revision, tokenizer=tokenizer, local_files_only=local_files_only)
        process = fold_ln or center_writing_weights or fold_value_biases
        # In half precision each step of processing would round: process first, round once.
        working = torch.promote_types(precision, torch.float32) if process else precision
        model = cls.from_checkpoint(checkpoint, device=target, dtype=working, copy=False)
        if process:
            model.process_weights_(
                fold_ln=fold_ln, center_writing_weights=center_writing_weights, fold_value_biases=fold_value_biases
            )
        return model.to(precision)

    @classmethod
    def from_checkpoint(
        cls,
        checkpoint: Checkpoint,
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        copy: bool = True,
    ) -> HookedWhisper:
        """A model from a checkpoint already in memory (see `hooked_whisper.checkpoints`).

        Without `copy` the model may share memory with the checkpoint, so that a change of one changes the other.
        """
        with torch.device("meta"):
            model = cls(checkpoint.config, checkpoint.tokenizer, checkpoint.generation_config)
        model.log_mel = LogMel(checkpoint.config.n_mels)
        target, precision = resolve_device(device), resolve_dtype(dtype)
        state = dict(checkpoint.state_dict)
        embedding, unembedding = state["decoder.W_E"], state["decoder.unembed.weight"]
        tied = unembedding is embedding or torch.equal(unembedding, embedding)
        if tied:
            del state["decoder.unembed.weight"]  # or it would be converted twice
        state = {name: tensor.to(target, precision, copy=copy) for name, tensor in state.items()}
        if tied:
            state["decoder.unembed.weight"] = state["decoder.W_E"]
        bias = state.pop("decoder.unembed.bias", None)
        model.load_state_dict(state, assign=True)
        if bias is not None and bool(bias.any()):  # only processed weights have one; zeros would cost a pass
            model.decoder.unembed.bias = torch.nn.Parameter(bias)
        if tied:
            model.decoder.unembed.weight = model.decoder.W_E  # one parameter, as before loading
        model.log_mel.to(target)
        model.source = checkpoint.source
        model.setup()
        return model.eval()

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.decoder.W_E.device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the weights and activations."""
        return self.decoder.W_E.dtype

    # Audio in

    def to_mel(self, audio: AudioInput, *, sampling_rate: int = SAMPLE_RATE) -> Float[Tensor, "batch mel mel_frame"]:
        """The encoder's input: log-mel of 30 s windows, [batch, n_mels, 3000], padded with silence.

        Raises:
            AudioError: unreadable, empty, not finite or over 30 s.
        """
        return self._prepare_audio(Run(), audio, sampling_rate)

    def _prepare_audio(self, run: Run, audio: AudioInput, sampling_rate: int) -> Tensor:
        if isinstance(audio, Tensor) and audio.ndim == 3:
            mel = check_mel(audio).to(self.device, self.dtype)
            run.frame_mask = torch.ones(mel.shape[0], mel.shape[2] // 2, dtype=torch.bool, device=self.device)
            return mel
        clips = [clip.to(self.device) for clip in load_batch(audio, sampling_rate)]
        run.n_samples = [clip.shape[-1] for clip in clips]
        run.frame_mask = frame_mask(run.n_samples, self.cfg.n_frames).to(self.device)
        return self.log_mel(clips, self.cfg.n_mel_frames).to(self.dtype)

    def encode(self, audio: AudioInput, *, sampling_rate: int = SAMPLE_RATE) -> Float[Tensor, "batch frame d_model"]:
        """Runs the encoder alone: what cross-attention reads, `encoder.hook_out`."""
        return self.encode_mel(self.to_mel(audio, sampling_rate=sampling_rate))

    def encode_mel(self, mel: Float[Tensor, "batch mel mel_frame"]) -> Float[Tensor, "batch frame d_model"]:
        """Runs the encoder on a spectrogram."""
        # A copy where hooks see it: an edit in place must not reach the caller's tensor.
        return self.encoder(see(self.hook_mel, mel.clone()) if self.hook_mel.live else mel)

    # Text in

    def decode(
        self,
        tokens: Int[Tensor, "batch pos"],
        encoder_out: Float[Tensor, "batch frame d_model"],
        *,
        past: KeyValueCache | None = None,
        token_mask: Bool[Tensor, "batch key"] | None = None,
        positions: Int[Tensor, "batch pos"] | None = None,
        last_only: bool = False,
    ) -> Float[Tensor, "batch out_pos vocab"]:
        """Runs the decoder alone, on tokens that include their prompt; see `TextDecoder.forward`."""
        logits = self.decoder(
            tokens, encoder_out, past=past, token_mask=token_mask, positions=positions, last_only=last_only
        )
        return see(self.hook_logits, logits)

    def to_tokens(self, text: str | list[str]) -> list[int] | list[list[int]]:
        """Tokens of the text alone, without a prompt; with a space before it, as Whisper begins its transcripts."""
        return self._need_tokenizer().to_tokens(text)

    def to_single_token(self, text: str) -> int:
        """The token that is exactly `text`, no space added (" the" and "the" are two).

        Raises:
            TextError: it is several tokens, or none.
        """
        tokenizer = self._need_tokenizer()
        found = tokenizer.to_tokens(text, prefix_space=False)
        if len(found) != 1:
            pieces = tokenizer.to_str_tokens(found)
            raise TextError(f"{text!r} is {len(found)} tokens, {pieces}: give one; mind the space before a word.")
        return found[0]

    def tokens_to_residual_directions(
        self, tokens: str | int | Int[Tensor, "*place"]
    ) -> Float[Tensor, "*place d_model"]:
        """The direction in the decoder's last residual stream that raises each token's logit, from the unembedding."""
        ids = self.to_single_token(tokens) if isinstance(tokens, str) else tokens
        return self.decoder.unembed.weight[ids]

    def to_string(self, tokens: Any, *, skip_special_tokens: bool = False) -> str | list[str]:
        """Text of tokens."""
        return self._need_tokenizer().to_string(tokens, skip_special_tokens=skip_special_tokens)

    def to_str_tokens(self, tokens: Any) -> list[str]:
        """One printable string for each token, of tokens or of a text."""
        return self._need_tokenizer().to_str_tokens(tokens)

    def _need_tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise TextError("This model has no tokenizer: pass tokenizer= when you load it.")
        return self.tokenizer

    # Forward

    def forward(
        self,
        audio: AudioInput,
        text: TextInput = None,
        *,
        sampling_rate: int = SAMPLE_RATE,
        language: str | Sequence[str | None] | None = None,
        task: str = "transcribe",
        timestamps: bool = False,
        return_type: ReturnType | None = "logits",
        loss_per_token: bool = False,
    ) -> Any:
        """Logits of the next token at every position of prompt and text.

        Args:
            audio: a path, bytes, array or tensor (1-D, or channels x samples), a `datasets` audio item, a list of
                these, or a spectrogram as a 3-D tensor [batch, n_mels, mel_frames]. At most 30 s.
            text: what the decoder is fed after the prompt: a string, tokens, or one for each clip; "" feeds the prompt
                alone; None the model's own greedy transcript, made with the hooks active. Tokens that begin
                with `<|startoftranscript|>` are taken whole.
            sampling_rate: of raw arrays and tensors, in Hz.
            language: name or code, or one for each clip; None detects it.
            task: "transcribe" or "translate" (to English).
            timestamps: prompt for timestamps, too.
            return_type: "logits" [batch pos vocab], "loss" (mean cross-entropy of text and end token, in nats), "both"
                (logits, loss) or None.
            loss_per_token: "loss" as [batch pos] instead of the mean; 0 where nothing is predicted.

        Raises:
            AudioError, TextError, LanguageError: input that does not fit, with what to do about it.
        """
        return self._forward(
            Run(),
            audio,
            text,
            sampling_rate=sampling_rate,
            language=language,
            task=task,
            timestamps=timestamps,
            return_type=return_type,
            loss_per_token=loss_per_token,
        )

    def _forward(
        self,
        run: Run,
        audio: AudioInput,
        text: TextInput,
        *,
        sampling_rate: int,
        language: str | Sequence[str | None] | None,
        task: str,
        timestamps: bool,
        return_type: str | None,
        loss_per_token: bool,
    ) -> Any:
        check_task(task)
        if return_type not in ("logits", "loss", "both", None):
            raise ConfigError(f"Unknown return_type {return_type!r}: expected 'logits', 'loss', 'both' or None.")
        mel = self._prepare_audio(run, audio, sampling_rate)
        batch = mel.shape[0]
        codes = language_codes(language, batch, self.tokenizer)
        rows = None if text is None else split_text(text, batch, self.tokenizer, self.cfg.d_vocab)
        frames = self.encode_mel(mel)
        fed = self._decoder_input(run, frames, rows, codes, task, timestamps)
        logits = self.decode(fed.tokens, frames)
        if return_type is None:
            return None
        if return_type == "logits":
            return logits
        eot = self.tokenizer.eot if self.tokenizer is not None else 0
        loss = text_loss(logits, fed, eot, per_token=loss_per_token)
        return loss if return_type == "loss" else (logits, loss)

    def _decoder_input(
        self,
        run: Run,
        frames: Tensor,
        rows: list[list[int]] | None,
        codes: list[str | None],
        task: str,
        timestamps: bool,
    ) -> DecoderInput:
        """The tokens to feed, with what is missing (language, transcript) made by the model itself."""
        tokenizer = self.tokenizer
        whole = rows is not None and all(
            tokenizer is None or (bool(row) and row[0] in (tokenizer.sot, tokenizer.sot_prev)) for row in rows
        )
        prompts: list[list[int]] = [[] for _ in codes]
        if whole and tokenizer is not None and rows is not None and tokenizer.is_multilingual:
            spoken = {token: code for code, token in tokenizer.languages.items()}
            run.languages = [next((spoken[token] for token in row if token in spoken), None) for row in rows]
        if not whole:
            tokenizer = self._need_tokenizer()
            codes = self._complete_languages(frames, codes)
            run.languages = codes
            prompts = [tokenizer.prompt(code, task, timestamps) for code in codes]
            if rows is None:
                rows = self._own_transcript(frames, codes, task, timestamps)
        assert rows is not None
        fed = with_prompts(rows, prompts, tokenizer, self.cfg.n_ctx, self.device)
        run.tokens, run.token_mask, run.prompt_lengths = fed.tokens, fed.token_mask, fed.prompt_lengths
        if tokenizer is not None:
            lengths = fed.token_mask.sum(-1).tolist()
            spans = zip(fed.tokens.tolist(), fed.prompt_lengths, lengths, strict=True)
            run.texts = [str(tokenizer.to_string(row[start:end])) for row, start, end in spans]
        return fed

    # Cache

    def run_with_cache(  # type: ignore[override]
        self,
        audio: AudioInput,
        text: TextInput = None,
        *,
        names_filter: NamesFilter = None,
        stop_at: str | None = None,
        device: str | torch.device | None = None,
        remove_batch_dim: bool = False,
        incl_bwd: bool = False,
        fwd_hooks: HookList = (),
        bwd_hooks: HookList = (),
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
        sampling_rate: int = SAMPLE_RATE,
        language: str | Sequence[str | None] | None = None,
        task: str = "transcribe",
        timestamps: bool = False,
        return_type: ReturnType | Literal["auto"] | None = "auto",
        loss_per_token: bool = False,
    ) -> tuple[Any, WhisperCache]:
        """What `forward` returns, and a `WhisperCache` of the activations; as in TransformerLens.

        Args:
            names_filter: which hook points to keep: names, patterns with `*`, or a function. None keeps all but scores,
                patterns and `mlp.hook_post`, which the cache derives when they are read. If all are the encoder's, the
                decoder never runs, and the value returned is None (unless `return_type` is given).
            stop_at: a hook point after which nothing is computed; its activation is the value returned.
            device: where to keep the activations; None leaves them where they are.
            remove_batch_dim: keep activations without their batch dimension (one clip only).
            incl_bwd: also call backward on the output, which must be a scalar (`return_type="loss"`), and keep
                gradients under the hook's name + "_grad".
            fwd_hooks, bwd_hooks: temporary hooks for this run; the cache sees what they leave.

        Raises:
            HookNameError: a name that matches no hook point.
        """
        from hooked_whisper.cache import WhisperCache

        names = self.resolve_names(names_filter)
        run = Run()
        encoder_only = all(name == "hook_mel" or name.startswith("encoder.") for name in names)
        forget_output = encoder_only and stop_at is None and return_type == "auto" and not incl_bwd
        if forget_output:
            by_head = self.cfg.use_split_qkv_input or self.cfg.use_attn_in  # norms then run once for each of q, k, v
            stop_at = "encoder.hook_out" if by_head else names[-1]
        with self.hooks(fwd_hooks, bwd_hooks, reset_hooks_end, clear_contexts), self._guarded():
            run.hooked = frozenset(name for name, point in self.hook_dict.items() if point.live)
            if names_filter is None:
                names = self.resolve_names([*names, *self._hooked_derived()])
            kept, fwd, bwd = self.get_caching_hooks(names, incl_bwd, device, remove_batch_dim)
            with self.hooks(fwd, bwd, reset_hooks_end, clear_contexts):
                output = self._stoppable(
                    stop_at,
                    self._forward,
                    run,
                    audio,
                    text,
                    sampling_rate=sampling_rate,
                    language=language,
                    task=task,
                    timestamps=timestamps,
                    return_type="logits" if return_type == "auto" else return_type,
                    loss_per_token=loss_per_token,
                )
                if incl_bwd:
                    if not isinstance(output, Tensor) or output.numel() != 1:
                        raise ConfigError('incl_bwd calls backward on the output: pass return_type="loss" with it.')
                    output.backward()
        if remove_batch_dim and run.frame_mask is not None and run.frame_mask.shape[0] != 1:
            raise AudioError(f"remove_batch_dim needs one clip, got {run.frame_mask.shape[0]}.")
        cache = WhisperCache(kept, self, run, has_batch_dim=not remove_batch_dim)
        return (None if forget_output else output), cache
