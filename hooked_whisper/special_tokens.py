"""Special tokens of Whisper's three published vocabularies, as numbers, and the generation settings made of them.

A vocabulary is GPT-2's text tokens, then end of text, start of transcript, the languages, and a fixed run of
control tokens, then 1,501 timestamps. The vocabulary's size tells which of the three it is
(`get_tokenizer` in openai/whisper's tokenizer.py is the source of the layout).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import GenerationConfig
from transformers.models.whisper.configuration_whisper import NON_SPEECH_TOKENS, NON_SPEECH_TOKENS_MULTI
from transformers.models.whisper.tokenization_whisper import LANGUAGES

N_TIMESTAMPS = 1501  # 0.00 s to 30.00 s in steps of 0.02 s
MAX_INITIAL_TIMESTAMP_INDEX = 50  # the first timestamp is at most 1.00 s
SPACE = 220  # the token of " ", which a transcript may not begin with


@dataclass(frozen=True)
class VocabularyLayout:
    """Token numbers of one vocabulary: the last text token's successor, and how many languages follow."""

    d_vocab: int
    eot: int
    n_languages: int
    is_multilingual: bool

    @property
    def sot(self) -> int:
        return self.eot + 1

    @property
    def translate(self) -> int:
        return self.sot + self.n_languages + 1

    @property
    def transcribe(self) -> int:
        return self.translate + 1

    @property
    def sot_lm(self) -> int:
        return self.translate + 2

    @property
    def sot_prev(self) -> int:
        return self.translate + 3

    @property
    def no_speech(self) -> int:
        return self.translate + 4

    @property
    def no_timestamps(self) -> int:
        return self.translate + 5


# English-only vocabularies keep the 99 language tokens, unused.
LAYOUTS = {
    layout.d_vocab: layout
    for layout in (
        VocabularyLayout(51864, eot=50256, n_languages=99, is_multilingual=False),
        VocabularyLayout(51865, eot=50257, n_languages=99, is_multilingual=True),
        VocabularyLayout(51866, eot=50257, n_languages=100, is_multilingual=True),
    )
}


def eot_of_vocabulary(d_vocab: int) -> int:
    """End of text of a vocabulary of that size; the last token of one that is none of Whisper's."""
    layout = LAYOUTS.get(d_vocab)
    if layout is not None:
        return layout.eot
    return LAYOUTS[51865].eot if d_vocab > max(LAYOUTS) else d_vocab - 1


def language_codes(n_languages: int) -> list[str]:
    """Whisper's language codes in the order of their tokens ("en", "zh", "de", ...)."""
    return list(LANGUAGES)[:n_languages]


def suppressed_tokens(layout: VocabularyLayout) -> list[int]:
    """Tokens that are never sampled: non-speech symbols, and the control tokens that only a prompt may hold."""
    symbols = NON_SPEECH_TOKENS_MULTI if layout.is_multilingual else NON_SPEECH_TOKENS
    control = [
        layout.sot,
        layout.translate,
        layout.transcribe,
        layout.sot_lm,
        layout.sot_prev,
        layout.no_speech,
    ]
    return [token for token in symbols if token < layout.eot] + control


def generation_settings(d_vocab: int) -> dict[str, Any]:
    """What `transformers.GenerationConfig` holds for a Whisper with that vocabulary, as a dict.

    For a vocabulary that is none of Whisper's, only the fields that need no token are given.
    """
    settings: dict[str, Any] = {
        "max_length": 448,
        "max_initial_timestamp_index": MAX_INITIAL_TIMESTAMP_INDEX,
        "return_timestamps": False,
        "alignment_heads": [],
    }
    layout = LAYOUTS.get(d_vocab)
    if layout is None:
        return settings
    settings |= {
        "bos_token_id": layout.eot,
        "eos_token_id": layout.eot,
        "pad_token_id": layout.eot,
        "decoder_start_token_id": layout.sot,
        "no_timestamps_token_id": layout.no_timestamps,
        "prev_sot_token_id": layout.sot_prev,
        "is_multilingual": layout.is_multilingual,
        "begin_suppress_tokens": [SPACE, layout.eot],
        "suppress_tokens": suppressed_tokens(layout),
    }
    if layout.is_multilingual:
        codes = language_codes(layout.n_languages)
        settings["lang_to_id"] = {f"<|{code}|>": layout.sot + 1 + i for i, code in enumerate(codes)}
        settings["task_to_id"] = {"transcribe": layout.transcribe, "translate": layout.translate}
        # Takes the place of the deprecated `forced_decoder_ids`: without either, transformers leaves the task token
        # out of the prompt when it detects the language, and the transcript is gibberish.
        settings["task"] = "transcribe"
    return settings


def put(settings: GenerationConfig, **values: Any) -> None:
    """Sets attributes, Whisper's among them, which transformers' class does not declare."""
    for name, value in values.items():
        setattr(settings, name, value)


def generation_config(d_vocab: int, **known: Any) -> GenerationConfig:
    """Generation settings of that vocabulary, with the fields a checkpoint does know (`known`) taken from it.

    A field given as None is taken from the vocabulary.
    """
    settings = generation_settings(d_vocab)
    settings |= {name: value for name, value in known.items() if value is not None}
    return GenerationConfig(**settings)
