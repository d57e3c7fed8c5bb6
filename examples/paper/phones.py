"""Phones: does one latent mark one phone, for voices and sentences that did not choose it, and across languages?

python examples/paper/phones.py --work phones --prompts prompts --sentences 40        # half an hour of one core
python examples/paper/phones.py --work phones                                         # six sentences: minutes

Speech is espeak-ng's, whose phones have exact times. Latents are chosen by the F1 of the training voices on one half of
the sentences in English, with their thresholds, and tested on other voices that say the other half, in each language.
Beside the SAE stand raw neurons and principal components with as many coefficients a frame. Every step keeps what it
made in the folder --work, and the tables go to report.md there.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from hooked_whisper import HookedWhisper
from hooked_whisper.analysis.codes import FeatureCodes, encode_store
from hooked_whisper.analysis.derived_labels import articulatory_labels
from hooked_whisper.analysis.feature_scores import frame_accuracy, phone_scores, score_features
from hooked_whisper.analysis.frame_labels import FrameLabels, frame_labels
from hooked_whisper.analysis.phone_speech import PHONE_VOICES, PhoneCorpus, make_phone_corpus, parallel_texts
from hooked_whisper.saes import Corpus, harvest, load_sae
from hooked_whisper.saes.baselines import fit_baseline
from hooked_whisper.saes.evaluation import moments_of

HOOK = "encoder.hook_out"
SAE = "whisper-base/encoder.hook_out"
CLASSES = ("voicing", "manner", "place", "height", "backness")


def spoken(options: argparse.Namespace) -> PhoneCorpus:
    """Every voice saying every sentence in every language."""
    corpus = (
        Corpus.from_clips() if options.prompts is None else Corpus.from_manifest(options.prompts / "manifest.jsonl")
    )
    texts = parallel_texts(corpus, options.languages, options.sentences)
    chosen = [voice for voice in PHONE_VOICES if voice.split == "train"][: options.voices]
    chosen += [voice for voice in PHONE_VOICES if voice.split == "test"][: (options.voices + 1) // 2]
    return make_phone_corpus(texts, options.work / "speech", voices=chosen)


def halves(codes: FeatureCodes, voices: dict[str, str], source: str, target: str) -> tuple[np.ndarray, np.ndarray]:
    """Rows that choose, and rows that test: other voices, other sentences, another language or the same."""
    train_voice = np.array([voices[str(clip)] == "train" for clip in codes.column("clip")])
    train_key = codes.halves("key", seed=0)
    language = codes.column("language")
    return (language == source) & train_voice & train_key, (language == target) & ~train_voice & ~train_key


def measure(
    codes: FeatureCodes, labels: FrameLabels, voices: dict[str, str], source: str, target: str, kind: str, min_rows: int
) -> tuple[Any, Any]:
    """Scores of the latents chosen in one language, tested in another; and the accuracy of frames."""
    train, test = halves(codes, voices, source, target)
    rows = train | test
    some, known = codes.select(rows), labels.select(kinds=[kind], rows=rows)
    scores = phone_scores(score_features(some, known, train=train[rows], progress=False), kind, min_rows=min_rows)
    accuracy = frame_accuracy(some, known, kind, train=train[rows]) if kind == "phone" else None
    return scores, accuracy


def main() -> None:
    """Makes the speech, codes it, scores it, writes the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for everything that is made")
    parser.add_argument("--prompts", type=Path, help="folder that `hooked-whisper prompts` made; else shipped texts")
    parser.add_argument("--sentences", type=int, default=6, help="in each language")
    parser.add_argument("--languages", nargs="+", default=["en", "es", "it"], help="the first one chooses")
    parser.add_argument("--voices", type=int, default=4, help="training voices, 1 to 4, and half as many to test")
    parser.add_argument("--min-rows", type=int, default=20, help="frames that a phone has at least in both halves")
    parser.add_argument("--sae", default=SAE, help="a shipped SAE, a folder or a hub repository")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    made = spoken(options)
    corpus = made.corpus
    model = HookedWhisper.from_pretrained("openai/whisper-base")
    store = harvest(model, corpus, hooks=HOOK, out=options.work / "acts", packing="windows")
    sae = load_sae(options.sae)
    sums = moments_of(store, HOOK)
    coders = {"SAE": sae} | {
        name: fit_baseline(name, sums, k=int(sae.cfg.k), device="cpu") for name in ("neurons", "pca")
    }
    voices = {item.id: str(item.columns["split"]) for item in corpus}
    every = made.labels.merge(articulatory_labels(made.labels))
    source = options.languages[0]
    minutes = store.n_rows / 50 / 60
    chosen_on = sum(item.language == source and voices[item.id] == "train" for item in corpus)
    lines = [
        "# Phones", "",
        f"espeak-ng, {len(corpus)} clips, {minutes:.0f} minutes; {options.sentences} sentences in each of "
        f"{', '.join(options.languages)}; latents and thresholds chosen in {source}, on half of {chosen_on} clips of "
        "training voices; tested on other voices that say the other half of the sentences.", "",
        "Phones with a latent of so much F1, and the share of frames that named latents get right:", "",
        "| tested in | features | phones | 0.7 | 0.6 | 0.5 | 0.7, lenient | frames, lenient (chance) | strict |",
        "|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    held: dict[str, dict[str, float]] = {}
    for name, coder in coders.items():
        codes = encode_store(coder, store, HOOK, progress=False)
        labels = frame_labels(every, codes.clip, codes.frame, codes.clips)
        for target in options.languages:
            scores, accuracy = measure(codes, labels, voices, source, target, "phone", options.min_rows)
            counts = " | ".join(str(scores.n_at(f1)) for f1 in (0.7, 0.6, 0.5))
            lines.append(
                f"| {target} | {name} | {len(scores.strict)} | {counts} | {scores.n_at(0.7, lenient=True)} | "
                f"{accuracy.lenient:.2f} ({accuracy.lenient_by_chance:.2f}) | {accuracy.strict:.2f} |"
            )
            if name == "SAE":
                held[target] = {match.label: match.f1 for match in scores.strict}
                for kind in CLASSES:
                    if kind in labels.kind_names:
                        classes, _ = measure(codes, labels, voices, source, target, kind, options.min_rows)
                        held[target] |= {match.label: match.f1 for match in classes.strict}
    lines += ["", f"## One latent, chosen in {source}, F1 in each language", "",
              f"| label | {' | '.join(options.languages)} |", "|---" * (1 + len(options.languages)) + "|"]  # fmt: skip
    shared = sorted(
        (label for label in held[source] if all(label in of for of in held.values())),
        key=lambda label: -min(of[label] for of in held.values()),
    )
    lines += [f"| {label} | {' | '.join(f'{held[of][label]:.2f}' for of in options.languages)} |" for label in shared]
    for least in sorted({len(held), min(3, len(held))}, reverse=True):
        good = [label for label in shared if sum(of[label] >= 0.6 for of in held.values()) >= least]
        which = ", ".join(good) or "none"
        found = f"{len(good)} of {len(shared)} phones and classes have F1 ≥ 0.6 in {least} of {len(held)} languages"
        lines += ["", f"{found}: {which}."]
    lines.append("")
    (options.work / "report.md").write_text("\n".join(lines), encoding="utf-8")
    print("\n".join(lines))
    print(f"Written: {options.work / 'report.md'}")


if __name__ == "__main__":
    main()
