"""The audit as a section of locust's HTML report, which has no place for guests: it goes in before the root."""

from html import escape

from loadtest.locust_audit import AuditReport

ROOT = '<div id="root"></div>'
_WORDS = {
    "kept": ("No invariant broke", "kept"),
    "broken": ("An invariant broke", "broken"),
    "unjudged": ("Not judged", "unjudged"),
}
_STYLE = """
.rg{--ink:#1b1f24;--soft:#57606a;--card:#fff;--line:#d0d7de;--good:#1a7f37;--bad:#cf222e;--odd:#9a6700;
font:14px/1.5 Roboto,system-ui,sans-serif;color:var(--ink);background:var(--card);border:1px solid var(--line);
border-left-width:6px;border-radius:6px;margin:24px auto 0;max-width:1200px;width:calc(100% - 48px);
padding:16px 20px;box-sizing:border-box}
.rg[data-dark]{--ink:#e6edf3;--soft:#9198a1;--card:#1c2128;--line:#3d444d;--good:#3fb950;--bad:#f85149;--odd:#d29922}
.rg.kept{border-left-color:var(--good)}.rg.broken{border-left-color:var(--bad)}
.rg.unjudged{border-left-color:var(--odd)}
.rg h2{font-size:20px;margin:0 0 4px}.rg.kept h2{color:var(--good)}.rg.broken h2{color:var(--bad)}
.rg.unjudged h2{color:var(--odd)}
.rg p{margin:4px 0;color:var(--soft);overflow-wrap:anywhere}
.rg .tables{display:flex;flex-wrap:wrap;gap:0 48px}.rg .wide{overflow-x:auto;max-width:100%}
.rg table{border-collapse:collapse;margin:10px 0}
.rg th,.rg td{text-align:right;padding:3px 14px 3px 0;border-bottom:1px solid var(--line);white-space:nowrap}
.rg th:first-child,.rg td:first-child{text-align:left}.rg th{color:var(--soft);font-weight:500}
.rg ul{margin:8px 0;padding-left:20px}.rg li{overflow-wrap:anywhere}.rg b.no{color:var(--bad)}
@media(max-width:600px){.rg{margin-top:12px;width:calc(100% - 16px);padding:12px}}
@media print{.rg{break-inside:avoid}}
"""


def section(report: AuditReport, dark: bool = False) -> str:
    """The verdict as HTML that needs nothing from outside."""
    words, name = _WORDS[report.verdict]
    parts = [
        f"<style>{_STYLE}</style>",
        f'<section class="rg {name}"{" data-dark" if dark else ""} id="rushgate-audit">',
        f"<h2>{words}</h2>",
        f"<p>Campaign {escape(report.campaign)}, run {escape(report.run)}: {report.orders:,} orders accepted,"
        f" {sum(report.operations.values()):,} operations on record.</p>",
    ]
    if report.counts:
        told = [
            f"<li><b class=no>{v.invariant}. {escape(v.what)}</b>: {escape(v.words)}</li>" for v in report.violations
        ]
        more = sum(report.counts.values()) - len(report.violations)
        parts.append(f"<ul>{''.join(told)}{f'<li>and {more:,} more</li>' if more > 0 else ''}</ul>")
    parts += [f"<p><b class=no>{escape(line)}</b></p>" for line in report.why]
    tables = []
    if report.server is not None:
        audit = report.server
        parts.append(
            f"<p>The server's audit: {'ok' if audit.ok else 'not ok'}; {audit.accepted:,} accepted,"
            f" {audit.persisted:,} in the ledger, {audit.in_flight:,} on their way, {audit.lost:,} lost,"
            f" {audit.oversold:,} units oversold, {audit.unsold:,} left.</p>"
        )
        rows = "".join(
            f"<tr><td>{escape(s.sku)}</td><td>{s.allocation:,}</td><td>{s.left:,}</td><td>{s.held:,}</td>"
            f"<td>{s.sold:,}</td></tr>"
            for s in audit.skus
        )
        head = "<tr><th>SKU, units</th><th>put on sale</th><th>left</th><th>held</th><th>sold</th></tr>"
        tables.append(f'<div class="wide"><table>{head}{rows}</table></div>')
    if report.operations:
        rows = "".join(f"<tr><td>{escape(name)}</td><td>{n:,}</td></tr>" for name, n in report.operations.items())
        tables.append(f'<div class="wide"><table><tr><th>operation</th><th>count</th></tr>{rows}</table></div>')
    parts.append(f'<div class="tables">{"".join(tables)}</div>')
    parts += [f"<p>Not judged: {escape(line)}</p>" for line in report.unjudged]
    return "".join([*parts, "</section>"])


def with_section(page: str, report: AuditReport) -> str:
    """locust's page with the section above everything else; twice is once."""
    if 'id="rushgate-audit"' in page or ROOT not in page:
        return page
    return page.replace(ROOT, section(report, 'window.theme = "dark"' in page) + ROOT, 1)
