"""The style sheet of the page. Text has a contrast of at least 4.5:1 and marks 3:1, light and dark."""

STYLE = """
:root{--ground:#fff;--ink:#1b1f24;--dim:#50575f;--rule:#d5d9de;--soft:#f3f5f7;--link:#0b57a4;--heat:#74b4ee;
--cold:#eda864;--good:#1a7440;--bad:#b3261e;--s0:#0b5cad;--s1:#b3421e;--s2:#1a7440;--s3:#7a3e9d;--s4:#7a5a00;
--s5:#00707a;--s6:#a0346e;--s7:#50575f}
@media (prefers-color-scheme:dark){:root{--ground:#14171a;--ink:#e6e8ea;--dim:#a9b0b7;--rule:#3a4047;--soft:#1e2226;
--link:#8cc2ff;--heat:#1f5f9e;--cold:#8a4f14;--good:#6fd39b;--bad:#ff9b8f;--s0:#7ab8ff;--s1:#ff9f7a;--s2:#6fd39b;
--s3:#cfa2f2;--s4:#e0b252;--s5:#5fd0d8;--s6:#f29bc4;--s7:#b5bac0}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%;text-size-adjust:100%}
body{margin:0 auto;max-width:76rem;padding:1rem;background:var(--ground);color:var(--ink);
font:1rem/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",sans-serif;overflow-wrap:break-word}
h1{font-size:1.6rem;line-height:1.2;margin:.5rem 0}
h2{font-size:1.3rem;margin:2.5rem 0 .5rem;padding-top:.5rem;border-top:2px solid var(--ink)}
h3{font-size:1.05rem;margin:1.6rem 0 .4rem}
p,li{max-width:46rem}
a{color:var(--link)}
a:focus-visible,summary:focus-visible,.scroll:focus-visible{outline:3px solid var(--link);outline-offset:2px}
.skip{position:absolute;left:-999rem}
.skip:focus{left:1rem;top:.5rem;background:var(--ground);padding:.5rem}
nav ul{list-style:none;padding:0;margin:1rem 0;display:flex;flex-wrap:wrap;gap:.25rem 1.2rem}
nav a{display:inline-block;padding:.2rem 0}
.answer{font-size:1.1rem;margin:.4rem 0}
.note{border-left:4px solid var(--rule);padding-left:.8rem;color:var(--dim)}
.grid{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,20rem),1fr));gap:1.2rem 1.6rem}
figure{margin:0;max-width:34rem;min-width:0}
figcaption{margin:.3rem 0 .5rem}
svg{display:block;width:100%;height:auto;overflow:visible}
svg text{font:11px system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",sans-serif;fill:var(--ink)}
svg text.dim{fill:var(--dim)}
svg text.small{font-size:10px}
svg text.strong{font-weight:600}
.legend{list-style:none;display:flex;flex-wrap:wrap;gap:.1rem 1rem;padding:0;margin:.3rem 0;font-size:.875rem}
.legend svg{display:inline-block;width:24px;height:14px;margin-right:.35rem;vertical-align:middle}
.s0{--c:var(--s0)}.s1{--c:var(--s1)}.s2{--c:var(--s2)}.s3{--c:var(--s3)}.s4{--c:var(--s4)}.s5{--c:var(--s5)}
.s6{--c:var(--s6)}.s7{--c:var(--s7)}.better{--c:var(--good)}.worse{--c:var(--bad)}
.same{--c:var(--dim)}.ink{--c:var(--ink)}
.line{fill:none;stroke:var(--c);stroke-width:2}
.line.quiet{stroke-width:.9}
.mark{fill:var(--c)}
.mark.hollow{fill:var(--ground);stroke:var(--c);stroke-width:1.6}
.stroke{fill:none;stroke:var(--c);stroke-width:1.8}
.bar{stroke:var(--c);stroke-width:2}
.bar.thin{stroke-width:1.4}.bar.thick{stroke-width:6}
.fill{fill:var(--c)}
line.rule{stroke:var(--rule);stroke-width:1}
line.axis{stroke:var(--dim);stroke-width:1}
line.zero{stroke:var(--ink);stroke-width:1.2}
line.link{stroke:var(--dim);stroke-width:.6;stroke-opacity:.55}
.frame{fill:none;stroke:var(--rule)}
.heat{fill:var(--heat)}.cold{fill:var(--cold)}
details{margin:.4rem 0;font-size:.9rem}
summary{cursor:pointer;color:var(--link);padding:.25rem 0}
.scroll{overflow-x:auto;margin:.6rem 0;max-width:100%}
table{border-collapse:collapse;font-size:.9rem;font-variant-numeric:tabular-nums}
caption{text-align:left;color:var(--dim);padding:.2rem 0}
th,td{padding:.25rem .6rem;border-bottom:1px solid var(--rule);text-align:left;vertical-align:top}
th{font-weight:600}
td,dd{unicode-bidi:plaintext}
.num{text-align:right;white-space:nowrap}
.example{background:var(--soft);padding:.4rem .9rem .8rem;margin:1rem 0;max-width:46rem}
.example h3{margin:.3rem 0}
dl{margin:.3rem 0;display:grid;grid-template-columns:minmax(5.5rem,max-content) 1fr;gap:.2rem .9rem}
dt{color:var(--dim)}
dd{margin:0;min-width:0;width:fit-content;white-space:pre-wrap;overflow-wrap:anywhere}
footer{margin-top:3rem;border-top:1px solid var(--rule);color:var(--dim);font-size:.9rem}
@media (max-width:30rem){dl{grid-template-columns:1fr;gap:0}dt{margin-top:.4rem}}
@media print{:root{--ground:#fff;--ink:#000;--dim:#444;--rule:#bbb;--soft:#fff;--link:#000;--heat:#74b4ee;
--cold:#eda864;--good:#1a7440;--bad:#b3261e;--s0:#0b5cad;--s1:#b3421e;--s2:#1a7440;--s3:#7a3e9d;--s4:#7a5a00;
--s5:#00707a;--s6:#a0346e;--s7:#50575f}nav,.skip,summary,details:not([open]){display:none}
.grid{grid-template-columns:1fr 1fr}table{font-size:.7rem}th,td{padding:.15rem .3rem}
figure,tr,.example{break-inside:avoid}h2,h3{break-after:avoid}.scroll{overflow:visible}
svg{print-color-adjust:exact;-webkit-print-color-adjust:exact}}
"""
