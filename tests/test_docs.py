"""README and docs say what is so: every code block runs, the hook table is the model's, the site builds.

The blocks of one page run in order, Python in one namespace, in an empty folder that holds `speech.wav` (a shipped
clip). In shell blocks, `make` is asked with -n whether it knows the target, and `pip install` is checked for
extras that exist; all else runs. What is not to be run carries another label, such as `text`; a `text` block right
after a Python block is what that block prints.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
import wave
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import tomli
from typer.testing import CliRunner

from hooked_whisper import HookedWhisper, cli
from hooked_whisper.hook_table import format_hook_table, hook_table
from hooked_whisper.speech import clips

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
NOT_RUN = {"text", "json", "toml", "yaml", "bibtex"}
FENCE = re.compile(r"^(?P<indent> *)```(?P<label>[^\n`]*)\n(?P<code>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block: its label, its code, the line of the page on which the code starts, and what it must print.

    `output` is None where the page does not say what is printed.
    """

    label: str
    code: str
    line: int
    output: str | None = None


def blocks(page: Path) -> Iterator[Block]:
    """The fenced blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    fences = list(FENCE.finditer(text))
    for fence, after in zip(fences, [*fences[1:], None], strict=True):
        follows = after is not None and after["label"] == "text" and not text[fence.end() : after.start()].strip()
        line = text.count("\n", 0, fence.start("code")) + 1
        output = code_of(after) if after is not None and follows else None
        yield Block(fence["label"].strip(), code_of(fence), line, output)


def code_of(fence: re.Match[str]) -> str:
    """What stands in a fenced block, without the block's own indent."""
    return "\n".join(line[len(fence["indent"]) :] for line in fence["code"].splitlines())


def run_python(block: Block, page: Path, namespace: dict[str, object]) -> None:
    """Runs a block so that a traceback names the page and its line, and compares what it prints."""
    padded = "\n" * (block.line - 1) + block.code
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(padded, str(page), "exec"), namespace)
    if block.output is not None:
        assert printed.getvalue().rstrip("\n") == block.output, f"{page.name}:{block.line} prints something else"


def check_make(line: str) -> None:
    """`make` knows the target and accepts the variables; nothing is run."""
    done = subprocess.run([*shlex.split(line), "-n"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, f"{line}: {done.stderr}"


def check_pip(line: str) -> None:
    """`pip install` of this project names extras that exist."""
    extras = tomli.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    for word in shlex.split(line):
        asked = re.fullmatch(r"(?:\.|hooked-whisper)\[([^]]+)\]", word)
        assert asked is None or set(asked[1].split(",")) <= set(extras), f"{line}: no such extra"


def run_command(line: str) -> None:
    """Runs a line of the project's own command."""
    result = CliRunner().invoke(cli.app, shlex.split(line)[1:])
    assert result.exit_code == 0, f"{line}:\n{result.output}{result.exception!r}"


def run_shell(block: Block, folder: Path) -> None:
    """Runs a block, line by line where make or pip is meant to change the machine."""
    rest = []
    for line in block.code.splitlines():
        if line.startswith("make "):
            check_make(line)
        elif line.startswith("pip install "):
            check_pip(line)
        elif line.startswith("hooked-whisper ") and not set(line) & set("|<>;&$`"):
            run_command(line)  # in this process, which has torch already: a new one spends seconds on importing it
        else:
            rest.append(line)
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", "\n".join(rest)],
        cwd=folder, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert done.returncode == 0, f"line {block.line}:\n{block.code}\n{done.stdout}"


def write_speech(folder: Path) -> None:
    """A shipped clip as speech.wav, 16-bit mono at 16 kHz."""
    samples = clips("en", key="queue-youarenext")[0].load()
    with wave.open(str(folder / "speech.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes((samples.clamp(-1, 1) * 32_767).short().numpy().tobytes())


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the blocks run: a folder that holds speech.wav."""
    write_speech(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_block_runs(page: Path, folder: Path) -> None:
    namespace: dict[str, object] = {"__name__": "__main__"}
    for block in blocks(page):
        if block.label == "python":
            run_python(block, page, namespace)
        elif block.label == "bash":
            run_shell(block, folder)
        else:
            assert block.label in NOT_RUN, f"{page.name}:{block.line}: a block labelled {block.label!r} is never run"


def test_runner_finds_and_runs_blocks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# A\n```python\nx = 1\n```\n\n- item\n\n  ```python\n  if x:\n      1 / 0\n  ```\n", encoding="utf-8"
    )
    first, second = blocks(page)
    assert (first.output, second.output) == (None, None)
    namespace: dict[str, object] = {}
    run_python(first, page, namespace)
    with pytest.raises(ZeroDivisionError) as error:
        run_python(second, page, namespace)
    assert (error.traceback[-1].path, error.traceback[-1].lineno + 1) == (page, 10)
    page.write_text("```python\nprint(1 + 1)\n```\n\n```text\n3\n```\n", encoding="utf-8")
    with pytest.raises(AssertionError, match="prints something else"):
        run_python(next(blocks(page)), page, {})
    with pytest.raises(AssertionError, match="line 3"):
        run_shell(Block("bash", "true\nfalse", 3), tmp_path)
    with pytest.raises(AssertionError, match="no such extra"):
        run_shell(Block("bash", "pip install -e '.[everything]'", 1), tmp_path)
    with pytest.raises(AssertionError, match="No such command"):
        run_shell(Block("bash", "hooked-whisper brew", 1), tmp_path)
    with pytest.raises(AssertionError, match="No rule"):
        run_shell(Block("bash", "make coffee", 1), tmp_path)


def test_hook_table_of_the_docs_is_the_models(shared_whisper_base: HookedWhisper) -> None:
    written = [block.code for block in blocks(ROOT / "docs" / "hooks.md") if block.label == "text"]
    assert format_hook_table(hook_table(shared_whisper_base)) in written, (
        "docs/hooks.md is behind: put the output of `hooked-whisper hooks` into its text block"
    )


def test_links_lead_somewhere() -> None:
    # mkdocs checks the site's links; this checks README and docs as they are read in the repository.
    link = re.compile(r"\[[^\]]*\]\((?!https?:|#)([^)#\s]+)")
    made = {ROOT / "docs" / "index.md", ROOT / "docs" / "changelog.md"}  # by tools/site.py, as is docs/api
    missing = [
        f"{page.name} -> {target}"
        for page in PAGES
        for target in link.findall(page.read_text(encoding="utf-8"))
        for path in [(page.parent / target).resolve()]
        if not path.exists() and path not in made and path.parent != ROOT / "docs" / "api"
    ]
    assert not missing
