"""Keeps the model from writing where nobody speaks: a push towards ending at once, where features of non-speech fire.

    quieting = find_quieting(model, sae, sounds, speech)
    with steer(model, quieting.steering(2.4)):
        model.transcribe("hold-music.wav")

`hallucination_experiment` takes the features of non-speech away. Here they do what they are good at: they detect.
Latents are looked for that fire in every window without speech and not in speech; at frames where all of them fire,
and nowhere else, a direction is added: the gradient of the log-probability that the transcript ends at once, averaged
over frames of windows without speech. `quieting_experiment` measures both sides on other sounds and other speech,
beside random directions of the same length at the same frames, the difference of the means of speech and sounds
there, and the direction at every frame.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from hooked_whisper.analysis.edits import AddVector, Where, WhereActive
from hooked_whisper.analysis.hallucination import (
    HallucinationResult,
    Runner,
    Version,
    is_false,
    separating_latents,
    to_hear,
    unsteered,
)
from hooked_whisper.analysis.non_speech import Sound
from hooked_whisper.analysis.steering import Steering
from hooked_whisper.analysis.steering_controls import RANDOM, STEERED, VECTOR, both
from hooked_whisper.analysis.steering_vectors import SteeringVector, difference
from hooked_whisper.axes import axes
from hooked_whisper.errors import AnalysisError
from hooked_whisper.model import HookedWhisper
from hooked_whisper.saes.coding import SparseCoder, find_site
from hooked_whisper.saes.corpus import Corpus
from hooked_whisper.saes.spliced_evaluation import ENCODER_OUT, Batch, listen

EVERYWHERE = "everywhere"  # the direction at every frame, waiting for no feature


@dataclass(frozen=True, eq=False)
class Quieting:
    """Features that say that nobody speaks, and a direction that ends the transcript.

    Attributes:
        sae, hook: whose features, and where it stands.
        gates: latents that must all fire, each with the area under the curve that tells its share of a window's frames
            without speech from that with speech.
        towards_end: the direction, as long as a typical row of the activation.
        speech_less_sounds: its rival, the difference of the means, as long.
        n_sounds, n_false, n_speech: windows that all this was chosen on, and in how many a word was made up.
    """

    sae: SparseCoder
    hook: str
    gates: list[tuple[int, float]]
    towards_end: SteeringVector
    speech_less_sounds: SteeringVector
    n_sounds: int
    n_false: int
    n_speech: int

    @property
    def where(self) -> Where:
        """Frames at which all gates fire."""
        found = reduce(both, (WhereActive(latent) for latent, _ in self.gates), None)
        assert found is not None
        return found

    def steering(self, dose: float, vector: SteeringVector | None = None, *, everywhere: bool = False) -> Steering:
        """The edit: `dose` typical lengths of a row along the direction, or along another one.

        Args:
            everywhere: at every frame with audio, whatever fires there.
        """
        chosen = self.towards_end if vector is None else vector
        edit: AddVector = chosen.edit(dose, None if everywhere else self.where)
        return Steering([edit], self.sae, self.hook, "kept")


def find_quieting(
    model: HookedWhisper,
    sae: SparseCoder,
    sounds: Sequence[Sound],
    speech: Corpus,
    *,
    hook: str | None = None,
    language: str = "en",
    n_gates: int = 2,
    batch_size: int = 8,
    progress: bool | None = None,
) -> Quieting:
    """Chooses gates and direction.

    Args:
        sounds: windows without speech. speech: clips of at most 30 s with texts.
        language: in which sounds are transcribed.
        n_gates: latents that must all fire: more of them spare more speech, and catch fewer frames.

    Raises:
        AnalysisError: an SAE of the decoder or of no hook over frames, nothing to choose on, fewer separating latents.
    """
    site = find_site(model, sae, hook)
    if axes(site.read) != ("batch", "frame", "d_model"):
        raise AnalysisError(
            f"{site.read} is no hook of the encoder over frames: features of sounds are looked for there."
        )
    heard = to_hear(sounds, speech, language)
    shown = sys.stderr.isatty() if progress is None else progress
    with tqdm(total=2 * len(heard), unit="clip", disable=not shown) as bar:
        texts, shares, _ = Runner(model, sae, site, batch_size).plain(heard, bar)
        speaks = np.array([what[1] == "speech" for what, _ in heard], dtype=bool)
        gates = separating_latents(shares[~speaks], shares[speaks], n_gates)
        gradient = torch.zeros(model.cfg.d_model, dtype=torch.float64)
        rows: dict[bool, list[Tensor]] = {True: [], False: []}
        for at in range(0, len(heard), batch_size):
            group, talk = heard[at : at + batch_size], speaks[at : at + batch_size]
            batch = listen(model, [sound for _, sound in group], [what[2] for what, _ in group], site)
            activation, mask = batch.kept[site.read], batch.positions(site.read, None)
            for i in range(len(group)):
                rows[bool(talk[i])].append(activation[i, mask[i]].float().cpu())
            if not talk.all():
                gradient += _towards_end(model, batch, site.read, torch.from_numpy(~talk)).double().cpu()
            bar.update(len(group))
    length = float(torch.cat(rows[False]).norm(dim=1).mean())
    n_rows = sum(len(one) for one in rows[False])
    if not bool(gradient.any()):
        raise AnalysisError("The probability of ending at once does not depend on the activation: no direction.")
    end = SteeringVector(site.read, gradient.float(), ("end at once", "as it is"), n_rows, n_rows)
    means = difference(rows[True], rows[False], hook=site.read, names=("speech", "sounds"))
    made_up = sum(is_false(text) for text, talk in zip(texts, speaks, strict=True) if not talk)
    n_speech = int(speaks.sum())
    return Quieting(
        sae, site.read, gates, end.at_norm(length), means.at_norm(length), len(speaks) - n_speech, made_up, n_speech
    )


def _towards_end(model: HookedWhisper, batch: Batch, hook: str, chosen: Tensor) -> Float[Tensor, " d_model"]:
    """Gradient of log p(end | prompt), summed over the chosen clips, for one push at all their frames with audio."""
    tokenizer = model._need_tokenizer()
    prompts = [tokenizer.prompt(code, "transcribe", False) for code in batch.languages]
    with torch.enable_grad():
        push = torch.zeros(model.cfg.d_model, dtype=batch.encoder_out.dtype, device=model.device, requires_grad=True)
        mask = batch.frame_mask[..., None].to(push.dtype)
        if hook == ENCODER_OUT:
            frames = batch.encoder_out + mask * push
        else:
            with model.hooks(fwd_hooks=[(hook, lambda activation, hook: activation + mask * push)]):
                frames = model.encode_mel(batch.mel)
        logits = model.decode(torch.tensor(prompts, device=model.device), frames)[:, -1].float()
        ends = logits.log_softmax(-1)[:, tokenizer.eot]
        return torch.autograd.grad(ends[chosen.to(ends.device)].sum(), push)[0].detach()


@torch.no_grad()
def quieting_experiment(
    model: HookedWhisper,
    quieting: Quieting,
    sounds: Sequence[Sound],
    speech: Corpus,
    *,
    language: str = "en",
    doses: Sequence[float] = (0.8, 1.6, 2.4),
    n_random: int = 3,
    seed: int = 0,
    batch_size: int = 8,
    progress: bool | None = None,
) -> HallucinationResult:
    """False transcripts and the error rate of speech under each dose, beside every control.

    Args:
        sounds, speech: others than those that `quieting` was found on.
        n_random: directions drawn at random, as long, at the same frames.

    Raises:
        AnalysisError: no sounds, no random versions, no doses, clips without text.
    """
    if n_random < 1 or not doses or not sounds:
        raise AnalysisError(
            f"n_random={n_random}, {len(doses)} doses, {len(sounds)} sounds: expected at least one of each; take 3 or "
            "more random directions."
        )
    site = find_site(model, quieting.sae, quieting.hook)
    runner = Runner(model, quieting.sae, site, batch_size)
    heard = to_hear(sounds, speech, language)
    generator = torch.Generator().manual_seed(seed)
    length = quieting.towards_end.norm
    drawn = [
        SteeringVector(site.read, torch.randn(model.cfg.d_model, generator=generator), (f"random {i}", ""), 0, 0)
        for i in range(n_random)
    ]
    plan = unsteered(quieting.sae, site.read)
    for dose in doses:
        plan += [
            Version(STEERED, "kept", dose, [quieting.steering(dose)]),
            Version(RANDOM, "kept", dose, [quieting.steering(dose, one.at_norm(length)) for one in drawn]),
            Version(VECTOR, "kept", dose, [quieting.steering(dose, quieting.speech_less_sounds)]),
            Version(EVERYWHERE, "kept", dose, [quieting.steering(dose, everywhere=True)]),
        ]
    shown = sys.stderr.isatty() if progress is None else progress
    with tqdm(total=len(heard), unit="clip", disable=not shown) as bar:
        versions, plain = runner.measure(plan, heard, bar)
    known = [what for what, _ in heard]
    kinds = [sound.kind for sound in sounds]
    of_sounds = [(what[0], text) for what, text in zip(known, plain, strict=True) if what[1] != "speech"]
    return HallucinationResult(
        latents=quieting.gates,
        versions=versions,
        examples={name: text for name, text in of_sounds if is_false(text)},
        n_sounds={"all": len(kinds), **{kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}},
        n_speech=len(known) - len(kinds),
        n_false_chosen_on=quieting.n_false,
        about={
            "model": model.cfg.model_name,
            "hook": site.read,
            "chosen on": f"{quieting.n_sounds} windows without speech, {quieting.n_false} of them with words made up, "
            f"and {quieting.n_speech} of speech",
            "dose": f"typical lengths of a row, {length:.1f}",
            "random versions": f"{n_random}, seed {seed}",
        },
        notes=[
            "steered: the direction towards ending at once, where all gates fire. random: other directions as long, "
            "vector: the mean of speech less that of sounds, at the same frames. everywhere: the direction at every "
            "frame.",
            "Figures are of sounds and speech that nothing was chosen on; intervals are 95 %, over clips.",
            "Windows of one piece of music are alike, so intervals over them are too narrow.",
        ],
        role="that have to fire",
    )  # fmt: skip
