"""`hooked-whisper patch` and `attribute`. Importing it costs nothing: what they need is imported when they run."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hooked_whisper.analysis.command_inputs import make_folder, read_span, text_table, write_table
from hooked_whisper.command_options import DEFAULT_MODEL, Device, DType, Model
from hooked_whisper.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from hooked_whisper.analysis.contrast import Contrast
    from hooked_whisper.analysis.nodes import Node
    from hooked_whisper.model import HookedWhisper

SILENCE, NOISE = "silence", "noise"
LOG_PROBABILITY, LOGIT_DIFFERENCE, KL, LANGUAGE = "log-probability", "logit-difference", "kl", "language"
METRICS = (LOG_PROBABILITY, LOGIT_DIFFERENCE, KL, LANGUAGE)
_FORMATS: dict[str, str] = {
    "metric": "+.4f", "change": "+.4f", "estimated": "+.4f", "patched": "+.4f", "normalised": "+.1%", "share": "+.1%",
}  # fmt: skip

Clean = Annotated[str, typer.Argument(help="An audio file of at most 30 s.")]
Corrupted = Annotated[
    str, typer.Argument(help="Another one; or 'silence', or 'noise:SNR' in dB, in the clean one's place.")
]
MetricName = Annotated[
    str,
    typer.Option(
        "--metric",
        help="log-probability (of the clean transcript, nats), logit-difference (--answer less --wrong, after --text), "
        "kl (from the clean run), language (logits of two languages).",
    ),
]
Answer = Annotated[
    str | None,
    typer.Option(help="The token, or language, that the clean run should give; a token exactly: ' ten' is not 'ten'."),
]
Wrong = Annotated[str | None, typer.Option(help="The one that the corrupted run should give.")]
Text = Annotated[
    str | None, typer.Option(help="What the decoder is fed after its prompt; the clean transcript, or nothing.")
]
Language = Annotated[str | None, typer.Option(help="Of the prompt; detected in the clean clip if left out.")]
Span = Annotated[str | None, typer.Option(help="Seconds that silence or noise takes.", metavar="START:END")]
Parts = Annotated[
    list[str] | None,
    typer.Option("--part", help="head, q, k, v, attn, mlp, neuron, resid, ...; repeatable. head and mlp if left out."),
]
Stacks = Annotated[list[str] | None, typer.Option("--stack", help="encoder or decoder; repeatable. Both if left out.")]
Layers = Annotated[list[int] | None, typer.Option("--layer", help="Only this layer; repeatable.", show_default=False)]
Frames = Annotated[
    float | None, typer.Option(help="Cut nodes that run over frames into windows of so many seconds.", min=0.02)
]
Tokens = Annotated[bool, typer.Option("--each-token", help="Cut nodes that run over tokens into single ones.")]
Direction = Annotated[
    str, typer.Option(help="denoise: clean activations into the corrupted run; noise: the other way.")
]
Window = Annotated[
    int | None,
    typer.Option(help="A window of so many seconds in the place of 30: faster, and not quite the same.", min=1),
]
Out = Annotated[Path, typer.Option(help="Folder for the table and the picture.")]
Shown = Annotated[int, typer.Option("-n", help="Nodes to print.", min=1)]


def patch(
    clean: Clean,
    corrupted: Corrupted,
    out: Out,
    metric: MetricName = LOG_PROBABILITY,
    answer: Answer = None,
    wrong: Wrong = None,
    text: Text = None,
    language: Language = None,
    span: Span = None,
    part: Parts = None,
    stack: Stacks = None,
    layer: Layers = None,
    frames: Frames = None,
    each_token: Tokens = False,
    node: Annotated[
        list[str] | None, typer.Option(help="One node, as it is printed, such as decoder.3.cross.head.1; repeatable.")
    ] = None,
    nodes: Annotated[Path | None, typer.Option(help="The first --top nodes of a table that attribute wrote.")] = None,
    top: Annotated[int, typer.Option(help="With --nodes.", min=1)] = 20,
    direction: Direction = "denoise",
    window: Window = None,
    batch_size: Annotated[int, typer.Option(help="Rows (nodes) of one pass.", min=1)] = 8,
    n: Shown = 10,
    model: Model = DEFAULT_MODEL,
    device: Device = None,
    dtype: DType = "float32",
) -> None:
    """What each part does to a metric when its activation comes from the other clip: exact, a run for each.

    Killed, it goes on where it was when it is called again.
    """
    from hooked_whisper.analysis import patching

    task = read_task(
        model, clean, corrupted, metric, answer, wrong, text, language, span, direction, window, device, dtype
    )
    if node or nodes:
        if part or stack or layer or frames or each_token:
            raise ConfigError("--node and --nodes name nodes one by one: leave out what chooses them by kind.")
        chosen = _named(node or [], nodes, top)
    else:
        chosen = task.nodes(part, stack, layer, frames, each_token)
    make_folder(out)
    typer.echo(f"{task}; {len(chosen):,} nodes")
    result = patching.patch(
        task.model,
        task.pair,
        chosen,
        task.metric,
        direction=direction,  # type: ignore[arg-type]
        batch_size=batch_size,
        out=out / "patching.jsonl",
    )
    figures = zip(result.effects, result.change, result.normalized, strict=True)
    rows = [
        _place(one) | {"metric": float(a), "change": float(b), "normalised": float(c)}
        for one, (a, b, c) in zip(result.nodes, figures, strict=True)
    ]
    rows.sort(key=lambda row: -abs(row["normalised"]))
    typer.echo(f"1 is all of the difference between the two runs ({direction}).")
    typer.echo(_shown(rows[:n]))
    _write(rows, result.plot(), out / "patching")
    typer.echo("Next: hooked_whisper.analysis.circuits builds a circuit of the strongest (docs/analysis-patching.md)")


def attribute(
    clean: Clean,
    corrupted: Corrupted,
    out: Out,
    metric: MetricName = LOG_PROBABILITY,
    answer: Answer = None,
    wrong: Wrong = None,
    text: Text = None,
    language: Language = None,
    span: Span = None,
    part: Parts = None,
    stack: Stacks = None,
    layer: Layers = None,
    frames: Frames = None,
    each_token: Tokens = False,
    method: Annotated[
        str, typer.Option(help="patching (one gradient), or integrated (one for each step).")
    ] = "patching",
    steps: Annotated[int | None, typer.Option(help="Of integrated; 32 if left out.", min=1)] = None,
    check: Annotated[int, typer.Option(help="Of the first so many, also what patching does exactly.", min=0)] = 5,
    direction: Direction = "denoise",
    window: Window = None,
    n: Shown = 10,
    model: Model = DEFAULT_MODEL,
    device: Device = None,
    dtype: DType = "float32",
) -> None:
    """What patching each part would do to a metric, for all parts at once, estimated from gradients."""
    from hooked_whisper.analysis import attribution, patching

    if metric == KL and direction == "noise":
        raise ConfigError("From the clean run on, kl has no gradient: take --direction denoise, or another metric.")
    task = read_task(
        model, clean, corrupted, metric, answer, wrong, text, language, span, direction, window, device, dtype
    )
    chosen = task.nodes(part, stack, layer, frames, each_token)
    make_folder(out)
    typer.echo(f"{task}; {len(chosen):,} nodes")
    result = attribution.attribute(
        task.model,
        task.pair,
        chosen,
        task.metric,
        method=method,  # type: ignore[arg-type]
        steps=steps,
        direction=direction,  # type: ignore[arg-type]
    )
    whole = float(result.other[0] - result.base[0])
    found = result.top(len(result.nodes))
    rows = [_place(one) | {"estimated": score, "share": score / whole} for one, score in found]
    if check:
        some = [one for one, _ in found[:check]]
        exact = patching.patch(task.model, task.pair, some, task.metric, direction=direction)  # type: ignore[arg-type]
        for row, change in zip(rows, exact.change[:, 0].tolist(), strict=False):
            row["patched"] = change
    typer.echo(f"Estimated change of the metric, and its share of the difference between the two runs ({direction}).")
    typer.echo(_shown(rows[:n]))
    _write(rows, result.plot(), out / "attribution")
    again = f"hooked-whisper patch {clean} {corrupted} --metric {metric} --nodes {out / 'attribution.csv'} --out {out}"
    typer.echo(f"Next: {again}, with the other options as here: what patching them does exactly")


# What is compared, and how it is judged


@dataclass(frozen=True)
class Task:
    """Two runs, a metric with its name and its figures on both, and how long the clean clip is, in frames."""

    model: HookedWhisper
    pair: Contrast
    metric: Any
    name: str
    figures: tuple[float, float]
    n_frames: int

    def __str__(self) -> str:
        return f"{self.name}: {self.figures[0]:.4f} in the clean run, {self.figures[1]:.4f} in the corrupted one"

    def nodes(
        self,
        parts: Sequence[str] | None,
        stacks: Sequence[str] | None,
        layers: Iterable[int] | None,
        frames: float | None,
        each_token: bool,
    ) -> list[Node]:
        """All nodes of the kinds that were asked for, cut into windows of seconds and into tokens.

        Raises:
            AnalysisError: an unknown part, stack or layer.
        """
        from hooked_whisper.analysis.nodes import nodes, windows
        from hooked_whisper.mel import FRAMES_PER_SECOND

        spans = {}
        if frames is not None:
            spans["frame"] = windows(0, self.n_frames, max(1, round(frames * FRAMES_PER_SECOND)))
        if each_token:
            spans["pos"] = [(at, at + 1) for at in range(self.pair.clean.tokens.shape[1])]
        return nodes(
            self.model, parts or ("head", "mlp"), stacks=stacks or ("encoder", "decoder"), layers=layers, spans=spans
        )


def read_task(
    model: str | HookedWhisper,
    clean: str,
    corrupted: str,
    metric: str,
    answer: str | None,
    wrong: str | None,
    text: str | None,
    language: str | None,
    span: str | None,
    direction: str,
    window: int | None = None,
    device: str | None = None,
    dtype: str = "float32",
) -> Task:
    """The two clips as a contrast, and the metric by its name.

    Raises:
        ConfigError: an unknown metric, options that it lacks or does not take, a clip over 30 s, or two runs between
            which the metric does not differ. AudioError: a file that cannot be read.
    """
    import torch

    from hooked_whisper import HookedWhisper
    from hooked_whisper.audio import SAMPLE_RATE, SAMPLES_PER_FRAME, load_audio
    from hooked_whisper.windows import with_window

    if metric not in METRICS:
        raise ConfigError(f"Unknown metric {metric!r}: expected {', '.join(METRICS)}.{did_you_mean(metric, METRICS)}")
    if direction not in ("denoise", "noise"):
        raise ConfigError(f"Unknown direction {direction!r}: expected 'denoise' or 'noise'.")
    takes = metric in (LOGIT_DIFFERENCE, LANGUAGE)
    if (
        (answer is None) != (wrong is None)
        or (answer is not None and not takes)
        or (metric == LOGIT_DIFFERENCE and answer is None)
    ):
        raise ConfigError(
            f"--answer and --wrong go together, with --metric {LOGIT_DIFFERENCE} (' ten', ' two') or {LANGUAGE} "
            f"(en, fr); this is {metric}."
        )
    if metric == LANGUAGE and (text is not None or language is not None):
        raise ConfigError("--metric language looks at the first token: it takes no --text and no --language.")
    sounds = [load_audio(clean)]
    sounds.append(_corrupted(corrupted, sounds[0], span))
    whisper = HookedWhisper.from_pretrained(model, device=device, dtype=dtype) if isinstance(model, str) else model
    if window is not None:
        whisper = with_window(whisper, window)
    seconds = whisper.cfg.n_mel_frames / 100
    for name, sound in zip((clean, corrupted), sounds, strict=True):
        if len(sound) > seconds * SAMPLE_RATE:
            raise ConfigError(f"{name} lasts {len(sound) / SAMPLE_RATE:.1f} s: expected at most {seconds:g}; cut it.")
    pair, judge, called = _judged(whisper, sounds, metric, answer, wrong, text, language)
    with torch.no_grad():
        before, after = (float(judge(side.logits(whisper))[0]) for side in (pair.clean, pair.corrupted))
    if abs(before - after) <= 1e-6 * max(abs(before), abs(after)):
        raise ConfigError(
            f"{called} is {before:.6g} in both runs: there is nothing to trace. Choose clips or a metric that differ."
        )
    return Task(whisper, pair, judge, called, (before, after), -(-len(sounds[0]) // SAMPLES_PER_FRAME))


def _corrupted(name: str, clean: Tensor, span: str | None) -> Tensor:
    from hooked_whisper.analysis.corruption import noise, silence
    from hooked_whisper.audio import load_audio

    kind, _, snr = name.partition(":")
    made = kind in (SILENCE, NOISE) and not Path(name).exists()
    if span is not None and not made:
        raise ConfigError("--span says where silence or noise is: the corrupted clip is a file, and stays whole.")
    seconds = None if span is None else read_span(span)
    if not made:
        return load_audio(name)
    if kind == SILENCE:
        return silence(clean, seconds)
    try:
        return noise(clean, float(snr), span=seconds)
    except ValueError as error:
        if isinstance(error, ConfigError) or "could not convert" not in str(error):
            raise
        raise ConfigError(f"{name!r} is no noise: expected noise:SNR in dB, such as noise:0.") from None


def _judged(
    model: HookedWhisper,
    sounds: Sequence[Tensor],
    metric: str,
    answer: str | None,
    wrong: str | None,
    text: str | None,
    language: str | None,
) -> tuple[Contrast, Any, str]:
    """The contrast, the metric, and what to call it."""
    import torch

    from hooked_whisper.analysis.contrast import Contrast
    from hooked_whisper.analysis.metrics import KLDivergence, LogitDifference, LogProbability
    from hooked_whisper.inputs import language_codes
    from hooked_whisper.transcription import Transcript

    clean, corrupted = sounds
    tokenizer = model._need_tokenizer()
    if metric == LANGUAGE:
        if not tokenizer.is_multilingual:
            raise ConfigError(f"{model.cfg.model_name} knows English alone: it has no languages to tell apart.")
        heard = [next(iter(model.detect_language(sound)[0])) for sound in sounds]
        codes = [str(one) for one in language_codes([answer or heard[0], wrong or heard[1]], 2, tokenizer)]
        if codes[0] == codes[1]:
            raise ConfigError(f"Both clips are heard as {codes[0]}: name two languages with --answer and --wrong.")
        pair = Contrast.of(model, clean=clean, corrupted=corrupted, text=[tokenizer.sot])
        ids = [tokenizer.languages[code] for code in codes]
        return pair, LogitDifference.of(model, *ids), f"logit of {codes[0]} less that of {codes[1]}"
    said = model.transcribe(clean, language=language)
    assert isinstance(said, Transcript)
    code = language or said.language
    fed = text if text is not None else ("" if metric == LOGIT_DIFFERENCE else said.tokens)
    pair = Contrast.of(model, clean=clean, corrupted=corrupted, text=fed, language=code)
    start = pair.prompt_length
    if metric == LOGIT_DIFFERENCE:
        assert answer is not None and wrong is not None
        return pair, LogitDifference.of(model, answer, wrong), f"logit of {answer!r} less that of {wrong!r}"
    if metric == LOG_PROBABILITY:
        if pair.clean.tokens.shape[1] <= start:
            raise ConfigError("There is no text whose probability could be taken: the clip is silent; pass --text.")
        called = f"log-probability of {(text or said.text).strip()!r}, nats"
        return pair, LogProbability(pair.clean.tokens, start), called
    with torch.no_grad():
        reference = pair.clean.logits(model)
    return pair, KLDivergence(reference, start - 1), "KL divergence from the clean run, nats"


def _named(names: Sequence[str], table: Path | None, top: int) -> list[Node]:
    from hooked_whisper.analysis.nodes import Node

    found = list(names)
    if table is not None:
        try:
            rows = list(csv.DictReader(table.read_text(encoding="utf-8").splitlines()))
            found += [row["node"] for row in rows[:top]]
        except (OSError, UnicodeDecodeError, KeyError, csv.Error) as error:
            raise ConfigError(
                f"{table} cannot be read as a table of nodes ({error}): expected attribution.csv."
            ) from error
    return [Node.parse(name) for name in dict.fromkeys(found)]


# Out


def _place(node: Node) -> dict[str, Any]:
    return {
        "node": str(node), "hook": node.hook, "head": node.head, "unit": node.unit,
        "from": None if node.span is None else node.span[0], "to": None if node.span is None else node.span[1],
    }  # fmt: skip


def _shown(rows: Sequence[dict[str, Any]]) -> str:
    hidden = ("hook", "head", "unit", "from", "to")
    return text_table([{name: row[name] for name in row if name not in hidden} for row in rows], _FORMATS)


def _write(rows: Sequence[dict[str, Any]], figure: Figure, path: Path) -> None:
    from hooked_whisper.analysis.plots import figure_bytes

    write_table(rows, path.with_suffix(".csv"))
    path.with_suffix(".png").write_bytes(figure_bytes(figure))
    typer.echo(f"Written: {path.with_suffix('.csv')}, {path.with_suffix('.png')}")
