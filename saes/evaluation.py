"""`evaluate_sae`: what an SAE gives back, how its latents fire, and what it does to the model and its transcripts."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from tqdm import tqdm

from hooked_whisper.errors import ConfigError, CorpusError, StoreError
from hooked_whisper.saes.baselines import BaselineName, Moments
from hooked_whisper.saes.coding import Site, SparseCoder, find_site
from hooked_whisper.saes.corpus import Corpus
from hooked_whisper.saes.corpus_item import CorpusItem
from hooked_whisper.saes.estimates import N_RESAMPLES
from hooked_whisper.saes.evaluation_passes import (
    PADDINGS,
    SAE,
    SLACK,
    UNKNOWN,
    Measured,
    Padding,
    Passes,
    StoredClip,
    StorePasses,
    stored_clips,
)
from hooked_whisper.saes.report import BaselineReport, Group, SaeReport
from hooked_whisper.saes.source import ActivationSource
from hooked_whisper.saes.store import ActivationStore

if TYPE_CHECKING:
    from hooked_whisper.model import HookedWhisper

Clip = TypeVar("Clip", CorpusItem, StoredClip)

N_CHANGES = 20  # clips that a report shows
ROWS_PER_DIMENSION = 10  # below which principal components are not to be trusted


def evaluate_sae(
    model: HookedWhisper,
    sae: SparseCoder,
    corpus: Corpus | ActivationStore,
    *,
    hook: str | None = None,
    languages: Sequence[str] | None = None,
    clips_per_language: int | None = None,
    splice: bool = True,
    padding: Padding = "keep",
    reference: bool = False,
    transcribe: bool = True,
    baselines: Sequence[BaselineName] = ("neurons", "pca"),
    fit_on: ActivationSource | None = None,
    expected_l0: float | None = None,
    batch_size: int = 8,
    n_resamples: int = N_RESAMPLES,
    seed: int = 0,
    progress: bool | None = None,
) -> SaeReport:
    """Evaluates an SAE on clips that it was not trained on.

    Each clip is heard as the model hears it, alone in its window of 30 s; a longer one is cut into windows, which then
    have no reference text. Padding frames are no rows. Latents that fire on no row of the corpus are called dead.

    Args:
        sae: any SAELens SAE or transcoder; an error term is left out.
        corpus: clips; `text`, `language` and `speaker` are used as far as they are known. A store of their activations
            serves for reconstruction and firing, with `splice=False`.
        hook: where the SAE belongs; None takes what its metadata says.
        languages: only clips of these languages, as the corpus names them.
        clips_per_language: at most so many of each, drawn by `seed`.
        splice: also measure what the SAE in its hook's place does to predictions and transcripts.
        padding: in the encoder, whether padding frames stay the model's own ("keep") while SAE and ablations replace
            the frames with audio, or are replaced, too ("replace").
        reference: measure predictions of the reference texts, too, not of the model's own transcripts alone.
        transcribe: write transcripts with the SAE spliced in, for error rates; the slowest part.
        baselines: what to measure the SAE against at its own L0.
        fit_on: rows that baselines and the mean row are fitted on, such as the store that the SAE was trained from.
            None fits baselines on one half of the clips and measures them on the other, and back, which takes many
            more rows than the hook has dimensions; the mean is then that of all.
        expected_l0: the L0 that it was trained for; None takes `k` from its settings or metadata.
        batch_size: clips that go through the model together.
        n_resamples: of clips, for the intervals; 0 leaves them out.
        progress: show a progress bar; None shows it where the output is a terminal.

    Raises:
        SaeError: an SAE that does not fit the model, or activations that are not finite.
        CorpusError: no clips, or none in a language that was asked for.
        LanguageError: a language that the model does not know.
        ConfigError: options that cannot be, such as splicing on a store.
        StoreError: a store of another model, or one that is damaged.
    """
    if padding not in PADDINGS:
        raise ConfigError(f"Unknown padding {padding!r}: expected one of {', '.join(PADDINGS)}.")
    if batch_size < 1:
        raise ConfigError(f"batch_size must be at least 1, got {batch_size}.")
    site = find_site(model, sae, hook)
    second = splice or bool(baselines)
    hidden = None if progress is None else not progress  # None: hidden unless on a terminal
    with tqdm(desc="evaluate", unit="clip", disable=hidden) as bar:
        if isinstance(corpus, Corpus):
            items = choose_clips(list(corpus), corpus.name, languages, clips_per_language, seed)
            passes = Passes(
                model, sae, site, corpus, items, batch_size, splice=splice, padding=padding, reference=reference,
                transcribe=transcribe, step=bar.update,
            )  # fmt: skip
        else:
            _check_store(corpus, model, splice)
            items = choose_clips(stored_clips(corpus), "The store", languages, clips_per_language, seed)
            passes = StorePasses(model, sae, site, corpus, items, step=bar.update)
        bar.reset(total=len(items) * (1 + second))
        measured = passes.start()
        passes.measure_rows(measured)
        if not measured.names:
            raise CorpusError(f"None of the {len(items)} clips could be read: see corpus.skipped.")
        if fit_on is not None:
            measured.fitted_on = moments_of(fit_on, site.write)
        measured.fit_baselines(baselines, model.device)
        if second:
            passes.measure_splicing(measured)
    settings = {
        "splice": splice,
        "padding": padding,
        "reference": reference,
        "transcribe": transcribe,
        "languages": None if languages is None else list(languages),
        "clips_per_language": clips_per_language,
        "n_resamples": n_resamples,
        "seed": seed,
        "model_dtype": str(model.dtype).removeprefix("torch."),
        "device": str(model.device),
        "hooked-whisper": version("hooked-whisper"),
        "torch": torch.__version__,
        "transformers": version("transformers"),
    }
    return assemble_report(
        model.cfg.model_name,
        sae,
        site,
        measured,
        corpus=corpus.describe(),
        l0=configured_l0(sae) if expected_l0 is None else expected_l0,
        settings=settings,
    )


def moments_of(source: ActivationSource, hook: str) -> Moments:
    """Mean and covariance of all rows of a store or stream.

    Raises:
        StoreError: it does not have that hook.
    """
    if hook not in source.hooks:
        raise StoreError(f"fit_on has no rows of {hook!r}: it has {', '.join(source.hooks)}.")
    found = Moments.none(source.width(hook))
    for rows in source.batches(hook, 8192, repeat=False):
        found.add(rows)
    return found


def choose_clips(
    clips: Sequence[Clip], name: str, languages: Sequence[str] | None, per_language: int | None, seed: int
) -> list[Clip]:
    """The clips to evaluate, in their order.

    Raises:
        CorpusError: none, or none in a language that was asked for.
    """
    if not clips:
        raise CorpusError(f"{name} has no clips: there is nothing to evaluate on.")
    spoken = [clip.language or UNKNOWN for clip in clips]
    found = sorted(set(spoken))
    missing = sorted(set(languages or ()) - set(found))
    if missing:
        raise CorpusError(f"{name} has no clips in {', '.join(missing)}: its languages are {', '.join(found)}.")
    chosen = [i for i, language in enumerate(spoken) if languages is None or language in languages]
    if per_language is not None:
        if per_language < 1:
            raise ConfigError(f"clips_per_language must be at least 1, got {per_language}.")
        generator = np.random.default_rng(seed)
        kept: set[int] = set()
        for language in found:
            of_it = [i for i in chosen if spoken[i] == language]
            kept.update(generator.permutation(of_it)[:per_language].tolist())
        chosen = [i for i in chosen if i in kept]
    return [clips[i] for i in chosen]


def _check_store(store: ActivationStore, model: HookedWhisper, splice: bool) -> None:
    if splice:
        raise ConfigError(
            "A store has no sound, so nothing can be spliced on it: pass the corpus, or splice=False to measure "
            "reconstruction and firing alone."
        )
    if store.model_name != model.cfg.model_name:
        raise StoreError(f"The store has activations of {store.model_name}, the model is {model.cfg.model_name}.")


def configured_l0(sae: SparseCoder) -> float | None:
    """k of a TopK SAE, or what the metadata of a thresholded one says that it was trained for."""
    if sae.cfg.architecture() in ("topk", "abstopk"):
        return float(sae.cfg.k)
    k = sae.cfg.metadata.k
    return None if k is None else float(k)


def assemble_report(
    model_name: str,
    sae: SparseCoder,
    site: Site,
    measured: Measured,
    *,
    corpus: dict[str, Any],
    l0: float | None,
    settings: dict[str, Any],
) -> SaeReport:
    """The figures of what was measured, overall and for each group."""
    resampling: dict[str, Any] = {"n_resamples": settings["n_resamples"], "seed": settings["seed"]}
    sums = measured.reconstruction

    def group(language: str | None) -> Group:
        clips = None if language is None else [i for i, name in enumerate(measured.languages) if name == language]
        return Group(
            reconstruction=sums.reconstruction(clips, **resampling),
            firing=sums.firing(language),
            on_transcript=measured.on_transcript.result(SAE, clips, **resampling),
            on_reference=measured.on_reference.result(SAE, clips, **resampling),
            transcripts=measured.errors.result(clips, **resampling) if measured.errors.texts else None,
        )

    speakers = sorted({speaker for speaker in measured.speakers if speaker is not None})
    return SaeReport(
        model=model_name,
        hook=site.read,
        hook_out=site.write,
        architecture=sae.cfg.architecture(),
        d_in=sae.cfg.d_in,
        d_sae=sae.cfg.d_sae,
        configured_l0=l0,
        overall=group(None),
        languages={language: group(language) for language in sorted(set(measured.languages))},
        speakers={
            speaker: sums.reconstruction([i for i, s in enumerate(measured.speakers) if s == speaker], **resampling)
            for speaker in speakers
        },
        densities=sums.histogram(),
        baselines={
            name: BaselineReport(
                k=bases[0].cfg.k,
                reconstruction=measured.basis_reconstruction[name].reconstruction(**resampling),
                on_transcript=measured.on_transcript.result(name, **resampling),
            )
            for name, bases in measured.bases.items()
        },
        changes=measured.errors.worst(N_CHANGES),
        corpus=corpus,
        settings=settings,
        notes=_notes(site, measured, settings),
    )


def _notes(site: Site, measured: Measured, settings: dict[str, Any]) -> list[str]:
    """What the figures rest on, in words."""
    rows = "decoder positions, prompt included" if site.positions == "pos" else "frames with audio"
    notes = [
        f"Rows are {rows}; each clip alone in its window of 30 s. FVU by language or speaker is about that group's own "
        "mean; within clips it is about each clip's.",
        "A latent is called dead if it fires on no row of this corpus: a small corpus makes more of them.",
    ]
    if settings["splice"]:
        if site.positions != "pos":
            touched = "frames with audio alone" if settings["padding"] == "keep" else "all frames, padding included"
            notes.append(f"SAE, ablations and baselines replace {touched}.")
        notes.append(
            "No error term. Predictions are of the unhooked model's own greedy transcript and its end token, fed to "
            "every version of it; language and task are the same for all."
        )
    if measured.bases:
        notes.append(_on_baselines(measured))
    if measured.errors.texts:
        notes.append(
            "Texts are normalised as Whisper's are (English by its English normaliser, others by the basic one) before "
            "words are counted; rates are pooled over clips. A spliced transcript is cut off at twice the tokens of "
            f"the unhooked one and {SLACK} more: one that loops would go on to the end of the context."
        )
    pairs = {pair for pair in zip(measured.languages, measured.speakers, strict=True) if pair[1] is not None}
    if len(pairs) == len({language for language, _ in pairs}) > 1:
        notes.append("Each language has one speaker here: what sets languages apart may be what sets voices apart.")
    return notes


def _on_baselines(measured: Measured) -> str:
    if measured.fitted_on is not None:
        return f"Baselines and the mean row are fitted on {measured.fitted_on.n_rows:,} rows of elsewhere."
    even, odd = measured.moments
    fewest = min(even.n_rows, odd.n_rows)
    note = (
        f"Baselines are fitted on one half of the clips ({fewest:,} rows or more) and measured on the other, and back; "
        "the mean row is that of all."
    )
    if fewest < ROWS_PER_DIMENSION * even.d_in:
        note += f" So few rows do not settle {even.d_in} directions: the baselines come out too weak."
    return note
