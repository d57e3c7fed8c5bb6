"""Find a latent for a sound, steer it, and hold what happens against the controls. On shipped speech and SAE.

python examples/steer_a_sound.py

A few clips show how it is done, and nothing more: a finding takes hundreds of them (docs/analysis-steering.md).
"""

from __future__ import annotations

import torch
from torch import Tensor

from hooked_whisper import HookedWhisper
from hooked_whisper.analysis.activity import Activity
from hooked_whisper.analysis.edits import Scale
from hooked_whisper.analysis.steering_experiment import steering_experiment
from hooked_whisper.analysis.steering_target import Target
from hooked_whisper.analysis.steering_vectors import difference
from hooked_whisper.saes import load_sae
from hooked_whisper.speech import Clip, clips

HOOK, LETTER = "encoder.hook_out", "s"
FRAMES_PER_SECOND = 50
CHOSEN_ON = ("vm-sorry", "privacy-unident", "vm-savefolder")  # English; the latent is chosen on these alone
TRIED_ON = (("en", "followme/sorry"), ("it", "vm-sorry"))


def hears(model: HookedWhisper, clip: Clip) -> tuple[Tensor, Tensor]:
    """The clip's frames [frame d_model], and which of them lie in a word with the letter (words timed by the model)."""
    rows = model.encode(clip.load())[0, : int(clip.seconds * FRAMES_PER_SECOND)]
    transcript = model.transcribe(clip.load(), language=clip.language, word_timestamps=True)
    assert not isinstance(transcript, list) and transcript.words is not None
    middle = (torch.arange(len(rows)) + 0.5) / FRAMES_PER_SECOND
    there = torch.zeros(len(rows), dtype=torch.bool)
    for word in transcript.words:
        if LETTER in word.text.lower():
            there |= (middle >= word.start) & (middle < word.end)
    return rows, there


@torch.no_grad()
def main() -> None:
    """Runs all of it and prints what it finds."""
    model = HookedWhisper.from_pretrained("openai/whisper-base")
    sae = load_sae("whisper-base/encoder.hook_out")

    # The latent whose share of frames is highest inside words with the letter, against words without it.
    heard = [hears(model, clip) for key in CHOSEN_ON for clip in clips("en", key=key)]
    rows, there = torch.cat([rows for rows, _ in heard]), torch.cat([there for _, there in heard])
    codes = sae.encode(rows)
    activity = Activity.of_batches([codes])
    gain = (codes[there] > 0).float().mean(0) - (codes[~there] > 0).float().mean(0)
    latent = int(gain.argmax())
    on = codes[:, latent] > 0
    print(f"latent {latent} fires at {int(on.sum())} of {len(on)} frames, {int((on & there).sum())} of them in words")
    print(f"  with {LETTER!r}; typical magnitude {activity.magnitude_of(latent):.2f}")

    # Away with it: at dose 1 it is set to zero, beyond that it is pushed past zero. Its rival without an SAE: the
    # difference of the means of the frames where it is silent and those where it fires.
    vector = difference([rows[~on]], [rows[on]], hook=HOOK, names=("silent", "firing"))
    result = steering_experiment(
        model,
        sae,
        [clips(language, key=key)[0] for language, key in TRIED_ON],
        [Scale(latent, 0.0)],
        Target(deleted=LETTER),
        activity=activity,
        vector=vector,
        doses=(4.0,),
        n_random=1,
        selected_in="en",
        batch_size=2,
    )
    for outcome in result.outcomes:
        print(f"{outcome.clip:20} {outcome.condition:10} {outcome.dose:g}  {outcome.text!r}")
    print("\nlog-probability of tokens with the letter, where they stand, and error rate of all other letters:")
    for name, dose in (("sae", 0.0), ("steered", 4.0), ("random", 4.0), ("vector", 4.0), ("activation", 4.0)):
        effect = result.effect(name, dose)
        print(f"  {name:10} {effect.logp_deleted.value:+.2f} nats   {100 * (effect.off_target.value or 0):5.1f} %")


if __name__ == "__main__":
    main()
