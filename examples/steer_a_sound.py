"""Find the latents of two sounds, put one in the other's place, and hold what happens against the controls.

python examples/steer_a_sound.py

On shipped speech and the shipped SAE. Latents for p and k are looked for in five English sentences, by the words that
the letters stand in; then, in a sentence of English and one of Italian, p is taken off wherever it fires and k put on.
Two clips show how it is done, and nothing more: a finding takes hundreds of them (docs/analysis-steering.md).
"""

from __future__ import annotations

import torch
from torch import Tensor

from hooked_whisper import HookedWhisper
from hooked_whisper.analysis.activity import Activity
from hooked_whisper.analysis.edits import Swap
from hooked_whisper.analysis.steering_experiment import steering_experiment
from hooked_whisper.analysis.steering_target import Target
from hooked_whisper.analysis.steering_vectors import difference
from hooked_whisper.saes import load_sae
from hooked_whisper.speech import Clip, clips

HOOK, DOSE = "encoder.hook_out", 3.0
FRAMES_PER_SECOND = 50
SLACK = 2  # frames by which the model's word times may be off
CHOSEN_ON = ("privacy-unident", "privacy-prompt", "conf-onlyperson", "tt-weasels", "vm-savefolder")
TRIED_ON = (("en", "pbx-invalidpark"), ("it", "vm-sorry"))


def listen(model: HookedWhisper, clip: Clip) -> tuple[Tensor, list[tuple[str, int, int]]]:
    """The clip's frames [frame d_model], and its words with the frames from and to which each may be said."""
    rows = model.encode(clip.load())[0, : int(clip.seconds * FRAMES_PER_SECOND)]
    transcript = model.transcribe(clip.load(), language=clip.language, word_timestamps=True)
    assert not isinstance(transcript, list) and transcript.words is not None
    return rows, [
        (word.text.lower(), max(0, round(word.start * FRAMES_PER_SECOND) - SLACK), round(word.end * 50) + SLACK)
        for word in transcript.words
    ]


def latent_of(letters: str, heard: list[tuple[Tensor, list[tuple[str, int, int]]]]) -> int:
    """The latent that goes most with words that hold one of the letters.

    Of those that fire in two thirds of such words, the one whose frames lie in them most beyond chance: the normal
    deviate of their number, chance being the share of all frames that do.
    """
    inside, words = [], []
    for fires, said in heard:
        here = torch.zeros(len(fires), dtype=torch.bool)
        for text, start, end in said:
            if set(letters) & set(text):
                here[start:end] = True
                words.append(fires[start:end].any(0))
        inside.append(here)
    there, fires = torch.cat(inside), torch.cat([fires for fires, _ in heard])
    chance, count = there.float().mean(), fires.sum(0).float()
    hits = (fires & there[:, None]).sum(0).float()
    deviate = (hits - count * chance) / (count * chance * (1 - chance)).clamp(min=1).sqrt()
    share = torch.stack(words).float().mean(0)
    latent = int(deviate.where(share > 2 / 3, -torch.inf).argmax())
    print(
        f"{letters!r}: latent {latent} fires in {share[latent]:.0%} of {len(words)} words with it; {int(hits[latent])} "
        f"of its {int(count[latent])} frames lie in them"
    )
    return latent


@torch.no_grad()
def main() -> None:
    """Runs all of it and prints what it finds."""
    model = HookedWhisper.from_pretrained("openai/whisper-base")
    sae = load_sae("whisper-base/encoder.hook_out")
    heard = [listen(model, clips("en", key=key)[0]) for key in CHOSEN_ON]
    rows = torch.cat([rows for rows, _ in heard])
    codes = sae.encode(rows)
    fires = [(sae.encode(rows) > 0, said) for rows, said in heard]
    p, k = (latent_of(letters, fires) for letters in ("p", "ckq"))

    # The rival that needs no SAE to add it: the mean of the frames of the one less that of the other's.
    vector = difference([rows[codes[:, k] > 0]], [rows[codes[:, p] > 0]], hook=HOOK, names=("k", "p"))
    result = steering_experiment(
        model,
        sae,
        [clips(language, key=key)[0] for language, key in TRIED_ON],
        [Swap(source=p, target=k)],
        Target(inserted="ckq", deleted="p"),
        activity=Activity.of_batches([codes]),
        vector=vector,
        doses=(DOSE,),
        n_random=1,
        selected_in="en",
    )
    for outcome in result.outcomes:
        print(f"{outcome.clip:20} {outcome.condition:10} {outcome.text!r}")
    print("\nletters c, k, q and p more than in the base; log-probability of tokens with them where p stood (nats);")
    print("error rate of all other letters:")
    for name in ("sae", "steered", "random", "vector", "activation"):
        effect = result.effect(name, 0.0 if name == "sae" else DOSE)
        put, gone = (estimate.value or 0 for estimate in (effect.logp_inserted, effect.logp_deleted))
        counts, off = f"{effect.inserted:+3.0f} {effect.deleted:+3.0f}", 100 * (effect.off_target.value or 0)
        print(f"  {name:10} {counts}   {put:+6.2f} {gone:+6.2f}   {off:5.1f} %")


if __name__ == "__main__":
    main()
