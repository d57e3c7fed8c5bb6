"""Which parts make Whisper decide the language? A circuit found on some sentences and tested on others.

python examples/language_decision.py                                     # two pairs of shipped clips, seconds
python examples/language_decision.py --prompts prompts --pairs 100 --neurons --gates 600 --random 100

Each pair is one sentence said in two languages (hooked-whisper prompts fetches 442 of them in five): the clean and the
corrupted input. The metric is the difference of the two language tokens' logits after <|startoftranscript|>, the nodes
are all heads and MLPs, or (--neurons) heads and neurons. A circuit is found on one half of the sentences, by
attribution and by learnt gates, and run on the other half, everything outside it replaced by what it was for the other
language.
"""

from __future__ import annotations

import argparse
import itertools
import random
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from hooked_whisper import HookedWhisper
from hooked_whisper.analysis.attribution import attribute
from hooked_whisper.analysis.circuits import Circuit, CircuitTask, random_circuits
from hooked_whisper.analysis.contrast import Contrast
from hooked_whisper.analysis.learned_circuits import learned_scores
from hooked_whisper.analysis.nodes import Node, nodes
from hooked_whisper.audio import load_audio
from hooked_whisper.speech import clips
from hooked_whisper.windows import with_window

LANGUAGES = ("en", "es", "fr", "it", "ru")
SHARES = (0.05, 0.1, 0.15, 0.2, 0.25, 0.5)
SHORTEST = 1.5  # seconds: below, the model is often unsure of the language


@dataclass(frozen=True)
class Pair:
    """One sentence in two languages."""

    key: str
    clean: str
    corrupted: str
    audio: tuple[Path, Path]


class LanguageDifference:
    """Logit of each clip's own language token less that of the other's, at the first position."""

    def __init__(self, model: HookedWhisper, pairs: list[Pair]) -> None:
        tokenizer = model.tokenizer
        assert tokenizer is not None
        token = {language: tokenizer.prompt(language, "transcribe", False)[1] for language in LANGUAGES}
        self.own = torch.tensor([token[pair.clean] for pair in pairs])
        self.other = torch.tensor([token[pair.corrupted] for pair in pairs])

    def __call__(self, logits: Tensor) -> Tensor:
        # Circuits run several at once, one batch of clips after the other.
        repeats = len(logits) // len(self.own)
        first = logits[:, 0]
        own, other = self.own.repeat(repeats), self.other.repeat(repeats)
        return first.gather(1, own[:, None])[:, 0] - first.gather(1, other[:, None])[:, 0]


def sentences(prompts: Path | None, longest: float) -> dict[str, dict[str, Path]]:
    """key -> language -> audio, of sentences that fit the window in two languages or more."""
    found: dict[str, dict[str, Path]] = {}
    if prompts is None:
        spoken = [(clip.key, clip.language, clip.path, clip.seconds) for clip in clips()]
    else:
        from hooked_whisper.saes import Corpus

        corpus = Corpus.from_manifest(prompts / "manifest.jsonl").where(kind="speech", parallel=True)
        spoken = [(i.columns["key"], i.language, Path(str(i.audio)), float(str(i.columns["seconds"]))) for i in corpus]
    for key, language, path, seconds in spoken:
        if SHORTEST <= seconds <= longest:
            found.setdefault(str(key), {})[str(language)] = path
    return {key: of for key, of in sorted(found.items()) if len(of) > 1}


def make_pairs(keys: list[str], spoken: dict[str, dict[str, Path]], n: int, source: random.Random) -> list[Pair]:
    """n pairs of languages, every ordered pair about as often, and every sentence."""
    ordered = list(itertools.permutations(LANGUAGES, 2))
    source.shuffle(ordered)
    used = dict.fromkeys(keys, 0)
    pairs: list[Pair] = []
    taken: set[tuple[str, str, str]] = set()
    for clean, corrupted in itertools.islice(itertools.cycle(ordered), n):
        free = [k for k in keys if {clean, corrupted} <= set(spoken[k]) and (k, clean, corrupted) not in taken]
        if free:
            fewest = min(used[key] for key in free)
            key = source.choice([key for key in free if used[key] == fewest])
            used[key] += 1
            taken.add((key, clean, corrupted))
            pairs.append(Pair(key, clean, corrupted, (spoken[key][clean], spoken[key][corrupted])))
    return pairs


def contrast(model: HookedWhisper, pairs: list[Pair]) -> Contrast:
    """The two sides of all pairs, after <|startoftranscript|> alone."""
    assert model.tokenizer is not None
    clean, corrupted = ([load_audio(pair.audio[side]) for pair in pairs] for side in (0, 1))
    return Contrast.of(model, clean=clean, corrupted=corrupted, text=[[model.tokenizer.sot]] * len(pairs))


def attribution(model: HookedWhisper, groups: list[list[Pair]], universe: list[Node], steps: int) -> Tensor:
    """Attribution of each node, each pair's as a share of what its two sides differ by; mean over pairs.

    Without steps, from the gradient at the corrupted side alone.
    """
    options: dict[str, Any] = {"method": "integrated", "steps": steps} if steps else {"method": "patching"}
    found = []
    for pairs in tqdm(groups, desc="attribution", unit="task", disable=None):
        metric = LanguageDifference(model, pairs)
        result = attribute(
            model, contrast(model, pairs), universe, metric, batch_size=len(pairs), progress=False, **options
        )
        found.append(result.scores / (result.other - result.base))
    return torch.cat(found, dim=1).mean(1)


class Half:
    """The pairs of one half of the sentences, in tasks of a few pairs each, so that one fits in memory at a time."""

    def __init__(self, model: HookedWhisper, pairs: list[Pair], universe: list[Node], size: int) -> None:
        self.groups = [pairs[at : at + size] for at in range(0, len(pairs), size)]
        self.tasks = [
            CircuitTask(model, contrast(model, group), universe, LanguageDifference(model, group), batch_size=4 * size)
            for group in tqdm(self.groups, desc="pairs", unit="task", disable=None)
        ]
        self.whole = torch.cat([task.whole for task in self.tasks])
        self.empty = torch.cat([task.empty for task in self.tasks])

    def metrics(self, circuits: list[Circuit]) -> Tensor:
        """[circuit pair]: the metric of each circuit."""
        found = [
            task.metrics([circuit.nodes for circuit in circuits])
            for task in tqdm(self.tasks, desc="circuits", unit="task", disable=None)
        ]
        return torch.cat(found, dim=1)

    def faithfulness(self, metrics: Tensor) -> Tensor:
        """Of each circuit, over all pairs together."""
        return (metrics - self.empty).sum(1) / (self.whole - self.empty).sum()

    def off(self, metrics: Tensor) -> Tensor:
        """How far each circuit is from the whole model, pair by pair, as a share of the same difference."""
        return (metrics - self.whole).abs().sum(1) / (self.whole - self.empty).sum()


def report(circuits: list[Circuit], found_on: Half, held_out: Half) -> None:
    """A line for each circuit: how well it stands for the model."""
    one = found_on.faithfulness(found_on.metrics(circuits))
    others = [circuit.complement for circuit in circuits]
    own, without = held_out.metrics([*circuits, *others]).chunk(2)
    columns = zip(
        circuits, one, held_out.faithfulness(own), held_out.off(own), held_out.faithfulness(without), strict=True
    )
    for circuit, *figures, left in columns:
        share = len(circuit.nodes) / len(circuit.universe)
        cells = [*map(float, figures), 1 - float(left)]
        print(f"{share:8.0%}  " + " ".join(f"{cell:8.2f}" for cell in cells), flush=True)


def main() -> None:
    """Finds the circuit, tests it, prints what it holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=Path, help="folder that `hooked-whisper prompts` made; else shipped speech")
    parser.add_argument("--pairs", type=int, default=2, help="pairs of one half of the sentences, to find it")
    parser.add_argument("--test-pairs", type=int, help="pairs of the other half, to test it; as many when left out")
    parser.add_argument("--batch", type=int, default=10, help="pairs in a step of gates, and in a pass")
    parser.add_argument("--window", type=int, default=4, help="seconds of the model's window")
    parser.add_argument("--steps", type=int, default=4, help="of integration")
    parser.add_argument("--neurons", action="store_true", help="nodes are heads and neurons, not heads and MLPs")
    parser.add_argument("--gates", type=int, default=20, help="steps in which gates are learnt")
    parser.add_argument("--lr", type=float, default=0.1, help="of the gates")
    parser.add_argument("--random", type=int, default=5, help="random circuits of the same size to compare with")
    parser.add_argument("--seed", type=int, default=0, help="of the halves and of the languages paired")
    parser.add_argument("--circuit", type=Path, help="also write the circuit to this JSON file")
    options = parser.parse_args()
    model = with_window(HookedWhisper.from_pretrained("openai/whisper-base", device="cpu"), options.window)
    spoken = sentences(options.prompts, options.window)
    source = random.Random(options.seed)
    keys = list(spoken)
    source.shuffle(keys)
    halves = [
        make_pairs(half, spoken, n, source)
        for half, n in (
            (keys[: len(keys) // 2], options.pairs),
            (keys[len(keys) // 2 :], options.test_pairs or options.pairs),
        )
    ]
    one, other = (f"{len(half)} pairs of {len({pair.key for pair in half})} sentences" for half in halves)
    print(f"{one} to find the circuit, {other} to test it", flush=True)
    universe = nodes(model, ["head", "neuron" if options.neurons else "mlp"])
    found_on, held_out = (Half(model, half, universe, options.batch) for half in halves)
    print(f"held out: {float(held_out.whole.mean()):.2f} nats for the clip's own language, "
          f"{float(held_out.empty.mean()):.2f} with all {len(universe)} nodes from the other language\n",
          flush=True)  # fmt: skip

    scores = attribution(model, found_on.groups, universe, 0 if options.neurons else options.steps)
    for place in scores.argsort(descending=True)[:10].tolist():
        print(f"  {float(scores[place]):6.3f}  {universe[place]}")
    print("\nranked by attribution: share of nodes, faithfulness where found; held out: faithfulness,")
    print("mean distance of a pair's metric from the whole model's, completeness")
    report([Circuit.top(universe, scores, round(x * len(universe))) for x in SHARES], found_on, held_out)

    quarter = len(universe) // 4
    print(f"\nlearnt as gates, {options.gates} steps:", flush=True)
    scores = learned_scores(found_on.tasks, quarter, steps=options.gates, lr=options.lr, seed=options.seed)
    circuit = Circuit.top(universe, scores, quarter)
    report([circuit], found_on, held_out)
    if options.circuit is not None:
        print(f"Written: {circuit.save(options.circuit)}")
    beside = held_out.faithfulness(held_out.metrics(random_circuits(circuit, options.random, seed=options.seed)))
    print(f"{options.random} random circuits of as many nodes of each kind, held out: mean "
          f"{float(beside.mean()):.2f}, best {float(beside.max()):.2f}")  # fmt: skip
    kinds = Counter(node.kind.replace(".blocks.*", "") for node in circuit.nodes)
    whole = Counter(node.kind.replace(".blocks.*", "") for node in universe)
    print("it holds " + ", ".join(f"{count} of {whole[kind]} {kind}" for kind, count in sorted(kinds.items())))
    if not options.neurons:
        print("  " + ", ".join(map(str, circuit.nodes)))


if __name__ == "__main__":
    main()
