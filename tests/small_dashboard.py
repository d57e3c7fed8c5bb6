"""A dashboard of 32 latents over five short sounds, with labels, scores, an effect and a steering result.

Names of clips, labels and texts are hostile: what is shown must never become markup.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from made_up_features import labels_of
from sae_files import random_sae
from small import small_model
from sounds import write_wav

from hooked_whisper.analysis.codes import FeatureCodes, sparse
from hooked_whisper.analysis.dashboard_steering import SteeredText, SteeringView
from hooked_whisper.analysis.feature_effects import TokenEffect
from hooked_whisper.analysis.feature_scores import score_features
from hooked_whisper.analysis.labels import Interval, Labels
from hooked_whisper.saes import Corpus
from hooked_whisper.saes.corpus_item import CorpusItem

HOOK = "encoder.hook_out"
BAD = "<script>alert('&')</script>\"><img src=x>"
IDS = (f"en/{BAD}", "en/one", "it/two", "it/../three", "ru/four")
FRAMES = 40
N_LATENTS = 32
WORDS, DENSE, SILENT = 3, 5, 7  # latents: on one word alone, almost always on, never on


def word_at(clip: int) -> tuple[int, int]:
    """First and last frame of the labelled word in a clip."""
    return 5 + 2 * clip, 12 + 2 * clip


def make_codes() -> FeatureCodes:
    """Codes of five clips of 0.8 s; latent 3 is on at one word, its height rising from clip to clip."""
    generator = np.random.default_rng(0)
    dense = np.zeros((len(IDS) * FRAMES, N_LATENTS), dtype=np.float32)
    for latent in range(N_LATENTS):
        dense[:, latent] = generator.random(len(dense)) * (generator.random(len(dense)) < 0.1)
    dense[:, WORDS] = dense[:, SILENT] = 0
    dense[:, DENSE] = 0.5 + generator.random(len(dense))
    for clip in range(len(IDS)):
        first, last = word_at(clip)
        dense[clip * FRAMES + first : clip * FRAMES + last, WORDS] = 1 + clip
    clip = np.repeat(np.arange(len(IDS)), FRAMES)
    return FeatureCodes(
        sparse.csr_array(dense),
        clip.astype(np.int32),
        np.tile(np.arange(FRAMES, dtype=np.int32), len(IDS)),
        IDS,
        {"language": np.array([IDS[one][:2] for one in clip], dtype=object)},
        HOOK,
    )


def make_parts(folder: Path) -> dict[str, Any]:
    """All that `make_dashboard` takes, but the folder; sounds are written into `folder`."""
    codes = make_codes()
    items = [
        CorpusItem(name, write_wav(folder / f"{at}.wav", FRAMES / 50, seed=at), text=BAD if at == 0 else "what is said",
                   language=name[:2])
        for at, name in enumerate(IDS)
    ]  # fmt: skip
    tiers = {
        name: {"word": (Interval(word_at(at)[0] / 50, word_at(at)[1] / 50, BAD if at == 4 else "word"),)}
        for at, name in enumerate(IDS)
    }
    said = np.zeros(codes.n_rows, dtype=bool)
    for at in range(len(IDS)):
        said[at * FRAMES + word_at(at)[0] : at * FRAMES + word_at(at)[1]] = True
    table = labels_of({f"word={BAD}": said, "word=else": ~said})
    effect = TokenEffect(IDS[1], 0.14, 0.28, BAD, " two", 0.9, 0.4, ((BAD, 0.05, 0.5),), -1.5, -0.1, DENSE)
    texts = [
        SteeredText(clip, clip[:2], condition, dose, text)
        for clip in IDS[:2]
        for condition, dose, text in (
            ("unhooked", 0.0, "one two three"), ("sae", 0.0, "one two"), ("steered", 1.0, "one two three"),
            ("steered", 2.0, f"one {BAD} three"), ("random-0", 1.0, "one two three"), ("random-0", 2.0, ""),
        )
    ]  # fmt: skip
    return {
        "model": small_model(),
        "sae": random_sae("topk", HOOK, d_sae=N_LATENTS),
        "corpus": Corpus(items, name="five sounds"),
        "codes": codes,
        "labels": Labels(tiers),
        "scores": score_features(codes, table, train=np.isin(codes.clip, (0, 2, 4)), progress=False),
        "effects": {WORDS: [effect], SILENT: []},
        "steering": {WORDS: SteeringView((("edits", BAD),), ("a note",), texts)},
        "progress": False,
    }
