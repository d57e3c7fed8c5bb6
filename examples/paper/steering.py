"""Sounds swapped in five languages: latents chosen on synthetic English, tried on real sentences held out of training.

python examples/paper/steering.py --work steering --prompts prompts --sentences 40 --clips 20 --swaps p:k m:n f:s t:k
python examples/paper/steering.py --work steering                              # one swap on two shipped clips: minutes

For each swap, the latents of both phones are those with the best F1 on espeak-ng's English. In each real clip there is
one place to steer: where the source latent fires most. There its activation is taken off, and the target's typical one
put on, times the dose. Beside it stand the SAE alone, random latents, the mean-difference vector of the two phones'
frames (which needs labels and no SAE), and that vector at the same place without the SAE. Every step keeps what it made
in the folder --work; tables go to report.md there.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hooked_whisper import HookedWhisper
from hooked_whisper.analysis.activity import Activity
from hooked_whisper.analysis.codes import FeatureCodes, encode_store
from hooked_whisper.analysis.edits import Swap
from hooked_whisper.analysis.feature_scores import phone_scores, score_features
from hooked_whisper.analysis.frame_labels import FrameLabels, frame_labels
from hooked_whisper.analysis.phone_speech import PHONE_VOICES, make_phone_corpus, parallel_texts
from hooked_whisper.analysis.steering_experiment import steering_experiment
from hooked_whisper.analysis.steering_result import SteeringResult
from hooked_whisper.analysis.steering_target import Target
from hooked_whisper.analysis.steering_vectors import difference
from hooked_whisper.mel import FRAMES_PER_SECOND
from hooked_whisper.saes import ActivationStore, Corpus, harvest, load_sae
from hooked_whisper.saes.coding import SparseCoder, find_site

CHOSEN_IN = "en"
# How the five languages mostly write a phone, Russian included.
LETTERS = {
    "p": "pп",
    "k": "ckqк",
    "t": "tт",
    "m": "mм",
    "n": "nн",
    "f": "fф",
    "s": "sс",
    "l": "lл",
    "b": "bб",
    "d": "dд",
}
VERSIONS = ("steered", "random", "vector", "activation")
MIN_ROWS = 5  # frames of a phone in each half of the clips
GAP = 2  # frames of silence of a latent that do not end its place


@dataclass
class English:
    """The synthetic sentences on which latents are chosen, where the SAE reads."""

    hook: str
    store: ActivationStore
    codes: FeatureCodes
    labels: FrameLabels
    activity: Activity

    def latents(self, n: int) -> dict[str, tuple[list[int], float]]:
        """For each phone the n latents with the best F1 on one half of the clips, and the best one's on the other."""
        scores = score_features(self.codes, self.labels.select(kinds=["phone"]), progress=False)
        best = {match.label: match for match in phone_scores(scores, min_rows=MIN_ROWS).strict}
        found = {}
        for at, name in enumerate(scores.names):
            if name in best:
                order = np.argsort(-np.nan_to_num(scores.f1_train[:, at]), kind="stable")
                found[name.removeprefix("phone=")] = (order[:n].tolist(), best[name].f1)
        return found

    def rows_of(self, phone: str) -> Tensor:
        """Activations of the frames of a phone."""
        names = self.labels.select(kinds=["phone"])
        here = np.asarray(names.matrix[:, list(names.names).index(f"phone={phone}")].todense()).reshape(-1) > 0
        return torch.cat([self.store.rows(self.hook, int(i), int(i) + 1) for i in np.flatnonzero(here)])


def listen_to_english(model: HookedWhisper, sae: SparseCoder, options: argparse.Namespace) -> English:
    """Training voices saying English sentences, their codes and their phones."""
    texts = parallel_texts(the_corpus(options), [CHOSEN_IN], options.sentences)
    voices = [voice for voice in PHONE_VOICES if voice.split == "train"][: options.voices]
    made = make_phone_corpus(texts, options.work / "speech", voices=voices)
    hook = find_site(model, sae).read
    store = harvest(model, made.corpus, hooks=hook, out=options.work / "acts", packing="windows")
    codes = encode_store(sae, store, hook, progress=False)
    labels = frame_labels(made.labels, codes.clip, codes.frame, codes.clips)
    return English(hook, store, codes, labels, Activity.of_codes(codes))


def the_corpus(options: argparse.Namespace) -> Corpus:
    """Real speech."""
    if options.prompts is None:
        return Corpus.from_clips()
    return Corpus.from_manifest(options.prompts / "manifest.jsonl").where(kind="speech")


def place_of(acts: Tensor) -> tuple[float, float, float] | None:
    """Where a latent fires most: strength, start and end in seconds; None where it never does."""
    frames = (acts > 0).nonzero()[:, 0].tolist()
    runs: list[list[int]] = []
    for frame in frames:
        if runs and frame - runs[-1][-1] <= GAP:
            runs[-1].append(frame)
        else:
            runs.append([frame])
    if not runs:
        return None
    best = max(runs, key=lambda run: float(acts[run].sum()))
    return float(acts[best].sum()), best[0] / FRAMES_PER_SECOND, (best[-1] + 1) / FRAMES_PER_SECOND


@torch.no_grad()
def places(
    model: HookedWhisper, sae: SparseCoder, corpus: Corpus, latents: list[int], letters: str, n_clips: int
) -> tuple[list[str], dict[str, list[tuple[float, float]]]]:
    """Of each language the clips in whose published text a letter stands and where the latents fire most, and where."""
    found: dict[str, list[tuple[float, str, float, float]]] = {}
    hook = find_site(model, sae).read
    for item in corpus:
        text, sound = str(item.text or "").lower(), None
        if set(letters) & set(text):
            sound = corpus.load(item)
        if sound is None:
            continue
        _, cache = model.run_with_cache(sound, names_filter=hook, stop_at=hook, return_type=None)
        rows = cache[hook][0, : len(sound) * FRAMES_PER_SECOND // 16_000]
        place = place_of(sae.encode(rows)[:, latents].sum(1))
        if place is not None:
            found.setdefault(str(item.language), []).append((place[0], item.id, *place[1:]))
    chosen = [one for of in found.values() for one in sorted(of, reverse=True)[:n_clips]]
    return [name for _, name, _, _ in chosen], {name: [(start, end)] for _, name, start, end in chosen}


def summary(swap: str, result: SteeringResult) -> list[str]:
    """A row for each language: success at the dose that the limit allows, and at the largest one."""
    largest = result.doses[-1]
    lines = []
    for language in [None, *result.languages]:
        cells = []
        for name in VERSIONS:
            best = result.at_limit(name, language=language)
            cells.append("none" if best is None else f"{best.success.percent()} at {best.dose:g}")
        for name in VERSIONS:
            effect = result.effect(name, largest, language=language)
            cells.append(f"{effect.success.percent()}; {effect.off_target.percent()}")
        n = result.effect("steered", largest, language=language).n_eligible
        lines.append(f"| {swap} | {language or 'all'} | {n} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    """Chooses, steers, writes the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for everything that is made")
    parser.add_argument("--prompts", type=Path, help="folder that `hooked-whisper prompts` made; else shipped speech")
    parser.add_argument("--swaps", nargs="+", default=["n:m"], help="phone:phone, of " + ", ".join(LETTERS))
    parser.add_argument("--sentences", type=int, default=6, help="of English to choose latents on")
    parser.add_argument("--voices", type=int, default=2, help="that say them, 1 to 4")
    parser.add_argument("--latents", type=int, default=1, help="of each phone")
    parser.add_argument("--clips", type=int, default=2, help="real clips of each language")
    parser.add_argument("--languages", nargs="+", default=["en", "es", "fr", "it", "ru"])
    parser.add_argument("--doses", type=float, nargs="+", default=[2.0, 4.0, 8.0])
    parser.add_argument("--random", type=int, default=2, help="random versions")
    parser.add_argument(
        "--sae", default="whisper-base/encoder.hook_out", help="a shipped SAE, a folder or a repository"
    )
    parser.add_argument("--least", type=float, default=1.0, help="shortest clip, seconds")
    parser.add_argument("--longest", type=float, default=15.0, help="longest clip, seconds")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    model = HookedWhisper.from_pretrained("openai/whisper-base")
    sae = load_sae(options.sae)
    english = listen_to_english(model, sae, options)
    latents = english.latents(options.latents)
    corpus = the_corpus(options)
    if options.prompts is not None:  # sentences on which the shipped SAE was not trained
        corpus = corpus.split(0.1, by="key")[1]
    corpus = corpus.where(
        language=options.languages, seconds=lambda seconds: options.least <= float(str(seconds)) <= options.longest
    )
    heads = [
        f"{name}{'' if at_limit else ' at the largest dose; CER'}" for at_limit in (True, False) for name in VERSIONS
    ]
    table = [f"| swap | language | clips | {' | '.join(heads)} |", "|---" * (3 + len(heads)) + "|"]
    details = []
    for swap in options.swaps:
        source, target = swap.split(":")
        if not {source, target} <= set(latents) & set(LETTERS):
            parser.error(f"{swap}: choose from {', '.join(sorted(set(latents) & set(LETTERS)))}, or add sentences")
        (sources, f1), (targets, other_f1) = latents[source], latents[target]
        print(f"{source} → {target}: latents {sources} (F1 {f1:.2f}), {targets} ({other_f1:.2f})", flush=True)
        names, spans = places(model, sae, corpus, sources, LETTERS[source], options.clips)
        vector = difference(
            [english.rows_of(target)], [english.rows_of(source)], hook=english.hook, names=(target, source)
        )
        result = steering_experiment(
            model,
            sae,
            corpus.where(id=names),
            [Swap(one, other) for one, other in zip(sources, targets, strict=True)],
            Target(inserted=LETTERS[target], deleted=LETTERS[source]),
            activity=english.activity,
            vector=vector,
            doses=options.doses,
            spans=spans,
            n_random=options.random,
            selected_in=CHOSEN_IN,
            out=options.work / f"{source}-{target}.jsonl",
        )
        table += summary(swap, result)
        details.append(result.to_markdown().replace("# Steering", f"# {source} → {target}", 1))
    report = options.work / "report.md"
    said = (
        "Success: of the clips whose transcript has the source's letter, those with fewer of them and more of the "
        "target's; at the dose with the most successes among those with at most 1 % CER off the target, then at the "
        "largest dose, with that CER."
    )
    text = "\n".join(["# Sounds swapped", "", said, "", *table, "", *(f"#{one}" for one in details)])
    report.write_text(text.replace("\n## ", "\n### "), encoding="utf-8")
    print("\n".join(table))
    print(f"Written: {report}")


if __name__ == "__main__":
    main()
