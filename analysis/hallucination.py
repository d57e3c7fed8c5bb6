"""What the model writes where nobody speaks, before and after its features of non-speech are steered away.

    result = hallucination_experiment(model, sae, sounds, speech)
    print(result.to_markdown())

A **false transcript** is one that has a word left after Whisper's English normaliser, which drops punctuation and what
stands in brackets ("[Music]"). Features are chosen on one half of the sounds and of the speech, and everything is
measured on the other half: false transcripts, and beside them the error rate on speech, for the model as it is, with
the SAE alone (which does much by itself), with the features steered away, and with random features steered away that
fire as often.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from hooked_whisper.analysis.activity import Activity
from hooked_whisper.analysis.edits import Zero
from hooked_whisper.analysis.non_speech import Sound
from hooked_whisper.analysis.steering import ErrorTerm, Steerer, Steering
from hooked_whisper.analysis.steering_controls import RANDOM, SAE_ONLY, STEERED, UNHOOKED
from hooked_whisper.analysis.steering_experiment import steered_frames
from hooked_whisper.errors import AnalysisError
from hooked_whisper.model import HookedWhisper
from hooked_whisper.saes.coding import Site, SparseCoder, code, find_site
from hooked_whisper.saes.corpus import Corpus
from hooked_whisper.saes.error_rates import Errors, count_errors, text_normalizer
from hooked_whisper.saes.estimates import Estimate, bootstrap, ratio
from hooked_whisper.saes.spliced_evaluation import Batch, listen, transcripts

MAX_TOKENS = 100  # of a transcript: what is made up may go on for ever
Heard = tuple[str, str, str | None, str | None]  # id, kind ("speech" for speech), language, what is said


@dataclass(frozen=True)
class Hallucinations:
    """One version, on the half of sounds and speech on which nothing was chosen.

    Attributes:
        condition: "unhooked", "sae", "steered" or "random" (all random versions together).
        error_term: what becomes of what the SAE misses; None without it.
        strength: 1 takes the features away, more pushes past zero.
        false: share of sounds with a false transcript, all and by kind.
        wer: word error rate of speech against its reference texts. `wer_change`: against the unhooked model, paired.
    """

    condition: str
    error_term: str | None
    strength: float
    false: dict[str, Estimate]
    wer: Estimate
    wer_change: Estimate


@dataclass(frozen=True)
class HallucinationResult:
    """Everything that was measured.

    Attributes:
        latents: those steered away, with the area under the curve that tells their share of a false window's frames
            from that of a speech window's (1: every false window has more).
        versions: the unhooked model first.
        examples: false transcripts of the unhooked model on the chosen-on half, by sound.
        n_sounds, n_speech: how many of each were measured on. `n_false_chosen_on`: windows features were chosen on.
        about: how. `role`: what became of the latents.
    """

    latents: list[tuple[int, float]]
    versions: list[Hallucinations]
    examples: dict[str, str]
    n_sounds: dict[str, int]
    n_speech: int
    n_false_chosen_on: int
    about: dict[str, Any]
    notes: list[str] = field(default_factory=list)
    role: str = "steered away"

    def __post_init__(self) -> None:
        missing = {UNHOOKED, SAE_ONLY, STEERED, RANDOM} - {version.condition for version in self.versions}
        if missing:
            raise AnalysisError(f"A result stands beside its controls, and {', '.join(sorted(missing))} is missing.")

    def version(
        self, condition: str, *, error_term: str | None = None, strength: float | None = None
    ) -> Hallucinations:
        """The first version of that name, with that error term and at that strength where they are given.

        Raises:
            AnalysisError: there is none.
        """
        for one in self.versions:
            if one.condition == condition and error_term in (None, one.error_term) and strength in (None, one.strength):
                return one
        raise AnalysisError(f"No version {condition!r} with error_term={error_term!r} and strength={strength!r}.")

    def to_json(self) -> str:
        """Everything."""
        return json.dumps(asdict(self), ensure_ascii=False)

    def to_markdown(self) -> str:
        """One row a version."""
        kinds = list(self.n_sounds)
        lines = ["# False transcripts where nobody speaks", "", *(f"- {k}: {v}" for k, v in self.about.items()), ""]
        counts = " | ".join(f"{kind} ({self.n_sounds[kind]})" for kind in kinds)
        lines += [f"| version | error term | strength | {counts} | WER of speech ({self.n_speech}) | change |"]
        lines += ["|---" * (5 + len(kinds)) + "|"]
        for one in self.versions:
            cells = [one.false[kind].percent() for kind in kinds]
            row = [one.condition, one.error_term or "", f"{one.strength:g}", *cells, one.wer.percent()]
            lines.append(f"| {' | '.join([*row, one.wer_change.percent()])} |")
        named = ", ".join(f"{latent} ({auc:.2f})" for latent, auc in self.latents)
        lines += ["", f"Latents {self.role}, with their AUC: {named}.", "", *(f"- {note}" for note in self.notes)]
        return "\n".join(lines).rstrip() + "\n"


def is_false(text: str) -> bool:
    """Whether a transcript of a sound without speech has a word in it."""
    return any(character.isalnum() for character in text_normalizer("en")(text))


def separating_latents(
    false: Float[np.ndarray, "window latent"], speech: Float[np.ndarray, "window_too latent"], n: int
) -> list[tuple[int, float]]:
    """The n latents whose share of frames best tells false windows from speech, with the area under the curve.

    Latents that fire more in speech are not among them.

    Raises:
        AnalysisError: no windows on one side, or fewer latents that separate at all.
    """
    if not len(false) or not len(speech):
        raise AnalysisError(
            f"{len(false)} false windows and {len(speech)} of speech: features that tell them apart need some of both."
        )
    both = np.concatenate([false, speech])
    order = both.argsort(0, kind="stable").argsort(0).astype(np.float64)
    for latent in np.flatnonzero((both != both[:1]).any(0)):  # ties share their ranks
        _, inverse, counts = np.unique(both[:, latent], return_inverse=True, return_counts=True)
        order[:, latent] = (counts.cumsum() - (counts + 1) / 2)[inverse]
    auc = (order[: len(false)].sum(0) - len(false) * (len(false) - 1) / 2) / (len(false) * len(speech))
    auc[(both == both[:1]).all(0)] = 0.5
    gap = false.mean(0) - speech.mean(0)
    best = np.lexsort((-gap, -auc))[:n]
    found = [(int(latent), float(auc[latent])) for latent in best if auc[latent] > 0.5]
    if len(found) < n:
        raise AnalysisError(f"Only {len(found)} latents fire more in false windows than in speech: ask for fewer.")
    return found


@torch.no_grad()
def hallucination_experiment(
    model: HookedWhisper,
    sae: SparseCoder,
    sounds: Sequence[Sound],
    speech: Corpus,
    *,
    hook: str | None = None,
    language: str = "en",
    n_latents: int = 20,
    strengths: Sequence[float] = (1.0, 2.0),
    error_terms: Sequence[ErrorTerm] = ("kept", "dropped"),
    n_random: int = 3,
    seed: int = 0,
    batch_size: int = 8,
    progress: bool | None = None,
) -> HallucinationResult:
    """Chooses features on one half of sounds and speech, steers them away, and measures on the other half.

    Args:
        sounds: windows without speech; every second one of each kind is kept for measuring.
        speech: clips of at most 30 s with texts and languages; every second one is kept for measuring.
        language: in which sounds are transcribed.
        n_latents: how many features are steered away; as many random ones that fire as often over sounds and speech.

    Raises:
        AnalysisError: an SAE of the decoder, no random versions, no false window to choose on, clips without text.
    """
    if n_random < 1:
        raise AnalysisError(f"n_random={n_random}: no result is made without random controls; take 3 or more.")
    site = find_site(model, sae, hook)
    if site.in_decoder:
        raise AnalysisError(f"{site.read} is in the decoder: features of sounds are looked for in the encoder.")
    runner = Runner(model, sae, site, batch_size)
    heard = to_hear(sounds, speech, language)
    chosen_on, measured = _halves(heard)

    shown = sys.stderr.isatty() if progress is None else progress
    bar = tqdm(total=0, unit="clip", disable=not shown)
    texts, shares, activity = runner.plain(chosen_on, bar)
    kinds = [what[1] for what, _ in chosen_on]
    speaks = np.array([kind == "speech" for kind in kinds])
    false = np.array([not talk and is_false(text) for talk, text in zip(speaks, texts, strict=True)], dtype=bool)
    if not false.any():
        raise AnalysisError("The model wrote nothing in any window that features are chosen on: none to steer.")
    latents = separating_latents(shares[false], shares[speaks], n_latents)

    def steering(chosen: Sequence[int], error_term: ErrorTerm, strength: float) -> Steering:
        return Steering([Zero(latent) for latent in chosen], sae, site.read, error_term, strength)

    own = [latent for latent, _ in latents]
    alike = [activity.alike(own, seed=seed + number) for number in range(n_random)]
    plan = unsteered(sae, site.read)
    for error_term in error_terms:
        for strength in strengths:
            plan.append(Version(STEERED, error_term, strength, [steering(own, error_term, strength)]))
            others = [steering(other, error_term, strength) for other in alike]
            plan.append(Version(RANDOM, error_term, strength, others))
    versions, _ = runner.measure(plan, measured, bar)
    bar.close()
    counted = [what[1] for what, _ in measured if what[1] != "speech"]
    return HallucinationResult(
        latents=latents,
        versions=versions,
        examples={what[0]: text for (what, _), text, wrong in zip(chosen_on, texts, false, strict=True) if wrong},
        n_sounds={"all": len(counted), **{kind: counted.count(kind) for kind in dict.fromkeys(counted)}},
        n_speech=len(measured) - len(counted),
        n_false_chosen_on=int(false.sum()),
        about={
            "model": model.cfg.model_name,
            "hook": site.read,
            "features": f"{n_latents}, chosen on {int(false.sum())} false windows and {int(speaks.sum())} of speech",
            "random versions": f"{n_random}, seeds from {seed}",
        },
        notes=[
            "Features are chosen on one half of sounds and speech, figures are of the other; intervals are 95 %, over "
            "clips.",
            "Windows of one piece of music are alike, so intervals over them are too narrow.",
        ],
    )


def to_hear(sounds: Sequence[Sound], speech: Corpus, language: str) -> list[tuple[Heard, Tensor]]:
    """Sounds without speech, then speech, each with its samples.

    Raises:
        AnalysisError: a clip of speech without text.
    """
    heard: list[tuple[Heard, Tensor]] = [((sound.id, sound.kind, language, None), sound.samples) for sound in sounds]
    for item in speech:
        sound = speech.load(item)
        if sound is None or not item.text:
            raise AnalysisError(f"{item.id} has no sound or no text: error rates of speech need both.")
        heard.append(((item.id, "speech", item.language or "en", item.text), sound))
    return heard


def _halves(heard: Sequence[tuple[Heard, Tensor]]) -> tuple[list[tuple[Heard, Tensor]], list[tuple[Heard, Tensor]]]:
    """Every second one of each kind and language."""
    seen: dict[tuple[str, str | None], int] = {}
    halves: tuple[list[tuple[Heard, Tensor]], list[tuple[Heard, Tensor]]] = ([], [])
    for one in heard:
        group = (one[0][1], one[0][2])
        seen[group] = seen.get(group, -1) + 1
        halves[seen[group] % 2].append(one)
    return halves


@dataclass(frozen=True)
class Version:
    """What is to be measured: one steering, or several random ones together; None is the model as it is."""

    condition: str
    error_term: ErrorTerm | None
    strength: float
    steerings: Sequence[Steering | None]


def unsteered(sae: SparseCoder, hook: str) -> list[Version]:
    """The model as it is, which comes first, and with the SAE in its hook's place."""
    alone = Steering((), sae, hook, "dropped")
    return [Version(UNHOOKED, None, 0.0, [None]), Version(SAE_ONLY, "dropped", 0.0, [alone])]


class Runner:
    """Clips in batches, plainly and under steering.

    `heard` pairs what is known of a clip with its samples at 16 kHz.
    """

    def __init__(self, model: HookedWhisper, sae: SparseCoder, site: Site, batch_size: int) -> None:
        self.model, self.sae, self.site, self.batch_size = model, sae, site, batch_size

    def _batches(self, heard: Sequence[tuple[Heard, Tensor]]) -> Iterator[tuple[int, Batch]]:
        for at in range(0, len(heard), self.batch_size):
            group = heard[at : at + self.batch_size]
            yield len(group), listen(self.model, [s for _, s in group], [what[2] for what, _ in group], self.site)

    def _texts(self, encoder_out: Tensor, batch: Batch) -> list[str]:
        rows = transcripts(self.model, encoder_out, batch.languages, [MAX_TOKENS] * len(encoder_out))
        return [str(self.model.to_string(row, skip_special_tokens=True)).strip() for row in rows]

    def plain(
        self, heard: Sequence[tuple[Heard, Tensor]], bar: Any
    ) -> tuple[list[str], Float[np.ndarray, "window latent"], Activity]:
        """Transcripts, the share of each window's frames at which each latent fires, and that over all frames."""
        texts, shares, lengths, sums = [], [], [], torch.zeros(self.sae.cfg.d_sae, dtype=torch.float64)
        for n_clips, batch in self._batches(heard):
            texts += self._texts(batch.encoder_out, batch)
            rows, mask = batch.kept[self.site.read], batch.positions(self.site.read, None)
            for i in range(n_clips):
                acts = torch.cat([acts for _, acts, _ in code(self.sae, rows[i, mask[i]])])
                shares.append((acts != 0).double().mean(0).cpu())
                lengths.append(len(acts))
                sums += acts.double().sum(0).cpu()
            bar.update(n_clips)
        of_windows, frames = torch.stack(shares), torch.tensor(lengths, dtype=torch.float64)
        counts = (of_windows * frames[:, None]).sum(0)
        magnitude = (sums / counts.where(counts > 0, torch.nan)).float()
        return texts, of_windows.numpy(), Activity((counts / frames.sum()).float(), magnitude, sum(lengths))

    def measure(
        self, plan: Sequence[Version], heard: Sequence[tuple[Heard, Tensor]], bar: Any
    ) -> tuple[list[Hallucinations], list[str]]:
        """Figures of each version, and the transcripts of the first, to which the others are compared."""
        found: list[list[list[str]]] = [[[] for _ in version.steerings] for version in plan]
        for n_clips, batch in self._batches(heard):
            for version, texts in zip(plan, found, strict=True):
                for one, own in zip(version.steerings, texts, strict=True):
                    steerer = None if one is None else Steerer(self.model, one)
                    own += self._texts(steered_frames(self.model, batch, steerer), batch)
            bar.update(n_clips)
        known, plain = [what for what, _ in heard], found[0][0]
        return [_figures(version, texts, plain, known) for version, texts in zip(plan, found, strict=True)], plain


def _figures(
    version: Version, texts: Sequence[Sequence[str]], plain: Sequence[str], heard: Sequence[Heard]
) -> Hallucinations:
    """Of a version; those of several random ones are means over them, clip by clip."""
    quiet = [i for i, what in enumerate(heard) if what[1] != "speech"]
    spoken = [i for i, what in enumerate(heard) if what[1] == "speech"]
    false = np.array([[float(is_false(one[i])) for i in quiet] for one in texts]).mean(0)
    kinds = np.array([heard[i][1] for i in quiet])
    ones = np.ones(len(quiet))
    by_kind = {"all": bootstrap(ratio(false, ones), len(false))}
    for kind in dict.fromkeys(kinds.tolist()):
        there = false[kinds == kind]
        by_kind[kind] = bootstrap(ratio(there, np.ones(len(there))), len(there))
    errors = np.array([[_errors(heard[i], one[i]).word_errors for i in spoken] for one in texts], dtype=float).mean(0)
    before = np.array([_errors(heard[i], plain[i]).word_errors for i in spoken], dtype=float)
    words = np.array([_errors(heard[i], plain[i]).words for i in spoken], dtype=float)
    return Hallucinations(
        condition=version.condition,
        error_term=version.error_term,
        strength=version.strength,
        false=by_kind,
        wer=bootstrap(ratio(errors, words), len(spoken)),
        wer_change=bootstrap(ratio(errors - before, words), len(spoken)),
    )


def _errors(heard: Heard, text: str) -> Errors:
    return count_errors(heard[3] or "", text, text_normalizer(heard[2]))
