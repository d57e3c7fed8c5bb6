"""WhisperCache: every activation of a run by name, with the audio, tokens and text that it belongs to."""

from __future__ import annotations

import os
import string
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor

from hooked_whisper.alignment import Word, align_words
from hooked_whisper.audio import FRAMES_PER_SECOND
from hooked_whisper.component_cache import DecoderCache, EncoderCache
from hooked_whisper.config import HookedWhisperConfig
from hooked_whisper.errors import CacheError, ConfigError, did_you_mean
from hooked_whisper.named_cache import NamedCache, compact
from hooked_whisper.run import Run
from hooked_whisper.tokenizer import APPENDED_PUNCTUATION, PREPENDED_PUNCTUATION

if TYPE_CHECKING:
    from typing_extensions import Self

    from hooked_whisper.model import HookedWhisper
else:
    Self = NamedCache  # run-time checkers of types cannot tell a method's own class

_MARKS = PREPENDED_PUNCTUATION + APPENDED_PUNCTUATION + string.punctuation + string.whitespace
_FRAME = 1 / FRAMES_PER_SECOND  # seconds


class WhisperCache(NamedCache):
    """A TransformerLens `ActivationCache` of a Whisper, as `model.run_with_cache` returns it.

        cache["encoder.blocks.3.hook_resid_post"]           # [batch frame d_model]
        cache["decoder.blocks.2.cross_attn.hook_pattern"]   # [batch head pos frame], derived when read
        cache.encoder.accumulated_resid()                   # the analyses, for each stack
        cache.seconds(1.2, 1.8), cache.word("hello")        # a part of the audio
        cache.save("run.safetensors")

    Attributes:
        cache_dict: stored activations by hook name.
        model: where they come from; None in a cache that was loaded without it.
        cfg: the model's configuration at that time.
        run: audio extent, tokens and texts of the run.
    """

    def __init__(
        self,
        cache_dict: dict[str, Tensor],
        model: HookedWhisper | None,
        run: Run,
        has_batch_dim: bool = True,
        *,
        cfg: HookedWhisperConfig | None = None,
    ) -> None:
        super().__init__(compact(cache_dict), model, run, has_batch_dim, cfg=cfg)

    # The two stacks

    @property
    def encoder(self) -> EncoderCache:
        """The encoder's activations, and TransformerLens's analyses of them; positions are frames."""
        return EncoderCache.of(self)

    @property
    def decoder(self) -> DecoderCache:
        """The decoder's activations, and TransformerLens's analyses of them; positions are tokens."""
        return DecoderCache.of(self)

    # What the decoder was fed

    @property
    def texts(self) -> list[str]:
        """For each clip, what the decoder was fed after the prompt."""
        if self.run.texts is None and self.run.tokens is not None:
            raise CacheError("This run has tokens but no texts: its model has no tokenizer.")
        return self._need("texts")

    @property
    def text(self) -> str:
        """What the decoder was fed after the prompt: the transcript, unless a text was given.

        Raises:
            CacheError: several clips (`texts` has all), or a run that did not reach the decoder.
        """
        texts = self.texts
        if len(texts) != 1:
            raise CacheError(f"This cache has {len(texts)} clips: cache.texts has the text of each.")
        return texts[0]

    @property
    def languages(self) -> list[str | None]:
        """Code of each clip's language; None where it was not asked, or the checkpoint knows English only."""
        return [None] * self.n_clips if self.run.languages is None else self.run.languages

    @property
    def prompt_lengths(self) -> list[int]:
        """For each clip, how many of its first tokens are the prompt."""
        self._need("tokens")
        return self.run.prompt_lengths

    def clip_tokens(self, clip: int = 0) -> list[int]:
        """Ids of the tokens that clip `clip` was fed, prompt included, padding left out."""
        self._check_clip(clip)
        return self._need("tokens")[clip][self._need("token_mask")[clip]].tolist()

    def str_tokens(self, clip: int = 0) -> list[str]:
        """One printable string for each token of clip `clip`, prompt included, padding left out."""
        tokens = self.clip_tokens(clip)
        if self.model is None:
            raise CacheError("str_tokens needs the model's tokenizer: set cache.model, or load the cache with model=.")
        return self.model.to_str_tokens(tokens)

    # Words

    def words(self, clip: int = 0) -> list[Word]:
        """The words of clip `clip` and when they were said, see `hooked_whisper.alignment.align_words`.

        Raises:
            CacheError: cross-attention that was not kept, or a cache that is cut in time.
            ConfigError: a checkpoint that publishes no alignment heads.
        """
        if self.model is None:
            raise CacheError("Words need the model's tokenizer: set cache.model, or load the cache with model=.")
        return align_words(self.model, self, clip)

    def word(self, text: str, *, occurrence: int = 0, clip: int = 0) -> Self:
        """The frames while a word was said: `seconds` of its start and end, for its clip alone.

        Args:
            text: the word; case and punctuation do not matter.
            occurrence: which of several, counted from 0.
            clip: of a batch.

        Raises:
            CacheError: a word that was not said so often, and what `words` raises.
        """
        words = self.words(clip)
        found = [word for word in words if _bare(word.text) == _bare(text)]
        if not -len(found) <= occurrence < len(found):
            said = [_bare(word.text) for word in words]
            times = f"{len(found)} times, so there is no occurrence {occurrence}" if found else "nowhere"
            hint = did_you_mean(_bare(text), said) if not found else ""
            raise CacheError(f"{text!r} is said {times} in clip {clip}.{hint} Words: {' '.join(dict.fromkeys(said))}.")
        word = found[occurrence]
        one = self.apply_slice_to_batch_dim([clip]) if self.has_batch_dim else self
        start = min(word.start, (self._window() - 1) * _FRAME)
        return one.seconds(start, max(word.end, start + _FRAME))

    @property
    def is_cut(self) -> bool:
        """True of what `seconds` and `word` return: the frames of a part of the window."""
        return self._is_cut

    # Files

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes the cache into one safetensors file, whole or not at all; returns its path.

        Activations that share memory are stored once. What is derived when read is not stored.

        Raises:
            CacheError: a folder that is not there, or a disk that refuses.
        """
        from hooked_whisper.cache_io import save_cache

        return save_cache(self, Path(path))

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        model: HookedWhisper | None = None,
        *,
        device: str | torch.device = "cpu",
    ) -> WhisperCache:
        """Reads what `save` wrote; nothing in the file is ever run.

        Args:
            path: the file.
            model: the model that the activations come from. Without it everything works that needs no weights and no
                tokenizer; `cache.model = model` gives it later.
            device: where to put the activations.

        Raises:
            CacheError: a file that is missing, damaged, not a cache, or of a model of another shape.
        """
        from hooked_whisper.cache_io import load_cache

        return load_cache(Path(path), model, device=device)

    # TransformerLens's analyses are of one residual stream, and here are two.

    def _of_one_stack(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raises ConfigError: a Whisper has two residual streams, so say cache.encoder or cache.decoder."""
        raise ConfigError(
            "A Whisper has two residual streams: call this on cache.encoder or cache.decoder, not on the cache."
        )

    accumulated_resid = _of_one_stack
    decompose_resid = _of_one_stack
    stack_head_results = _of_one_stack
    stack_neuron_results = _of_one_stack
    stack_activation = _of_one_stack
    get_neuron_results = _of_one_stack
    get_full_resid_decomposition = _of_one_stack
    compute_head_results = _of_one_stack
    apply_ln_to_stack = _of_one_stack
    logit_attrs = _of_one_stack


def _bare(word: str) -> str:
    return word.strip(_MARKS).casefold()
