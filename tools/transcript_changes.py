"""What several things in an activation's place do to the transcripts of the same clips; the experiments share it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from hooked_whisper import HookedWhisper
from hooked_whisper.saes import Corpus
from hooked_whisper.saes.coding import Site, SparseCoder, reconstruct
from hooked_whisper.saes.error_rates import TranscriptErrors
from hooked_whisper.saes.evaluation_passes import SLACK
from hooked_whisper.saes.spliced_evaluation import Replacement, Spliced, listen, transcripts

BATCH = 4
FIGURES = {
    "wer_to_unhooked": "Words that differ from the unhooked model's, %",
    "wer_change": "Change of the word error rate against the published text, points",
}


def by_sae(sae: SparseCoder) -> Replacement:
    """The SAE in the activation's place."""

    def replace(read: Tensor, written: Tensor) -> Tensor:
        return reconstruct(sae, read)

    return replace


@torch.no_grad()
def changed_transcripts(
    model: HookedWhisper, site: Site, ways: Mapping[str, Replacement], corpus: Corpus
) -> tuple[dict[str, TranscriptErrors], list[str]]:
    """Transcripts of each way against the unhooked model's and the published text; languages of the clips.

    Each clip is alone in its window and padding stays as it is, as in `hooked-whisper evaluate`.
    """
    tokenizer = model.tokenizer
    assert tokenizer is not None
    found = {name: TranscriptErrors() for name in ways}
    languages: list[str] = []
    items = list(corpus)
    for at in tqdm(range(0, len(items), BATCH), desc="transcripts", unit="batch"):
        part = items[at : at + BATCH]
        batch = listen(model, [item.load() for item in part], [item.language for item in part], site)
        own = transcripts(model, batch.encoder_out, batch.languages)
        languages += [str(code) for code in batch.languages]
        for name, way in ways.items():
            spliced = Spliced(model, site, [way] * len(part), batch, False)
            now = spliced.transcripts([2 * len(text) + SLACK for text in own])
            for item, before, after, code in zip(part, own, now, batch.languages, strict=True):
                texts = [str(tokenizer.to_string(text, skip_special_tokens=True)).strip() for text in (before, after)]
                found[name].add(texts[0], texts[1], item.text, clip=item.id, language=code, tokenizer=tokenizer)
    return found, languages


def language_table(
    first: str,
    found: Mapping[str, TranscriptErrors],
    languages: Sequence[str],
    figure: str,
    label: Callable[[str], str] = str,
) -> list[str]:
    """A Markdown table: a row for each way, `label` of its name; a column for all clips, and for each language.

    `figure` is one of `FIGURES`, shown in per cent with its 95 % interval.
    """
    groups = {"all": list(range(len(languages)))}
    groups |= {code: [i for i, own in enumerate(languages) if own == code] for code in sorted(set(languages))}
    lines = [f"| {first} | {' | '.join(groups)} |", "|---" * (1 + len(groups)) + "|"]
    for name, errors in found.items():
        cells = [getattr(errors.result(clips), figure).percent().replace(" %", "") for clips in groups.values()]
        lines.append(f"| {label(name)} | {' | '.join(cells)} |")
    return lines
