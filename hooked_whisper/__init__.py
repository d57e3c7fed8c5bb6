"""hooked-whisper: see inside OpenAI's Whisper, and prove by intervention what each part does."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Loaded on first use, so that `hooked-whisper --help` does not wait for torch.
_EXPORTS = {
    "HookedWhisper": "model",
    "HookedWhisperConfig": "config",
    "StackConfig": "config",
    "WhisperCache": "cache",
    "Tokenizer": "tokenizer",
    "LogMel": "mel",
    "load_audio": "audio",
    "load_checkpoint": "checkpoints",
    "Transcript": "transcription",
    "HookedWhisperError": "errors",
    "AudioError": "errors",
    "TextError": "errors",
    "LanguageError": "errors",
    "HookNameError": "errors",
    "CacheError": "errors",
    "CheckpointError": "errors",
    "ConfigError": "errors",
    "GenerationError": "errors",
    "MissingExtraError": "errors",
    "SaeError": "errors",
    "CorpusError": "errors",
    "StoreError": "errors",
    "PublishError": "errors",
    "AnalysisError": "errors",
}

__all__ = ["__version__", *_EXPORTS]  # pyright: ignore[reportUnsupportedDunderAll]

if TYPE_CHECKING:
    from hooked_whisper.audio import load_audio as load_audio
    from hooked_whisper.cache import WhisperCache as WhisperCache
    from hooked_whisper.checkpoints import load_checkpoint as load_checkpoint
    from hooked_whisper.config import HookedWhisperConfig as HookedWhisperConfig
    from hooked_whisper.config import StackConfig as StackConfig
    from hooked_whisper.errors import AnalysisError as AnalysisError
    from hooked_whisper.errors import AudioError as AudioError
    from hooked_whisper.errors import CacheError as CacheError
    from hooked_whisper.errors import CheckpointError as CheckpointError
    from hooked_whisper.errors import ConfigError as ConfigError
    from hooked_whisper.errors import CorpusError as CorpusError
    from hooked_whisper.errors import GenerationError as GenerationError
    from hooked_whisper.errors import HookedWhisperError as HookedWhisperError
    from hooked_whisper.errors import HookNameError as HookNameError
    from hooked_whisper.errors import LanguageError as LanguageError
    from hooked_whisper.errors import MissingExtraError as MissingExtraError
    from hooked_whisper.errors import PublishError as PublishError
    from hooked_whisper.errors import SaeError as SaeError
    from hooked_whisper.errors import StoreError as StoreError
    from hooked_whisper.errors import TextError as TextError
    from hooked_whisper.mel import LogMel as LogMel
    from hooked_whisper.model import HookedWhisper as HookedWhisper
    from hooked_whisper.tokenizer import Tokenizer as Tokenizer
    from hooked_whisper.transcription import Transcript as Transcript


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(importlib.import_module(f"hooked_whisper.{_EXPORTS[name]}"), name)
    raise AttributeError(f"module 'hooked_whisper' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
