"""What a benchmark prints and keeps: the command that made it, the versions, the machine's kind, then its figures."""

from __future__ import annotations

import argparse
import platform
import shlex
import sys
from importlib.metadata import version
from pathlib import Path

from hooked_whisper import __version__


def parser(description: str | None) -> argparse.ArgumentParser:
    """A parser whose help is the module's docstring, with --out."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--out", type=Path, default=None, help="also write the figures to this Markdown file")
    return made


def command() -> str:
    """What was typed; of a path from the machine's root only the last part, which says what it is."""
    words = [Path(word).name if Path(word).is_absolute() else word for word in sys.argv[1:]]
    return shlex.join(["python", "-m", f"benchmarks.{Path(sys.argv[0]).stem}", *words])


def head(*packages: str, notes: str = "") -> str:
    """The first line of a report: command, versions of `packages`, and whatever else decides the figures."""
    parts = [f"hooked-whisper {__version__}", *(f"{name} {version(name)}" for name in packages)]
    parts += [f"Python {platform.python_version()}", platform.machine()]
    return f"Written by `{command()}`: {', '.join(parts)}{f', {notes}' if notes else ''}.\n"


def publish(text: str, out: Path | None) -> None:
    """Prints a report and, where --out names a file, writes it there."""
    print(text)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text.rstrip("\n") + "\n", encoding="utf-8")
        print(f"Wrote {out}")
