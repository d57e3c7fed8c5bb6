"""Every error that hooked-whisper raises on purpose.

Each message says what was given, what was expected, and what to do next. All derive from
`HookedWhisperError`, so `except HookedWhisperError` catches what the library refuses and
nothing else. Where a built-in type fits (`ValueError`, `KeyError`, ...), the error is one too.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class HookedWhisperError(Exception):
    """Base of all errors raised by hooked-whisper."""


class AudioError(HookedWhisperError, ValueError):
    """Audio that is missing, empty, corrupt, not finite, too long, or of an unclear shape."""


class TextError(HookedWhisperError, ValueError):
    """Text or tokens that do not fit: over the context, of the wrong shape, outside the vocabulary."""


class LanguageError(HookedWhisperError, ValueError):
    """A language or task that this checkpoint does not know."""


class HookNameError(HookedWhisperError, KeyError):
    """A name that matches no hook point of the model."""

    def __str__(self) -> str:  # KeyError shows its argument quoted; a sentence reads better bare
        return str(self.args[0])


class CacheError(HookedWhisperError, KeyError):
    """An activation that the cache does not hold and cannot derive."""

    def __str__(self) -> str:
        return str(self.args[0])


class CheckpointError(HookedWhisperError, ValueError):
    """A checkpoint that is missing, truncated, hostile, or of an unknown kind."""


class ConfigError(HookedWhisperError, ValueError):
    """A configuration, option, device or dtype that cannot work."""


class MissingExtraError(HookedWhisperError, ImportError):
    """A package that one of the extras brings is not installed."""


class SaeError(HookedWhisperError, ValueError):
    """A sparse autoencoder that does not fit where it is put, or settings that cannot train one."""


class CorpusError(HookedWhisperError, ValueError):
    """A corpus that is missing, empty, malformed, or holds an audio file that cannot be read."""


class StoreError(HookedWhisperError, ValueError):
    """A store of activations that is missing, damaged, incomplete, or of another model."""


class PublishError(HookedWhisperError, RuntimeError):
    """A hub that refuses, cannot be reached, or broke off."""


class AnalysisError(HookedWhisperError, ValueError):
    """An analysis that cannot be made: inputs that do not pair, a metric without gradient, an unknown node."""


class GenerationError(HookedWhisperError, ValueError):
    """Generation options that contradict each other or that this model cannot follow."""


def did_you_mean(name: str, known: Iterable[str], *, n: int = 5) -> str:
    """A clause that names the entries of `known` nearest to `name`, or an empty string."""
    near = difflib.get_close_matches(str(name), list(known), n=n, cutoff=0.5)
    return f" Did you mean {' or '.join(repr(m) for m in near)}?" if near else ""
