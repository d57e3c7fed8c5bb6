"""A dashboard is a folder of plain pages that ask for nothing, escape what they show, and whose sounds are there."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_files import random_sae
from small_dashboard import BAD, DENSE, FRAMES, HOOK, IDS, N_LATENTS, SILENT, WORDS, make_parts
from small_store import make_store
from test_page import Reader

from hooked_whisper import AnalysisError, SaeError, load_audio
from hooked_whisper.analysis.codes import encode_store
from hooked_whisper.analysis.dashboard import Dashboard, feature_page, make_dashboard
from hooked_whisper.saes import Corpus
from hooked_whisper.saes.baselines import Basis


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return make_parts(tmp_path_factory.mktemp("sounds"))


@pytest.fixture(scope="module")
def made(parts: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Dashboard:
    return make_dashboard(**parts, out=tmp_path_factory.mktemp("dashboard") / "new" / "dashboard")


def page(made: Dashboard, latent: int) -> Path:
    return made.folder / "features" / f"{latent:05d}.html"


def test_every_feature_has_a_page_and_every_address_a_file(made: Dashboard) -> None:
    pages = sorted((made.folder / "features").iterdir())
    assert [path.stem for path in pages] == [f"{latent:05d}" for latent in range(N_LATENTS)]
    seen = set()
    for path in [made.index, *pages]:
        for tag, attributes in Reader(path.read_text(encoding="utf-8")).elements:
            for name in ("src", "href"):
                address = attributes.get(name, "")
                if not address or address.startswith(("#", "data:,")):
                    continue
                assert re.fullmatch(r"[\w./-]+", address), f"{tag} of {path.name} leads to {address}"
                assert (path.parent / address).resolve().is_file(), f"{tag} of {path.name} leads to {address}"
                seen.add((path.parent / address).resolve())
    sounds = {path.resolve() for path in (made.folder / "clips").iterdir()}
    assert len(sounds) == 2 * len(IDS)
    assert sounds <= seen  # none is there in vain
    assert str(made).startswith(f"{N_LATENTS} features and {len(IDS)} clips in ")
    assert made.n_bytes == sum(path.stat().st_size for path in made.folder.rglob("*") if path.is_file())


def test_nothing_of_the_network_is_named(made: Dashboard) -> None:
    for path in made.folder.rglob("*"):
        if path.suffix in (".html", ".js", ".css"):
            text = path.read_text(encoding="utf-8")
            assert not re.search(r"https?:|//\w|@import|url\(|fetch\(|XMLHttp|WebSocket|import\(", text), path
    for path in (made.index, page(made, WORDS)):
        metas = Reader(path.read_text(encoding="utf-8")).all("meta")
        policy = next(one["content"] for one in metas if one.get("http-equiv") == "Content-Security-Policy")
        assert policy.startswith("default-src 'none'")
        assert "script-src 'self' file:" in policy and "connect-src" not in policy


def test_what_is_shown_is_never_markup(made: Dashboard) -> None:
    for latent in (WORDS, SILENT, DENSE):
        shown = Reader(page(made, latent).read_text(encoding="utf-8"))
        assert [one["src"] for one in shown.all("script")] == ["../feature.js"]
        assert all(one["src"].startswith("../clips/") for one in shown.all("img"))
    shown = Reader(page(made, WORDS).read_text(encoding="utf-8"))
    assert any(BAD in text for text in shown.texts["h3"])
    assert BAD in shown.texts["mark"]
    index = Reader(made.index.read_text(encoding="utf-8"))
    assert [one["src"] for one in index.all("script")] == ["features.js", "index.js"]
    data = json.loads((made.folder / "features.js").read_text().removeprefix("window.DASHBOARD=").rstrip(";\n"))
    assert [len(column["values"]) for column in data["columns"]] == [N_LATENTS] * len(data["columns"])


def test_sounds_are_the_clips(made: Dashboard) -> None:
    found = load_audio(made.folder / "clips" / "00002.mp3")
    assert len(found) == FRAMES * 320


def test_some_features_and_again_into_the_same_folder(parts: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    make_dashboard(**parts, out=tmp_path / "d", features=[9, WORDS, 2])
    first = Reader((tmp_path / "d" / "features" / "00009.html").read_text(encoding="utf-8"))
    assert {one.get("rel"): one["href"] for one in first.all("a") if "rel" in one} == {"next": "00003.html"}
    (tmp_path / "d" / "notes.txt").write_text("mine")
    make_dashboard(**parts, out=tmp_path / "d", features=[SILENT], n_segments=1, title="Of one")
    assert [path.name for path in (tmp_path / "d" / "features").iterdir()] == ["00007.html"]
    assert not list((tmp_path / "d" / "clips").iterdir())
    assert (tmp_path / "d" / "notes.txt").read_text() == "mine"
    assert "Of one" in Reader((tmp_path / "d" / "index.html").read_text(encoding="utf-8")).texts["h1"]
    silent = (tmp_path / "d" / "features" / "00007.html").read_text(encoding="utf-8")
    assert "It never fires on the 200 frames of 5 clips" in silent


def test_one_file_holds_everything(parts: dict[str, Any]) -> None:
    shown = Reader(feature_page(**parts, latent=WORDS))
    links = [value for _, attributes in shown.elements for name, value in attributes.items() if name in ("src", "href")]
    assert all(link.startswith(("data:", "#")) for link in links)
    assert len(shown.all("audio")) == len(shown.all("img")) == len(IDS)
    policy = next(one["content"] for one in shown.all("meta") if one.get("http-equiv") == "Content-Security-Policy")
    assert "'self'" not in policy and "script-src 'sha256-" in policy


def test_a_clip_that_cannot_be_read_has_no_player(parts: dict[str, Any], tmp_path: Path) -> None:
    items = list(parts["corpus"])
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"RIFF")
    items[4] = type(items[4])(items[4].id, broken, language="ru")
    corpus = Corpus(items, on_error="skip")
    made = make_dashboard(**{**parts, "corpus": corpus}, out=tmp_path / "d", features=[WORDS])
    assert made.n_clips == len(IDS) - 1
    text = page(made, WORDS).read_text(encoding="utf-8")
    assert text.count("The sound of this clip could not be read.") == 1 and text.count("<audio") == len(IDS) - 1


def test_codes_of_a_store_and_of_a_basis(parts: dict[str, Any], tmp_path: Path) -> None:
    store = make_store(tmp_path / "acts", [[20, 30]])
    items = [replace(item, id=f"clip-{at}") for at, item in enumerate(parts["corpus"])]
    shared = {"model": parts["model"], "corpus": Corpus(items)}
    basis = Basis(torch.eye(3), torch.zeros(3), k=2, kind="neurons")
    html = feature_page(**shared, sae=basis, codes=encode_store(basis, store, HOOK, progress=False), latent=0)
    assert "Latent 0" in html and "Nearest directions" not in html
    with pytest.raises(AnalysisError, match="A basis does not say which hook it is of: pass codes="):
        feature_page(**shared, sae=basis, latent=0)
    with pytest.raises(AnalysisError, match="reads rows of 16, and .* has rows of 3"):
        feature_page(**shared, sae=parts["sae"], codes=store, latent=0)


def test_what_does_not_belong_together_is_refused(parts: dict[str, Any], tmp_path: Path) -> None:
    def refused(error: type[Exception], match: str, **changes: Any) -> None:
        with pytest.raises(error, match=match):
            make_dashboard(**{**parts, "out": tmp_path / "never", **changes})
        assert not (tmp_path / "never").exists()

    other = random_sae("topk", "encoder.blocks.0.hook_resid_post", d_sae=N_LATENTS)
    refused(AnalysisError, "The codes are of 'encoder.hook_out', and the SAE is of 'encoder.blocks.0", sae=other)
    decoder = random_sae("topk", "decoder.blocks.0.hook_resid_post", d_sae=N_LATENTS)
    refused(AnalysisError, "runs over tokens of the decoder", sae=decoder)
    refused(SaeError, "has rows of 16", sae=random_sae("topk", HOOK, d_in=8, d_sae=N_LATENTS))
    refused(AnalysisError, "The codes are of 32 latents, and the SAE has 16", sae=random_sae("topk", HOOK, d_sae=16))
    refused(AnalysisError, "features names latent 32: there are 32", features=[32])
    refused(AnalysisError, "features names latent 3 twice", features=[3, 3])
    refused(AnalysisError, "names no latent", features=[])
    refused(AnalysisError, "n_segments=0", n_segments=0)
    refused(AnalysisError, "no tier 'wrod'.*word", tiers=["wrod"])
    refused(AnalysisError, "five sounds lacks 4, such as 'en/one'", corpus=_some(parts["corpus"], 1))
    refused(AnalysisError, "steering names latent 99", steering={99: parts["steering"][WORDS]})


def _some(corpus: Corpus, n: int) -> Corpus:
    return Corpus(list(corpus)[:n], name="five sounds")


def test_other_things_in_the_folder_are_left_alone(parts: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "index.html").write_text("mine")
    with pytest.raises(AnalysisError, match="holds other things than a dashboard .* name a new folder"):
        make_dashboard(**parts, out=tmp_path / "letters")
    assert [path.name for path in (tmp_path / "letters").iterdir()] == ["index.html"]
    with pytest.raises(AnalysisError, match="is a file: a dashboard is a folder"):
        make_dashboard(**parts, out=tmp_path / "letters" / "index.html")
