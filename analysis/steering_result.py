"""What a steering experiment found: each clip under each version, and the figures that are made of them.

The base of a figure is what the edit stands on. With the SAE's error kept that is the unhooked model; with the error
dropped it is the SAE-only reconstruction, so that what splicing does is never counted as steering.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from hooked_whisper.analysis.figures import new_figure
from hooked_whisper.analysis.steering_controls import ACTIVATION, CONTROLS, RANDOM, SAE_ONLY, STEERED, UNHOOKED, VECTOR
from hooked_whisper.analysis.steering_target import character_errors
from hooked_whisper.errors import AnalysisError
from hooked_whisper.saes.estimates import Estimate, bootstrap, ratio

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_CER_CHANGE = 0.01
_COLOURS = {
    STEERED: "#c1272d",
    RANDOM: "#7f7f7f",
    VECTOR: "#1f77b4",
    ACTIVATION: "#2ca02c",
    SAE_ONLY: "#000000",
    UNHOOKED: "#bbbbbb",
}


@dataclass(frozen=True)
class Outcome:
    """One clip under one version at one dose.

    Attributes:
        clip, language: which; Whisper's code of the language, in which it is transcribed whatever is heard.
        condition: the version, as in hooked_whisper.analysis.steering_controls; random ones are numbered.
        dose: strength of the edit; 0 where there is none.
        text: the greedy transcript. `off_target`: what is left of it without the target's units, normalised.
        inserted, deleted: how many units of either side of the target the transcript holds.
        logp_inserted, logp_deleted: log of the probability of all tokens that hold such a unit, in nats, summed over
            `n_positions` positions of the unhooked model's transcript, fed to the decoder: those of tokens that hold a
            unit to be deleted; all, where the target deletes nothing.
        heard: the language detected. `p_language`: probability of the clip's own.
    """

    clip: str
    language: str | None
    condition: str
    dose: float
    text: str
    off_target: str
    inserted: int
    deleted: int
    logp_inserted: float
    logp_deleted: float
    n_positions: int
    heard: str | None
    p_language: float | None


@dataclass(frozen=True)
class Effect:
    """What one version does at one dose, against its base, over some clips; random versions are taken together.

    Attributes:
        n_clips: with the base's transcript beside the version's. `n_eligible`: clips in whose base transcript there is
            something to delete (all clips, where the target deletes nothing).
        inserted, deleted: change in the number of units, over all clips (for random versions, the mean of them).
        success: share of eligible clips in which the number to be inserted has grown and that to be deleted has
            fallen (each where the target has any).
        clean_success: share of eligible clips with a success and at most 1 point of `off_target` of their own.
        off_target: character error rate of what is left without the target's units, against the base's.
        logp_inserted, logp_deleted: change in log-probability a position, in nats.
        language_changed: share of clips in which another language is heard than in the base.
        p_language: mean change in the probability of the clip's own language.
    """

    condition: str
    dose: float
    n_clips: int
    n_eligible: int
    inserted: float
    deleted: float
    success: Estimate
    clean_success: Estimate
    off_target: Estimate
    logp_inserted: Estimate
    logp_deleted: Estimate
    language_changed: Estimate
    p_language: Estimate


@dataclass(frozen=True)
class SteeringResult:
    """All outcomes, with what was done to get them.

    Attributes:
        about: model, SAE, hook, edits, target, error_term, doses, seeds, and so on, in words and numbers.
        outcomes: in the order in which they were made.
        has_inserted, has_deleted: which sides the target has.
        bases: for each version, the one that it is held against.
        notes: what a reader of the figures must know.

    Raises:
        AnalysisError: a control is missing.
    """

    about: dict[str, Any]
    outcomes: tuple[Outcome, ...]
    has_inserted: bool
    has_deleted: bool
    bases: dict[str, str]
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        there = {_family(outcome.condition) for outcome in self.outcomes}
        missing = [name for name in (STEERED, *CONTROLS) if name not in there]
        if missing:
            raise AnalysisError(
                f"A steering result stands beside its controls, and {', '.join(missing)} is missing: run all versions "
                "of steering_controls.conditions."
            )

    @cached_property
    def _by_place(self) -> dict[tuple[str, float, str], Outcome]:
        return {(outcome.condition, outcome.dose, outcome.clip): outcome for outcome in self.outcomes}

    @property
    def languages(self) -> list[str]:
        """Languages of the clips."""
        return sorted({outcome.language or "en" for outcome in self.outcomes})

    @property
    def doses(self) -> list[float]:
        """Doses that were tried."""
        return sorted({outcome.dose for outcome in self.outcomes if outcome.condition == STEERED})

    def effect(self, condition: str, dose: float = 0.0, *, language: str | None = None) -> Effect:
        """What a version does at a dose, over the clips of a language or all.

        Args:
            condition: "sae" (dose 0), "steered", "random" (all of them), "random-0", "vector", "activation".

        Raises:
            AnalysisError: no clip has been run so.
        """
        found = [
            outcome
            for outcome in self.outcomes
            if condition in (outcome.condition, _family(outcome.condition))
            and outcome.dose == dose
            and language in (None, outcome.language or "en")
        ]
        if not found:
            raise AnalysisError(
                f"No clip was run as {condition!r} at dose {dose:g}"
                + (f" in {language!r}" if language else "")
                + f": versions are {', '.join(dict.fromkeys(o.condition for o in self.outcomes))}; doses {self.doses}."
            )
        return self._effect(condition, dose, found)

    def _effect(self, condition: str, dose: float, found: Sequence[Outcome]) -> Effect:
        clips = list(dict.fromkeys(outcome.clip for outcome in found))
        rows: dict[str, Float[np.ndarray, " clip"]] = {name: np.zeros(len(clips)) for name in _SUMS}
        place, times = {clip: i for i, clip in enumerate(clips)}, len(found) / len(clips)
        for outcome in found:
            base = self._by_place[self.bases[outcome.condition], 0.0, outcome.clip]
            for name, value in self._compare(outcome, base).items():
                rows[name][place[outcome.clip]] += value / times

        def rate(over: str, under: str) -> Estimate:
            return bootstrap(ratio(rows[over], rows[under]), len(clips))

        return Effect(
            condition=condition,
            dose=dose,
            n_clips=len(clips),
            n_eligible=round(rows["eligible"].sum()),
            inserted=float(rows["inserted"].sum()),
            deleted=float(rows["deleted"].sum()),
            success=rate("success", "eligible"),
            clean_success=rate("clean", "eligible"),
            off_target=rate("errors", "characters"),
            logp_inserted=rate("logp_inserted", "positions"),
            logp_deleted=rate("logp_deleted", "positions"),
            language_changed=rate("changed", "one"),
            p_language=rate("p_language", "one"),
        )

    def _compare(self, outcome: Outcome, base: Outcome) -> dict[str, float]:
        errors, characters = character_errors(base.off_target, outcome.off_target)
        inserted, deleted = outcome.inserted - base.inserted, outcome.deleted - base.deleted
        eligible = base.deleted > 0 if self.has_deleted else True
        success = eligible and (not self.has_inserted or inserted > 0) and (not self.has_deleted or deleted < 0)
        known = outcome.p_language is not None and base.p_language is not None
        return {
            "one": 1.0,
            "eligible": float(eligible),
            "inserted": float(inserted),
            "deleted": float(deleted),
            "success": float(success),
            "clean": float(success and errors <= MAX_CER_CHANGE * characters),
            "errors": float(errors),
            "characters": float(characters),
            "logp_inserted": outcome.logp_inserted - base.logp_inserted,
            "logp_deleted": outcome.logp_deleted - base.logp_deleted,
            "positions": float(outcome.n_positions),
            "changed": float(outcome.heard != base.heard),
            "p_language": (outcome.p_language or 0) - (base.p_language or 0) if known else 0.0,
        }

    def curve(self, condition: str, *, language: str | None = None) -> list[Effect]:
        """The dose curve of a version."""
        return [self.effect(condition, dose, language=language) for dose in self.doses]

    def at_limit(
        self, condition: str, *, max_cer_change: float = MAX_CER_CHANGE, language: str | None = None
    ) -> Effect | None:
        """The effect at the dose with the most successes among those that change at most so much off the target.

        None where every dose changes more. The dose is chosen on the clips that it is judged on, for each version by
        the same rule: all versions look a little better than they are.
        """
        fitting = [
            effect
            for effect in self.curve(condition, language=language)
            if effect.off_target.value is not None and effect.off_target.value <= max_cer_change
        ]
        return max(fitting, key=lambda effect: (effect.success.value or 0.0, -effect.dose), default=None)

    # Out

    def to_json(self) -> str:
        """Everything, with the effects worked out."""
        effects = {
            language or "all": [asdict(effect) for effect in self._all_effects(language)]
            for language in [None, *self.languages]
        }
        whole = {"about": self.about, "notes": self.notes, "bases": self.bases, "effects": effects}
        return json.dumps({**whole, "outcomes": [asdict(outcome) for outcome in self.outcomes]}, ensure_ascii=False)

    def _all_effects(self, language: str | None) -> list[Effect]:
        dosed = (STEERED, RANDOM, VECTOR, ACTIVATION)
        return [
            self.effect(SAE_ONLY, language=language),
            *(effect for name in dosed for effect in self.curve(name, language=language)),
        ]

    def to_markdown(self, *, max_cer_change: float = MAX_CER_CHANGE) -> str:
        """The tables: success within the limit, then the dose curves of each language, every control beside them."""
        lines = ["# Steering", "", *(f"- {key}: {value}" for key, value in self.about.items()), ""]
        lines += [f"## Success at a character error rate off the target of at most {100 * max_cer_change:g} %", ""]
        lines += ["| clips | steered | random | vector | activation |", "|---|---|---|---|---|"]
        for language in [None, *self.languages]:
            cells = []
            for name in (STEERED, RANDOM, VECTOR, ACTIVATION):
                best = self.at_limit(name, max_cer_change=max_cer_change, language=language)
                cells.append("no dose within it" if best is None else f"{best.success.percent()} at {best.dose:g}")
            n_clips = self.effect(SAE_ONLY, language=language).n_clips
            lines.append(f"| {language or 'all'} ({n_clips}) | {' | '.join(cells)} |")
        for language in [None, *self.languages]:
            lines += ["", f"## {language or 'All clips'}", "", _HEAD, "|---" * _HEAD.count(" | ") + "|---|"]
            lines += [_row(effect) for effect in self._all_effects(language)]
        lines += ["", *(f"- {note}" for note in self.notes)]
        return "\n".join(lines).rstrip() + "\n"

    def plot(self, *, language: str | None = None) -> Figure:
        """Dose curves: success, and error off the target, of the edit and of all its controls."""
        figure = new_figure(10, 4)
        panels = figure.subplots(1, 2)
        for axis, name, title in zip(
            panels, ("success", "off_target"), ("success, share of eligible clips", "CER off the target"), strict=True
        ):
            for condition in (STEERED, RANDOM, VECTOR, ACTIVATION):
                curve = [getattr(effect, name) for effect in self.curve(condition, language=language)]
                values = [np.nan if one.value is None else one.value for one in curve]
                axis.plot(self.doses, values, marker="o", label=condition, color=_COLOURS[condition])
                bounds = [[np.nan if x is None else x for x in (one.low, one.high)] for one in curve]
                axis.fill_between(self.doses, *zip(*bounds, strict=True), alpha=0.12, color=_COLOURS[condition], lw=0)
            alone = getattr(self.effect(SAE_ONLY, language=language), name).value
            axis.axhline(np.nan if alone is None else alone, ls=":", color="black", label="SAE alone, against unhooked")
            axis.set(xlabel="dose", title=title)
            axis.spines[["top", "right"]].set_visible(False)
        panels[1].axhline(MAX_CER_CHANGE, ls="--", lw=0.8, color="#c1272d")
        panels[0].set_ylim(-0.02, 1.02)
        panels[0].legend(frameon=False, fontsize=8)
        figure.suptitle(f"{language or 'all clips'}: {self.about.get('edits', '')}", fontsize=9)
        return figure


_SUMS = (
    "one", "eligible", "inserted", "deleted", "success", "clean", "errors", "characters", "logp_inserted",
    "logp_deleted", "positions", "changed", "p_language",
)  # fmt: skip
_HEAD = (
    "| version | dose | eligible | inserted | deleted | success | clean success | CER off target | log p inserted | "
    "log p deleted | language changed |"
)


def _row(effect: Effect) -> str:
    cells = [
        effect.condition if effect.condition != SAE_ONLY else "SAE alone, against unhooked",
        f"{effect.dose:g}",
        str(effect.n_eligible),
        f"{effect.inserted:+.3g}",
        f"{effect.deleted:+.3g}",
        effect.success.percent(),
        effect.clean_success.percent(),
        effect.off_target.percent(),
        _nats(effect.logp_inserted),
        _nats(effect.logp_deleted),
        effect.language_changed.percent(),
    ]
    return f"| {' | '.join(cells)} |"


def _nats(estimate: Estimate) -> str:
    return "n/a" if estimate.value is None else f"{estimate.value:+.2f}"


def _family(condition: str) -> str:
    """A version's name without its number."""
    return RANDOM if condition.startswith(f"{RANDOM}-") else condition
