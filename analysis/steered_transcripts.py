"""What a model writes of some clips while one latent is steered, beside what it writes anyway.

    heard = SteeredClips(model, sae, [clip.load() for clip in clips("en", "vm-sorry")])
    for one in dose_transcripts(heard, Steer("add", latent=17), doses=(1, 3)):
        print(one.version, one.dose, one.text)

To look and to listen. Whether a latent does something of its own is told by `steering_experiment`: many clips, a
target, a rival vector and intervals.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from hooked_whisper.analysis.activity import Activity
from hooked_whisper.analysis.edits import Ablate, Add, Clamp, ClipSpans, Edit, Scale, Swap, Zero
from hooked_whisper.analysis.steering import ErrorTerm, Steerer, Steering
from hooked_whisper.analysis.steering_controls import RANDOM, SAE_ONLY, STEERED, UNHOOKED, random_edits
from hooked_whisper.analysis.steering_experiment import _hooked, steered_frames
from hooked_whisper.analysis.steering_target import character_errors
from hooked_whisper.errors import AnalysisError, did_you_mean
from hooked_whisper.model import HookedWhisper
from hooked_whisper.saes.coding import SparseCoder, code, find_site
from hooked_whisper.saes.spliced_evaluation import Batch, listen, rows_at, teacher_forced, transcripts

if TYPE_CHECKING:
    Mode = Literal["add", "scale", "clamp", "zero", "ablate", "swap"]
else:
    Mode = str  # checked here, with a message that says more than a type checker's
MODES = ("add", "scale", "clamp", "zero", "ablate", "swap")
_ROOM = 16  # tokens by which a transcript may be longer than twice the longest unhooked one

Spans = Sequence[Sequence[tuple[float, float]]]


@dataclass(frozen=True)
class Steer:
    """One latent, and what is done to it at a dose.

    Attributes:
        mode: "add" (dose times its typical magnitude on top, whether it fires or not), "scale" (its activation times
            the dose), "clamp" (held at dose times its typical magnitude), "zero", "ablate" (the dose says how much of
            it, 1 all), "swap" (dose times: `latent` off where it fires, `target`'s magnitude on).
        magnitude: what counts as typical, of the target in a swap; None takes the mean where it fires.
        spans: seconds of each clip at which it is done; None: everywhere.

    Raises:
        AnalysisError: another mode, or a target where there is none or none where there must be.
    """

    mode: Mode
    latent: int
    target: int | None = None
    magnitude: float | None = None
    spans: Spans | None = None

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise AnalysisError(
                f"Unknown mode {self.mode!r}: expected {', '.join(MODES)}.{did_you_mean(self.mode, MODES)}"
            )
        if (self.mode == "swap") != (self.target is not None):
            raise AnalysisError("A target is what 'swap' puts in the latent's place: pass one with it, and only then.")

    @property
    def pushed(self) -> int:
        """The latent whose typical magnitude counts."""
        return self.latent if self.target is None else self.target

    def edit(self, dose: float, activity: Activity) -> tuple[Edit, float]:
        """The edit at a dose, everywhere, and the strength at which it is done.

        Raises:
            AnalysisError: a magnitude that nobody knows.
        """
        if self.mode == "scale":
            return Scale(self.latent, dose), 1.0
        if self.mode in ("zero", "ablate"):
            return (Zero(self.latent) if self.mode == "zero" else Ablate(self.latent)), dose
        magnitude = activity.magnitude_of(self.pushed) if self.magnitude is None else self.magnitude
        if self.mode == "add":
            return Add(self.latent, dose, magnitude), 1.0
        if self.mode == "clamp":
            return Clamp(self.latent, dose * magnitude, dose * magnitude), 1.0
        assert self.target is not None
        return Swap(self.latent, self.target, magnitude), dose


@dataclass(frozen=True)
class SteeredText:
    """A transcript.

    Attributes:
        clip: number of the clip. `language`: in which it is transcribed, whatever is heard.
        version: "unhooked", "sae" (its reconstruction alone), "steered", or "random-0", ... (another latent).
        latents: those that were edited.
        dose: 0 where nothing was edited.
        changed: characters that differ from the base's transcript, as a share of its length. The base is the unhooked
            model, or the SAE alone where the edit stands on its reconstruction.
    """

    clip: int
    language: str | None
    version: str
    latents: tuple[int, ...]
    dose: float
    text: str
    changed: float


class SteeredClips:
    """Clips that were listened to once, to be transcribed under any steering of one SAE.

    Attributes:
        texts: what the unhooked model writes, greedily.
        languages: in which; detected where none was given.
        activity: how often and how strongly each latent fires on these clips.
    """

    @torch.no_grad()
    def __init__(
        self,
        model: HookedWhisper,
        sae: SparseCoder,
        clips: Sequence[Float[Tensor, "_"]],
        languages: Sequence[str | None] | None = None,
        *,
        hook: str | None = None,
        batch_size: int = 8,
    ) -> None:
        """Listens to the clips, of at most 30 s each.

        Raises:
            AnalysisError: no clips. AudioError: a clip over 30 s. SaeError: an SAE that does not fit the model.
        """
        if not clips:
            raise AnalysisError("No clips to transcribe.")
        self.model, self.sae, self.site = model, sae, find_site(model, sae, hook)
        given = list(languages) if languages is not None else [None] * len(clips)
        self._batches: list[tuple[slice, Batch, list[int]]] = []
        self.texts: list[str] = []
        self.languages: list[str | None] = []
        self.activity = Activity.of_batches(self._listened(clips, given, batch_size))

    def _listened(
        self, clips: Sequence[Tensor], languages: Sequence[str | None], batch_size: int
    ) -> Iterator[Float[Tensor, "_ latent"]]:
        """The latents of each clip, while it is heard and transcribed."""
        for at in range(0, len(clips), batch_size):
            part = slice(at, min(at + batch_size, len(clips)))
            batch = listen(self.model, clips[part], languages[part], self.site)
            tokens = transcripts(self.model, batch.encoder_out, batch.languages)
            limit = min(2 * max(map(len, tokens)) + _ROOM, self.model.cfg.n_ctx // 2)
            self._batches.append((part, batch, [limit] * len(tokens)))
            self.texts += self._strings(tokens)
            self.languages += batch.languages
            fed = teacher_forced(self.model, batch, tokens) if self.site.in_decoder else None
            for rows, _ in rows_at(self.model, self.site, batch, fed):
                for _, acts, _ in code(self.sae, rows):
                    yield acts

    @torch.no_grad()
    def codes(self, clip: int = 0) -> Float[Tensor, "frame latent"]:
        """What the SAE makes of each frame of a clip.

        Raises:
            AnalysisError: a clip that is not there, or an SAE of the decoder.
        """
        if self.site.in_decoder:
            raise AnalysisError(f"{self.site.read} runs over tokens, not frames: its latents have no time.")
        if not 0 <= clip < len(self):
            raise AnalysisError(f"There is no clip {clip}: there are {len(self)}, counted from 0.")
        part, batch, _ = next(one for one in self._batches if clip < one[0].stop)
        rows, _ = rows_at(self.model, self.site, batch, None)[clip - part.start]
        return torch.cat([acts for _, acts, _ in code(self.sae, rows)])

    def __len__(self) -> int:
        return len(self.texts)

    def _strings(self, tokens: Sequence[Sequence[int]]) -> list[str]:
        return [str(self.model.to_string(list(row), skip_special_tokens=True)).strip() for row in tokens]

    @torch.no_grad()
    def under(self, steering: Steering, spans: Spans | None = None) -> list[str]:
        """What is written of each clip under a steering, its edits held to each clip's spans.

        Raises:
            AnalysisError: as `Steerer`; spans of another number of clips, or past a clip's end.
        """
        if spans is not None and len(spans) != len(self):
            raise AnalysisError(f"Spans of {len(spans)} clips were given, and there are {len(self)}.")
        texts: list[str] = []
        for part, batch, limits in self._batches:
            here = steering
            if spans is not None:
                where = ClipSpans(tuple(tuple(one) for one in spans[part]))
                here = replace(steering, edits=[replace(edit, where=where) for edit in steering.edits])  # type: ignore[type-var]
            steerer = Steerer(self.model, here)
            frames = steered_frames(self.model, batch, steerer)
            with _hooked(self.model, steerer if self.site.in_decoder else None, batch.frame_mask):
                texts += self._strings(transcripts(self.model, frames, batch.languages, limits))
        return texts


def dose_transcripts(
    heard: SteeredClips,
    steer: Steer,
    doses: Sequence[float],
    *,
    activity: Activity | None = None,
    error_term: ErrorTerm = "kept",
    n_random: int = 1,
    seed: int = 0,
) -> list[SteeredText]:
    """Transcripts of each clip: unhooked, with the SAE alone, and at each dose steered and with random latents.

    A random version does the same to another latent that fires about as often, with a push of the same length. For a
    latent that is silent here, whose magnitude is given, it is one of those that fire least.

    Args:
        activity: over more clips than those steered; None takes their own.
        error_term: as in `Steering`.
        n_random: how many; without any, nothing tells the latent from any other.

    Raises:
        AnalysisError: doses that are none, a latent that is not there, or one that is silent and whose magnitude is not
            given; what `Steerer` refuses.
    """
    if not doses or not all(math.isfinite(dose) for dose in doses) or n_random < 0:
        raise AnalysisError(f"doses={list(doses)}, n_random={n_random}: expected finite numbers, and 0 or more.")
    known = _with_magnitude(heard.activity if activity is None else activity, steer)
    sae, hook = heard.sae, heard.site.read
    alone = heard.under(Steering((), sae, hook, "dropped"))
    found = _texts(heard, UNHOOKED, (), 0.0, heard.texts, heard.texts)
    found += _texts(heard, SAE_ONLY, (), 0.0, alone, heard.texts)
    base = heard.texts if error_term == "kept" else alone
    for dose in doses:
        edit, strength = steer.edit(dose, known)
        versions = [(STEERED, edit)]
        versions += [(f"{RANDOM}-{i}", random_edits(sae, [edit], known, seed=seed + i)[0]) for i in range(n_random)]
        for name, one in versions:
            texts = heard.under(Steering([one], sae, hook, error_term, strength), steer.spans)
            found += _texts(heard, name, one.own_latents(), dose, texts, base)
    return found


def _texts(
    heard: SteeredClips, version: str, latents: tuple[int, ...], dose: float, texts: Sequence[str], base: Sequence[str]
) -> list[SteeredText]:
    found = []
    for clip, (text, before) in enumerate(zip(texts, base, strict=True)):
        errors, characters = character_errors(before, text)
        changed = errors / max(characters, 1)
        found.append(SteeredText(clip, heard.languages[clip], version, latents, dose, text, changed))
    return found


def _with_magnitude(activity: Activity, steer: Steer) -> Activity:
    """The activity with the magnitude that was given, and a latent that is silent counted as rare."""
    silent = [latent for latent in {steer.latent, steer.pushed} if not _density(activity, latent)]
    if steer.latent in silent and steer.mode in ("scale", "zero", "ablate", "swap"):
        what = {"scale": "nothing to scale", "swap": "nothing to swap"}.get(steer.mode, "nothing to take away")
        raise AnalysisError(f"Latent {steer.latent} fires on none of these clips: there is {what}. Add switches it on.")
    if steer.magnitude is None:
        if silent:
            raise AnalysisError(
                f"Latent {silent[0]} fires on none of {activity.n_rows:,} frames, so that its typical magnitude is not "
                "known: pass one, in units of activation, or measure activity on clips on which it fires."
            )
        return activity
    density, magnitude = activity.density.clone(), activity.magnitude.clone()
    magnitude[steer.pushed] = steer.magnitude
    for latent in silent:
        density[latent] = density[density > 0].min()
    return replace(activity, density=density, magnitude=magnitude)


def _density(activity: Activity, latent: int) -> float:
    if not 0 <= latent < len(activity):
        raise AnalysisError(f"There is no latent {latent}: there are {len(activity)}, counted from 0.")
    return float(activity.density[latent])
