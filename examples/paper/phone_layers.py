"""Where in the encoder a single latent says which phone it is: layers, dictionaries and codes against each other.

python examples/paper/phone_layers.py --work layers                                   # six sentences: a minute
python examples/paper/phone_layers.py --work layers --prompts prompts --sentences 411 \
  --languages en es fr it ru --heard en --voices 52 --layers 3 out --configs 3/4096/64/3000/matryoshka  # an hour

A configuration is LAYER/LATENTS/K/STEPS, perhaps with /whitened, with /batchtopk or /matryoshka in TopK's place, with
/rows where latents start in the directions of rows, /from128 where so many are active at first, /first where only the
first language is heard: an SAE that is trained, without labels, on the training voices' sentences in all languages. Two
or more with + between them are one SAE that has the latents of all (`ensemble_saes`).
Three things are kept apart, voices and sentences alike: what SAEs learn from and latents, thresholds and names are
chosen on; what configurations are compared on (validation); and what the winners are tested on, once. A phone's frames
are looked up where the encoder's frames are centred (see `frame_labels`), and a latent may fire up to a frame before or
after its phone: the lag is chosen with latent and threshold. Every step keeps what it made in the folder --work: called
again with more configurations, it goes on from there.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hooked_whisper import HookedWhisper
from hooked_whisper.analysis.codes import FeatureCodes, encode_store
from hooked_whisper.analysis.derived_labels import articulatory_labels
from hooked_whisper.analysis.feature_scores import frame_accuracy
from hooked_whisper.analysis.frame_labels import FrameLabels, frame_labels
from hooked_whisper.analysis.labels import Labels
from hooked_whisper.analysis.lags import LAGS, labels_by_lag, lagged_scores
from hooked_whisper.analysis.phone_speech import PhoneVoice, make_phone_corpus, parallel_texts
from hooked_whisper.saes import ActivationStore, Corpus, ensemble_saes, harvest, load_sae, train_sae
from hooked_whisper.saes.baselines import Moments, fit_baseline

SHIPPED = "whisper-base/encoder.hook_out"
CLASSES = ("voicing", "manner", "place", "height", "backness")
HOOKS = {
    **{str(layer): f"encoder.blocks.{layer}.hook_resid_post" for layer in range(6)},
    # As the next block reads it: every frame as loud as the others.
    **{f"{layer}n": f"encoder.blocks.{layer + 1}.ln1.hook_normalized" for layer in range(5)},
    "out": "encoder.hook_out",
}
ARCHITECTURES = {"batchtopk": "batchtopk", "matryoshka": "matryoshka_batchtopk"}
CENTRE = 0.0  # of a frame's sound, in frames from its start
CENTRES = (1.5, 1.0, 0.5, 0.0, -0.5, -1.0)
KEEPS = 0.6  # the F1 that a latent has in three languages
TRAIN = (
    PhoneVoice("m1", 45, 160), PhoneVoice("m7", 55, 190), PhoneVoice("f1", 50, 150), PhoneVoice("f4", 60, 180),
    PhoneVoice("m2", 50, 175), PhoneVoice("m4", 40, 165), PhoneVoice("m6", 55, 185), PhoneVoice("m8", 50, 170),
    PhoneVoice("Annie", 50, 160), PhoneVoice("belinda", 45, 175), PhoneVoice("steph", 50, 190),
    PhoneVoice("max", 55, 155),
    PhoneVoice("m3", 50, 165), PhoneVoice("f2", 55, 180), PhoneVoice("f5", 45, 170), PhoneVoice("Andy", 50, 150),
    PhoneVoice("linda", 50, 185), PhoneVoice("edward", 45, 175), PhoneVoice("anika", 50, 160),
    PhoneVoice("Michael", 55, 170), PhoneVoice("shelby", 45, 180), PhoneVoice("john", 50, 190),
    PhoneVoice("Andrea", 45, 165), PhoneVoice("Denis", 50, 175), PhoneVoice("Alex", 50, 170),
    PhoneVoice("Mike", 50, 180),
    PhoneVoice("aunty", 50, 165), PhoneVoice("caleb", 50, 175), PhoneVoice("robert", 45, 170),
    PhoneVoice("Lee", 50, 180), PhoneVoice("benjamin", 50, 160), PhoneVoice("boris", 45, 175),
    PhoneVoice("victor", 55, 185), PhoneVoice("miguel", 50, 170), PhoneVoice("grandma", 50, 155),
    PhoneVoice("travis", 50, 190), PhoneVoice("Mario", 45, 165), PhoneVoice("pedro", 55, 180),
    PhoneVoice("Marco", 50, 175), PhoneVoice("Jacky", 50, 150), PhoneVoice("Henrique", 45, 185),
    PhoneVoice("Diogo", 50, 170), PhoneVoice("Nguyen", 50, 160), PhoneVoice("marcelo", 55, 175),
    PhoneVoice("sandro", 50, 190), PhoneVoice("gustave", 45, 165), PhoneVoice("zac", 50, 180),
    PhoneVoice("adam", 55, 170), PhoneVoice("ian", 50, 155), PhoneVoice("Reed", 45, 175),
    PhoneVoice("rob", 50, 185), PhoneVoice("kaukovalta", 50, 165),
)  # fmt: skip
# These and the test's were drawn by lot from the voices that nothing had been looked at with.
VALIDATION = (
    PhoneVoice("m5", 50, 175), PhoneVoice("f3", 50, 160), PhoneVoice("Alicia", 50, 170), PhoneVoice("Gene", 45, 180),
    PhoneVoice("Tweaky", 50, 170), PhoneVoice("quincy", 45, 180), PhoneVoice("announcer", 50, 160),
    PhoneVoice("grandpa", 50, 165),
)  # fmt: skip
TEST = tuple(
    PhoneVoice(*voice, split="test")
    for voice in (
        ("norbert", 50, 165), ("paul", 45, 175), ("Hugo", 50, 170), ("Storm", 50, 180),
        ("ed", 50, 160), ("david", 50, 185), ("antonio", 45, 170), ("pablo", 50, 175),
    )
)  # fmt: skip
QUARTERS = 4  # training voices share the sentences out, each saying a quarter of them


@dataclass(frozen=True)
class Found:
    """What one coder's latents, chosen in the first language, do on other voices and sentences.

    Attributes:
        active: latents that are active in a frame.
        languages: figures of each language.
        f1: label -> language -> F1 of the latent chosen for it.
        latent: label -> that latent. lag: label -> how far it is ahead, in frames. threshold: label -> from which
            activation on it counts as active. in_training: label -> its F1 where it was chosen.
    """

    active: float
    languages: dict[str, dict[str, float]] = field(default_factory=dict)
    f1: dict[str, dict[str, float]] = field(default_factory=dict)
    latent: dict[str, int] = field(default_factory=dict)
    lag: dict[str, float] = field(default_factory=dict)
    threshold: dict[str, float] = field(default_factory=dict)
    in_training: dict[str, float] = field(default_factory=dict)

    def kept(self, languages: int = 3) -> dict[int, list[str]]:
        """Latents with an F1 of at least KEEPS for one of their labels in so many languages, and these labels."""
        found: dict[int, list[str]] = {}
        for label, of in self.f1.items():
            if sum(f1 >= KEEPS for f1 in of.values()) >= languages:
                found.setdefault(self.latent[label], []).append(label)
        return found


class Bench:
    """Rows to choose on, of one language, and rows of other voices and sentences, in all languages, to look at."""

    def __init__(self, study: Study, part: str) -> None:
        self.languages, self.part = study.languages, part
        choose = study.store("train").where(language=self.languages[0])
        self.store, self.n_choose = ActivationStore.join([choose, study.store(part)]), choose.n_rows
        self.labels = study.labels
        self.tables: dict[float, FrameLabels] = {}

    def measure(self, coder: Any, hook: str, min_rows: int) -> Found:
        """Scores of the latents of an SAE or a basis."""
        codes = encode_store(coder, self.store, hook, progress=False)
        if not self.tables:  # the same rows for every coder
            self.tables = labels_by_lag(self.labels, codes.clip, codes.frame, codes.clips, centre=CENTRE)
        return _found(codes, self.tables, self.languages, self.n_choose, min_rows, self.part == "test")

    def moments(self, hook: str) -> Moments:
        """Of the rows to choose on."""
        sums = Moments.none(self.store.width(hook))
        sums.add(self.store.rows(hook, 0, self.n_choose))
        return sums


def _found(
    codes: FeatureCodes,
    tables: Mapping[float, FrameLabels],
    languages: Sequence[str],
    n_choose: int,
    min_rows: int,
    everywhere: bool,
) -> Found:
    # The first language's latents, thresholds and lags, tested in each; frames of all languages only if `everywhere`.
    choose, language = np.arange(codes.n_rows) < n_choose, codes.column("language")
    found = Found(codes.acts.nnz / codes.n_rows)
    rows = choose | (language == languages[0])
    some, train = codes.select(rows), choose[rows]
    own_tables = {lag: table.select(rows=rows) for lag, table in tables.items()}
    kinds = [kind for kind in ("phone", *CLASSES) if kind in own_tables[0.0].kind_names]
    best = lagged_scores(some, own_tables, *kinds, train=train, min_rows=min_rows, progress=False)
    for label, one in best.items():
        match, lag = one.match, one.lag
        found.latent[label], found.lag[label], found.threshold[label] = match.latent, lag, match.threshold
        found.in_training[label] = match.f1_train
        found.f1[label] = {languages[0]: match.f1}
        active, values = codes.latent(match.latent)
        active = active[values >= match.threshold]  # chosen in the first language alone
        labelled = tables[lag].column(label)
        for target in languages[1:]:
            there = ~choose & (language == target)
            n, hits = int((labelled & there).sum()), int((labelled & there)[active].sum())
            if n >= min_rows:
                found.f1[label][target] = 2 * hits / (n + int(there[active].sum()))
    for target in languages:
        f1 = [own[target] for label, own in found.f1.items() if label.startswith("phone=") and target in own]
        found.languages[target] = {
            "phones": len(f1),
            "mean": float(np.mean(f1)) if f1 else 0.0,
            **{f"at {least}": sum(own >= least for own in f1) for least in (0.7, 0.6, 0.5)},
        }
        if target == languages[0]:
            unmoved = [one.unmoved.f1 for label, one in best.items() if one.unmoved and label.startswith("phone=")]
            found.languages[target]["no lag"] = sum(own >= 0.7 for own in unmoved)
        if everywhere or target == languages[0]:
            rows = choose | (language == target)
            known = tables[0.0].select(rows=rows)
            of = frame_accuracy(codes.select(rows), known, "phone", train=choose[rows])
            found.languages[target] |= {"lenient": of.lenient, "chance": of.lenient_by_chance, "strict": of.strict}
    return found


class Study:
    """Speech, activations and SAEs of a folder, made where they are not there yet."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.work: Path = options.work
        self.languages: list[str] = options.languages
        self.batch: int = options.batch
        self.hooks = [HOOKS[layer] for layer in options.layers]
        prompts = options.prompts
        corpus = Corpus.from_clips() if prompts is None else Corpus.from_manifest(prompts / "manifest.jsonl")
        self.parts = _parts(parallel_texts(corpus, options.languages, options.sentences))
        voices = {"valid": VALIDATION[: options.voices], "test": TEST[: options.voices]}
        self.acts: dict[str, ActivationStore] = {}
        self.labels = Labels({})
        model = HookedWhisper.from_pretrained("openai/whisper-base", device="cpu")
        for name, texts in self.parts.items():
            said_by = voices.get(name) or TRAIN[: options.voices][int(name.removeprefix("train")) :: QUARTERS]
            if name not in voices:
                texts = {language: texts[language] for language in options.heard or options.languages}
            if not said_by or not all(texts.values()):
                continue
            made = make_phone_corpus(texts, self.work / "speech" / name, voices=said_by)
            self.acts[name] = harvest(
                model, made.corpus, hooks=self.hooks, out=self.work / "acts" / name, packing="windows",
                batch_size=2,
            )  # fmt: skip
            self.labels = self.labels.merge(made.labels.where(tiers=["phone"]))
        self.labels = self.labels.merge(articulatory_labels(self.labels))

    def store(self, part: str) -> ActivationStore:
        """All activations whose group's name begins so."""
        return ActivationStore.join([store for name, store in self.acts.items() if name.startswith(part)])

    def sae(self, config: str) -> tuple[Any, str]:
        """The SAE of a configuration, and its hook."""
        if config == SHIPPED:
            return load_sae(SHIPPED), HOOKS["out"]
        if "+" in config:
            parts = [self.sae(part) for part in config.split("+")]
            return ensemble_saes([sae for sae, _ in parts]), parts[0][1]
        layer, latents, k, steps, *options = config.split("/")
        architecture = next((full for name, full in ARCHITECTURES.items() if name in options), "topk")
        heard = self.store("train")
        sae = train_sae(
            heard.where(language=self.languages[0]) if "first" in options else heard,
            hook=HOOKS[layer],
            architecture=architecture,
            d_sae=int(latents),
            k=float(k),
            out=self.work / "saes" / config.replace("/", "-"),
            total_training_samples=int(steps) * self.batch,
            train_batch_size_samples=self.batch,
            lr=1e-3,
            normalize_activations="covariance_whitening" if "whitened" in options else "expected_average_only_in",
            dead_feature_window=150,
            latents_init_method="rows" if "rows" in options else "random",
            k_start=next((float(one.removeprefix("from")) for one in options if one.startswith("from")), None),
            held_out=0.02,
            evaluate_every=0,
            checkpoint_every=0,
            evaluation_rows=4096,
            log="nothing",
        )
        return sae, HOOKS[layer]


def configuration(text: str) -> str:
    """Text that names a configuration, as it is; a misspelt option is not to pass for its absence."""
    if "+" in text:
        return "+".join(configuration(part) for part in text.split("+"))
    layer, *rest = text.split("/")
    known = {"whitened", "rows", "first", *ARCHITECTURES}
    numbers, options = rest[:3], rest[3:]
    fit = layer in HOOKS and len(numbers) == 3 and all(number.isdecimal() for number in numbers)
    odd = [one for one in options if one not in known and not re.fullmatch(r"from[0-9]+", one)]
    if not fit or odd:
        what = f"unknown {', '.join(odd)}" if odd else "expected LAYER/LATENTS/K/STEPS"
        raise argparse.ArgumentTypeError(f"{text!r}: {what}; options are {', '.join(sorted(known))} and from128.")
    return text


def _parts(texts: Mapping[str, Mapping[str, str]]) -> dict[str, dict[str, dict[str, str]]]:
    """Sentences to train on, in quarters, to compare on, and to test on; no text is in two of them."""
    keys = sorted(next(iter(texts.values())))
    random.Random(0).shuffle(keys)
    n_test, n_valid = max(1, min(50, len(keys) // 4)), max(1, min(40, len(keys) // 4))
    test, valid, train = keys[:n_test], keys[n_test : n_test + n_valid], keys[n_test + n_valid :]
    said = {language: {own[key].lower() for key in test + valid} for language, own in texts.items()}
    train = [key for key in train if not any(own[key].lower() in said[language] for language, own in texts.items())]
    chosen = {"valid": valid, **{f"train{part}": train[part::QUARTERS] for part in range(QUARTERS)}, "test": test}
    return {part: {language: {key: own[key] for key in some} for language, own in texts.items()}
            for part, some in chosen.items()}  # fmt: skip


def judged(study: Study, bench: Bench, configs: Sequence[str], file: Path, min_rows: int) -> dict[str, Found]:
    """What each configuration does on a bench; kept in a file, so that nothing is looked at twice."""
    kept = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    for config in configs:
        if config not in kept:
            basis, _, rest = config.partition(" at ")
            if rest:
                layer, k = rest.split("/")
                kind = "pca" if basis == "pca" else "neurons"
                coder, hook = fit_baseline(kind, bench.moments(HOOKS[layer]), k=int(k)), HOOKS[layer]
            else:
                coder, hook = study.sae(config)
            kept[config] = asdict(bench.measure(coder, hook, min_rows))
            print(f"{config}: {kept[config]['languages']}", flush=True)
            file.write_text(json.dumps(kept, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    return {config: Found(**kept[config]) for config in kept}


def rivals(config: str) -> list[str]:
    """Neurons and components where this SAE reads, with as many coefficients a frame."""
    if config == SHIPPED:
        layer, k = "out", int(load_sae(SHIPPED).cfg.k)
    else:
        parts = [part.split("/") for part in config.split("+")]
        layer, k = parts[0][0], sum(int(part[2]) for part in parts)
    return [f"{basis} at {layer}/{k}" for basis in ("neurons", "pca")]


def winners(found: Mapping[str, Found], source: str) -> dict[str, str]:
    """What is tested: the best on validation by each of three figures."""
    own = {config: one for config, one in found.items() if "/" in config and " at " not in config and config != SHIPPED}
    return {
        "a latent for a phone": max(
            own, key=lambda c: (own[c].languages[source]["at 0.7"], own[c].languages[source]["mean"])
        ),
        "frames": max(own, key=lambda config: own[config].languages[source]["lenient"]),
        "languages": max(own, key=lambda config: (len(own[config].kept()), own[config].languages[source]["mean"])),
    }


def probed(study: Study) -> list[str]:
    """A linear probe of each hook, learnt on the first training voices and tested in validation, by `centre`.

    What a single latent cannot do better than; it also says where in a frame its label is to be looked up.
    """
    learn, look = (study.acts[name].where(language=study.languages[0]) for name in ("train0", "valid"))
    lines = [f"| hook | {' | '.join(f'{centre:g}' for centre in CENTRES)} |", "|---" * (1 + len(CENTRES)) + "|"]
    both = ActivationStore.join([learn, look])
    clips, counts = both.clips["clip"].to_pylist(), both.clips["n_rows"].to_numpy()
    clip, frame = np.repeat(np.arange(len(clips)), counts), both.frames["frame"].to_numpy()
    tables = [frame_labels(study.labels, clip, frame, clips, tiers=["phone"], centre=centre) for centre in CENTRES]
    for hook in study.hooks:
        rows = both.rows(hook, 0, both.n_rows).float().numpy()
        rows = (rows - rows[: learn.n_rows].mean(0)) / (rows[: learn.n_rows].std(0) + 1e-6)
        rows = np.concatenate([rows, np.ones((len(rows), 1), np.float32)], 1)
        train, test = rows[: learn.n_rows], rows[learn.n_rows :]
        gram = train.T @ train + 100 * np.eye(train.shape[1], dtype=np.float32)
        right = []
        for table in tables:
            labels = table.matrix.toarray().astype(np.float32)
            weights = np.linalg.solve(gram, train.T @ labels[: learn.n_rows])
            true = labels[learn.n_rows :]
            spoken = true.sum(1) == 1
            right.append(((test @ weights).argmax(1) == true.argmax(1))[spoken].mean())
        lines.append(f"| {hook} | {' | '.join(f'{one:.3f}' for one in right)} |")
    return lines


HEAD = [
    "| features | active | phones | mean F1 | 0.7 (no lag) | 0.6 | 0.5 | frames, lenient (chance) | strict | keep |",
    "|---|---|---|---|---|---|---|---|---|---|",
]


def row(name: str, found: Found, source: str) -> str:
    """A row of the tables."""
    of = found.languages[source]
    counts = f"{of['at 0.7']:.0f} ({of['no lag']:.0f}) | {of['at 0.6']:.0f} | {of['at 0.5']:.0f}"
    return (
        f"| {name} | {found.active:.1f} | {of['phones']:.0f} | {of['mean']:.3f} | {counts} | {of['lenient']:.2f} "
        f"({of['chance']:.2f}) | {of['strict']:.2f} | {len(found.kept())} |"
    )


def together(tested: Mapping[str, Found], source: str) -> list[str]:
    """For each phone the latent of all SAEs that is best on the training voices, and what these do on the test."""
    saes = {config: found for config, found in tested.items() if " at " not in config}
    labels = dict.fromkeys(label for found in saes.values() for label in found.f1 if label.startswith("phone="))
    best = {
        label: max((c for c in saes if label in saes[c].f1), key=lambda c: saes[c].in_training[label])
        for label in labels
    }
    f1 = {label: saes[config].f1[label][source] for label, config in best.items()}
    counts = ", ".join(f"{sum(own >= least for own in f1.values())} with {least}" for least in (0.7, 0.6, 0.5))
    high = {config: [label[6:] for label in f1 if best[label] == config and f1[label] >= 0.7] for config in saes}
    where = "; ".join(f"{', '.join(own)} of {config}" for config, own in high.items() if own) or "none"
    return [
        f"One latent for each phone, of whichever of these SAEs is best on the training voices: of {len(f1)} phones, "
        f"{counts}. With 0.7: {where}.",
        "",
    ]


def report(study: Study, valid: Mapping[str, Found], test: Mapping[str, Found], chosen: Mapping[str, str]) -> str:
    """All configurations on validation, the winners on the test, and what the winners hold."""
    source, *others = study.languages
    lines = ["# Phones by layer", "",
             ", ".join(f"{name} {len(acts.clips)} clips, {acts.n_rows / 3000:.0f} minutes"
                       for name, acts in study.acts.items()) + ".", "",
             f"Latents that keep have F1 ≥ {KEEPS} for a phone or class in at least three of "
             f"{', '.join(study.languages)}, chosen in {source}, threshold and all. Figures are of {source}.", "",
             f"A latent may be {max(LAGS):g} frame of 20 ms ahead of its label or behind it: the lag is chosen with "
             "latent and threshold, on the training voices.", "",
             "## All configurations, on validation", "", *HEAD,
             *(row(name, found, source) for name, found in valid.items()), "",
             "## On the test", "", *HEAD, *(row(name, found, source) for name, found in test.items()), "",
             *(f"Best on validation for {what}: {config}." for what, config in chosen.items()), "",
             *together(test, source)]  # fmt: skip
    for config in dict.fromkeys(chosen.values()):
        found = test[config]
        names = [label for label in found.f1 if source in found.f1[label]]
        columns = ["label", "latent", "ahead by, ms", *study.languages]
        lines += [f"## {config}, on the test", "", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
        for label in sorted(names, key=lambda label: -found.f1[label][source]):
            f1 = [f"{found.f1[label][of]:.2f}" if of in found.f1[label] else "" for of in study.languages]
            lines.append(f"| {label} | {found.latent[label]} | {20 * found.lag[label]:g} | {' | '.join(f1)} |")
        kept = "; ".join(f"{latent} ({', '.join(own)})" for latent, own in found.kept().items()) or "none"
        lines += ["", f"Latents that keep: {kept}.", ""]
        lines += ["| language | phones | 0.7 | 0.6 | frames, lenient (chance) | strict |", "|---" * 6 + "|"]
        for of in (source, *others):
            own = found.languages[of]
            lines.append(
                f"| {of} | {own['phones']:.0f} | {own['at 0.7']:.0f} | {own['at 0.6']:.0f} | {own['lenient']:.2f} "
                f"({own['chance']:.2f}) | {own['strict']:.2f} |"
            )
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    """Makes the speech, trains, compares, tests the winners, writes the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for everything that is made")
    parser.add_argument("--prompts", type=Path, help="folder that `hooked-whisper prompts` made; else shipped texts")
    parser.add_argument("--sentences", type=int, default=6, help="in each language, for all three parts together")
    parser.add_argument("--languages", nargs="+", default=["en", "es", "it"], help="the first one chooses")
    parser.add_argument(
        "--heard", nargs="+", metavar="LANGUAGE", help="of the training speech, the first one among them; else all"
    )
    parser.add_argument("--voices", type=int, default=4, help="training voices; at most 8 compare and 8 test")
    parser.add_argument(
        "--layers", nargs="+", default=list(HOOKS), choices=list(HOOKS), help="harvested ones, `out` among them"
    )
    parser.add_argument(
        "--configs",
        nargs="+",
        type=configuration,
        default=["3/256/8/20"],
        help="LAYER/LATENTS/K/STEPS[/whitened][/batchtopk or /matryoshka][/rows][/from128][/first]",
    )
    parser.add_argument(
        "--probe", action="store_true", help="only print what linear probes get right, by hook and moment"
    )
    parser.add_argument("--no-test", action="store_true", help="stop after comparing: the test voices are for the end")
    parser.add_argument("--test-all", action="store_true", help="not the best on validation alone")
    parser.add_argument("--batch", type=int, default=1024, help="rows of a step")
    parser.add_argument("--min-rows", type=int, default=20, help="frames that a phone has at least on both sides")
    options = parser.parse_args()
    if options.heard and options.languages[0] not in options.heard:
        parser.error(f"--heard {' '.join(options.heard)}: {options.languages[0]}, which chooses, has to be among them.")
    options.work.mkdir(parents=True, exist_ok=True)
    study = Study(options)
    if options.probe:
        print("\n".join(probed(study)))
        return
    looked_at = options.work / "validation.json"
    compared = judged(study, Bench(study, "valid"), [SHIPPED, *options.configs], looked_at, options.min_rows)
    if options.no_test:
        print("\n".join([*HEAD, *(row(name, found, study.languages[0]) for name, found in compared.items())]))
        return
    chosen = winners(compared, study.languages[0])
    finals = list(dict.fromkeys([SHIPPED, *chosen.values()]))
    beside = [rival for config in finals for rival in rivals(config)]
    finals = list(dict.fromkeys([*finals, *(options.configs if options.test_all else ()), *beside]))
    tested = judged(study, Bench(study, "test"), finals, options.work / "test.json", options.min_rows)
    text = report(study, compared, {config: tested[config] for config in finals}, chosen)
    (options.work / "report.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
