"""The page says what the report holds, and its tables are tables."""

from __future__ import annotations

from dataclasses import replace

from reports import estimate, group, loss, reconstruction, report

from hooked_whisper.saes.estimates import Estimate
from hooked_whisper.saes.report import SaeReport


def tables(page: str) -> dict[str, list[list[str]]]:
    """Rows of cells below each heading."""
    found: dict[str, list[list[str]]] = {}
    heading = ""
    for line in page.splitlines():
        if line.startswith("#"):
            heading = line.lstrip("# ")
        elif line.startswith("|"):
            cells = line.strip("|").replace("\\|", "\0").split("|")
            found.setdefault(heading, []).append([cell.strip().replace("\0", "|") for cell in cells])
    return found


def page(whole: SaeReport) -> dict[str, list[list[str]]]:
    return tables(whole.to_markdown())


def test_every_table_is_rectangular() -> None:
    for heading, rows in page(report()).items():
        assert len({len(row) for row in rows}) == 1, heading
        assert set(rows[1]) == {"---"}


def test_headings_follow_the_protocol() -> None:
    assert list(page(report())) == [
        "Gates",
        "Reconstruction and firing",
        "Spliced into the model: predictions",
        "Spliced into the model: transcripts",
        "Against a basis that nobody learned",
        "By speaker",
        "Clips whose transcripts changed most",
        "How it was measured",
    ]


def test_head_says_what_was_evaluated_on_how_much() -> None:
    head = report().to_markdown().splitlines()
    assert head[0] == "# Evaluation of an SAE at `encoder.hook_out`"
    assert "openai/whisper-base, topk, 512 → 16,000 latents, 50 clips, 10,000 rows." in head[2]
    there = report(hook_out="encoder.blocks.5.hook_mlp_out").to_markdown()
    assert there.startswith("# Evaluation of an SAE at `encoder.hook_out` to `encoder.blocks.5.hook_mlp_out`")


def test_gates_have_verdicts() -> None:
    noisy = replace(reconstruction(), fvu=estimate(0.11, 0.05))
    whole = report(
        overall=group(reconstruction=noisy),
        languages={"en": group(on_transcript=None), "it": group()},
        configured_l0=None,
    )
    verdicts = {(row[0], row[1]): row[2:] for row in page(whole)["Gates"][2:]}
    assert verdicts["FVU", "all"] == ["0.110 [0.060, 0.160]", "≤ 0.1", "**fail**, within the noise"]
    assert verdicts["dead latents", "all"] == ["0.010", "< 0.05", "pass"]
    assert verdicts["L0", "all"][1:] == ["none configured", "not measured"]
    assert verdicts["cross-entropy recovered, from zero", "en"] == ["n/a", "≥ 0.99", "not measured"]
    assert verdicts["cross-entropy recovered, from zero", "it"][2] == "pass"


def test_languages_stand_below_all_unless_there_is_one() -> None:
    assert [row[0] for row in page(report())["Reconstruction and firing"]] == ["language", "---", "all", "en", "it"]
    alone = report(languages={"en": group()})
    assert [row[0] for row in page(alone)["Reconstruction and firing"]] == ["language", "---", "en"]


def test_figures_are_where_they_belong() -> None:
    found = page(report())
    row = found["Reconstruction and firing"][4]
    assert row == [
        "it", "20", "4,000", "0.090 [0.089, 0.091]", "0.110 [0.109, 0.111]", "0.970 [0.969, 0.971]",
        "0.960 [0.959, 0.961]", "45.0 [45.0, 45.0]", "160 (1.0 %)", "5",
    ]  # fmt: skip
    losses = found["Spliced into the model: predictions"]
    assert [row[:3] for row in losses[2:]] == [
        ["all", "own transcript", "700"], ["all", "reference", "700"], ["en", "own transcript", "700"],
        ["it", "own transcript", "700"],
    ]  # fmt: skip
    assert losses[2][3:8] == ["0.1000", "0.1200", "4.500", "4.000", "0.9950 [0.9940, 0.9960]"]
    rates = found["Spliced into the model: transcripts"][2]
    assert rates[:5] == ["all", "50", "3", "600", "0.20 [0.10, 0.30]"]
    assert rates[9] == "0.10 [0.05, 0.15]"  # WER change in points
    baselines = found["Against a basis that nobody learned"]
    assert [row[0] for row in baselines[2:]] == ["topk", "neurons", "pca"]
    assert baselines[4][3:] == ["n/a", "n/a"]


def test_texts_cannot_break_a_table() -> None:
    assert page(report())["Clips whose transcripts changed most"][2] == ["it/a|b", "it", "il numero", "il numera"]


def test_what_was_not_measured_has_no_table() -> None:
    bare = report(
        overall=group(on_transcript=None, transcripts=None), languages={}, speakers={}, baselines={}, changes=[]
    )
    assert list(page(bare)) == ["Gates", "Reconstruction and firing", "How it was measured"]


def test_notes_and_settings_close_the_page() -> None:
    text = report().to_markdown()
    assert "- No error term." in text
    assert ["padding", "`keep`"] in page(report())["How it was measured"]


def test_an_undefined_figure_is_not_available() -> None:
    whole = report(overall=group(on_transcript=replace(loss(), kl=Estimate(None))))
    assert page(whole)["Spliced into the model: predictions"][2][9] == "n/a"
