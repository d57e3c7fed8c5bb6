"""An evaluation report as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from hooked_whisper.saes.estimates import Estimate

if TYPE_CHECKING:
    from hooked_whisper.saes.report import Gate, Group, SaeReport

ALL = "all"


def report_page(report: SaeReport) -> str:
    """The report as a page of tables, in the order of the protocol."""
    hooks = f"`{report.hook}`" if report.hook == report.hook_out else f"`{report.hook}` to `{report.hook_out}`"
    head = [
        f"# Evaluation of an SAE at {hooks}",
        f"{report.model}, {report.architecture}, {report.d_in} → {report.d_sae:,} latents, "
        f"{report.overall.reconstruction.n_clips:,} clips, {report.overall.reconstruction.n_rows:,} rows. "
        "Brackets hold 95 % intervals over resampled clips.",
    ]
    parts = [*head, "## Gates", _gates(report.gates()), "## Reconstruction and firing", _reconstruction(report)]
    if report.overall.on_transcript is not None:
        parts += ["## Spliced into the model: predictions", _losses(report)]
    if report.overall.transcripts is not None:
        parts += ["## Spliced into the model: transcripts", _transcripts(report)]
    if report.baselines:
        parts += ["## Against a basis that nobody learned", _baselines(report)]
    if report.speakers:
        parts += ["## By speaker", _speakers(report)]
    if report.changes:
        parts += ["## Clips whose transcripts changed most", _changes(report)]
    parts += ["## How it was measured", "\n".join(f"- {note}" for note in report.notes)]
    about = {"corpus": report.corpus, **report.settings}
    parts.append(_table(["setting", "value"], [[name, f"`{value}`"] for name, value in about.items()]))
    return "\n\n".join(part for part in parts if part) + "\n"


def _groups(report: SaeReport) -> list[tuple[str, Group]]:
    named = list(report.languages.items())
    return named if len(named) == 1 else [(ALL, report.overall), *named]


def _gates(gates: Sequence[Gate]) -> str:
    rows = []
    for gate in gates:
        verdict = {True: "pass", False: "**fail**", None: "not measured"}[gate.passes]
        if gate.passes is not None and gate.certain is False:
            verdict += ", within the noise"
        rows.append([gate.name, gate.language or ALL, _figure(gate.figure), gate.bound, verdict])
    return _table(["gate", "language", "figure", "bound", "verdict"], rows)


def _reconstruction(report: SaeReport) -> str:
    rows = []
    for name, group in _groups(report):
        found, firing = group.reconstruction, group.firing
        rows.append([
            name, f"{found.n_clips:,}", f"{found.n_rows:,}", _figure(found.fvu), _figure(found.fvu_within_clips),
            _figure(found.cosine), _figure(found.norm_ratio), _figure(found.l0, 1),
            f"{firing.n_silent:,} ({100 * firing.silent:.1f} %)", f"{firing.n_dense:,}",
        ])  # fmt: skip
    head = ["language", "clips", "rows", "FVU", "FVU within clips", "cosine", "norm ratio", "L0", "silent", "dense"]
    return _table(head, rows)


def _losses(report: SaeReport) -> str:
    rows = []
    for name, group in _groups(report):
        for text, loss in (("own transcript", group.on_transcript), ("reference", group.on_reference)):
            if loss is not None:
                rows.append([
                    name, text, f"{loss.n_tokens:,}", f"{loss.ce_unhooked:.4f}", f"{loss.ce_spliced:.4f}",
                    f"{loss.ce_zero:.3f}", f"{loss.ce_mean:.3f}", _figure(loss.recovered_from_zero, 4),
                    _figure(loss.recovered_from_mean, 4), _figure(loss.kl, 4), _percent(loss.agreement),
                ])  # fmt: skip
    head = [
        "language", "text", "tokens", "CE", "CE spliced", "CE zero", "CE mean", "recovered from zero",
        "recovered from mean", "KL", "same top token, %",
    ]  # fmt: skip
    return _table(head, rows)


def _transcripts(report: SaeReport) -> str:
    rows = []
    for name, group in _groups(report):
        rates = group.transcripts
        if rates is not None:
            rows.append([
                name, f"{rates.n_clips:,}", f"{rates.n_changed:,}", f"{rates.n_words:,}",
                _percent(rates.wer_to_unhooked), _percent(rates.cer_to_unhooked), f"{rates.n_reference_words:,}",
                _percent(rates.wer_unhooked), _percent(rates.wer_spliced), _percent(rates.wer_change),
                _percent(rates.cer_change),
            ])  # fmt: skip
    head = [
        "language", "clips", "changed", "words", "WER to unhooked, %", "CER to unhooked, %", "reference words",
        "WER unhooked, %", "WER spliced, %", "WER change, points", "CER change, points",
    ]  # fmt: skip
    return _table(head, rows)


def _baselines(report: SaeReport) -> str:
    whole = report.overall
    learned = whole.on_transcript
    rows = [
        [report.architecture, _figure(whole.reconstruction.l0, 1), _figure(whole.reconstruction.fvu)]
        + ([_figure(learned.recovered_from_zero, 4), _figure(learned.kl, 4)] if learned else ["n/a", "n/a"])
    ]
    for name, found in report.baselines.items():
        loss = found.on_transcript
        rows.append(
            [name, str(found.k), _figure(found.reconstruction.fvu)]
            + ([_figure(loss.recovered_from_zero, 4), _figure(loss.kl, 4)] if loss else ["n/a", "n/a"])
        )
    return _table(["what", "L0", "FVU", "recovered from zero", "KL"], rows)


def _speakers(report: SaeReport) -> str:
    rows = [
        [name, f"{found.n_clips:,}", f"{found.n_rows:,}", _figure(found.fvu), _figure(found.fvu_within_clips)]
        for name, found in report.speakers.items()
    ]
    return _table(["speaker", "clips", "rows", "FVU", "FVU within clips"], rows)


def _changes(report: SaeReport) -> str:
    rows = [[change.clip, change.language, change.unhooked, change.spliced] for change in report.changes]
    return _table(["clip", "language", "unhooked", "spliced"], rows)


def _figure(figure: Estimate, digits: int = 3) -> str:
    if figure.value is None:
        return "n/a"
    value = f"{figure.value:.{digits}f}"
    if figure.low is None or figure.high is None:
        return value
    return f"{value} [{figure.low:.{digits}f}, {figure.high:.{digits}f}]"


def _percent(rate: Estimate) -> str:
    return _figure(rate.scaled(100), 2)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
