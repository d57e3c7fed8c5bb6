"""Words made up where nobody speaks: can features of non-speech keep the model from them, and leave speech alone?

python examples/paper/non_speech.py --work quiet                         # made sounds, shipped clips: a minute
python examples/paper/non_speech.py --work quiet --prompts prompts       # music, 150 clips: hours of a core

Gates and direction are chosen on silence, noise and three pieces of music, and on prompts that may have been learnt
from. Everything is measured on noise of other seeds, two other pieces of music, kinds of sounds that nothing was chosen
on (hum, ticks, chords), and prompts whose sentences were left out of the SAE's training: alone, and over music. Beside
it stands what everybody uses: a threshold on the probability of <|nospeech|>.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hooked_whisper import HookedWhisper
from hooked_whisper.analysis.non_speech import Sound, made_sounds, music_windows, noises, silences
from hooked_whisper.analysis.quieting import find_quieting, quieting_experiment
from hooked_whisper.saes import Corpus, load_sae
from hooked_whisper.saes.corpus_item import CorpusItem
from hooked_whisper.windows import with_window

NO_SPEECH = 0.6  # what OpenAI's transcribe() takes for silence, of the probability of <|nospeech|>
SNR = 10.0  # dB, of speech over music
RATE = 16_000


def drawn(corpus: Corpus, n: int, seed: int = 0) -> Corpus:
    """So many clips of 1 to 10 s with a text."""
    fit = [item for item in corpus if item.text and 1 <= float(item.columns.get("seconds") or 5) <= 10]
    order = np.random.default_rng(seed).permutation(len(fit))[:n]
    return Corpus([fit[i] for i in order], name=corpus.name)


def over(speech: Corpus, sounds: Sequence[Sound]) -> Corpus:
    """Each clip with a sound under it, SNR below the speech's own level."""
    items = []
    for number, item in enumerate(speech):
        clip = speech.load(item)
        assert clip is not None
        under = sounds[number % len(sounds)].samples
        under = under.repeat(-(-len(clip) // len(under)))[: len(clip)]
        level = clip.pow(2).mean().sqrt() / under.pow(2).mean().sqrt().clamp(min=1e-6) * 10 ** (-SNR / 20)
        audio: Any = {"array": (clip + level * under).numpy(), "sampling_rate": RATE}
        items.append(CorpusItem(id=f"{item.id}+{number}", audio=audio, text=item.text, language=item.language))
    return Corpus(items, name=f"{speech.name} over music")


@torch.no_grad()
def no_speech(model: HookedWhisper, waveforms: Sequence[Tensor]) -> list[float]:
    """The probability of <|nospeech|> after <|startoftranscript|>."""
    tokenizer = model.tokenizer
    assert tokenizer is not None and tokenizer.no_speech is not None
    start = torch.tensor([[tokenizer.sot]])
    return [float(model.decode(start, model.encode(w))[0, -1].softmax(-1)[tokenizer.no_speech]) for w in waveforms]


def threshold(model: HookedWhisper, sounds: Sequence[Sound], speech: Corpus, made_up: set[str]) -> str:
    """What is left of false transcripts if windows above NO_SPEECH are dropped, and how much speech goes with them."""
    p_sounds = no_speech(model, [sound.samples for sound in sounds])
    clips = [speech.load(item) for item in speech]
    p_speech = no_speech(model, [clip for clip in clips if clip is not None])
    left = sum(sound.id in made_up and p <= NO_SPEECH for sound, p in zip(sounds, p_sounds, strict=True))
    return (
        f"Dropping windows whose <|nospeech|> has more than {NO_SPEECH:g}: {left} of {len(sounds)} sounds keep a false "
        f"transcript, and {sum(p > NO_SPEECH for p in p_speech)} of {len(p_speech)} clips of speech are dropped."
    )


def main() -> None:
    """Finds gates and direction, measures, writes the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the report")
    parser.add_argument("--prompts", type=Path, help="folder that `hooked-whisper prompts` made; else shipped clips")
    parser.add_argument("--sae", default="whisper-base/encoder.hook_out", help="whose features")
    parser.add_argument("--doses", nargs="+", type=float, default=[0.8, 1.6, 2.4])
    parser.add_argument("--gates", type=int, default=2, help="latents that must all fire")
    parser.add_argument("--random", type=int, default=3, help="random directions")
    parser.add_argument("--each", type=int, default=10, help="windows of each piece of music, noises of each level")
    parser.add_argument(
        "--clips", type=int, default=100, help="clips of speech to measure on; half as many to choose on"
    )
    parser.add_argument(
        "--window", type=int, default=30, help="seconds; fewer are faster, and no longer the model as it was trained"
    )
    options = parser.parse_args()
    model = with_window(HookedWhisper.from_pretrained("openai/whisper-base", device="cpu"), options.window)
    sae = load_sae(options.sae).to(dtype=torch.float32)
    if options.prompts is None:
        heard, other = Corpus.from_clips().split(0.5, by="key")
        music: list[list[Sound]] = [[], []]
    else:
        prompts = Corpus.from_manifest(options.prompts / "manifest.jsonl").where(kind="speech")
        heard, other = prompts.split(0.1, seed=0, by="key")  # as the shipped SAE's training left them out
        pieces = sorted((options.prompts / "music").glob("*.g722"))
        music = [music_windows(part, n_each=options.each) for part in (pieces[:3], pieces[3:])]
    known = [*silences((2.0, 10.0)), *noises(n_each=options.each), *music[0]]
    unknown = [*noises(n_each=options.each, seed=1), *music[1], *made_sounds(options.each, seed=1)]
    chosen, tested = drawn(heard, options.clips // 2), drawn(other, options.clips)
    quieting = find_quieting(model, sae, known, chosen, n_gates=options.gates)
    spoken = {"speech alone": tested, f"speech over {'music' if music[1] else 'sounds'}, {SNR:g} dB": over(
        tested, music[1] or unknown)}  # fmt: skip
    options.work.mkdir(parents=True, exist_ok=True)
    lines: list[str] = []
    for name, speech in spoken.items():
        sounds = unknown if speech is tested else unknown[:1]  # they stay what they are, whatever is said elsewhere
        result = quieting_experiment(model, quieting, sounds, speech, doses=options.doses, n_random=options.random)
        lines += [result.to_markdown().replace("# False", f"# {name[0].upper() + name[1:]}. False", 1)]
        lines += [threshold(model, sounds, speech, set(result.examples)), ""]
        (options.work / "report.md").write_text("\n".join(lines), encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
