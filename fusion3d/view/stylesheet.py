"""The look of the report: one style sheet for screens light and dark, wide and narrow, and for paper."""

STYLESHEET = """
:root {
  color-scheme: light dark;
  --paper: #fbfbfa; --surface: #ffffff; --ink: #1b2026; --soft: #5e6976; --rule: #dfe3e8;
  --accent: 20 104 196; --good: #0b7d4f; --mark: #fff3cd;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #0e1116; --surface: #151a21; --ink: #e3e8ef; --soft: #98a3b2; --rule: #2a323d;
    --accent: 86 170 255; --good: #4fd39a; --mark: #3a3313;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0 auto; padding: 3rem 1.5rem 5rem; max-width: 76rem; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "Liberation Sans", sans-serif;
}
h1 { font-size: 2.1rem; line-height: 1.15; margin: 0 0 .4rem; letter-spacing: -.02em; }
h2 { font-size: 1.3rem; margin: 3.2rem 0 .35rem; letter-spacing: -.01em; }
h3 { font-size: 1rem; margin: 1.8rem 0 .3rem; }
p { max-width: 46rem; margin: .35rem 0 1rem; }
.soft, figcaption, .note { color: var(--soft); }
.note { font-size: .875rem; }
a { color: rgb(var(--accent)); }
nav { margin-top: 1rem; font-size: .9rem; display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; }
.headline {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(13rem, 1fr)); gap: 1rem;
  margin: 2rem 0 0;
}
.headline > div {
  background: var(--surface); border: 1px solid var(--rule); border-radius: .6rem;
  padding: 1rem 1.15rem;
}
.headline dt { font-size: .85rem; color: var(--soft); }
.headline dd { margin: 0; font-size: .85rem; color: var(--soft); }
.headline dd.figure {
  font-size: 2rem; line-height: 1.25; font-weight: 650; color: var(--ink); font-variant-numeric: tabular-nums;
}
.wide { position: relative; overflow-x: auto; margin: .8rem 0; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td {
  padding: .42rem .7rem; text-align: right; border-bottom: 1px solid var(--rule);
  white-space: nowrap;
}
thead th {
  font-weight: 600; color: var(--soft); border-bottom: 2px solid var(--rule);
  vertical-align: bottom;
}
thead th small { display: block; font-weight: 400; }
tbody th { text-align: left; font-weight: 500; }
tr > :first-child { text-align: left; padding-left: 0; }
td.best { font-weight: 700; color: var(--good); }
td.best::after { content: " \\2217"; position: absolute; }
td.heat { background: rgb(var(--accent) / calc(var(--v) * .55)); text-align: center; }
.heatmap th { text-align: center; font-size: .82rem; }
.heatmap tr > :first-child { text-align: left; }
.heatmap thead th { white-space: normal; min-width: 4.4rem; }
.dots { letter-spacing: .18em; }
.dots i {
  display: inline-block; width: .62em; height: .62em; border-radius: 50%;
  border: 1.5px solid var(--soft); margin-right: .3em;
}
.dots i.on { background: rgb(var(--accent)); border-color: rgb(var(--accent)); }
td.bar { min-width: 8rem; width: 60%; text-align: left; }
.bar span {
  display: inline-block; height: .55rem; border-radius: .3rem;
  background: rgb(var(--accent)); vertical-align: middle;
}
.bar.below span { background: repeating-linear-gradient(45deg, var(--soft) 0 3px, transparent 3px 6px); }
td small { display: block; font-weight: 400; }
.charts {
  display: grid; grid-template-columns: repeat(auto-fill, minmax(19rem, 1fr)); gap: 1.2rem;
  margin: 1rem 0;
}
.charts figure {
  margin: 0; background: var(--surface); border: 1px solid var(--rule); border-radius: .6rem;
  padding: .8rem .9rem .6rem;
}
.charts figcaption { font-size: .85rem; display: flex; justify-content: space-between; gap: 1rem; }
.charts figcaption b { color: var(--ink); font-weight: 600; }
svg { display: block; width: 100%; height: auto; }
svg text { font: 11px system-ui, sans-serif; fill: var(--soft); }
svg .grid { stroke: var(--rule); stroke-width: 1; }
svg .column { fill: rgb(var(--accent)); }
svg .dot { fill: var(--ink); }
svg .raw { stroke: rgb(var(--accent) / .3); stroke-width: 1; fill: none; }
svg .line { stroke: rgb(var(--accent)); stroke-width: 2; fill: none; stroke-linejoin: round; }
.picture { margin: 1.4rem calc(50% - min(50vw - 2rem, 60rem)) 2.2rem; }
.picture img { display: block; width: 100%; height: auto; border-radius: .5rem; background: #0e1116; }
.picture figcaption { font-size: .9rem; margin-top: .45rem; }
pre {
  font: .84rem/1.5 ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; white-space: pre-wrap;
  background: var(--surface); border: 1px solid var(--rule); border-radius: .6rem; padding: 1rem 1.2rem;
  overflow-wrap: anywhere;
}
.facts { width: auto; }
.facts td { text-align: left; white-space: normal; overflow-wrap: anywhere; }
.hidden { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
@media (max-width: 40rem) { body { padding: 1.6rem 1rem 3rem; } h1 { font-size: 1.6rem; } }
@media print {
  :root {
    color-scheme: light; --paper: #fff; --surface: #fff; --ink: #000; --soft: #444;
    --rule: #bbb; --accent: 20 104 196; --good: #0b7d4f;
  }
  body { max-width: none; padding: 0; font-size: 10.5pt; }
  nav { display: none; }
  h2 { break-after: avoid; }
  figure, tr, .headline > div { break-inside: avoid; }
  td.heat, .bar span, .dots i { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  .wide { overflow: visible; }
  .picture { margin-inline: 0; }
  th, td { padding: .25rem .35rem; }
}
"""
