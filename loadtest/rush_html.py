"""The report of a rush as one HTML file: opened from a disk, mailed, printed, read on a phone. It runs no script."""

from html import escape
from pathlib import Path

from loadtest import rush_charts
from loadtest.report import Percentiles, RushReport, late
from loadtest.samples import Samples

_STYLE = """
:root{--ink:#1f2328;--soft:#59636e;--paper:#f6f8fa;--card:#fff;--line:#d8dee4;--green:#1a7f37;--teal:#0f8a8a;
--blue:#2469c9;--purple:#8250df;--yellow:#b8750b;--red:#cf222e;--grey:#8b949e}
@media screen and (prefers-color-scheme:dark){:root{--ink:#e6edf3;--soft:#9198a1;--paper:#0d1117;--card:#161b22;
--line:#30363d;--green:#3fb950;--teal:#2dc7c7;--blue:#58a6ff;--purple:#b083f0;--yellow:#e3b341;--red:#f85149;
--grey:#6e7681}}
*{box-sizing:border-box}html{color-scheme:light dark}
body{margin:0;background:var(--paper);color:var(--ink);font:15px/1.5 system-ui,sans-serif}
main{max-width:1040px;margin:0 auto;padding:28px 20px 48px}
h1{font-size:26px;margin:0;line-height:1.25;overflow-wrap:anywhere}h2{font-size:17px;margin:0 0 2px}
p{margin:4px 0;color:var(--soft);overflow-wrap:anywhere}
.badge{display:inline-block;border-radius:99px;padding:2px 12px;font-weight:600;font-size:13px;margin:10px 0;
border:1px solid currentColor}.good{color:var(--green)}.bad{color:var(--red)}.odd{color:var(--yellow)}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(132px,1fr));gap:12px;margin:16px 0}
.card,.tile{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:14px 16px}
.tile b{display:block;white-space:nowrap;font-size:20px;font-variant-numeric:tabular-nums;line-height:1.3}
.tile span{color:var(--soft);
font-size:13px}.card{margin:14px 0;break-inside:avoid}.warn{border-color:var(--yellow);border-left-width:6px}
.two{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,420px),1fr));gap:14px}.two .card{margin:0}
.legend{display:flex;flex-wrap:wrap;gap:4px 18px;margin-top:8px;font-size:13px}.legend span::before{content:"";
display:inline-block;width:11px;height:11px;border-radius:3px;background:var(--c);margin-right:6px}
.plot{overflow-x:auto;margin-top:8px}.plot svg{display:block;width:100%;min-width:560px;height:auto}
.wide{overflow-x:auto}table{border-collapse:collapse;width:100%;margin-top:8px;font-variant-numeric:tabular-nums}
th,td{text-align:right;padding:5px 0 5px 14px;border-bottom:1px solid var(--line);white-space:nowrap}
th:first-child,td:first-child{text-align:left;padding-left:0}th{color:var(--soft);font-weight:500;font-size:13px}
tr:last-child td{border-bottom:0}.bar{height:9px;border-radius:4px;background:var(--c);min-width:2px}
td.bars{width:40%}ul{margin:6px 0;padding-left:20px}li{overflow-wrap:anywhere}
dl{display:grid;grid-template-columns:auto 1fr;gap:2px 18px;margin:8px 0 0}dt{color:var(--soft)}dd{margin:0;
overflow-wrap:anywhere}
@media(max-width:560px){main{padding:18px 12px}h1{font-size:21px}.card,.tile{padding:12px}td.bars{display:none}
th,td{padding-left:10px}}
@media print{body{background:#fff;font-size:12px}main{padding:0;max-width:none}.plot svg{min-width:0}}
"""


def page(report: RushReport, samples: Samples) -> str:
    """The whole file. Raises rush_charts.ChartsUnusable."""
    title = f"Rush on {report.campaign}"
    pace = f"{report.rate:,g} requests/s" if report.rate else f"{report.buyers:,} buyers in {report.spread_s:g} s"
    kind = (", Poisson arrivals" if report.poisson else ", one every 1/rate seconds") if report.rate else ""
    badge = (
        '<span class="badge good">consistent</span>'
        if report.ok
        else '<span class="badge bad">not as it should be</span>'
    )
    warning = late(report)
    parts = [
        f"<h1>{escape(title)}</h1>",
        f"<p>{escape(pace + kind)}, at {escape(report.url)}, {escape(report.started_at)}</p>",
        badge,
    ]
    if warning:
        parts.append(
            f'<div class="card warn"><h2 class="odd">Do not trust the latencies</h2><p>{escape(warning)}</p></div>'
        )
    parts += [_tiles(report), _wrong(report)]
    parts.append(
        _plot(
            "Latency by percentile",
            "From the due time of a request to its last answer, repeats and waiting included. “Service only” counts"
            " from the sending: it is what a client reports that stops sending while the server stands still.",
            rush_charts.percentiles(samples),
        )
    )
    parts.append(f'<div class="two">{_outcomes(report)}{_latency(report)}</div>')
    parts.append(_plot("Answers over time", "By outcome, when they came.", rush_charts.answers(report)))
    parts.append(_plot("Latency over time", "By when the requests were due.", rush_charts.latencies(report)))
    words = "The time from a request's due time until the generator had it out of its hands. It should be flat and low."
    parts.append(_plot("The generator's own lag", words, rush_charts.lag(report)))
    parts.append(_settings(report))
    body = "".join(parts)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body><main>{body}</main></body></html>\n"
    )


def write(path: Path, report: RushReport, samples: Samples) -> None:
    """The file holds the report. Raises OSError, rush_charts.ChartsUnusable."""
    path.write_text(page(report, samples), encoding="utf-8")


def _ms(value: float) -> str:
    return f"{value:,.2f}" if value < 10 else f"{value:,.1f}" if value < 100 else f"{value:,.0f}"


def _tiles(report: RushReport) -> str:
    tiles = [
        (f"{report.requests:,}", "requests due"),
        (f"{report.requests_per_s:,.0f}/s", "answered"),
        (f"{report.orders:,}", "orders accepted"),
        (f"{_ms(report.latency.p50_ms)} ms", "p50 from due time"),
        (f"{_ms(report.latency.p99_ms)} ms", "p99 from due time"),
        (f"{_ms(report.latency.max_ms)} ms", "slowest"),
        (f"{_ms(report.lag.p99_ms)} ms", "generator late, p99"),
    ]
    cells = "".join(f'<div class="tile"><b>{figure}</b><span>{words}</span></div>' for figure, words in tiles)
    return f'<div class="tiles">{cells}</div>'


def _wrong(report: RushReport) -> str:
    lines = [f"{name.replace('_', ' ')}: {n:,}" for name, n in sorted(report.inconsistent.items())]
    lines += report.examples[:10]
    if report.faults:
        lines.insert(0, f"{report.faults:,} requests have no outcome after the last repeat")
    if not lines:
        return ""
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f'<div class="card"><h2 class="bad">What was wrong</h2><ul>{items}</ul></div>'


def _plot(title: str, words: str, svg: str) -> str:
    return f'<div class="card"><h2>{title}</h2><p>{words}</p>{svg}</div>'


def _outcomes(report: RushReport) -> str:
    rows = []
    for name, n in sorted(report.outcomes.items(), key=lambda found: -found[1]):
        share, colour = n / max(report.requests, 1), rush_charts.COLOURS.get(name, rush_charts.OTHER_COLOUR)
        rows.append(
            f"<tr><td>{escape(name.replace('_', ' '))}</td><td>{n:,}</td><td>{share:.1%}</td>"
            f'<td class="bars"><div class="bar" style="--c:{colour};width:{share:.2%}"></div></td></tr>'
        )
    head = '<tr><th>outcome</th><th>count</th><th>share</th><td class="bars"></td></tr>'
    more = f"<p>{report.retried:,} were sent again after a fault.</p>" if report.retried else ""
    return f'<div class="card"><h2>Outcomes</h2><table>{head}{"".join(rows)}</table>{more}</div>'


def _latency(report: RushReport) -> str:
    def row(words: str, of: Percentiles) -> str:
        cells = "".join(f"<td>{_ms(v)}</td>" for v in (of.p50_ms, of.p95_ms, of.p99_ms, of.max_ms))
        return f"<tr><td>{words}</td>{cells if of.n else '<td>–</td>' * 4}</tr>"

    head = "<tr><th>ms</th><th>p50</th><th>p95</th><th>p99</th><th>max</th></tr>"
    rows = (
        row("from due time", report.latency)
        + row("accepted", report.latency_accepted)
        + row("service only", report.service)
        + row("generator late", report.lag)
    )
    return f'<div class="card"><h2>Latency</h2><div class="wide"><table>{head}{rows}</table></div></div>'


def _settings(report: RushReport) -> str:
    pairs = [
        ("run", report.run_id),
        ("seed", str(report.seed)),
        ("connections", f"{report.connections:,}"),
        ("first to last", f"{report.elapsed_s:,.2f} s"),
        ("sent, with repeats", f"{report.sent:,}"),
        ("accepted/s, first 95 %", f"{report.accepted_per_s:,.0f}"),
    ]
    items = "".join(f"<dt>{name}</dt><dd>{escape(value)}</dd>" for name, value in pairs)
    return f'<div class="card"><h2>The run</h2><dl>{items}</dl></div>'
