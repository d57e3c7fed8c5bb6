"""A steering experiment over clips, in one call: every dose, every control, every measure.

    result = steering_experiment(
        model, sae, clips, [Swap(p, k)], Target(inserted="ckq", deleted="p"),
        activity=activity, vector=activity_vector(store, sae, k, p, hook=hook), selected_in="en",
    )
    print(result.to_markdown())
    result.plot(language="it")

The clips may be in several languages; where an edit was chosen in one of them (`selected_in`), the others show whether
it carries over. A result without its controls cannot be made: the vector and the activity from which random latents are
drawn have no default.
"""

from __future__ import annotations

import hashlib
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm import tqdm

from hooked_whisper.analysis.activity import Activity
from hooked_whisper.analysis.edits import ClipSpans, Edit
from hooked_whisper.analysis.steering import ErrorTerm, Steerer, Steering
from hooked_whisper.analysis.steering_controls import Condition, both, conditions
from hooked_whisper.analysis.steering_log import OutcomeLog
from hooked_whisper.analysis.steering_result import Outcome, SteeringResult
from hooked_whisper.analysis.steering_target import Target
from hooked_whisper.analysis.steering_vectors import SteeringVector
from hooked_whisper.errors import AnalysisError
from hooked_whisper.inputs import DecoderInput
from hooked_whisper.model import HookedWhisper
from hooked_whisper.saes.coding import Site, SparseCoder
from hooked_whisper.saes.corpus import Corpus
from hooked_whisper.saes.corpus_item import CorpusItem
from hooked_whisper.saes.fingerprints import weights_fingerprint
from hooked_whisper.saes.spliced_evaluation import ENCODER_OUT, Batch, listen, predicted, teacher_forced, transcripts
from hooked_whisper.speech import Clip

DOSES = (0.5, 1.0, 2.0, 3.0, 6.0)
N_RANDOM = 3
# A steered transcript may run on without end: it is cut at twice the batch's longest unhooked one and some more.
_ROOM = 16

ClipSpansById = Mapping[str, Sequence[tuple[float, float]]]


@torch.no_grad()
def steering_experiment(
    model: HookedWhisper,
    sae: SparseCoder,
    clips: Corpus | Sequence[Clip],
    edits: Sequence[Edit],
    target: Target,
    *,
    activity: Activity,
    vector: SteeringVector,
    doses: Sequence[float] = DOSES,
    error_term: ErrorTerm = "kept",
    hook: str | None = None,
    spans: ClipSpansById | None = None,
    n_random: int = N_RANDOM,
    seed: int = 0,
    selected_in: str | None = None,
    batch_size: int = 8,
    out: str | Path | None = None,
    progress: bool | None = None,
) -> SteeringResult:
    """Transcribes every clip under every version and dose, and measures what came of the target and of the rest.

    Clips are transcribed greedily in their own language; which language would be detected is measured beside it.

    Args:
        clips: of at most 30 s, in any languages (a corpus, or shipped clips).
        edits: what is done at a dose of 1; a dose of d goes d times as far (see `Steering.strength`).
        target: what is to come into transcripts, and what to go.
        activity: how often and how strongly latents fire, on the clips the edit was chosen on or more of their kind.
        vector: the mean-difference vector that is the edit's rival; its length is set to the edit's push.
        error_term: "kept" or "dropped", as in `Steering`; the SAE-only control is run either way.
        spans: seconds at which the edits act, by clip id; None: wherever the edits themselves say.
        n_random: random versions, drawn with seeds from `seed` on.
        selected_in: the language in which the edits were chosen, for the report.
        out: a file of JSON lines that is written as it goes, from which a run that was broken off goes on.
        progress: show a bar; None shows it where stderr is a terminal.

    Raises:
        AnalysisError: no clips, doses or random versions that make no sense, spans of clips that are not there, `out`
            of another experiment, an edit that does not fit (see `Steerer`).
    """
    corpus = clips if isinstance(clips, Corpus) else Corpus.from_clips(clips)
    items = list(corpus)
    chosen = _doses(doses)
    if batch_size < 1:
        raise AnalysisError(f"batch_size={batch_size}: expected at least 1.")
    unknown = sorted(set(spans or {}) - {item.id for item in items})
    if unknown:
        raise AnalysisError(f"spans= names {unknown[0]!r}, which is no clip of {corpus.name}.")
    steerer = Steerer(model, Steering(edits, sae, hook, error_term, activity=activity))
    versions = conditions(
        sae, edits, activity=activity, vector=vector, error_term=error_term, n_random=n_random, seed=seed
    )
    plan = [(version, dose) for version in versions for dose in (chosen if version.has_dose else (0.0,))]
    about: dict[str, Any] = {
        "model": model.cfg.model_name,
        "hook": steerer.hook,
        "edits": "; ".join(map(str, edits)),
        "target": target.describe(),
        "error term": error_term,
        "doses": ", ".join(f"{dose:g}" for dose in chosen),
        "vector": f"{' - '.join(vector.names)}, over {vector.n_towards:,} and {vector.n_away:,} rows",
        "random versions": f"{n_random}, seeds from {seed}",
        "chosen in": selected_in or "not said",
        "clips": f"{len(items)} of {corpus.name}",
    }
    log = None
    if out is not None:
        fingerprint = _fingerprint(model, sae, items, plan, spans, about)
        log = OutcomeLog(Path(out), {"what": "steering", "fingerprint": fingerprint})
    known = {} if log is None else log.read_outcomes()
    listener = _Listener(model, sae, steerer.hook, activity, target)
    found: dict[tuple[str, float, str], Outcome] = {}
    shown = sys.stderr.isatty() if progress is None else progress
    with tqdm(total=len(items) * len(plan), unit="run", disable=not shown) as bar:
        for at in range(0, len(items), batch_size):
            group = items[at : at + batch_size]
            places = [(version.name, dose, item.id) for version, dose in plan for item in group]
            if all(place in known for place in places):
                found |= {place: known[place] for place in places}
                bar.update(len(places))
                continue
            heard = listener.listen(corpus, group)
            for version, dose in plan:
                of_group = [known.get((version.name, dose, item.id)) for item in group]
                outcomes = [one for one in of_group if one is not None]
                if len(outcomes) < len(group):
                    outcomes = listener.run(heard, _at_spans(version, group, spans), dose)
                    if log is not None:
                        log.add_outcomes(outcomes)
                found |= {(one.condition, one.dose, one.clip): one for one in outcomes}
                bar.update(len(group))
    return SteeringResult(
        about=about,
        outcomes=tuple(found.values()),
        has_inserted=bool(target.inserted),
        has_deleted=bool(target.deleted),
        bases={version.name: version.base for version in versions},
        notes=_notes(selected_in, error_term, items),
    )


@contextmanager
def _hooked(model: HookedWhisper, steerer: Steerer | None, frame_mask: Tensor) -> Iterator[None]:
    if steerer is None:
        yield
        return

    def change(activation: Tensor, hook: Any) -> Tensor:
        return steerer(activation, frame_mask)

    with model.hooks(fwd_hooks=[(steerer.hook, change)]):
        yield


def steered_frames(model: HookedWhisper, batch: Batch, steerer: Steerer | None) -> Float[Tensor, "batch frame d_model"]:
    """What cross-attention reads of a batch under a steering of the encoder; as it is under one of the decoder.

    A steering of the encoder's output needs no new pass.
    """
    if steerer is None or not steerer.hook.startswith("encoder."):
        return batch.encoder_out
    if steerer.hook == ENCODER_OUT:
        return steerer(batch.encoder_out, batch.frame_mask)
    with _hooked(model, steerer, batch.frame_mask):
        return model.encode_mel(batch.mel)


def _doses(doses: Sequence[float]) -> tuple[float, ...]:
    chosen = tuple(float(dose) for dose in doses)
    if not chosen or len(set(chosen)) < len(chosen) or not all(math.isfinite(dose) and dose != 0 for dose in chosen):
        raise AnalysisError(f"doses={list(doses)}: expected different finite numbers; 0 is the base already.")
    return chosen


def _at_spans(version: Condition, group: Sequence[CorpusItem], spans: ClipSpansById | None) -> Condition:
    """The version with its edits held to the spans of the clips."""
    if spans is None or not version.edits:
        return version
    here = ClipSpans(tuple(tuple((a, b) for a, b in spans.get(item.id, ())) for item in group))
    edits: list[Any] = list(version.edits)
    return replace(version, edits=tuple(replace(edit, where=both(here, edit.where)) for edit in edits))


def _fingerprint(
    model: HookedWhisper,
    sae: SparseCoder,
    items: Sequence[CorpusItem],
    plan: Sequence[tuple[Condition, float]],
    spans: ClipSpansById | None,
    about: Mapping[str, Any],
) -> str:
    """SHA-256 of what is run: weights, clips, versions with their vectors, doses, spans and words about it."""
    digest = hashlib.sha256(weights_fingerprint(model).encode())
    digest.update(sae.W_dec.detach().cpu().float().numpy().tobytes())
    for item in items:
        digest.update(f"{item.id} {item.language}".encode())
    for version, dose in plan:
        digest.update(f"{version.name} {dose} {'; '.join(map(str, version.edits))}".encode())
        for edit in version.edits:
            value = getattr(edit, "vector", None)
            if value is not None:
                digest.update(value.detach().cpu().float().numpy().tobytes())
    digest.update(repr(sorted((spans or {}).items())).encode())
    digest.update(repr(sorted(about.items())).encode())
    return digest.hexdigest()


def _notes(selected_in: str | None, error_term: ErrorTerm, items: Sequence[CorpusItem]) -> list[str]:
    base = "the unhooked model" if error_term == "kept" else "the SAE-only reconstruction"
    notes = [
        f"Every figure of steered, random and vector is held against {base}; those of the SAE alone and of activation "
        "steering against the unhooked model.",
        "Intervals are 95 %, over clips resampled whole. Doses within the limit are chosen on the clips they are "
        "judged on, for all versions alike.",
    ]
    by_language: dict[str | None, set[str | None]] = {}
    for item in items:
        by_language.setdefault(item.language, set()).add(item.speaker)
    if len(by_language) > 1 and all(len(speakers) == 1 for speakers in by_language.values()):
        notes.append("Each language has one speaker: what differs between languages may be the voice.")
    if len(items) < 100:
        notes.append(f"{len(items)} clips are few: a direction to follow, not a finding.")
    if selected_in is not None:
        notes.append(f"The edit was chosen in {selected_in!r}; other languages show whether it carries over.")
    return notes


@dataclass
class _Heard:
    """Clips of one batch, as the unhooked model has them."""

    ids: list[str]
    batch: Batch
    texts: list[list[int]]
    fed: DecoderInput
    eligible: Bool[Tensor, "batch pos"]
    limits: list[int]


class _Listener:
    """Runs batches under any steering and measures them."""

    def __init__(self, model: HookedWhisper, sae: SparseCoder, hook: str, activity: Activity, target: Target) -> None:
        self.model, self.sae, self.hook, self.activity, self.target = model, sae, hook, activity, target
        self.tokenizer = model._need_tokenizer()
        masks = target.vocabulary(self.tokenizer, model.cfg.d_vocab)
        self.masks = [mask.to(model.device) for mask in masks]

    def listen(self, corpus: Corpus, group: Sequence[CorpusItem]) -> _Heard:
        sounds, there = [], []
        for item in group:
            sound = corpus.load(item)
            if sound is None:
                raise AnalysisError(f"{item.id} cannot be read: leave it out of the corpus.")
            sounds.append(sound)
            there.append(item.id)
        in_encoder = self.hook.startswith("encoder.")
        site = Site(self.hook, self.hook, "frame") if in_encoder else None
        batch = listen(self.model, sounds, [item.language for item in group], site)
        texts = transcripts(self.model, batch.encoder_out, batch.languages)
        fed = teacher_forced(self.model, batch, texts)
        limit = min(2 * max(map(len, texts)) + _ROOM, self.model.cfg.n_ctx // 2)
        return _Heard(there, batch, texts, fed, self._eligible(fed), [limit] * len(there))

    def _eligible(self, fed: DecoderInput) -> Bool[Tensor, "batch pos"]:
        """Positions that predict a token of the text, with something to delete in it where the target deletes."""
        following = torch.cat([fed.tokens[:, 1:], torch.full_like(fed.tokens[:, :1], self.tokenizer.eot)], dim=1)
        ends = fed.token_mask.sum(-1, keepdim=True) - 1
        text = predicted(fed) & (torch.arange(fed.tokens.shape[1], device=ends.device) < ends)
        return text & self.masks[1][following] if self.target.deleted else text

    def run(self, heard: _Heard, version: Condition, dose: float) -> list[Outcome]:
        model, batch = self.model, heard.batch
        steering = version.steering(self.sae, self.hook, self.activity, dose)
        steerer = None if steering is None else Steerer(model, steering)
        encoder_out = steered_frames(model, batch, steerer)
        late = None if self.hook.startswith("encoder.") else steerer
        with _hooked(model, late, batch.frame_mask):
            tokens = transcripts(model, encoder_out, batch.languages, heard.limits)
            logits = model.decode(heard.fed.tokens, encoder_out)
            ranked = model._detect(encoder_out)[1] if self.tokenizer.is_multilingual else None
        logps = [self._logp(logits, mask, heard.eligible) for mask in self.masks]
        outcomes = []
        for i, clip in enumerate(heard.ids):
            language = batch.languages[i]
            text = str(self.tokenizer.to_string(tokens[i], skip_special_tokens=True)).strip()
            inserted, deleted = self.target.count(text, tokens[i], language, self.tokenizer)
            outcomes.append(
                Outcome(
                    clip=clip,
                    language=language,
                    condition=version.name,
                    dose=dose,
                    text=text,
                    off_target=self.target.off_target(text, tokens[i], language, self.tokenizer),
                    inserted=inserted,
                    deleted=deleted,
                    logp_inserted=float(logps[0][i]),
                    logp_deleted=float(logps[1][i]),
                    n_positions=int(heard.eligible[i].sum()),
                    heard=None if ranked is None else next(iter(ranked[i])),
                    p_language=None if ranked is None or language is None else ranked[i][language],
                )
            )
        return outcomes

    def _logp(
        self, logits: Float[Tensor, "batch pos vocab"], mask: Bool[Tensor, " vocab"], at: Bool[Tensor, "batch pos"]
    ) -> Float[Tensor, " batch"]:
        """Log of the probability of all tokens of a mask, summed over positions; 0 where the mask has none."""
        if not bool(mask.any()):
            return torch.zeros(len(logits))
        rows = logits.float()
        mass = rows[..., mask].logsumexp(-1) - rows.logsumexp(-1)
        return mass.where(at, 0).sum(1).double().cpu()
