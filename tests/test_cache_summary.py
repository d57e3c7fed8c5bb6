"""What a cache says about itself."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from small import small_config, small_inputs, small_model

from hooked_whisper import HookedWhisper, WhisperCache
from hooked_whisper.cache_summary import one_line, table

CFG = small_config()


@pytest.fixture
def cache() -> WhisperCache:
    return small_model().run_with_cache(*small_inputs(CFG))[1]


def test_layers_of_a_kind_share_a_line(cache: WhisperCache) -> None:
    lines = table(cache).splitlines()
    assert lines[0].split() == ["name", "axes", "shape", "MB"]
    line = next(line for line in lines if line.startswith("decoder.blocks.0-2.mlp.hook_pre"))
    assert re.split(r" {2,}", line)[1:3] == ["batch pos d_mlp", "[2, 5, 20]"]
    assert sum(line.startswith("encoder.blocks.0-1.attn.hook_pattern") for line in lines) == 1
    assert "derived when read" in next(
        line for line in lines if line.startswith("encoder.blocks.0-1.attn.hook_pattern")
    )
    assert len(table(cache, every_layer=True).splitlines()) == 2 + len(cache) + len(cache.derivable())


def test_the_total_counts_shared_memory_once(cache: WhisperCache) -> None:
    lines = table(cache, every_layer=True).splitlines()
    assert any(line.endswith("shared") for line in lines)
    assert lines[-1] == f"{len(cache)} activations, {cache.nbytes / 1e6:.1f} MB"


def test_layers_that_are_not_all_there_are_listed() -> None:
    names = ["decoder.blocks.0.hook_mlp_out", "decoder.blocks.2.hook_mlp_out"]
    _, cache = small_model().run_with_cache(*small_inputs(CFG), names_filter=names)
    assert "decoder.blocks.0,2.hook_mlp_out" in table(cache)
    assert one_line(cache).startswith("WhisperCache(2 activations, 0.0 MB (float64 on cpu); 2 clips of")


def test_one_line_of_real_speech(whisper_base: HookedWhisper, data: Path) -> None:
    path = data / "speech" / "en" / "vm-sorry.g722"
    names = ["encoder.blocks.0.attn.hook_q", "encoder.blocks.0.attn.hook_k", "hook_logits"]
    _, cache = whisper_base.run_with_cache(path, "x" * 50, language="en", names_filter=names)
    said = one_line(cache.seconds(0.5, 1.0))
    assert "1 clip of 0.5 s, cut to 0.5-1 s" in said
    assert "x…" in said
    assert "derived when read: 1 hook_attn_scores, 1 hook_pattern" in said
