"""How a report looks: escaped text, tables, samples, line charts as SVG, the style sheet. Knows no files."""

import html
import json
import math
import re

COLOURS = ("#3f82cc", "#d97b29", "#35976b", "#b25bab", "#cc5050", "#85898f")
CONTROL = {i: 0x2400 + i for i in range(32) if chr(i) not in "\n\t"}     # made visible; some are not allowed in HTML

STYLE = """
:root{color-scheme:light dark;--ink:#222;--soft:#6d6a64;--line:#ddd9cf;--paper:#fbfaf7;--card:#fff;--bar:#d5e3f2;
--right:#2c7a4b;--wrong:#b0432f}
@media(prefers-color-scheme:dark){:root{--ink:#e4e1da;--soft:#9b978f;--line:#3a3a3d;--paper:#18181a;--card:#202023;
--bar:#22374c;--right:#6cc093;--wrong:#e58a77}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.55 Charter,"Iowan Old Style",Palatino,Georgia,serif}
body>header,main{max-width:1260px;margin:0 auto;padding:0 24px} body>header{padding-top:48px}
h1{font-size:30px;font-weight:600;margin:0} h3{font-size:17px;margin:30px 0 8px}
h2{font-size:22px;font-weight:600;margin:52px 0 14px;padding-bottom:6px;border-bottom:1px solid var(--line)}
small,.note,header p,footer{color:var(--soft);font-weight:400;font-size:14px}
nav a{margin-right:18px;color:inherit;text-underline-offset:3px;text-decoration-color:var(--line)}
table{border-collapse:collapse;font:13px/1.4 system-ui,sans-serif;font-variant-numeric:tabular-nums;white-space:nowrap}
.wide{overflow-x:auto} td,th{padding:5px 9px;text-align:right;border-bottom:1px solid var(--line)}
th{color:var(--soft);font-weight:500;vertical-align:bottom} th[colspan]{text-align:center}
td:first-child,th:first-child{text-align:left;font-weight:600}
td.bar{background:linear-gradient(var(--bar) 0 0) no-repeat left/var(--v) 100%;min-width:74px}
.charts,.pair{display:grid;gap:22px;grid-template-columns:repeat(auto-fill,minmax(310px,1fr))}
.pair{grid-template-columns:repeat(auto-fit,minmax(400px,1fr))} svg{width:100%;height:auto;display:block}
details{border-bottom:1px solid var(--line);padding:7px 0} summary{cursor:pointer;font-weight:600}
.cards{display:grid;gap:14px;grid-template-columns:repeat(auto-fill,minmax(min(520px,100%),1fr));margin:12px 0}
article{background:var(--card);border:1px solid var(--line);border-radius:5px;padding:12px 16px}
article header{color:var(--soft);font:13px system-ui,sans-serif}
.right b{color:var(--right)} .wrong b{color:var(--wrong)}
dl{display:grid;grid-template-columns:76px 1fr;gap:7px 14px;margin:11px 0} dt{color:var(--soft);font-size:14px}
dd{margin:0;white-space:pre-wrap;overflow-wrap:anywhere;unicode-bidi:isolate;max-height:420px;overflow-y:auto;
font:13px/1.55 ui-monospace,Menlo,Consolas,monospace}
dd.thinking{color:var(--soft);border-left:2px solid var(--line);padding-left:12px}
"""


def h(text) -> str:
    return html.escape(str(text).translate(CONTROL))


def html_table(head: list[str], rows: list[list[str]], groups: str = "", bars: tuple[int, ...] = ()) -> str:
    """`groups` is a ready row above the head; a cell of a column in `bars` is shaded by its percentage."""
    def td(i: int, cell: str) -> str:
        shade = re.match(r"[\d.]+", cell) if i in bars else None
        return f'<td class="bar" style="--v:{shade[0]}%">{h(cell)}</td>' if shade else f"<td>{h(cell)}</td>"

    top = "".join(f"<th>{h(c)}</th>" for c in head)
    body = "".join(f"<tr>{''.join(td(i, cell) for i, cell in enumerate(row))}</tr>" for row in rows)
    return f'<div class="wide"><table><thead>{groups}<tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def number(value) -> float:
    """A finite float, or NaN for whatever else a metric may hold."""
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else math.nan


def shown(value) -> str:
    """A figure with one decimal; – for none."""
    return "–" if math.isnan(number(value)) else f"{value:.1f}"


def percent(value) -> str:
    return shown(100 * number(value))


def cut(text, most: int) -> str:
    text = text if isinstance(text, str) else json.dumps(text, ensure_ascii=False)
    return text if len(text) <= most else f"{text[:most]} … ({len(text) - most:,} more characters)"


def parts_of(row: dict) -> tuple[str, str]:
    """A completion's thinking, with its tags, and the rest."""
    text = str(row.get("completion", ""))
    end = text.find("</think>")
    end = end + len("</think>") if end >= 0 else len(text) if "<think>" in text else 0
    return cut(text[:end], 4000), cut(text[end:], 1500).strip()


def gold(row: dict) -> str:
    """The right answer of a sample; of a reasoning_gym problem its text, without the rest of the entry."""
    answer = row.get("answer", "")
    entry = answer.get("entry") if isinstance(answer, dict) else None
    return cut(entry.get("answer", answer) if isinstance(entry, dict) else answer, 400)


def is_right(row: dict) -> bool:
    return isinstance(row.get("parts"), dict) and row["parts"].get("accuracy") == 1


def facts(row: dict) -> tuple[str, str]:
    """What is said above and below a sample."""
    above = [f"step {row['step']}"] if "step" in row else [str(row["domain"])] if "domain" in row else []
    above += [str(row.get("task", ""))] + ([f"level {row['level']}"] if row.get("level") else [])
    above += [str(row.get("lang", "")), f"{row.get('length', '–')} tokens"]
    above += ["cut off"] if row.get("finish") == "length" else []
    parts = row["parts"] if isinstance(row.get("parts"), dict) else {}
    below = [f"{name} {number(value):.3g}" for name, value in parts.items()] + [f"reason: {row.get('reason', '–')}"]
    return " · ".join(above), " · ".join(below + ([f"advantage {row['advantage']}"] if "advantage" in row else []))


def sample_html(row: dict) -> str:
    (above, below), (thinking, rest) = facts(row), parts_of(row)
    verdict, lang = ("right" if is_right(row) else "wrong"), h(row.get("lang", ""))
    items = {"question": cut(row.get("prompt", ""), 1500), "thinking": thinking, "answer": rest or "(nothing)", "gold": gold(row)}
    body = "".join(f'<dt>{name}</dt><dd class="{name}" lang="{lang}">{h(text)}</dd>' for name, text in items.items() if text)
    return (f'<article class="{verdict}"><header><b>{verdict}</b> {h(above)}</header><dl>{body}</dl>'
            f"<footer>{h(below)}</footer></article>")


def line_chart(series: dict[str, list[tuple[float, float]]], title: str, y_label: str = "") -> str:
    """Lines over steps as one SVG, also for a file of its own. NaN breaks a line; long series are drawn as bucket means."""
    lines = {name: thin(points) for name, points in series.items()}
    flat = [p for points in lines.values() for p in points if math.isfinite(p[1])] or [(0.0, 0.0)]
    xs = [x for points in series.values() for x, _ in points] or [0.0]
    x0, x1 = min(xs), max(xs)
    ys = ticks(min(0.0, min(y for _, y in flat)), max(y for _, y in flat))
    left, right, top, bottom = 50, 392, 46, 196
    at = lambda x: left + (right - left) * ((x - x0) / (x1 - x0) if x1 > x0 else 0.5)   # noqa: E731
    up = lambda y: bottom - (bottom - top) * (y - ys[0]) / (ys[-1] - ys[0])             # noqa: E731
    out = ['<svg class="chart" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 400 230" role="img" font-size="11.5" '
           f'font-family="system-ui,sans-serif" fill="currentColor" aria-label="{h(title)}">'
           "<style>.chart{color:#333}@media(prefers-color-scheme:dark){.chart{color:#ccc}}</style>"
           f'<text x="2" y="13" font-size="13" font-weight="600">{h(title)}</text>'
           f'<text x="{right}" y="13" text-anchor="end" opacity=".65">{h(y_label)}</text>']
    for y in ys:
        out.append(f'<path d="M{left} {up(y):.1f}H{right}" stroke="currentColor" opacity="{".5" if y == 0 else ".14"}"/>'
                   f'<text x="{left - 6}" y="{up(y) + 4:.1f}" text-anchor="end" opacity=".75">{f"{y:.4g}".replace("e-0", "e-")}</text>')
    whole = all(x == int(x) for x in xs)                                 # half a step is no place for a tick
    for x in [x for x in ticks(x0, x1) if x0 <= x <= x1 and (x == int(x) or not whole)]:
        out.append(f'<path d="M{at(x):.1f} {bottom}v4" stroke="currentColor" opacity=".5"/><text x="{at(x):.1f}" '
                   f'y="{bottom + 17}" text-anchor="middle" opacity=".75">{x:.6g}</text>')
    out.append(f'<text x="{right}" y="{bottom + 29}" text-anchor="end" opacity=".65">step</text>')
    key = left
    for i, (name, points) in enumerate(lines.items()):
        colour, path, pen = COLOURS[i % len(COLOURS)], "", "M"
        for x, y in points:
            path, pen = (f"{path}{pen}{at(x):.1f} {up(y):.1f}", "L") if math.isfinite(y) else (path, "M")
        path = re.sub(r"(M[^ML]+)(?=M|$)", r"\1h0", path)                # a point between two gaps becomes a dot
        out.append(f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="1.8" stroke-linejoin="round" stroke-linecap="round"/>')
        if len(lines) > 1:
            out.append(f'<path d="M{key} 29h14" stroke="{colour}" stroke-width="3"/><text x="{key + 19}" y="33">{h(name)}</text>')
            key += 34 + 6.4 * len(name)
    return "".join([*out, "</svg>"])


def ticks(low: float, high: float) -> list[float]:
    """About five round numbers from at most `low` to at least `high`."""
    span = high - low or abs(high) or 1.0
    size = 10.0 ** math.floor(math.log10(span / 4))
    size *= next(m for m in (1, 2, 2.5, 5, 10) if m * size >= span / 4 * 0.999)
    first, last = math.floor(low / size + 1e-9), math.ceil((low + span) / size - 1e-9)
    return [round(i * size, 12) for i in range(first, last + 1)]


def thin(points: list[tuple[float, float]], most: int = 160) -> list[tuple[float, float]]:
    """At most `most` points: means of neighbours, over the finite ones."""
    size, out = -(-len(points) // most) or 1, []
    for i in range(0, len(points), size):
        good = [p for p in points[i:i + size] if math.isfinite(p[1])]
        out.append(tuple(sum(of) / len(good) for of in zip(*good, strict=True)) if good else (points[i][0], math.nan))
    return out
