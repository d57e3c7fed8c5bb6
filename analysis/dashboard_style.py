"""Style sheets of a dashboard: those of `hooked_whisper.analysis.page`, and what a dashboard has more."""

from __future__ import annotations

from hooked_whisper.analysis.page_style import STYLE

_COLOURS = """
:root { --firing: #c2410c; }
@media (prefers-color-scheme: dark) { :root { --firing: #fb923c; } }
"""

FEATURE_STYLE = (
    STYLE
    + _COLOURS
    + """
h3 { font-size: 1.02rem; margin: 0; overflow-wrap: anywhere; }
mark { background: var(--mark); color: var(--ink); padding: 0 .15em; border-radius: .2em; }
nav a { padding: .6rem .2rem; }
.hit { border-top: 1px solid var(--rule); padding: 1rem 0; }
.hit:last-child { padding-bottom: 0; }
.peak, .said { margin: .2rem 0; }
.peak { color: var(--muted); font-size: .9rem; }
.buttons { display: flex; flex-wrap: wrap; gap: .5rem; margin: .5rem 0; }
.buttons button { font: inherit; color: var(--accent); background: none; border: 1px solid var(--accent);
  border-radius: .4rem; padding: .35rem .8rem; cursor: pointer; min-height: 2.4rem; }
.buttons button:hover { background: var(--ground); }
.buttons button[aria-pressed="true"] { background: var(--mark); }
.hit .scroll { margin-top: .7rem; }
.strip { position: relative; width: calc(var(--seconds) * 200px); }
.view { position: relative; height: 130px; background: #fff; overflow: hidden; border-radius: .3rem; cursor: pointer; }
.view img { position: absolute; width: 100%; height: 100%; }
.view svg { position: absolute; width: 100%; height: 100%; }
@media (prefers-color-scheme: dark) { .view { background: #000; } .view img { filter: invert(1); } }
.view rect { fill: var(--firing); opacity: .16; }
.view path { fill: var(--firing); opacity: .72; }
.playhead { background: var(--accent); }
.clock { position: relative; height: 1.2rem; font-size: .75rem; color: var(--muted); }
.clock span { position: absolute; white-space: nowrap; border-left: 1px solid var(--rule); padding-left: .2rem; }
.tier { position: relative; height: 1.7rem; margin: .15rem 0 0; padding: 0; list-style: none; font-size: .82rem; }
.tier li { position: absolute; top: 0; bottom: 0; overflow: hidden; white-space: nowrap; text-align: center;
  border: 1px solid var(--rule); border-radius: .2rem; line-height: 1.55rem; }
.tier li.at { background: var(--mark); border-color: var(--firing); }
.facts > div { display: grid; grid-template-columns: 11rem 1fr; gap: .2rem .8rem; padding: .15rem 0; }
@media (max-width: 40rem) { .facts > div { grid-template-columns: 1fr; } }
.bars { max-width: 34rem; }
.bars svg { width: 100%; height: 7rem; border-bottom: 1px solid var(--muted); display: block; }
.bars rect { fill: var(--accent); }
.ends { display: flex; justify-content: space-between; font-size: .8rem; color: var(--muted); }
.dose input { width: min(24rem, 100%); accent-color: var(--accent); vertical-align: middle; }
.dose output { font-weight: 600; }
.steering ul, footer ul { color: var(--muted); font-size: .9rem; padding-left: 1.2rem; }
"""
)

INDEX_STYLE = (
    STYLE
    + _COLOURS
    + """
:root { --wide: 76rem; }
form { display: flex; flex-wrap: wrap; gap: .8rem 1.2rem; align-items: end; margin: 0; }
form > div { max-width: 100%; }
label { display: block; color: var(--muted); font-size: .85rem; margin-bottom: .2rem; }
input[type=search], select { font: inherit; color: inherit; background: var(--paper); border: 1px solid var(--muted);
  border-radius: .4rem; padding: .4rem .6rem; min-height: 2.5rem; max-width: 100%; }
input[type=search] { width: 22rem; }
#found { margin: .9rem 0 .2rem; color: var(--muted); }
.table { margin-top: .4rem; }
td, th { white-space: nowrap; }
td.wide { white-space: normal; min-width: 9rem; }
tbody tr:hover { background: var(--ground); }
thead button { font: inherit; font-weight: 600; color: inherit; background: none; border: 0; padding: .5rem 0;
  cursor: pointer; min-height: 2.4rem; }
thead button:hover { text-decoration: underline; }
thead button span { color: var(--accent); display: inline-block; min-width: 1em; }
tbody th { position: sticky; left: 0; background: var(--paper); }
tbody th a { display: inline-block; padding: .3rem .4rem .3rem 0; margin: -.3rem 0; min-width: 2.4rem; }
.pages { display: flex; flex-wrap: wrap; gap: .6rem 1rem; align-items: center; margin-top: 1rem; }
.pages button { font: inherit; color: var(--accent); background: none; border: 1px solid var(--accent);
  border-radius: .4rem; padding: .35rem .9rem; min-height: 2.5rem; cursor: pointer; }
.pages button:disabled { color: var(--muted); border-color: var(--rule); cursor: default; }
.classes { display: flex; flex-wrap: wrap; gap: .3rem 1.4rem; margin: .6rem 0 0; padding: 0; list-style: none; }
"""
)
