"""How the report's page looks, on a screen and on paper."""

STYLE = """
:root{color-scheme:light;--ink:#1b2330;--soft:#5b6675;--line:#dfe4ea;--good:#176b3a;--bad:#b3201f;--open:#8a5a00;
--paper:#fff}
*{box-sizing:border-box}
body{margin:0;background:#eef1f5;color:var(--ink);font:14px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:1120px;margin:24px auto;padding:36px 40px;background:var(--paper);box-shadow:0 1px 4px #0002}
.kind{margin:0;color:var(--soft);text-transform:uppercase;letter-spacing:.08em;font-size:12px}
h1{margin:4px 0 8px;font-size:25px;line-height:1.25}
h2{margin:34px 0 10px;font-size:17px;border-bottom:2px solid var(--line);padding-bottom:4px}
h3{margin:0 0 6px;font-size:13px}
.badge{display:inline-block;vertical-align:middle;padding:2px 10px;border-radius:4px;font-size:13px;
letter-spacing:.05em;color:#fff}
.badge.good{background:var(--good)}.badge.bad{background:var(--bad)}.badge.open{background:var(--open)}
.about{white-space:pre-line;color:var(--soft);margin:0 0 14px}
dl{display:grid;grid-template-columns:repeat(4,1fr);gap:10px 24px;margin:16px 0 0}
dt{color:var(--soft);font-size:12px}dd{margin:0;overflow-wrap:anywhere}
.warnings{margin-top:22px;border:2px solid var(--bad);border-radius:6px;background:#fdf1f0;padding:10px 16px}
.warnings ul{margin:0;padding-left:18px}.warnings li{overflow-wrap:anywhere}
.warnings .not-fenced,.warnings .fencing-failed{font-weight:700;color:var(--bad);font-size:16px}
.cards{display:flex;gap:16px;margin-top:22px;flex-wrap:wrap}
.card{flex:1 1 300px;border:1px solid var(--line);border-left:5px solid var(--soft);border-radius:6px;
padding:14px 18px}
.card.good{border-left-color:var(--good)}.card.bad{border-left-color:var(--bad)}
.card.open{border-left-color:var(--open)}
.card p{margin:0}.card .value{font-size:28px;font-weight:650;line-height:1.3}.how{color:var(--soft);font-size:12.5px}
b.good{color:var(--good)}b.bad{color:var(--bad)}b.open{color:var(--open)}
.wide{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:13px}
th{text-align:left;color:var(--soft);font-weight:600;border-bottom:1px solid var(--line);padding:5px 12px 5px 0}
td{vertical-align:top;border-bottom:1px solid var(--line);padding:6px 12px 6px 0}
td code{white-space:nowrap}.long{overflow-wrap:anywhere}
.time{white-space:nowrap;font-variant-numeric:tabular-nums}
small{color:var(--soft)}
code,pre{font-family:ui-monospace,"DejaVu Sans Mono",Menlo,Consolas,monospace;font-size:12px}
pre{background:#f6f8fa;border:1px solid var(--line);border-radius:4px;padding:10px 12px;margin:0;white-space:pre-wrap;
overflow-wrap:anywhere}
.output{margin-bottom:14px}
.timeline{width:100%;height:auto;font-size:11px}
.timeline .stripe{fill:#f6f8fa}.timeline .tick{stroke:var(--line)}.timeline .step{text-anchor:end;fill:var(--ink)}
.timeline .scale{text-anchor:middle;fill:var(--soft)}.timeline .took{fill:var(--soft)}
.timeline rect.ok{fill:#3f8f63}.timeline rect.bad{fill:#c8403d}.timeline rect.wait{fill:#d09a2f}
.timeline rect.open{fill:#6c8ebf}
.timeline line.recovered{stroke:var(--good);stroke-width:1.5}
.timeline text.recovered{fill:var(--good);font-weight:600}
.timeline line.objective{stroke:var(--bad);stroke-width:1.5;stroke-dasharray:5 3}
.timeline text.objective{fill:var(--bad);font-weight:600}
footer{margin-top:36px;border-top:1px solid var(--line);padding-top:10px;color:var(--soft);font-size:12px;
overflow-wrap:anywhere}
@media (max-width:760px){main{padding:20px}dl{grid-template-columns:repeat(2,1fr)}}
@page{size:A4;margin:14mm}
@media print{body{background:none;font-size:11px}main{max-width:none;margin:0;padding:0;box-shadow:none}
*{-webkit-print-color-adjust:exact;print-color-adjust:exact}
table{font-size:10px}thead{display:table-header-group}tr,.card,.warnings,.output h3{break-inside:avoid}
h2{break-after:avoid}
.wide{overflow:visible}pre{font-size:9.5px}.timeline{break-inside:auto}}
"""
