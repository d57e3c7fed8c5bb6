"""Do the latents that were chosen on synthetic speech keep their phones in real speech?

python examples/paper/phone_layers.py --work layers --languages en es             # SAEs, latents, thresholds: a minute
python examples/paper/real_phones.py --work real --study layers --languages en es

Real speech has no exact times of phones. They are found by forced alignment (`forced_alignment`), by discriminants that
are learnt in each language on the synthetic validation voices and tried on the synthetic test voices, whose times are
exact, and then learn from both. Then each latent that phone_layers.py tested, with the threshold and lag that it got on
English synthetic voices, is looked at in real speech: no recording that the SAE has heard, and no sentence either.
Beside it stand thresholds chosen anew on half of the real English clips, and, as the null, labels at other times.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hooked_whisper import HookedWhisper
from hooked_whisper.analysis.codes import FeatureCodes, encode_store
from hooked_whisper.analysis.derived_labels import articulatory_labels
from hooked_whisper.analysis.espeak import Espeak
from hooked_whisper.analysis.forced_alignment import Aligned, PhoneAligner, pronounce
from hooked_whisper.analysis.frame_labels import FrameLabels, frame_labels
from hooked_whisper.analysis.label_files import read_labels, write_labels
from hooked_whisper.analysis.labels import Labels
from hooked_whisper.analysis.lags import labels_by_lag, lagged_scores
from hooked_whisper.analysis.phone_speech import ESPEAK_NAMES
from hooked_whisper.saes import ActivationStore, Corpus, ensemble_saes, harvest, load_sae

SHIPPED = "whisper-base/encoder.hook_out"
HOOKS = {
    **{str(layer): f"encoder.blocks.{layer}.hook_resid_post" for layer in range(6)},
    **{f"{layer}n": f"encoder.blocks.{layer + 1}.ln1.hook_normalized" for layer in range(5)},
    "out": "encoder.hook_out",
}
KEEPS = 0.6
KINDS = ("phone", "voicing", "manner", "place", "height", "backness")
NULLS = 20  # shifts of the labels


def unheard(corpus: Corpus, study: Path) -> Corpus:
    """Clips with a text that no SAE of this study has heard anybody say."""
    said = {
        json.loads(line)["text"].strip().lower()
        for manifest in sorted((study / "speech").glob("train*/manifest.jsonl"))
        for line in manifest.read_text(encoding="utf-8").splitlines()
    }
    ids = [item.id for item in corpus if item.text and item.text.strip().lower() not in said]
    return corpus.where(id=ids)


def pronunciations(corpus: Corpus, languages: Sequence[str]) -> dict[str, dict[str, Any]]:
    """language -> clip -> words with phones, as espeak-ng says them."""
    found: dict[str, dict[str, Any]] = {}
    with Espeak() as espeak:
        for language in languages:
            texts = {item.id: str(item.text) for item in corpus if item.language == language}
            found[language] = pronounce(espeak, texts, ESPEAK_NAMES.get(language, language))
    return found


def right_frames(found: Labels, exact: Labels, store: ActivationStore) -> float:
    """Share of frames with a phone to which alignment gives that phone."""
    clips = [clip for clip in store.clips["clip"].to_pylist() if clip in found.tiers]
    part = store.where(clip=clips)
    names = part.clips["clip"].to_pylist()
    clip = np.repeat(np.arange(len(names)), part.clips["n_rows"].to_numpy())
    frame = part.frames["frame"].to_numpy()
    got, true = (
        _phone_names(frame_labels(of, clip, frame, names, tiers=["phone"], centre=0.0)) for of in (found, exact)
    )
    spoken = true != ""
    return float((got == true)[spoken].mean())


def _phone_names(table: FrameLabels) -> np.ndarray:
    names = np.array(["", *table.names], dtype=object)
    matrix = table.matrix.tocoo()
    column = np.zeros(matrix.shape[0], dtype=int)
    column[matrix.row] = matrix.col + 1
    return names[column]


class Real:
    """Real clips, their activations and their labels by alignment."""

    def __init__(self, options: argparse.Namespace) -> None:
        study: Path = options.study
        self.languages: list[str] = options.languages
        prompts = options.prompts
        corpus = Corpus.from_clips() if prompts is None else Corpus.from_manifest(prompts / "manifest.jsonl")
        corpus = corpus.where(language=self.languages)
        corpus = unheard(corpus.where(kind="speech") if "kind" in corpus.columns else corpus, study)
        model = HookedWhisper.from_pretrained("openai/whisper-base", device="cpu")
        hooks = list(ActivationStore.open(study / "acts" / "valid").hooks)
        read = options.aligner or hooks[0]
        self.store = harvest(model, corpus, hooks=hooks, out=options.work / "acts", packing="windows", batch_size=2)
        said = pronunciations(corpus, self.languages)
        self.aligned: dict[str, Aligned] = {}
        self.check: dict[str, tuple[float, float]] = {}
        learn, test = (ActivationStore.open(study / "acts" / part) for part in ("valid", "test"))
        exact = {part: read_labels(study / "speech" / part / "labels.json", silences=()) for part in ("valid", "test")}
        spoken = Corpus.from_manifest(study / "speech" / "test" / "manifest.jsonl")
        test_said = pronunciations(spoken, self.languages)
        for language in self.languages:
            aligner = PhoneAligner.learn(learn.where(language=language), exact["valid"], read)
            there = test.where(language=language)
            found = aligner.align(
                there, test_said[language], min_confidence=options.confidence, unlearnt=options.unlearnt
            )
            alone = _alone(aligner, there, exact["test"])
            self.check[language] = right_frames(found.labels, exact["test"], there), alone
            # What is used has learnt from both, which have more of the rare phones.
            both = ActivationStore.join([learn.where(language=language), there])
            aligner = PhoneAligner.learn(both, exact["valid"].merge(exact["test"]), read)
            real = self.store.where(language=language)
            self.aligned[language] = aligner.align(
                real, said[language], min_confidence=options.confidence, unlearnt=options.unlearnt
            )
        labels = Labels({})
        for one in self.aligned.values():
            labels = labels.merge(one.labels)
        write_labels(labels, options.work / "labels.json")
        self.store = self.store.where(clip=list(labels.clips))
        labels = labels.where(tiers=["phone"])
        self.labels = labels.merge(articulatory_labels(labels))


def the_sae(study: Path, config: str) -> Any:
    """The SAE of a configuration of phone_layers.py, which trained it."""
    if config == SHIPPED:
        return load_sae(SHIPPED)
    parts = [load_sae(study / "saes" / part.replace("/", "-")) for part in config.split("+")]
    return parts[0] if len(parts) == 1 else ensemble_saes(parts)


def _alone(aligner: PhoneAligner, store: ActivationStore, exact: Labels) -> float:
    """Share of frames with a phone that the discriminants alone get right, without the text."""
    names = store.clips["clip"].to_pylist()
    clip = np.repeat(np.arange(len(names)), store.clips["n_rows"].to_numpy())
    true = _phone_names(frame_labels(exact, clip, store.frames["frame"].to_numpy(), names, tiers=["phone"], centre=0.0))
    best = aligner.log_probabilities(store.rows(aligner.hook, 0, store.n_rows).numpy()).argmax(1)
    got = np.array(["", *(f"phone={phone}" for phone in aligner.phones)], dtype=object)[best]
    return float((got == true)[true != ""].mean())


def f1_there(
    codes: FeatureCodes,
    tables: Mapping[float, FrameLabels],
    found: Mapping[str, Any],
    min_rows: int,
    shift: float = 0.0,
) -> dict[str, dict[str, float]]:
    """label -> language -> F1 of the latent, threshold and lag that were chosen.

    Args:
        shift: by how much of a language's frames its activations are moved, from its end to its start: the null.
    """
    language = codes.column("language")
    rows_of = {one: np.flatnonzero(language == one) for one in np.unique(language)}
    scores: dict[str, dict[str, float]] = {}
    for label, latent in found["latent"].items():
        table = tables[found["lag"][label]]
        if label not in table.names:
            continue
        labelled = table.column(label)
        rows, values = codes.latent(latent)
        active = np.zeros(codes.n_rows, dtype=bool)
        active[rows[values >= found["threshold"][label]]] = True
        for one, there in rows_of.items():
            n, fires = int(labelled[there].sum()), np.roll(active[there], round(shift * len(there)))
            if n >= min_rows:
                hits = int((labelled[there] & fires).sum())
                scores.setdefault(label, {})[one] = 2 * hits / (n + int(fires.sum()))
    return scores


def kept(
    scores: Mapping[str, Mapping[str, float]], latents: Mapping[str, int], languages: int = 3
) -> dict[int, list[str]]:
    """Latents with an F1 of at least KEEPS for one of their labels in so many languages."""
    found: dict[int, list[str]] = {}
    for label, of in scores.items():
        if sum(f1 >= KEEPS for f1 in of.values()) >= languages:
            found.setdefault(latents[label], []).append(label)
    return found


def together(scores: Mapping[str, Mapping[str, Mapping[str, float]]], tested: Mapping[str, Any], source: str) -> str:
    """For each phone the latent of all SAEs that is best on the synthetic training voices, in real speech."""
    f1: dict[str, float] = {}
    for label in dict.fromkeys(label for of in scores.values() for label in of if label.startswith("phone=")):
        best = max(
            (config for config in scores if label in tested[config]["in_training"]),
            key=lambda config: tested[config]["in_training"][label],
        )
        if source in scores[best].get(label, {}):
            f1[label.removeprefix("phone=")] = scores[best][label][source]
    counts = ", ".join(f"{sum(own >= least for own in f1.values())} with {least}" for least in (0.7, 0.6, 0.5))
    high = ", ".join(phone for phone, own in sorted(f1.items(), key=lambda one: -one[1]) if own >= 0.7) or "none"
    return (
        f"One latent for each phone, of whichever SAE is best on the synthetic training voices: of {len(f1)} phones of "
        f"real {source}, {counts}. With 0.7: {high}."
    )


def chosen_again(
    codes: FeatureCodes, tables: Mapping[float, FrameLabels], source: str, min_rows: int
) -> tuple[dict[str, Any], dict[str, dict[str, float]]]:
    """Chosen on half of the real clips of one language: latents, thresholds and lags; F1 on all other real clips."""
    language = codes.column("language")
    own = language == source
    train = np.zeros(codes.n_rows, dtype=bool)
    train[own] = codes.select(own).halves("clip", seed=0)
    kinds = [kind for kind in KINDS if kind in tables[0.0].kind_names]
    some = {lag: table.select(rows=own) for lag, table in tables.items()}
    best = lagged_scores(codes.select(own), some, *kinds, train=train[own], min_rows=min_rows, progress=False)
    found = {
        "latent": {label: one.match.latent for label, one in best.items()},
        "threshold": {label: one.match.threshold for label, one in best.items()},
        "lag": {label: one.lag for label, one in best.items()},
    }
    rest = ~train
    return found, f1_there(
        codes.select(rest), {lag: table.select(rows=rest) for lag, table in tables.items()}, found, min_rows
    )


def section(
    title: str, scores: Mapping[str, Mapping[str, float]], latents: Mapping[str, int], languages: Sequence[str]
) -> list[str]:
    """A table of labels, and which latents keep."""
    lines = [title, "", f"| label | latent | {' | '.join(languages)} |", "|---" * (2 + len(languages)) + "|"]
    source = languages[0]
    for label in sorted(scores, key=lambda label: -scores[label].get(source, 0.0)):
        if max(scores[label].values()) >= KEEPS:
            f1 = [f"{scores[label][of]:.2f}" if of in scores[label] else "" for of in languages]
            lines.append(f"| {label} | {latents[label]} | {' | '.join(f1)} |")
    phones = [of[source] for label, of in scores.items() if label.startswith("phone=") and source in of]
    counts = ", ".join(f"{sum(f1 >= least for f1 in phones)} with {least}" for least in (0.7, 0.6, 0.5))
    lines = [lines[0], "", f"Phones of {source}: {len(phones)}, {counts}.", *lines[1:]]
    found = "; ".join(f"{latent} ({', '.join(own)})" for latent, own in kept(scores, latents).items()) or "none"
    return [*lines, "", f"Labels with F1 ≥ {KEEPS} in one language or more. Latents that keep: {found}.", ""]


def main() -> None:
    """Aligns, scores, writes the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for everything that is made")
    parser.add_argument("--study", type=Path, required=True, help="folder of phone_layers.py, after its test")
    parser.add_argument("--prompts", type=Path, help="folder that `hooked-whisper prompts` made; else shipped speech")
    parser.add_argument("--languages", nargs="+", default=["en", "es", "it"], help="those of phone_layers.py")
    parser.add_argument("--aligner", help="the hook that alignment reads; else the first that the study harvested")
    parser.add_argument("--confidence", type=float, default=0.5, help="that a clip's alignment has at least")
    parser.add_argument(
        "--unlearnt", default="leave out", choices=["leave out", "anywhere"], help="of clips with phones nobody taught"
    )
    parser.add_argument("--min-rows", type=int, default=20, help="frames that a label has at least in a language")
    options = parser.parse_args()
    looked_at = options.study / "test.json"
    if not looked_at.is_file():
        parser.error(f"{looked_at} is not there: phone_layers.py writes it, without --no-test.")
    tested = json.loads(looked_at.read_text(encoding="utf-8"))
    real = Real(options)
    languages = real.languages
    lines = ["# Phones in real speech", "",
             "| language | frames right by alignment (without the text), synthetic test voices | real clips aligned | "
             "minutes | left out | mean confidence |", "|---" * 6 + "|"]  # fmt: skip
    for language in languages:
        one, (aligned, alone) = real.aligned[language], real.check[language]
        minutes = sum(one.labels.durations.values()) / 60
        lines.append(
            f"| {language} | {aligned:.3f} ({alone:.3f}) | {len(one.labels)} | {minutes:.1f} | {len(one.left_out)} | "
            f"{np.mean(list(one.confidence.values())):.2f} |"
        )
    lines.append("")
    tables: dict[float, FrameLabels] = {}
    all_scores: dict[str, dict[str, dict[str, float]]] = {}
    place = len(lines)
    for config in [config for config in tested if " at " not in config]:
        sae = the_sae(options.study, config)
        hook = HOOKS["out" if config == SHIPPED else config.split("/")[0]]
        codes = encode_store(sae, real.store, hook, progress=False)
        if not tables:
            tables = labels_by_lag(real.labels, codes.clip, codes.frame, codes.clips, centre=0.0)
        found = tested[config]
        scores = all_scores[config] = f1_there(codes, tables, found, options.min_rows)
        nulls = [
            len(kept(f1_there(codes, tables, found, options.min_rows, (at + 1) / (NULLS + 1)), found["latent"]))
            for at in range(NULLS)
        ]
        again, there = chosen_again(codes, tables, languages[0], options.min_rows)
        counts = len(kept(scores, found["latent"])), len(kept(there, again["latent"]))
        lines += [
            f"## {config}",
            "",
            f"Latents that keep F1 ≥ {KEEPS} in three languages of real speech: {counts[0]} as synthetic "
            f"{languages[0]} chose them; {counts[1]} chosen on half of the real {languages[0]} clips. "
            f"With the labels at other times ({NULLS} shifts): at most {max(nulls)}.",
            "",
        ]
        lines += section(f"### Chosen on synthetic {languages[0]}", scores, found["latent"], languages)
        lines += section(f"### Chosen on half of the real {languages[0]}", there, again["latent"], languages)
    lines[place:place] = [together(all_scores, tested, languages[0]), ""]
    text = "\n".join(lines)
    (options.work / "report.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
