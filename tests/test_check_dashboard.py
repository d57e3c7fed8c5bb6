"""A dashboard in a real browser, where there is one: quick, audible, silent on the network, whole on a phone.

With AXE_CORE, the path of axe.min.js, accessibility is checked, too.
"""

from __future__ import annotations

import base64
import os
import sys
from pathlib import Path

import pytest
import torch
from small_dashboard import WORDS, make_parts

from hooked_whisper.analysis.dashboard import feature_page, make_dashboard
from hooked_whisper.analysis.dashboard_media import mp3

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))
from check_dashboard import check
from chromium import chromium, find_chromium

PROGRAM = find_chromium()
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no Chromium here")


HEARD = """(async () => {
  const uri = "URI", bytes = Uint8Array.from(atob(uri.split(",")[1]), (letter) => letter.charCodeAt(0));
  const sound = await new OfflineAudioContext(1, 16000, 16000).decodeAudioData(bytes.buffer);
  const samples = [...sound.getChannelData(0).map(Math.abs)], click = samples.indexOf(Math.max(...samples)) / 16000;
  const audio = new Audio(uri), context = new AudioContext(), listener = context.createScriptProcessor(256, 1, 1);
  let loudest = 0, at = null;
  listener.onaudioprocess = (event) => {
    for (const sample of event.inputBuffer.getChannelData(0)) if (Math.abs(sample) > loudest + 0.05) {
      loudest = Math.abs(sample);
      at = audio.currentTime;
    }
  };
  context.createMediaElementSource(audio).connect(listener);
  listener.connect(context.destination);
  await audio.play();
  await new Promise((done) => { audio.onended = done; });
  return [click, sound.length / 16000, audio.duration, at];
})()"""


def test_sound_starts_where_the_clip_starts() -> None:
    waveform = torch.zeros(12_777)
    waveform[4800:4810] = 0.9  # a click at 0.3 s; an encoder's delay that is not taken off would be 0.07 s
    uri = f"data:audio/mpeg;base64,{base64.b64encode(mp3(waveform)).decode('ascii')}"
    assert PROGRAM is not None
    with chromium(PROGRAM) as open_tab:
        tab = open_tab()
        tab.open("about:blank")
        decoded, length, duration, played = tab.run(HEARD.replace("URI", uri))
    assert decoded == pytest.approx(0.3, abs=0.002)
    assert (length, duration) == pytest.approx((12_777 / 16_000, 12_777 / 16_000), abs=1e-5)
    assert played == pytest.approx(0.3, abs=0.045)  # the clock moves on in steps


def test_a_dashboard_in_the_browser(tmp_path: Path) -> None:
    parts = make_parts(tmp_path / "sounds")
    made = make_dashboard(**parts, out=tmp_path / "dashboard", features=[WORDS, *range(WORDS)])
    axe = os.environ.get("AXE_CORE")
    (tmp_path / "one.html").write_text(feature_page(**parts, latent=WORDS), encoding="utf-8")
    assert PROGRAM is not None
    with chromium(PROGRAM) as open_tab:
        report = check(open_tab, made.folder, None if axe is None else Path(axe).read_text(encoding="utf-8"))
        assert not report.failed, report.to_markdown()
        tab = open_tab()
        tab.open((tmp_path / "one.html").as_uri())
        tab.run("document.querySelector('.buttons button').click()")
        tab.until("document.querySelector('.hit audio').currentTime > 0")
        doses = (
            "[...document.querySelectorAll('[data-dose]')].filter((one) => !one.hidden).map((one) => one.dataset.dose)"
        )
        assert tab.run(doses) == ["1"]
        tab.run("document.querySelector('.dose input').focus()")
        tab.press("ArrowRight")
        assert tab.until(f"{doses}.join() !== '1'") and tab.run(doses) == ["2"]
        assert tab.run("document.querySelector('.dose output').value") == "2"
        assert not tab.errors and not [one for one in tab.requests if not one.startswith("file:")]
