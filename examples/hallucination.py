"""What makes Whisper write words where nobody speaks? Heads found on half of the sounds, switched off on the others.

python examples/hallucination.py                                         # a few made sounds, seconds
python examples/hallucination.py --music music --each 8 --speech 12 --random 10

Sounds are silence, noise, hum, ticks and chords; --music adds windows of five pieces of instrumental music (fetched
into that folder where they are missing). A false transcript has a word in it. On the first half of the sounds: what the
model thinks of them (the probability of <|nospeech|>, and of ending at once), which parts of the decoder write the
first false token (direct logit attribution, and MLPs held at their means over speech), and which heads false words need
and true words do not (each head held at its mean over speech). On the other half, with other pieces of music: false
transcripts, and the words of real speech, with those heads held at that mean, beside as many random heads of the same
kinds.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from hooked_whisper import HookedWhisper
from hooked_whisper.analysis.ablation import NodeStatistics, ablate, ablated, node_statistics
from hooked_whisper.analysis.circuits import Circuit, random_circuits
from hooked_whisper.analysis.contrast import ModelInput
from hooked_whisper.analysis.direct_attribution import direct_attribution
from hooked_whisper.analysis.hallucination import is_false
from hooked_whisper.analysis.metrics import LogitDifference, LogProbability
from hooked_whisper.analysis.nodes import Node, nodes
from hooked_whisper.analysis.non_speech import Sound, fetch_music, made_sounds, music_windows, noises, silences
from hooked_whisper.saes.error_rates import count_errors, text_normalizer
from hooked_whisper.saes.spliced_evaluation import transcripts
from hooked_whisper.speech import Clip, clips
from hooked_whisper.windows import with_window

MAX_TOKENS = 30  # of a transcript; what is made up may go on for ever
SCORED = 8  # tokens of a transcript that heads are judged by
NO_SPEECH, LOG_PROBABILITY = 0.6, -1.0  # above and below these OpenAI's transcribe() drops a window
NEEDED = 0.05  # nats a token: heads that true words lose more without are left alone


@dataclass(frozen=True)
class Listener:
    """A model in English, and what it makes of sounds and of speech."""

    model: HookedWhisper

    @property
    def prompt(self) -> list[int]:
        assert self.model.tokenizer is not None
        return self.model.tokenizer.prompt("en", "transcribe", False)

    def write(self, sounds: Sequence[Tensor], batch: int = 8) -> list[list[int]]:
        """Greedy tokens of each sound."""
        rows = []
        for at in range(0, len(sounds), batch):
            some = list(sounds[at : at + batch])
            with torch.no_grad():
                frames = self.model.encode(some)
                rows += transcripts(self.model, frames, ["en"] * len(some), [MAX_TOKENS] * len(some))
        return rows

    def texts(self, sounds: Sequence[Tensor]) -> list[str]:
        """The same as text."""
        return [str(self.model.to_string(row, skip_special_tokens=True)).strip() for row in self.write(sounds)]

    def expects(self, sound: Tensor) -> tuple[float, float]:
        """Probability of <|nospeech|> after <|startoftranscript|>, and of ending at once after the whole prompt."""
        tokenizer = self.model.tokenizer
        assert tokenizer is not None and tokenizer.no_speech is not None
        with torch.no_grad():
            logits = self.model.decode(torch.tensor([self.prompt]), self.model.encode(sound))[0]
        p = logits.softmax(-1)
        return float(p[self.prompt.index(tokenizer.sot), tokenizer.no_speech]), float(p[-1, tokenizer.eot])

    def log_probability(self, sound: Tensor, text: list[int]) -> float:
        """Of a text of the sound, mean over its tokens, in nats."""
        inputs = ModelInput.of(self.model, sound, [text], language="en")
        with torch.no_grad():
            return float(LogProbability(inputs.tokens, len(self.prompt), mean=True)(inputs.logits(self.model))[0])

    def lost(self, sound: Tensor, text: list[int], heads: Sequence[Node], means: NodeStatistics) -> Tensor:
        """Nats a token of a text that it loses when each head is held at its mean over speech."""
        inputs = ModelInput.of(self.model, sound, [text[:SCORED]], language="en")
        metric = LogProbability(inputs.tokens, len(self.prompt), mean=True)
        found = ablate(self.model, inputs, heads, metric, by="mean", statistics=means, batch_size=16, progress=False)
        return -found.change[:, 0]


def halves(sounds: Sequence[Sound]) -> tuple[list[Sound], list[Sound]]:
    """Every second sound of each kind, and every second piece of music with all of its windows."""
    kinds: dict[str, dict[str, list[Sound]]] = {}
    for sound in sounds:
        unit = sound.id.rpartition("/")[0] if sound.kind == "music" else sound.id
        kinds.setdefault(sound.kind, {}).setdefault(unit, []).append(sound)
    units = [list(some.values()) for some in kinds.values()]
    first, second = ([sound for some in units for unit in some[at::2] for sound in unit] for at in (0, 1))
    return first, second


def share(flags: Sequence[bool]) -> str:
    """ "3 of 8"."""
    return f"{sum(flags)} of {len(flags)}"


def text_of(listener: Listener, clip: Clip) -> list[int]:
    """Tokens of what is said."""
    return [int(token) for token in listener.model.to_tokens(" " + clip.text)]  # type: ignore[arg-type]


def describe(listener: Listener, sounds: Sequence[Sound], rows: list[list[int]], false: list[bool]) -> None:
    """What the model thinks of the sounds, by kind."""
    expects = [listener.expects(sound.samples) for sound in sounds]
    print("\nkind          false     <|nospeech|>  ends at once   (median probabilities)   written")
    for kind in dict.fromkeys(sound.kind for sound in sounds):
        at = [i for i, sound in enumerate(sounds) if sound.kind == kind]
        no_speech, ends = (statistics.median(expects[i][side] for i in at) for side in (0, 1))
        said = str(listener.model.to_string(rows[at[0]], skip_special_tokens=True)).strip()
        print(f"{kind:13} {share([false[i] for i in at]):9} {no_speech:12.2f}  {ends:12.3f}   {said[:60]!r}")
    wrong = [i for i in range(len(sounds)) if false[i]]
    above = [expects[i][0] > NO_SPEECH for i in wrong]
    low = [listener.log_probability(sounds[i].samples, rows[i]) < LOG_PROBABILITY for i in wrong]
    dropped = [one and other for one, other in zip(above, low, strict=True)]
    print(f"of false transcripts {share(above)} are above {NO_SPEECH} in <|nospeech|>, {share(low)} below "
          f"{LOG_PROBABILITY:g} nats a token, {share(dropped)} both, which is OpenAI's rule to drop them")  # fmt: skip


def writes_first(
    listener: Listener, false: Sequence[tuple[Sound, list[int]]], mlps: Sequence[Node], means: NodeStatistics
) -> None:
    """Which parts write the first false token rather than the end, directly; then with MLPs held; mean over sounds."""
    tokenizer = listener.model.tokenizer
    assert tokenizer is not None
    pos = len(listener.prompt) - 1
    total: dict[str, float] = {}
    for sound, row in false:
        _, cache = listener.model.run_with_cache(sound.samples, row[:1], language="en")
        found = direct_attribution(cache, row[0], tokenizer.eot, pos=pos, by="head")
        for label, value in zip(found.labels, found.values[:, 0].tolist(), strict=True):
            total[label] = total.get(label, 0.0) + value / len(false)
    groups: dict[str, float] = {}
    for label, value in total.items():
        kind = next((name for name in ("cross", "attn", "mlp") if name in label), "embeddings and biases")
        groups[kind] = groups.get(kind, 0.0) + value
    print("\nlogit of the first false token less that of the end, written by: "
          + ", ".join(f"{kind} {value:+.1f}" for kind, value in groups.items()))  # fmt: skip
    order = sorted(total, key=lambda label: -abs(total[label]))[:6]
    print("  " + ", ".join(f"{label} {total[label]:+.1f}" for label in order))
    held = torch.zeros(len(mlps))
    for sound, row in false:
        inputs = ModelInput.of(listener.model, sound.samples, "", language="en")
        metric = LogitDifference((row[0],), (tokenizer.eot,), pos)
        found = ablate(listener.model, inputs, mlps, metric, by="mean", statistics=means, progress=False)
        held += found.change[:, 0] / len(false)
    print("  it changes, with one MLP held at its mean over speech, "
          + ", ".join(f"L{mlp.layer} {float(by):+.1f}" for mlp, by in zip(mlps, held, strict=True)))  # fmt: skip


def main() -> None:
    """Finds heads on one half of the sounds, tests them on the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--music", type=Path, help="folder with music, or to fetch it into; else made sounds alone")
    parser.add_argument("--each", type=int, default=2, help="sounds of each kind; windows of each piece of music")
    parser.add_argument("--window", type=int, default=5, help="seconds of the model's window")
    parser.add_argument("--speech", type=int, default=2, help="English clips in each half")
    parser.add_argument("--heads", type=int, default=5, help="how many heads are switched off")
    parser.add_argument("--random", type=int, default=1, help="sets of random heads to compare with")
    options = parser.parse_args()
    seconds = options.window - 1.0
    model = with_window(HookedWhisper.from_pretrained("openai/whisper-base", device="cpu"), options.window)
    listener = Listener(model)
    sounds = [*silences((seconds / 2, seconds)), *noises(n_each=options.each, seconds=seconds)]
    sounds += made_sounds(options.each, seconds)
    if options.music is not None:
        sounds += music_windows(fetch_music(options.music), n_each=options.each, seconds=seconds)
    found_on, tested_on = halves(sounds)
    spoken = [clip for clip in clips("en") if clip.seconds < options.window]
    known, unknown = spoken[: 2 * options.speech : 2], spoken[1 : 2 * options.speech : 2]
    print(
        f"to look at: {len(found_on)} sounds, {len(known)} clips of speech; to test: {len(tested_on)}, {len(unknown)}"
    )

    rows = listener.write([sound.samples for sound in found_on])
    flags = [is_false(str(model.to_string(row, skip_special_tokens=True))) for row in rows]
    describe(listener, found_on, rows, flags)
    quiet = statistics.median(listener.expects(clip.load())[0] for clip in known)
    print(f"of speech <|nospeech|> is {quiet:.2f}")
    false = [(sound, row) for sound, row, wrong in zip(found_on, rows, flags, strict=True) if wrong]
    if not false:
        print("The model wrote no words: nothing to explain. Try more sounds.")
        return
    heads, mlps = (nodes(model, part, stacks=["decoder"]) for part in ("head", "mlp"))
    inputs = [ModelInput.of(model, clip.load(), clip.text, language="en") for clip in known]
    means = node_statistics(model, inputs, [*heads, *mlps], progress=False)
    writes_first(listener, false, mlps, means)

    for_false = torch.stack([listener.lost(sound.samples, row, heads, means) for sound, row in false]).mean(0)
    for_true = torch.stack([listener.lost(clip.load(), text_of(listener, clip), heads, means) for clip in known]).mean(
        0
    )
    free = for_true <= NEEDED
    chosen = Circuit.top(heads, for_false.where(free, for_false.min()), min(options.heads, int(free.sum())))
    print(f"\nnats a token that heads are worth to false words, and to true ones; those that false words need most, of "
          f"the {int(free.sum())} without which true words lose at most {NEEDED}")  # fmt: skip
    for head in chosen.nodes:
        place = heads.index(head)
        print(f"  {head!s:24} {float(for_false[place]):6.2f} {float(for_true[place]):6.2f}")
    largest = heads[int(for_false.argmax())]
    print(f"  most of all: {largest} {float(for_false.max()):.2f} {float(for_true[heads.index(largest)]):.2f}")

    print("\non the others, those heads at their mean over speech: false transcripts, word errors of speech")
    for name, some in {"as it is": (), "these heads": chosen.nodes}.items():
        print(f"  {name:13} {report(listener, some, means, tested_on, unknown)}")
    for number, other in enumerate(random_circuits(chosen, options.random), start=1):
        print(f"  random {number:<6} {report(listener, other.nodes, means, tested_on, unknown)}")


def report(
    listener: Listener, heads: Sequence[Node], means: NodeStatistics, sounds: Sequence[Sound], speech: Sequence[Clip]
) -> str:
    """False transcripts by kind, and words of speech that are wrong, with some heads held at their means."""
    held = ablated(listener.model, heads, by="mean", statistics=means) if heads else nullcontext()
    with held:
        false = [is_false(text) for text in listener.texts([sound.samples for sound in sounds])]
        said = listener.texts([clip.load() for clip in speech])
    normalize = text_normalizer("en", listener.model.tokenizer)
    errors = [count_errors(clip.text, text, normalize) for clip, text in zip(speech, said, strict=True)]
    music = [wrong for wrong, sound in zip(false, sounds, strict=True) if sound.kind == "music"]
    words = f"{sum(one.word_errors for one in errors)} of {sum(one.words for one in errors)} words"
    return f"{share(false):9}{f' (music {share(music)})' if music else ''}  {words}"


if __name__ == "__main__":
    main()
