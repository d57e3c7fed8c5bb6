"""Pages to look at and listen to the features of an SAE: an index of all of them and a page for each, offline.

    made = make_dashboard(model, load_sae("whisper-base/encoder.hook_out"), Corpus.from_clips(), "dashboard")
    made.index                                                        # dashboard/index.html, to open in a browser
    Path("latent.html").write_text(feature_page(model, sae, corpus, 1234), encoding="utf-8")      # one file

A page has the segments on which its feature is most active, each of another clip, to hear and to see: an audio player
that plays the span, Whisper's spectrogram with the activation over it, words and phones under it. Beside them how often
and how strongly it fires, the labels that it follows with held-out scores, its class and the evidence, what taking it
away does to the transcript, and what steering it did, as far as these were measured.

The folder holds plain files and asks the network for nothing. Sound is there once for all features, as MP3.
"""

from __future__ import annotations

import base64
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from hooked_whisper.analysis.codes import FeatureCodes, encode_store
from hooked_whisper.analysis.dashboard_data import FeatureSource, FeatureView
from hooked_whisper.analysis.dashboard_folder import DashboardFolder
from hooked_whisper.analysis.dashboard_index import DIGITS, Row
from hooked_whisper.analysis.dashboard_media import Excerpt, mp3, png, spectrogram
from hooked_whisper.analysis.dashboard_page import Media, Setting, feature_html, single_html
from hooked_whisper.analysis.dashboard_steering import SteeringView
from hooked_whisper.analysis.feature_classes import FeatureClasses
from hooked_whisper.analysis.feature_effects import TokenEffect
from hooked_whisper.analysis.feature_scores import FeatureScores
from hooked_whisper.analysis.labels import Labels
from hooked_whisper.analysis.page import wav_uri
from hooked_whisper.errors import AnalysisError
from hooked_whisper.model import HookedWhisper
from hooked_whisper.saes.coding import SparseCoder, find_site
from hooked_whisper.saes.corpus import Corpus
from hooked_whisper.saes.harvesting import harvest
from hooked_whisper.saes.store import ActivationStore

if TYPE_CHECKING:
    from hooked_whisper.analysis.steering_result import SteeringResult

    Effects = Mapping[int, Sequence[TokenEffect]]
    Steered = Mapping[int, SteeringResult | SteeringView | Sequence[SteeringView]]
else:
    Effects = Steered = Any  # a run-time check would go through all of it


@dataclass(frozen=True)
class Dashboard:
    """A dashboard on disk.

    Attributes:
        folder: all of it.
        n_features, n_clips: pages, and clips that can be heard.
        n_bytes: of all files.
    """

    folder: Path
    n_features: int
    n_clips: int
    n_bytes: int

    @property
    def index(self) -> Path:
        """The page to open."""
        return self.folder / "index.html"

    def __str__(self) -> str:
        return f"{self.n_features:,} features and {self.n_clips:,} clips in {self.folder}, {self.n_bytes / 1e6:.0f} MB"


def make_dashboard(
    model: HookedWhisper,
    sae: SparseCoder,
    corpus: Corpus,
    out: str | os.PathLike[str],
    *,
    codes: FeatureCodes | ActivationStore | None = None,
    labels: Labels | None = None,
    scores: FeatureScores | None = None,
    classes: FeatureClasses | None = None,
    scored_on: str = "",
    effects: Effects | None = None,
    steering: Steered | None = None,
    features: Sequence[int] | None = None,
    n_segments: int = 8,
    tiers: Sequence[str] | None = None,
    title: str | None = None,
    progress: bool | None = None,
) -> Dashboard:
    """Writes the dashboard of an SAE into a folder.

    Args:
        model: that the SAE belongs to.
        sae: of a hook that runs over frames, or a basis of `saes.baselines`.
        corpus: the clips that are heard.
        out: folder; made where it is missing. A dashboard that is there already is replaced.
        codes: of these clips (`encode_store`), or a store of their activations; None harvests them.
        labels: what is said when; words and phones are shown under spectrograms.
        scores: of every latent against labels, from these clips or others. `classes`: of every latent, with scores.
        scored_on: in words, what they were made on, where that is not the corpus.
        effects: of latents on the transcript, as `token_effects` measures them.
        steering: results of steering experiments, by the latent on whose page they stand.
        features: latents that get a page; None: all.
        n_segments: how many segments a page has at most.
        tiers: of the labels, which are shown; None takes words and phones if there are any, else all.
        title: of the index; None names model and SAE.
        progress: whether to show bars; None shows them where standard error is a terminal.

    Raises:
        AnalysisError: parts that do not belong together (an SAE of another hook, codes of other clips, scores of
            another SAE), an SAE of the decoder, latents that are not there, or a folder that holds other things.
        SaeError: an SAE that does not fit the model.
    """
    hook = _hook(model, sae)
    folder = DashboardFolder(Path(out))  # first: it may refuse
    codes = _codes(model, sae, corpus, hook, codes, progress)
    source = FeatureSource(
        sae, codes, corpus, labels=labels, scores=scores, classes=classes, effects=effects,
        steering=_views(steering), n_segments=n_segments, tiers=tiers,
    )  # fmt: skip
    latents = source.check_latents("features", range(codes.n_latents) if features is None else features)
    if not latents:
        raise AnalysisError("features= names no latent: expected at least one.")
    folder.begin()
    wanted = sorted({source.excerpt(segment) for latent in latents for segment in source.segments(latent)})
    there = _write_media(model, source, wanted, folder, progress)
    pages = set(latents)
    setting = Setting(
        title=title or _title(model, hook, codes),
        hook=hook,
        rate=codes.frames_per_second,
        scored_on=scored_on,
        page=lambda latent: f"{latent:0{DIGITS}d}.html" if latent in pages else None,
        index="../index.html",
    )
    media = Media(
        sound=lambda excerpt: f"../clips/{excerpt.name}.mp3" if excerpt in there else None,
        picture=lambda excerpt: f"../clips/{excerpt.name}.png" if excerpt in there else None,
    )
    rows = []
    around = zip([None, *latents[:-1]], latents, [*latents[1:], None], strict=True)
    bar = tqdm(
        around, total=len(latents), desc="pages", unit="page", disable=None if progress is None else not progress
    )
    for before, latent, after in bar:
        view = source.view(latent)
        rows.append(Row.of(view))
        folder.write_page(latent, feature_html(view, setting, media, before=before, after=after))
    folder.finish(
        setting.title, _facts(model, source, hook, scored_on), rows, {"hook": hook, "model": model.cfg.model_name}
    )
    n_clips = len({excerpt.clip for excerpt in there})
    return Dashboard(folder.path, len(latents), n_clips, folder.n_bytes())


def feature_page(
    model: HookedWhisper,
    sae: SparseCoder,
    corpus: Corpus,
    latent: int,
    *,
    codes: FeatureCodes | ActivationStore | None = None,
    labels: Labels | None = None,
    scores: FeatureScores | None = None,
    classes: FeatureClasses | None = None,
    scored_on: str = "",
    effects: Effects | None = None,
    steering: Steered | None = None,
    n_segments: int = 8,
    tiers: Sequence[str] | None = None,
    title: str | None = None,
    progress: bool | None = None,
) -> str:
    """The page of one feature as a single HTML file with sound and pictures inside, to be sent to somebody.

    Sound is uncompressed there: about 43 kB a second of clip. Write the text in UTF-8.

    Args:
        latent: which. The others are those of `make_dashboard`.

    Raises:
        AnalysisError, SaeError: as `make_dashboard`.
    """
    hook = _hook(model, sae)
    codes = _codes(model, sae, corpus, hook, codes, progress)
    source = FeatureSource(
        sae, codes, corpus, labels=labels, scores=scores, classes=classes, effects=effects,
        steering=_views(steering), n_segments=n_segments, tiers=tiers,
    )  # fmt: skip
    source.check_latents("latent", [latent])
    view = source.view(latent)
    sounds: dict[Excerpt, tuple[str, str]] = {}
    for hit in view.hits:
        waveform = corpus.load(hit.item)
        if waveform is not None:
            part = hit.excerpt.cut(waveform)
            picture = base64.b64encode(png(spectrogram(model, part))).decode("ascii")
            sounds[hit.excerpt] = (wav_uri(part), f"data:image/png;base64,{picture}")
    media = Media(
        sound=lambda excerpt: sounds[excerpt][0] if excerpt in sounds else None,
        picture=lambda excerpt: sounds[excerpt][1] if excerpt in sounds else None,
    )
    setting = Setting(
        title or _title(model, hook, codes), hook, codes.frames_per_second, scored_on, page=lambda latent: None
    )
    return single_html(view, setting, media)


def _hook(model: HookedWhisper, sae: SparseCoder) -> str:
    metadata = getattr(sae.cfg, "metadata", None)
    site = None if metadata is None else find_site(model, sae)
    if site is not None and site.positions == "pos":
        raise AnalysisError(
            f"This SAE reads {site.read}, which runs over tokens of the decoder: a dashboard plays spans of sound, so "
            "it needs an SAE of a hook that runs over frames."
        )
    return "" if site is None else site.read


def _codes(
    model: HookedWhisper,
    sae: SparseCoder,
    corpus: Corpus,
    hook: str,
    codes: FeatureCodes | ActivationStore | None,
    progress: bool | None,
) -> FeatureCodes:
    if isinstance(codes, FeatureCodes):
        if hook and codes.hook != hook:
            raise AnalysisError(
                f"The codes are of {codes.hook!r}, and the SAE is of {hook!r}: encode that hook's store."
            )
        return codes
    if codes is not None:
        return encode_store(sae, codes, hook or None, progress=progress)
    if not hook:
        raise AnalysisError("A basis does not say which hook it is of: pass codes=, its codes of the corpus.")
    with tempfile.TemporaryDirectory() as folder:
        store = harvest(model, corpus, hooks=hook, out=Path(folder) / "acts", packing="windows", progress=progress)
        return encode_store(sae, store, hook, progress=progress)


def _views(steering: Steered | None) -> dict[int, list[SteeringView]]:
    found = {}
    for latent, given in (steering or {}).items():
        several = list(given) if isinstance(given, Sequence) else [given]
        found[latent] = [one if isinstance(one, SteeringView) else SteeringView.of(one) for one in several]
    return found


def _write_media(
    model: HookedWhisper,
    source: FeatureSource,
    wanted: Sequence[Excerpt],
    folder: DashboardFolder,
    progress: bool | None,
) -> set[Excerpt]:
    """Sound and spectrogram of every excerpt; returns those that are there."""
    there: set[Excerpt] = set()
    by_clip: dict[int, list[Excerpt]] = {}
    for excerpt in wanted:
        by_clip.setdefault(excerpt.clip, []).append(excerpt)
    for clip in tqdm(by_clip, desc="clips", unit="clip", disable=None if progress is None else not progress):
        waveform = source.corpus.load(source.items[source.codes.clips[clip]])
        if waveform is None:
            continue
        for excerpt in by_clip[clip]:
            part = excerpt.cut(waveform)
            folder.write_clip(excerpt.name, mp3(part), png(spectrogram(model, part)))
            there.add(excerpt)
    return there


def _title(model: HookedWhisper, hook: str, codes: FeatureCodes) -> str:
    return f"Features of {model.cfg.model_name}, {hook or codes.hook}"


def _facts(model: HookedWhisper, source: FeatureSource, hook: str, scored_on: str) -> list[tuple[str, str]]:
    codes, stats = source.codes, source.stats
    facts = [
        ("Model", model.cfg.model_name),
        ("Hook", hook or codes.hook),
        ("Latents", f"{codes.n_latents:,}, of which {stats.n_silent:,} never fire here"),
        ("Active a frame", f"{codes.acts.nnz / max(codes.n_rows, 1):.3g}"),
        (
            "Clips",
            f"{len(codes.clips):,} of {source.corpus.name}, {codes.n_rows / codes.frames_per_second / 60:.0f} min",
        ),
    ]
    if source.scores is not None:
        facts.append(("Labels scored", f"{len(source.scores.names):,}{f', on {scored_on}' if scored_on else ''}"))
    return facts


__all__ = ["Dashboard", "FeatureView", "feature_page", "make_dashboard"]
