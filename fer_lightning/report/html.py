"""The parts of every page, and a page that opens anywhere: no script, no network, its pictures inside it."""

from __future__ import annotations

import struct
from base64 import b64encode
from collections.abc import Mapping, Sequence
from html import escape
from io import BytesIO

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

PLOT_SCALE = 0.52
"""CSS pixels for each pixel of a figure, so that text has the same size in all of them."""


STYLE = """
:root { color-scheme: light dark; --ink: #1a1d21; --soft: #5d6670; --line: #e2e5e9; --back: #f6f7f9; --card: #fff;
  --accent: #0072b2; --bar: #0072b222; --wrong: #b34700; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8eaed; --soft: #9aa4af; --line: #2c3239; --back: #101317; --card: #171b20;
    --accent: #56b4e9; --bar: #56b4e92e; --wrong: #f0914d; }
  .plot { filter: invert(1) hue-rotate(180deg); mix-blend-mode: screen; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--ink);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main, header, footer { max-width: 1080px; margin: 0 auto; padding: 0 24px; }
header { padding-top: 44px; }
h1 { font-size: 30px; line-height: 1.2; margin: 2px 0 18px; letter-spacing: -.01em; overflow-wrap: anywhere; }
h2 { font-size: 19px; margin: 40px 0 12px; }
h3 { font-size: 13px; margin: 18px 0 6px; color: var(--soft); }
h3:first-child { margin-top: 0; }
p { margin: 8px 0; max-width: 76ch; }
.kind { color: var(--accent); font-weight: 600; font-size: 13px; margin: 0; }
.note { color: var(--soft); font-size: 13.5px; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 16px 20px; }
.card + .card { margin-top: 14px; }
.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(190px, 1fr)); gap: 12px 24px; margin: 0; }
dt { color: var(--soft); font-size: 12.5px; }
dd { margin: 0; overflow-wrap: anywhere; }
.heads { display: grid; grid-template-columns: repeat(auto-fit, minmax(190px, 1fr)); gap: 14px; margin-bottom: 14px; }
.heads .card { margin: 0; }
.heads b { display: block; font-size: 32px; line-height: 1.25; font-weight: 650; letter-spacing: -.02em; }
.heads span { color: var(--soft); font-size: 13px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; table-layout: fixed; width: 100%; min-width: 560px;
  font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--soft); font-size: 13px; font-weight: 600; padding-bottom: 6px; }
th, td { padding: 6px 12px; text-align: right; border-bottom: 1px solid var(--line); }
th:last-child, td:last-child { padding-right: 2px; }
th:first-child { text-align: left; padding-left: 2px; font-weight: 500; overflow-wrap: anywhere; }
thead th, thead th:first-child { color: var(--soft); font-weight: 500; font-size: 13px; vertical-align: bottom; }
thead th:first-child { width: 18%; }
tbody tr:last-child > * { border-bottom: 0; }
tr.sum > * { font-weight: 600; }
tr.first > * { border-top: 2px solid var(--line); }
td.bar { background: linear-gradient(var(--bar), var(--bar)) no-repeat 12px 6px /
  calc((100% - 80px) * var(--share)) calc(100% - 12px); }
.plot { display: block; max-width: 100%; height: auto; margin: 0 auto; }
.faces { display: grid; grid-template-columns: repeat(auto-fill, minmax(108px, 1fr)); gap: 14px 12px; }
.faces figure { margin: 0; font-size: 12.5px; line-height: 1.4; overflow-wrap: anywhere; }
.faces img { width: 100%; aspect-ratio: 1; display: block; border-radius: 6px; margin-bottom: 5px; }
.faces .pair { grid-column: span 2; display: grid; grid-template-columns: 1fr 1fr; gap: 0 4px; }
.faces .pair figcaption { grid-column: span 2; display: inherit; grid-template-columns: inherit; gap: inherit; }
.faces .wrong { color: var(--wrong); font-weight: 600; }
.faces .right { color: var(--accent); font-weight: 600; }
pre { font: 12.5px/1.5 ui-monospace, "DejaVu Sans Mono", monospace; overflow-x: auto; margin: 12px 0 0; }
summary { cursor: pointer; font-weight: 600; }
a { color: var(--accent); }
footer { color: var(--soft); font-size: 13px; padding-top: 28px; padding-bottom: 48px; }
@media (max-width: 640px) { thead th:first-child { width: 132px; } }
@media print {
  body { background: #fff; font-size: 9.5pt; }
  .heads { grid-template-columns: repeat(4, 1fr); }
  .facts { grid-template-columns: repeat(4, 1fr); }
  .faces { grid-template-columns: repeat(8, 1fr); gap: 8px; }
  .faces figure { font-size: 7.5pt; }
  .card { border: 0; padding: 0; }
  .card, .faces figure, tr { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
  td.bar { print-color-adjust: exact; }
}
"""


# The page may load nothing at all, whatever a class name or a config value managed to say.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def document(title: str, kind: str, head: str, sections: Sequence[str], files: Sequence[str] = ()) -> str:
    """A page of its own.

    Args:
        title: its heading.
        kind: what sort of page it is.
        head: HTML below the heading.
        sections: HTML of the parts.
        files: names of the files next to the page, to link to.
    """
    links = ", ".join(f'<a href="{escape(file)}">{escape(file)}</a>' for file in files)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}, fer-lightning</title>
<style>{STYLE}</style>
</head>
<body>
<header>
<p class="kind">{escape(kind)}</p>
<h1>{escape(title)}</h1>
{head}
</header>
<main>
{"".join(sections)}
</main>
<footer>{f"Files of this report: {links}" if links else ""}</footer>
</body>
</html>
"""


def section(title: str, *parts: str) -> str:
    """A part of a page, of HTML that is not empty; nothing where all is."""
    body = "\n".join(part for part in parts if part)
    return f"<section>\n<h2>{escape(title)}</h2>\n{body}\n</section>\n" if body else ""


def plot(figures: Mapping[str, bytes], name: str) -> str:
    """A figure, PNG, in a card; nothing where there is none of that name."""
    if name not in figures:
        return ""
    png = figures[name]
    width, height = (round(pixels * PLOT_SCALE) for pixels in struct.unpack(">II", png[16:24]))  # of the PNG header
    size = f'width="{width}" height="{height}"'
    return f'<div class="card"><img class="plot" alt="{name.replace("_", " ")}" {size} src="{_data_uri(png)}"></div>'


def picture(image: NDArray[np.uint8], title: str) -> str:
    """An image, uint8 (H, W), that tells where it comes from when one points at it."""
    buffer = BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return f'<img alt="" title="{escape(title)}" src="{_data_uri(buffer.getvalue())}">'


def table(header: Sequence[str], rows: str, title: str = "", note: str = "") -> str:
    """A table in a card, of rows that `row` made."""
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in header)
    after = f'<p class="note">{escape(note)}</p>' if note else ""
    caption = f"<caption>{escape(title)}</caption>" if title else ""
    body = f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>\n{rows}</tbody></table>"
    return f'<div class="card"><div class="scroll">{body}</div>{after}</div>'


def data_frame(frame: pd.DataFrame, text: str = "") -> str:
    """A data frame as a table in a card, with a note of text."""
    rows = "".join(row(cells) for cells in frame.astype(str).to_numpy().tolist())
    return table(list(frame.columns), rows, note=text)


def note(text: str) -> str:
    """A remark, of text."""
    return f'<p class="note">{escape(text)}</p>'


def row(cells: Sequence[str]) -> str:
    """A row of a table, of text."""
    rest = "".join(f"<td>{escape(cell)}</td>" for cell in cells[1:])
    return f'<tr><th scope="row">{escape(cells[0])}</th>{rest}</tr>\n'


def _data_uri(png: bytes) -> str:
    return f"data:image/png;base64,{b64encode(png).decode()}"
