"""Brings what the pages say that their code prints up to date, by running it; an outdated assertion stops it.

python tests/doc_outputs.py docs/tutorial-features.md README.md     # rewrites the pages: look at the difference

Read the prose around each change: a figure that a sentence repeats does not change by itself.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import tempfile
from pathlib import Path

from test_docs import FENCE, Block, code_of, run_shell, write_speech

ROOT = Path(__file__).resolve().parent.parent


def renew(page: Path) -> int:
    """Runs the blocks of a page in order, in an empty folder with speech.wav; returns how many outputs changed."""
    text = page.read_text(encoding="utf-8")
    fences = list(FENCE.finditer(text))
    namespace: dict[str, object] = {"__name__": "__main__"}
    changes: list[tuple[int, int, str]] = []
    for fence, after in zip(fences, [*fences[1:], None], strict=True):
        label, indent = fence["label"].strip(), fence["indent"]
        code = code_of(fence)
        line = text.count("\n", 0, fence.start("code")) + 1
        printed = io.StringIO()
        if label == "python":
            with contextlib.redirect_stdout(printed):
                exec(compile("\n" * (line - 1) + code, str(page), "exec"), namespace)
        elif label == "bash":
            run_shell(Block(label, code, line), Path.cwd())
        between = "" if after is None else text[fence.end() : after.start()].strip()
        told = after is not None and after["label"] == "text" and (not between or between.startswith("It printed"))
        if label == "python" and told and after is not None:
            now = "".join(f"{indent}{row}".rstrip() + "\n" for row in printed.getvalue().rstrip("\n").splitlines())
            if now != after["code"]:
                print(f"{page.name}:{line}\n- " + "- ".join(after["code"].splitlines(True)), end="")
                print("+ " + "+ ".join(now.splitlines(True)), end="")
                changes.append((after.start("code"), after.end("code"), now))
    for start, end, now in reversed(changes):
        text = text[:start] + now + text[end:]
    page.write_text(text, encoding="utf-8")
    return len(changes)


def main(pages: list[Path]) -> None:
    """Each page in a folder of its own."""
    for page in [page.resolve() for page in pages]:
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            write_speech(Path(folder))
            print(f"{page.name}: {renew(page)} outputs changed", flush=True)
            os.chdir(ROOT)


if __name__ == "__main__":
    main(list(map(Path, sys.argv[1:])))
