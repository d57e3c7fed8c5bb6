"""Style sheet and script of `hooked_whisper.analysis.page`."""

STYLE = """
:root { --ink: #1c2230; --muted: #535c6d; --paper: #ffffff; --ground: #f4f5f8; --rule: #d6dae3; --accent: #0b5c82;
  --mark: #fde3c8; --wide: 62rem; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8ebf2; --muted: #a9b2c3; --paper: #171b24; --ground: #0e1118; --rule: #333b4b; --accent: #7cc4ea;
    --mark: #6b3d12; }
}
* { box-sizing: border-box; }
html { scroll-behavior: smooth; -webkit-text-size-adjust: 100%; }
@media (prefers-reduced-motion: reduce) { html { scroll-behavior: auto; } }
body { margin: 0; background: var(--ground); color: var(--ink); line-height: 1.55;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
header, main, footer { max-width: var(--wide); margin: 0 auto; padding: 0 1rem; }
header { padding-top: 2.2rem; }
h1 { font-size: clamp(1.6rem, 4.5vw, 2.3rem); line-height: 1.15; margin: 0 0 .6rem; letter-spacing: -.01em; }
h2 { font-size: 1.25rem; margin: 0 0 .8rem; line-height: 1.3; }
header p { max-width: 44rem; margin: .5rem 0; }
a { color: var(--accent); }
.skip { position: absolute; left: -999rem; }
.skip:focus { left: 1rem; top: .5rem; background: var(--paper); padding: .4rem .7rem; z-index: 3; }
dl { margin: 1rem 0; }
dt { color: var(--muted); font-size: .85rem; }
dd { margin: 0; overflow-wrap: anywhere; }
header dl { display: flex; flex-wrap: wrap; gap: .6rem 2rem; }
nav { position: sticky; top: 0; z-index: 2; background: var(--ground); border-bottom: 1px solid var(--rule); }
nav ul { max-width: var(--wide); margin: 0 auto; padding: .1rem 1rem; list-style: none; display: flex;
  gap: .2rem 1.1rem; overflow-x: auto; white-space: nowrap; }
nav a { display: block; padding: .6rem 0; text-decoration: none; }
nav a:hover { text-decoration: underline; }
section { background: var(--paper); border: 1px solid var(--rule); border-radius: .7rem; padding: 1.1rem 1.2rem;
  margin: 1.2rem 0; scroll-margin-top: 3.6rem; }
audio { width: 100%; max-width: 30rem; display: block; }
.texts > div { display: grid; grid-template-columns: 9rem 1fr; gap: .2rem .8rem; padding: .25rem 0; }
.texts dd { font-size: 1.08rem; }
@media (max-width: 40rem) { .texts > div { grid-template-columns: 1fr; } section { padding: .9rem .8rem; } }
.words button { font: inherit; color: inherit; background: none; border: 0; border-bottom: 2px solid var(--rule);
  margin: 0 0 .15rem; padding: .1rem; border-radius: .2rem .2rem 0 0; cursor: pointer; }
.words button:hover { border-color: var(--accent); }
.words button.now { background: var(--mark); border-color: var(--accent); }
:focus-visible { outline: 3px solid var(--accent); outline-offset: 2px; }
figure { margin: 1rem 0 0; }
figcaption, .credit { color: var(--muted); font-size: .9rem; margin: .4rem 0 0; max-width: 46rem; }
.scroll { overflow-x: auto; border-radius: .4rem; }
.frame { position: relative; min-width: 32rem; background: #fff; border-radius: .4rem; overflow: hidden; }
.frame img { display: block; width: 100%; height: auto; }
.playhead { position: absolute; top: 0; bottom: 0; width: 2px; background: #c2410c; pointer-events: none; }
.table { margin-top: 1rem; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
caption { text-align: left; color: var(--muted); padding-bottom: .4rem; }
th, td { text-align: left; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid var(--rule); vertical-align: top;
  font-weight: 400; }
thead th { font-weight: 600; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
code { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; font-size: .92em; white-space: nowrap; }
pre { margin: 1rem 0 0; font-size: .85rem; line-height: 1.45; }
summary { cursor: pointer; color: var(--accent); }
footer { color: var(--muted); font-size: .9rem; padding-bottom: 3rem; }
@media print { nav, audio { display: none; } .frame { min-width: 0; } }
"""

# Words play the clip from their start; while it plays, the word said is marked and a line runs over the pictures.
SCRIPT = """
"use strict";
for (const clip of document.querySelectorAll("section.clip")) {
  const audio = clip.querySelector("audio");
  const words = [...clip.querySelectorAll(".words button")];
  const frames = [...clip.querySelectorAll(".frame[data-left]")];
  const length = Number(clip.dataset.seconds);
  const show = () => {
    const now = audio.currentTime;
    let said = null;
    for (const word of words) if (Number(word.dataset.start) <= now && now < Number(word.dataset.end)) said = word;
    for (const word of words) word.classList.toggle("now", word === said);
    for (const frame of frames) {
      const left = Number(frame.dataset.left), right = Number(frame.dataset.right);
      const line = frame.querySelector(".playhead");
      const place = left + (right - left) * Math.min(now / length, 1);
      line.hidden = false;
      line.style.left = 100 * place + "%";
      const view = frame.parentElement;
      if (!audio.paused) view.scrollLeft = place * frame.offsetWidth - view.clientWidth / 2;
    }
    if (!audio.paused && !audio.ended) requestAnimationFrame(show);
  };
  for (const event of ["play", "seeked", "pause"]) audio.addEventListener(event, show);
  for (const word of words) word.addEventListener("click", () => {
    audio.currentTime = Number(word.dataset.start);
    audio.play();
  });
}
"""
