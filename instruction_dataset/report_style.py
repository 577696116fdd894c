"""The look of the report page: one style sheet, light and dark, for wide screens and phones."""

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #f6f5f1; --card: #fff; --ink: #1d1f24; --soft: #666a73; --line: #e4e2da; --faint: #f1efe9;
  --bad: #c0352b; --bad-soft: #fbeae7; --warn: #9a6200; --warn-soft: #fbf1dc; --good: #1d7a4c; --good-soft: #e3f3ea;
  --mark: #d3f0de; --mark-line: #2f9e68; --chip: #e6e8f4; --chip-ink: #3e4a8c;
  --c0: #3b6fd4; --c1: #e08a2e; --c2: #2f9e86; --c3: #b8519b; --c4: #7a66cf;
  --c5: #c9a227; --c6: #4aa5cf; --c7: #d0575a; --c8: #7f9a3e; --c9: #8d7a68;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14161a; --card: #1d2025; --ink: #e8e6e1; --soft: #9a9da6; --line: #31353c; --faint: #24282e;
    --bad: #ff8a7d; --bad-soft: #3b2220; --warn: #f0c069; --warn-soft: #362c18; --good: #6fd3a0; --good-soft: #18332a;
    --mark: #1b4230; --mark-line: #4fc48d; --chip: #2d3350; --chip-ink: #b4c0ff;
    --c0: #6f9bf0; --c1: #f0a95c; --c2: #58c4ac; --c3: #d983bf; --c4: #a494ec;
    --c5: #e0c05a; --c6: #7cc6e6; --c7: #ec8385; --c8: #a9c46a; --c9: #b8a592;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 2.5rem 1.5rem 4rem; max-width: 76rem; background: var(--paper); color: var(--ink);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif;
  -webkit-text-size-adjust: 100%;
}
h1 { margin: 0; font-size: 2rem; line-height: 1.2; letter-spacing: -.02em; overflow-wrap: anywhere; }
h2 { margin: 3rem 0 1rem; font-size: 1.25rem; letter-spacing: -.01em; }
h3 { margin: 0; font-size: 1rem; overflow-wrap: anywhere; }
p { margin: 0; }
small, .soft { color: var(--soft); font-size: .85rem; }
.eyebrow { color: var(--soft); font-size: .8rem; letter-spacing: .08em; text-transform: uppercase; margin-bottom: .4rem; }
.path { color: var(--soft); font-size: .85rem; overflow-wrap: anywhere; margin-top: .35rem; }
.settings { display: flex; flex-wrap: wrap; gap: .3rem 1.1rem; margin-top: .5rem; color: var(--soft); font-size: .85rem; }
.settings span { overflow-wrap: anywhere; }
.settings b { color: var(--ink); font-weight: 500; }
.verdict { margin-top: 1.5rem; padding: 1rem 1.25rem; border-radius: 12px; font-size: 1.05rem; }
.verdict b { margin-right: .35rem; }
.verdict.good { background: var(--good-soft); color: var(--good); }
.verdict.bad { background: var(--bad-soft); color: var(--bad); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(8.5rem, 1fr)); gap: .75rem; margin-top: .75rem; }
.tile, .card {
  background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 1rem 1.25rem; min-width: 0;
}
.tile b { display: block; font-size: 1.6rem; font-weight: 600; line-height: 1.25; letter-spacing: -.02em; }
.tile span { color: var(--soft); font-size: .85rem; }
.tile.bad b { color: var(--bad); }
.tile.warn b { color: var(--warn); }
.card + .card { margin-top: .75rem; }
.card > header { display: flex; flex-wrap: wrap; align-items: baseline; gap: .15rem .75rem; margin-bottom: .5rem; }
details { border-top: 1px solid var(--line); }
summary {
  display: flex; align-items: baseline; gap: .75rem; padding: .6rem 0; cursor: pointer; list-style: none;
}
summary::-webkit-details-marker { display: none; }
summary::after {
  content: ""; width: .45rem; height: .45rem; margin-left: auto; flex: none; transform: rotate(45deg) translate(-2px, -2px);
  border: solid var(--soft); border-width: 0 1.5px 1.5px 0;
}
details[open] > summary::after { transform: rotate(-135deg); }
.badge { flex: none; padding: .05rem .55rem; border-radius: 99px; font-size: .78rem; font-weight: 600; }
.badge.bad { background: var(--bad-soft); color: var(--bad); }
.badge.warn { background: var(--warn-soft); color: var(--warn); }
.number { font-variant-numeric: tabular-nums; color: var(--soft); white-space: nowrap; }
ol.examples { margin: 0 0 .9rem; padding: .6rem .9rem; list-style: none; background: var(--faint); border-radius: 8px; }
ol.examples li { padding: .2rem 0; font-size: .85rem; overflow-wrap: anywhere; }
.mixture { display: grid; grid-template-columns: auto 1fr; gap: 1rem 2.5rem; align-items: center; }
.rings { display: flex; gap: 1.5rem; }
.rings figure { margin: 0; text-align: center; }
.ring { width: 10.5rem; display: block; }
.arc { fill: none; stroke-width: 5.5; }
.ring-label { font-size: 3.6px; text-anchor: middle; fill: var(--soft); }
.scroll { overflow-x: auto; min-width: 0; }
table { width: 100%; border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th { color: var(--soft); font-weight: 500; font-size: .8rem; text-align: right; white-space: nowrap; }
td { text-align: right; white-space: nowrap; }
th, td { padding: .45rem .6rem; border-bottom: 1px solid var(--line); }
tr:last-child td { border-bottom: 0; }
th:first-child, td:first-child { text-align: left; padding-left: 0; white-space: normal; overflow-wrap: anywhere; }
td:first-child { min-width: 9rem; }
.swatch { display: inline-block; width: .7rem; height: .7rem; border-radius: 3px; margin-right: .55rem; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(18.5rem, 1fr)); gap: .75rem; }
.charts .card + .card { margin-top: 0; }
.histogram { width: 100%; display: block; margin-top: .5rem; }
.histogram text { font-size: 11px; fill: var(--soft); }
.count { text-anchor: end; }
.tick { text-anchor: middle; }
.grid { stroke: var(--line); }
.limit { stroke: var(--bad); stroke-dasharray: 3 3; }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; margin: 0 0 .9rem; }
.gallery { columns: 21rem; column-gap: .9rem; }
.gallery .card { break-inside: avoid; margin: 0 0 .9rem; padding: 0; overflow: hidden; }
.pictures { display: flex; gap: 2px; background: var(--faint); }
.pictures img { flex: 1 1 0; min-width: 0; height: 12rem; object-fit: contain; display: block; }
.gone {
  flex: 1 1 0; min-width: 0; height: 12rem; display: flex; flex-direction: column; align-items: center;
  justify-content: center; gap: .3rem; padding: 1rem; color: var(--bad); font-size: .85rem; text-align: center;
  overflow-wrap: anywhere;
}
.text {
  padding: .9rem 1.1rem; max-height: 30rem; overflow: auto; white-space: pre-wrap; overflow-wrap: anywhere;
  font: 13px/1.6 ui-monospace, SFMono-Regular, Menlo, Consolas, "Liberation Mono", monospace; color: var(--soft);
}
mark {
  background: var(--mark); color: var(--ink); box-shadow: 0 1.5px 0 var(--mark-line); border-radius: 2px;
  -webkit-box-decoration-break: clone; box-decoration-break: clone;
}
.token { background: var(--chip); color: var(--chip-ink); border-radius: 4px; padding: 0 .25em; font-weight: 400; }
.gallery footer { padding: .6rem 1.1rem .8rem; border-top: 1px solid var(--line); overflow-wrap: anywhere; }
.gallery footer b { font-weight: 600; }
@media (max-width: 48rem) {
  body { padding: 1.5rem 1rem 3rem; }
  h1 { font-size: 1.55rem; }
  .tiles { grid-template-columns: repeat(2, 1fr); }
  .tile:first-child { grid-column: span 2; }
  .tile, .card { padding: .85rem 1rem; }
  .mixture { grid-template-columns: 1fr; }
  .rings { justify-content: space-around; gap: .75rem; }
  .ring { width: 100%; max-width: 9rem; }
  .gallery { columns: auto; }
}
@media print { body { background: none; } .text { max-height: none; } }
"""
