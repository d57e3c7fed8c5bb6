"""What mkdocs does not do by itself: README and CHANGELOG as pages, and an API page for every public module."""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {"hooked_whisper": "hooked_whisper", "hooked_whisper.saes": "saes", "hooked_whisper.analysis": "analysis"}
# What people come for; the other modules of the core follow under a heading of their own.
FRONT = ["model", "cache", "hooks", "transcription", "audio", "tokenizer", "checkpoints", "config", "errors"]
PAGES = {"index.md": "README.md", "changelog.md": "CHANGELOG.md"}
LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?:|#)([^)]+)\)")


def modules() -> dict[str, list[str]]:
    """The public modules of each package, by full name."""
    found = {}
    for package, folder in PACKAGES.items():
        names = sorted(path.stem for path in (ROOT / folder).glob("*.py") if not path.stem.startswith("_"))
        found[package] = [f"{package}.{name}" for name in names]
    return found


def relink(text: str) -> str:
    """README's links as they must be from docs/: pages there stay links, other files of the repository become text."""

    def replace(match: re.Match[str]) -> str:
        image, label, target = match.groups()
        if target.startswith("docs/"):
            return f"{image}[{label}]({target.removeprefix('docs/')})"
        page = next((page for page, source in PAGES.items() if source == target), None)
        return f"{image}[{label}]({page})" if page else label

    return LINK.sub(replace, text)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Appends the API pages to the navigation."""
    found = modules()
    front = [f"hooked_whisper.{name}" for name in FRONT]
    inside = [name for name in found["hooked_whisper"] if name not in front]
    sections = {**found, "hooked_whisper": front, "hooked_whisper, inside": inside}
    pages = [{title: [{name: f"api/{name}.md"} for name in names]} for title, names in sections.items() if names]
    config.nav = [*(config.nav or []), {"API": pages}]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that are made, not written."""
    for page, source in PAGES.items():
        text = relink((ROOT / source).read_text(encoding="utf-8"))
        files.append(File.generated(config, page, content=text))
    for names in modules().values():
        for name in names:
            files.append(File.generated(config, f"api/{name}.md", content=f"# `{name}`\n\n::: {name}\n"))
    return files
