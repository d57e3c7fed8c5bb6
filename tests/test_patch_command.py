"""`hooked-whisper patch` and `attribute`: the figures are those of the functions, resumed, written and printed."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hooked_whisper import AnalysisError, AudioError, ConfigError, HookedWhisper, cli
from hooked_whisper.analysis import patching
from hooked_whisper.analysis.attribution import attribute
from hooked_whisper.analysis.contrast import Contrast
from hooked_whisper.analysis.metrics import LogitDifference
from hooked_whisper.analysis.nodes import nodes
from hooked_whisper.analysis.patch_command import read_task
from hooked_whisper.speech import clips

EN, FR = (clips(language, key="vm-sorry")[0].path for language in ("en", "fr"))
PNG = b"\x89PNG"

pytestmark = pytest.mark.usefixtures("commands_load_it")


@pytest.fixture(scope="module")
def model(shared_short_whisper_base: HookedWhisper) -> HookedWhisper:
    return shared_short_whisper_base


def run(*arguments: object) -> str:
    """What a command prints; it must succeed."""
    result = CliRunner().invoke(cli.app, list(map(str, arguments)), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def table(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))


@pytest.fixture(scope="module")
def by_hand(model: HookedWhisper) -> tuple[Contrast, LogitDifference]:
    """English against French, as `--metric language` has it."""
    pair = Contrast.of(model, clean=EN, corrupted=FR, text=[model.tokenizer.sot])
    languages = model.tokenizer.languages
    return pair, LogitDifference.of(model, languages["en"], languages["fr"])


def test_a_sweep(model: HookedWhisper, by_hand: tuple[Contrast, LogitDifference], tmp_path: Path) -> None:
    arguments = ["patch", EN, FR, "--metric", "language", "--part", "mlp", "--stack", "decoder", "--out", tmp_path]
    printed = run(*arguments, "-n", 2)
    result = patching.patch(model, by_hand[0], nodes(model, "mlp", stacks=["decoder"]), by_hand[1])
    rows = {row["node"]: row for row in table(tmp_path / "patching.csv")}
    for node, change, share in zip(result.nodes, result.change, result.normalized, strict=True):
        assert float(rows[str(node)]["change"]) == pytest.approx(float(change), abs=1e-4)
        assert float(rows[str(node)]["normalised"]) == pytest.approx(float(share), abs=1e-4)
    sizes = [abs(float(row["normalised"])) for row in rows.values()]
    assert sizes == sorted(sizes, reverse=True)
    assert (tmp_path / "patching.png").read_bytes().startswith(PNG)
    assert printed.splitlines()[0].startswith("logit of en less that of fr: ") and "6 nodes" in printed.splitlines()[0]
    assert len(printed.splitlines()) == 7
    log = tmp_path / "patching.jsonl"
    written = log.read_text()
    assert len(written.splitlines()) == 7
    log.write_text("".join(f"{line}\n" for line in written.splitlines()[:4]))
    run(*arguments)  # what was broken off goes on
    assert sorted(log.read_text().splitlines()) == sorted(written.splitlines())
    with pytest.raises(AnalysisError, match="is of another sweep"):
        run(*[*arguments[:-1], tmp_path], "--layer", 1)


def test_attribution_with_its_check(
    model: HookedWhisper, by_hand: tuple[Contrast, LogitDifference], tmp_path: Path
) -> None:
    arguments = [EN, FR, "--metric", "language", "--out", tmp_path]
    printed = run("attribute", *arguments, "--part", "mlp", "--check", 2)
    found = attribute(model, by_hand[0], nodes(model, "mlp"), by_hand[1])
    rows = table(tmp_path / "attribution.csv")
    assert [row["node"] for row in rows] == [str(node) for node, _ in found.top(12)]
    assert float(rows[0]["estimated"]) == pytest.approx(found.top(1)[0][1], abs=1e-4)
    exact = patching.patch(model, by_hand[0], [node for node, _ in found.top(2)], by_hand[1]).change[:, 0]
    assert [float(row["patched"]) for row in rows[:2]] == pytest.approx(exact.tolist(), abs=1e-4)
    assert rows[2]["patched"] == "" and f"--nodes {tmp_path / 'attribution.csv'}" in printed.splitlines()[-1]
    run("patch", *arguments, "--nodes", tmp_path / "attribution.csv", "--top", 2)
    assert {row["node"] for row in table(tmp_path / "patching.csv")} == {row["node"] for row in rows[:2]}


def test_a_hidden_word_in_windows_of_time(tmp_path: Path) -> None:
    arguments = ["patch", EN, "silence", "--span", "0.5:0.9", "--part", "resid", "--stack", "encoder", "--layer", 0]
    printed = run(*arguments, "--frames", 1, "--out", tmp_path)
    assert printed.startswith('log-probability of "I\'m sorry I did not understand your response.", nats: ')
    rows = table(tmp_path / "patching.csv")
    assert (rows[0]["from"], rows[0]["to"]) == ("0", "50") and float(rows[0]["normalised"]) > 0.5
    assert len(rows) == 4


def test_metrics_by_name(model: HookedWhisper) -> None:
    def task(metric: str, **options: str) -> tuple[float, float]:
        names = ("answer", "wrong", "text", "language", "span")
        given = [options.get(name) for name in names]
        return read_task(model, str(EN), options.get("corrupted", str(FR)), metric, *given, "denoise").figures

    clean, corrupted = task("kl", language="en")
    assert clean == pytest.approx(0, abs=1e-5) and corrupted > 0.5
    clean, corrupted = task("logit-difference", answer=" sorry", wrong=" happy", text=" I'm", language="english")
    assert clean > corrupted + 1
    stop, comma = (
        model.tokenizer.to_tokens(".", prefix_space=False)[0],
        model.tokenizer.to_tokens(",", prefix_space=False)[0],
    )
    of_stop = read_task(model, str(EN), str(FR), "logit-difference", ".", ",", " I", "en", None, "denoise").metric
    assert of_stop == LogitDifference((stop,), (comma,))
    clean, corrupted = task("log-probability", corrupted="noise:-5")
    assert 0 > clean > corrupted
    clean, corrupted = task("language", answer="en", wrong="french")
    assert clean > 0 > corrupted


def test_one_node_and_tokens(model: HookedWhisper, tmp_path: Path) -> None:
    run("patch", EN, FR, "--metric", "language", "--node", "decoder.3.cross.head.1", "--out", tmp_path / "a")
    assert [row["hook"] for row in table(tmp_path / "a" / "patching.csv")] == ["decoder.blocks.3.cross_attn.hook_z"]
    one = read_task(model, str(EN), "silence", "log-probability", None, None, " I'm", "en", "0:1", "denoise")
    cut = one.nodes(["resid"], ["decoder"], [0], None, True)
    assert [node.span for node in cut] == [(at, at + 1) for at in range(one.pair.clean.tokens.shape[1])]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ([EN, FR, "--metric", "logit"], ConfigError, "Unknown metric 'logit': expected log-probability, logit-diff"),
        ([EN, FR, "--direction", "up"], ConfigError, "expected 'denoise' or 'noise'"),
        ([EN, FR, "--metric", "logit-difference"], ConfigError, "--answer and --wrong go together"),
        ([EN, FR, "--answer", "a", "--wrong", "b"], ConfigError, "this is log-probability"),
        ([EN, FR, "--metric", "language", "--text", "a"], ConfigError, "takes no --text"),
        ([EN, EN, "--metric", "language"], ConfigError, "Both clips are heard as en"),
        ([EN, EN], AnalysisError, "Nothing differs: both sides have the same sound"),
        (
            [EN, FR, "--metric", "logit-difference", "--text", " I", "--answer", "Nobody", "--wrong", ","],
            AnalysisError,
            "'Nobody' is no single token, and ' Nobody', with the space before it, is one",
        ),
        ([EN, FR, "--span", "0:1"], ConfigError, "the corrupted clip is a file"),
        ([EN, "noise:loud"], ConfigError, "expected noise:SNR in dB"),
        ([EN, "noise"], ConfigError, "'noise' is no noise: expected noise:SNR in dB, such as noise:0"),
        ([EN, "silence", "--span", "3:9"], AnalysisError, "is not inside the clip"),
        (["nothing.wav", FR], AudioError, "nothing.wav"),
        ([EN, FR, "--metric", "language", "--node", "decoder.9.mlp_out"], Exception, "decoder.blocks.9"),
        ([EN, FR, "--metric", "language", "--nodes", EN], ConfigError, "cannot be read as a table of nodes"),
        ([EN, FR, "--metric", "language", "--node", "a", "--part", "mlp"], ConfigError, "leave out what chooses"),
    ],
)
def test_bad_input(arguments: list[object], error: type[Exception], message: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=message):
        run("patch", *arguments, "--out", tmp_path)


@pytest.mark.parametrize("command", ["patch", "attribute"])
def test_a_folder_that_cannot_be_made(command: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"file/below cannot be made \(.*\): choose another one"):
        run(command, EN, FR, "--metric", "language", "--out", tmp_path / "file" / "below")


def test_nodes_are_checked_before_the_sweep_that_lies_there(tmp_path: Path) -> None:
    arguments = ["patch", EN, FR, "--metric", "language", "--out", tmp_path, "--node"]
    run(*arguments, "decoder.3.cross.head.1")
    with pytest.raises(AnalysisError, match="there is no head 99"):
        run(*arguments, "decoder.3.cross.head.99")


def test_attribution_from_the_clean_run_has_no_kl(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="kl has no gradient"):
        run("attribute", EN, FR, "--metric", "kl", "--direction", "noise", "--out", tmp_path)
