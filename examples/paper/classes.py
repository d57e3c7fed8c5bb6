"""Words, morphemes, meanings, functions and places: is there a latent for each that is not one of their sounds?

python examples/paper/classes.py --work classes                            # an hour of one core
python examples/paper/classes.py --work classes --every lexical=4 semantic=3 --voices 1 2

espeak-ng says designed sentences (`hooked_whisper.analysis.designed_speech`), in which a word stands beside words that
share its sounds and not its function. Latents are chosen on some voices, frames and words, and tested on others; the
rules are those of `designed_tests` and, for places and what is no language, of `feature_classes`. Beside the SAE stand
raw neurons and principal components with as many coefficients a frame. Where nothing is found, the strength that would
have been is said. Every step keeps what it made in the folder --work, and the tables go to report.md there.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from hooked_whisper import HookedWhisper
from hooked_whisper.analysis.codes import FeatureCodes, encode_store
from hooked_whisper.analysis.derived_labels import boundary_labels, position_labels, speech_labels, utterance_labels
from hooked_whisper.analysis.designed_speech import (
    DESIGNED_VOICES,
    DesignedCorpus,
    designed_sentences,
    make_designed_corpus,
)
from hooked_whisper.analysis.designed_tests import (
    DesignedCodes,
    Finding,
    judged,
    lexical,
    morphological,
    semantic,
    syntactic,
)
from hooked_whisper.analysis.designed_words import CONCEPT_LANGUAGES
from hooked_whisper.analysis.feature_classes import FeatureClasses, classify, gather_evidence
from hooked_whisper.analysis.frame_labels import column_labels, frame_labels
from hooked_whisper.analysis.sound_labels import sound_labels
from hooked_whisper.analysis.type_tests import minimum_detectable
from hooked_whisper.saes import ActivationStore, harvest, load_sae
from hooked_whisper.saes.baselines import fit_baseline
from hooked_whisper.saes.coding import SparseCoder
from hooked_whisper.saes.evaluation import moments_of

HOOK = "encoder.hook_out"
SAE = "whisper-base/encoder.hook_out"
LEXICAL = ("lexical: words", "lexical: pseudowords")


def tests(said: DesignedCodes) -> dict[str, list[Finding]]:
    """Findings of each design; those of the semantic one from every language that may choose."""
    there = set(said.values("design"))
    every: dict[str, tuple[str, Callable[[], list[Finding]]]] = {
        LEXICAL[0]: ("lexical", lambda: lexical(said, "word")),
        LEXICAL[1]: ("lexical", lambda: lexical(said, "pseudoword")),
        "morphological": ("morphological", lambda: morphological(said)),
        "semantic: categories": ("semantic", lambda: from_each(said)),
        "semantic: concepts": ("semantic", lambda: semantic(said, CONCEPT_LANGUAGES[0], "concept", n_candidates=5)),
        "syntactic": ("syntactic", lambda: syntactic(said)),
    }
    return {name: judged(made()) for name, (design, made) in every.items() if design in there}


def from_each(said: DesignedCodes) -> list[Finding]:
    """Categories, chosen in each language once."""
    return [one for source in CONCEPT_LANGUAGES for one in semantic(said, source)]


def cached(path: Path, made: Callable[[], dict[str, list[Finding]]]) -> dict[str, list[Finding]]:
    """What was found before, or is found now."""
    if not path.is_file():
        found = {name: [asdict(one) for one in findings] for name, findings in made().items()}
        path.write_text(json.dumps(found, ensure_ascii=False) + "\n", encoding="utf-8")
    read = json.loads(path.read_text(encoding="utf-8"))
    return {name: [Finding(**one) for one in findings] for name, findings in read.items()}


def codes_of(path: Path, coder: SparseCoder, store: ActivationStore) -> FeatureCodes:
    """Codes on every row of both halves, kept in a file."""
    if not path.is_file():
        encode_store(coder, store, HOOK).save(path)
    return FeatureCodes.load(path)


def places(codes: FeatureCodes, spoken: DesignedCorpus, rows: int, seed: int = 0) -> FeatureClasses:
    """Positions, language and sound of frames: chosen on the training voices and frames, tested on the others."""
    generator = np.random.default_rng(seed)
    keep = generator.random(len(codes.clips)) < min(1.0, rows / codes.n_rows)
    some = codes.select(keep[codes.clip])
    both = spoken.train.corpus, spoken.test.corpus
    every = spoken.train.labels.merge(spoken.test.labels).where(clips=list(some.clips))
    wanted = set(some.clips)
    sounds = [sound_labels(corpus.where(id=lambda one: one in wanted)) for corpus in both]
    labels = every.where(tiers=["phone"]).merge(
        position_labels(every, "word"),
        boundary_labels(every, "word"),
        utterance_labels(every),
        speech_labels(every),
        sounds[0].merge(sounds[1]),
    )
    table = frame_labels(labels, some.clip, some.frame, some.clips)
    split = {item.id: str(item.columns["split"]) for corpus in both for item in corpus}
    voice = {item.id: str(item.speaker)[0] for corpus in both for item in corpus}
    clip = some.column("clip")
    where = {item.id: item.language for corpus in both for item in corpus}
    table = table.join(
        column_labels(
            {
                "language": np.array([where[str(one)] for one in clip], dtype=object),
                "voice": np.array([{"m": "man", "f": "woman"}[voice[str(one)]] for one in clip], dtype=object),
            }
        )
    )
    table = table.select(min_rows=50)
    chosen_on = np.array([split[str(one)] == "train" for one in clip])
    evidence = gather_evidence(some, table, rivals=[("loudness", "speaker"), ("phone",)], train=chosen_on)
    return classify(
        evidence, classes={"word_boundary": "positional", "voice": "non-linguistic"}, n_resamples=200, min_f1=0.3
    )


def power(said: DesignedCodes, design: str, findings: Sequence[Finding]) -> str:
    """The weakest latent that would have been found, in the smallest and in the largest contrast of a design."""
    sizes = sorted({(one.n_positive, one.n_negative) for one in findings})
    needed = float(np.median([one.needed for one in findings]))
    own = (said.values("design") == design.partition(":")[0]) & ~said.train
    forms = {(str(a), str(b)) for a, b in zip(said.values("form")[own], said.values("stratum")[own], strict=True)}
    lines = []
    for n_positive, n_negative in dict.fromkeys([sizes[0], sizes[-1]]):
        labels = np.arange(n_positive + n_negative) < n_positive
        tokens, stratum = round(int(own.sum()) / len(forms)), np.zeros(len(labels), dtype=int)
        if design in LEXICAL:  # a type is one token; each block has one positive
            stratum, tokens = np.concatenate([np.arange(n_positive), np.arange(n_negative) % n_positive]), 1
        elif design == "syntactic":
            stratum = np.concatenate([np.arange(n_positive), np.arange(n_negative)])
        train = (labels, stratum, needed)
        found = minimum_detectable(labels, stratum, tokens=tokens, m=len(findings), train=train, n_trials=100)
        lines.append(f"{n_positive} against {n_negative} types: {found}")
    return "; ".join(lines)


def main() -> None:
    """Makes the speech, codes it, tests it, writes the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for everything that is made")
    parser.add_argument(
        "--designs", nargs="*", default=[], help="lexical, morphological, semantic, syntactic; else all"
    )
    parser.add_argument("--every", nargs="*", default=[], metavar="DESIGN=N", help="each so-manieth word or set alone")
    parser.add_argument("--voices", nargs=2, type=int, default=[3, 3], metavar="N", help="to choose on, to test on")
    parser.add_argument("--rows", type=int, default=120_000, help="about so many, of whole clips, to find places on")
    parser.add_argument("--sae", default=SAE, help="a shipped SAE, a folder or a hub repository")
    parser.add_argument("--coders", nargs="+", default=["SAE", "neurons", "pca"])
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    voices = [
        voice
        for split, n in zip(("train", "test"), options.voices, strict=True)
        for voice in [one for one in DESIGNED_VOICES if one.split == split][:n]
    ]
    every = {name: int(n) for name, _, n in (one.partition("=") for one in options.every)}
    sentences = designed_sentences(options.designs, every=every)
    spoken = make_designed_corpus(sentences, options.work / "designed", voices=voices)
    model = HookedWhisper.from_pretrained("openai/whisper-base")
    stores = [
        harvest(model, part.corpus, hooks=HOOK, out=options.work / f"acts-{name}", packing="windows")
        for name, part in (("train", spoken.train), ("test", spoken.test))
    ]
    store = ActivationStore.join(stores)
    sae = load_sae(options.sae)
    moments = moments_of(store, HOOK)
    n_choosing, n_testing = options.voices
    lines = [
        "# Words, morphemes, meanings, functions, places", "",
        f"espeak-ng, {len(spoken.train.corpus)} clips of {n_choosing} voices to choose on and "
        f"{len(spoken.test.corpus)} of {n_testing} others to test on, {store.n_rows / 3000:.0f} minutes in all.",
        "", "Contrasts that have a latent that holds, how many latents these are, and the medians of their scores:", "",
        "| design | features | contrasts | with one that holds | latents | AUC | F1 |", "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    found: dict[str, dict[str, list[Finding]]] = {}
    said, kept = None, None
    for name in options.coders:
        coder = sae if name == "SAE" else fit_baseline(name, moments, k=int(sae.cfg.k), device="cpu")
        codes = codes_of(options.work / f"codes-{name}.npz", coder, store)
        if name == "SAE":
            kept = codes
        own = DesignedCodes.of(codes, spoken) if said is None else said.recoded(codes)
        said = own if said is None else said
        found[name] = cached(options.work / f"found-{name}.json", lambda own=own: tests(own))
        for design, findings in found[name].items():
            lines.append(f"| {design} | {name} | {' | '.join(counted(findings))} |")
    assert said is not None
    lines += ["", *details(said, found[options.coders[0]])]
    if kept is not None:
        classes = places(kept, spoken, options.rows)
        lines += ["## Places, and what is no language", "", classes.to_markdown(), ""]
        for group in ("positional", "language", "non-linguistic"):
            if group in classes.counts:
                lines += [f"- {classes.why(int(latent))}" for latent in classes.latents(group)[:8]]
    lines.append("")
    (options.work / "report.md").write_text("\n".join(lines), encoding="utf-8")
    print("\n".join(lines))
    print(f"Written: {options.work / 'report.md'}")


def counted(findings: Sequence[Finding]) -> list[str]:
    """The cells of a design's row."""
    holding = [one for one in findings if one.holds]
    contrasts = len({one.contrast for one in findings})
    medians = [f"{np.median([getattr(one, name) for one in holding]):.2f}" if holding else "" for name in ("auc", "f1")]
    return [
        str(contrasts), str(len({one.contrast for one in holding})), str(len({one.latent for one in holding})),
        *medians,
    ]  # fmt: skip


def details(said: DesignedCodes, found: dict[str, list[Finding]]) -> list[str]:
    """The best latents of each design, and what its tests could have found."""
    lines = []
    for design, findings in found.items():
        lines += [
            f"## {design}", "", f"Would have been found at 80 % power: {power(said, design, findings)}.", "",
            "| contrast | latent | holds | AUC, chosen | AUC | p | beside | F1 (always) | voice | neighbour |",
            "|---|---|---|---|---|---|---|---|---|---|",
        ]  # fmt: skip
        for one in findings[:12]:
            alone = "" if np.isnan(one.least_neighbour) else f"{one.least_neighbour:.2f}"
            figures = f"{one.auc_train:.2f} | {one.auc:.2f} | {one.p:.4f} | {one.auc_beside:.2f} | {one.f1:.2f}"
            lines.append(
                f"| {one.contrast} | {one.latent} | {'yes' if one.holds else 'no'} | {figures} ({one.f1_always:.2f}) | "
                f"{one.least_voice:.2f} | {alone} |"
            )
        lines.append("")
    return lines


if __name__ == "__main__":
    main()
