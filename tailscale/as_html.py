"""Our values as notebooks show them: a heading, a few facts, a small table. What each class puts in is its own.

Owns the HTML and the escaping: whatever arrives here may have been written by a peer. Plain elements without colours
of their own, so a dark notebook shows them as well as a light one. Imported only when a notebook asks.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence

from tailscale.foreign_text import for_log

MOST_ROWS = 100  # of one table; a tailnet may have thousands of peers
_LEFT = ' style="text-align:left"'  # notebooks would set cells to the right


def escaped(text: object) -> str:
    """Fit for HTML: no element, no attribute's end, and no control or direction mark that would turn text around."""
    return html.escape(for_log(str(text)), quote=True)


def page(title: str, facts: Mapping[str, str], *tables: str) -> str:
    """A heading, what is known under it (empty facts are left out), and what follows."""
    return f"<div><b>{escaped(title)}</b>{_facts(facts)}{''.join(tables)}</div>"


def _facts(facts: Mapping[str, str]) -> str:
    rows = "".join(
        f"<tr><td{_LEFT}>{escaped(name)}</td><td{_LEFT}>{escaped(value)}</td></tr>"
        for name, value in facts.items()
        if value
    )
    return f"<table>{rows}</table>" if rows else ""


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """The first rows, and how many more there are; "" for none. Columns that say nothing are left out."""
    rows = [tuple(row) for row in rows]
    if not rows:
        return ""
    columns = [column for column in range(len(header)) if any(row[column] for row in rows)]
    head = "".join(f"<th{_LEFT}>{escaped(header[column])}</th>" for column in columns)
    body = "".join(
        "<tr>" + "".join(f"<td{_LEFT}>{escaped(row[column])}</td>" for column in columns) + "</tr>"
        for row in rows[:MOST_ROWS]
    )
    more = f"<p>and {len(rows) - MOST_ROWS} more</p>" if len(rows) > MOST_ROWS else ""
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{more}"


def link(url: str) -> str:
    """A page to open. The caller has seen to it that `url` is one of the web (`foreign_text.web_address`)."""
    return f'<a href="{escaped(url)}" target="_blank" rel="noopener noreferrer">{escaped(url)}</a>'
