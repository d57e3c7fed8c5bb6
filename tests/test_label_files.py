"""Labels in files: every format there and back, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hooked_whisper.analysis.label_files import read_labels, write_labels
from hooked_whisper.analysis.labels import Interval, Labels
from hooked_whisper.errors import AnalysisError

PHONES = (Interval(0.1, 0.25, "h"), Interval(0.25, 0.3, "ə"), Interval(0.4, 0.5, 'l"'))
LABELS = Labels(
    {"en/a": {"phone": PHONES, "word": (Interval(0.1, 0.5, "hello"),)}, "en/b": {"phone": (), "word": ()}},
    {"en/a": 0.6, "en/b": 1.0},
)

LONG = """File type = "ooTextFile"
Object class = "TextGrid"

xmin = 0
xmax = 1.5
tiers? <exists>
size = 1
item []:
    item [1]:
        class = "IntervalTier"
        name = "phones"
        xmin = 0
        xmax = 1.5
        intervals: size = 3
        intervals [1]:
            xmin = 0
            xmax = 0.5
            text = ""
        intervals [2]:
            xmin = 0.5
            xmax = 0.75
            text = "ʃ "
        intervals [3]:
            xmin = 0.75
            xmax = 1.5
            text = "sil"
"""
SHORT = """File type = "ooTextFile"
Object class = "TextGrid"

0
1.5
<exists>
1
"IntervalTier"
"phones"
0
1.5
3
0
0.5
""
0.5
0.75
"ʃ"
0.75
1.5
"sil"
"""


@pytest.mark.parametrize("text", [LONG, SHORT])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be"])
def test_text_grids_of_both_kinds_in_any_encoding(text: str, encoding: str, tmp_path: Path) -> None:
    file = tmp_path / "clip.TextGrid"
    mark = b"\xfe\xff" if encoding == "utf-16-be" else b""
    file.write_bytes(mark + text.encode(encoding))
    labels = read_labels(file)
    assert labels.tiers == {"clip": {"phones": (Interval(0.5, 0.75, "ʃ"),)}} and labels.durations == {"clip": 1.5}
    assert read_labels(file, silences=[""])["clip"]["phones"][1] == Interval(0.75, 1.5, "sil")


@pytest.mark.parametrize("name", ["labels.json", "grids"])
def test_there_and_back_with_everything(name: str, tmp_path: Path) -> None:
    assert read_labels(write_labels(LABELS, tmp_path / name)) == LABELS


def test_there_and_back_with_rows_alone(tmp_path: Path) -> None:
    assert list(read_labels(write_labels(LABELS, tmp_path / "a.csv")).rows()) == list(LABELS.rows())
    words = LABELS.where(tiers=["word"])
    read = read_labels(write_labels(words, tmp_path / "a.ctm"))
    assert list(read.rows()) == list(words.rows())
    one = LABELS.where(clips=["en/a"])
    assert read_labels(write_labels(one, tmp_path / "en.TextGrid")).tiers == {"en": one["en/a"]}


def test_a_part_of_the_tiers(tmp_path: Path) -> None:
    for name in ("labels.json", "labels.csv", "grids"):
        path = write_labels(LABELS, tmp_path / name)
        assert read_labels(path, tiers=["word"]).tier_names == ("word",)
        with pytest.raises(AnalysisError, match="no tier 'tone': it has phone, word"):
            read_labels(path, tiers=["tone"])


def test_ctm(tmp_path: Path) -> None:
    file = tmp_path / "a.ctm"
    file.write_text(";; comment\nclip1 1 0.10 0.25 hello 0.9\nclip1 1 0.34 0.2 you\n\nclip2 A 0 1 <eps>\n")
    with pytest.raises(AnalysisError, match="clip 'clip1', tier 'phone', interval.*overlaps.*tolerance="):
        read_labels(file, tier="phone")
    labels = read_labels(file, tier="phone", tolerance=0.011)
    assert labels["clip1"]["phone"][0] == Interval(0.1, 0.34, "hello") and labels["clip2"]["phone"] == ()
    for line, message in {
        "clip1 1 0.1 hello": "a.ctm, line 1 has 4 columns: expected clip, channel, start",
        "clip1 1 x 0.1 hello": "line 1: start is 'x', expected seconds",
        "clip1 1 nan 0.1 hello": "line 1: nan to nan is no time",
        "clip1 1 0.0 -0.1 hello": "ends before it begins",
        "clip1 1 0 1 a\nclip1 2 0 1 b": "line 2: clip 'clip1' has channels 1 and 2: keep one",
    }.items():
        file.write_text(line)
        with pytest.raises(AnalysisError, match=message):
            read_labels(file)


def test_csv(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text('utterance,start,end,phone\nc,0,0.5,"a,\nb"\n', encoding="utf-8")
    columns = {"clip": "utterance", "value": "phone"}
    assert read_labels(file, columns=columns, tier="phone")["c"] == {"phone": (Interval(0, 0.5, "a,\nb"),)}
    with pytest.raises(AnalysisError, match="a.csv has no column 'clip', only utterance, start, end, phone: columns="):
        read_labels(file)
    with pytest.raises(AnalysisError, match="columns= names 'sound': expected some of clip, tier"):
        read_labels(file, columns={"sound": "phone"})
    with pytest.raises(AnalysisError, match="has no column 'layer'"):
        read_labels(file, columns={**columns, "tier": "layer"})
    file.write_text("clip,start,end,value\nc,0,0.5\n")
    with pytest.raises(AnalysisError, match="line 2 has more or fewer cells than the header's 4"):
        read_labels(file)
    file.write_text("clip,start,end,value\nc,0,soon,a\n")
    with pytest.raises(AnalysisError, match="line 2: end is 'soon', expected seconds"):
        read_labels(file)
    file.write_text('clip,start,end,value\nc,0,1,"a"b\n')
    with pytest.raises(AnalysisError, match="line 2 is no CSV"):
        read_labels(file)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.TextGrid", LONG.replace("IntervalTier", "TextTier").encode(), "a.TextGrid"),
        ("a.TextGrid", LONG[:200].encode(), "is no TextGrid, or a damaged one"),
        ("a.TextGrid", b"hello", "is no TextGrid, or a damaged one"),
        (
            "a.TextGrid",
            LONG.replace("xmin = 0\nxmax = 1.5\nt", "xmin = 0.2\nxmax = 1.5\nt").encode(),
            "begins at 0.2 s",
        ),
        ("a.TextGrid", LONG.replace("xmax = 0.75", "xmax = 9").encode(), "clip 'a', tier 'phones'.*after its clip"),
        ("a.TextGrid", "ʃ".encode("utf-16-le"), "is neither UTF-8 nor UTF-16|is no TextGrid"),
        ("a.csv", b"clip,start\xff", "is neither UTF-8 nor UTF-16 .* at byte 10.: convert it"),
        ("a.json", b"{,", "a.json, line 1 is no JSON"),
        ("a.json", b"[]", "These are no labels"),
        ("a.lab", b"", "of an unknown kind .\\.lab.: expected textgrid, ctm, json, csv; format="),
    ],
)
def test_files_that_are_refused(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(AnalysisError, match=message):
        read_labels(file)


def test_tiers_of_points_and_of_one_name(tmp_path: Path) -> None:
    points = SHORT.replace("<exists>\n1", "<exists>\n2") + '"TextTier"\n"clicks"\n0\n1.5\n1\n0.7\n"click"\n'
    file = tmp_path / "a.TextGrid"
    file.write_text(points, encoding="utf-8")
    with pytest.raises(AnalysisError, match="tier 'clicks' holds points, which last no time: choose others"):
        read_labels(file)
    assert read_labels(file, tiers=["phones"]).tier_names == ("phones",)
    file.write_text(points.replace('"clicks"', '"phones"'), encoding="utf-8")
    with pytest.raises(AnalysisError, match="has two tiers of one name"):
        read_labels(file)


def test_no_files_and_what_a_format_cannot_hold(tmp_path: Path) -> None:
    with pytest.raises(AnalysisError, match="No labels at .*missing.json"):
        read_labels(tmp_path / "missing.json")
    with pytest.raises(AnalysisError, match="holds no TextGrid"):
        read_labels(tmp_path)
    with pytest.raises(AnalysisError, match="CTM holds one tier, and the labels have .'phone', 'word'."):
        write_labels(LABELS, tmp_path / "a.ctm")
    spaced = Labels({"c": {"word": (Interval(0.0, 1.0, "of the"),)}})
    with pytest.raises(AnalysisError, match="CTM holds no spaces, and 'of the' has some"):
        write_labels(spaced, tmp_path / "a.ctm")
    with pytest.raises(AnalysisError, match="has no labels and no duration"):
        write_labels(Labels({"c": {"word": ()}}), tmp_path / "a.TextGrid")
    with pytest.raises(AnalysisError, match="There are no labels to write"):
        write_labels(Labels({}), tmp_path / "a.TextGrid")
    with pytest.raises(AnalysisError, match="of an unknown kind"):
        write_labels(LABELS, tmp_path / "a.txt")
    assert json.loads(write_labels(LABELS, tmp_path / "deep" / "a.txt", format="json").read_text())["version"] == 1
