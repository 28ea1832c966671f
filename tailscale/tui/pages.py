"""The pages of the terminal interface: what each shows of a look, and in which columns. Pure; app.py draws them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from tailscale.tui.drawing import Column, Line, Piece, Row, beside, cut, wrapped
from tailscale.tui.history import IN, OUT, History, flow_key, service_key
from tailscale.tui.words import counted, fit, in_rate, in_time, plot, spark

View = dict[str, Any]
KIND_STYLE = {"direct": "green", "relay": "yellow", "peer relay": "cyan", "": "dim"}
KIND_OF_LABEL = {
    "direct_ipv4": "direct",
    "direct_ipv6": "direct, IPv6",
    "derp": "relay",
    "peer_relay_ipv4": "peer relay",
    "peer_relay_ipv6": "peer relay, IPv6",
}
SHORT_KIND = {"peer relay": "peer"}
SPARK = 12
ROOMY = 18  # lines from which on the overview has air between its parts
NARROW = 60  # columns below which nothing is spent on air
TOP = 6


class Look(NamedTuple):
    """What pages are drawn from."""

    view: View
    history: History
    log: Sequence[Row]
    """Newest last."""


class Page(NamedTuple):
    """One tab. A table has columns and rows; other pages have lines."""

    name: str
    columns: Sequence[Column]
    rows: Callable[[Look], list[Row]]
    lines: Callable[[Look, int, int], list[Line]] | None = None
    empty: str = ""
    """What stands where there is no row."""


# --- overview -------------------------------------------------------------------------------------


def overview(look: Look, width: int, height: int) -> list[Line]:
    """Traffic of the last minutes, how peers are reached, who carries most, and what is wrong."""
    view, history = look.view, look.history
    air: list[Line] = [[]] if height >= ROOMY else []
    lines = _warnings(view, width, limit=2 if height < ROOMY else 4)
    lines += [*_summary(view, width), *air]
    plotted = max(1, min(5, (height - len(lines) - 2 * len(air) - 2 - TOP) // 2))
    for word, way, style in (("received", IN, "green"), ("sent", OUT, "blue")):
        rate, told = in_rate(history.rate("total", way)), f"{counted(sum(view[word].values()))} in all"
        lines.append(beside([(f"{word:<9}", "bold"), (f"{rate:>9}", style)], [(told, "dim")], width))
        lines += [[(row, style)] for row in plot(history.series("total", way), width, plotted)]
        lines += air
    busiest = sorted(view["peers"], key=lambda peer: -history.rate("peer", peer["id"]))
    rows = [peer for peer in busiest if peer["has_spoken"]][: max(0, height - len(lines))]
    return [cut(line, width) for line in [*lines, *(_talker(peer, history, width) for peer in rows)]]


def _summary(view: View, width: int) -> list[Line]:
    count, sockets = view["count"], view["open"]
    online: Line = [(f"{count['online']}", "bold"), (f" of {count['peers']} peers online", "")]
    paths: Line = []
    for kind in ("direct", "relay", "peer relay"):
        if count[kind]:
            paths += [("  " if paths else "", ""), (f"{count[kind]} {kind}", KIND_STYLE[kind])]
    flows: Line = [(f"{sockets['tcp']} TCP, {sockets['udp']} UDP, {sockets['listeners']} listening", "dim")]
    exit_node: Line = [("exit ", "dim"), (view["exit_node"], "magenta")] if view["exit_node"] else []
    return [beside(online, paths, width), beside(flows, exit_node, width)]


def _talker(peer: dict[str, Any], history: History, width: int) -> Line:
    key, style = peer["id"], KIND_STYLE[peer["kind"]]
    received, sent = in_rate(history.rate("peer", key, IN)), in_rate(history.rate("peer", key, OUT))
    rates: Line = [(f"{received:>8} ", "green"), (f"{sent:>8}", "blue")]
    if width < NARROW:
        return beside([("● ", style), (fit(peer["hostname"], width - 20), "")], rates, width)
    bars: Line = [(spark(history.series("peer", key), SPARK), "cyan"), ("  ", "")]
    return beside([("● ", style), (fit(peer["hostname"], 18), ""), (f" {peer['kind']}", style)], [*bars, *rates], width)


def _warnings(view: View, width: int, limit: int) -> list[Line]:
    lines: list[Line] = []
    for warning in view["health"]:
        lines += [
            [("! ", "bold yellow"), *cut(line, width - 2)] for line in wrapped(warning["sentence"], width - 2)[:1]
        ]
    if len(lines) > limit:
        lines = [*lines[: limit - 1], [(f"! {len(lines) - limit + 1} more on the page Health", "yellow")]]
    return lines


# --- tables ---------------------------------------------------------------------------------------


def _presence(peer: dict[str, Any]) -> Piece:
    if peer["expired"]:
        return "expired", "red"
    return {True: ("online", "green"), False: ("offline", "dim"), None: ("-", "dim")}[peer["online"]]


def peers(look: Look) -> list[Row]:
    rows = []
    for peer in look.view["peers"]:
        state = _presence(peer)
        cells = [
            (peer["hostname"], "bold" if peer["online"] else "dim"),
            state,
            (peer["address"], ""),
            (counted(peer["received"]) if peer["received"] else "", ""),
            (counted(peer["sent"]) if peer["sent"] else "", ""),
            (peer["owner"], "dim"),
            (peer["os"], "dim"),
        ]
        rows.append(Row(peer["id"], cells))
    return rows


def paths(look: Look) -> list[Row]:
    rows = []
    for peer in look.view["peers"]:
        if not peer["has_spoken"]:
            continue
        key, history = peer["id"], look.history
        cells = [
            (peer["hostname"], "bold"),
            (SHORT_KIND.get(peer["kind"], peer["kind"]) or "-", KIND_STYLE[peer["kind"]]),
            (in_time(peer["latency"]), ""),
            (in_rate(history.rate("peer", key, IN)), "green"),
            (in_rate(history.rate("peer", key, OUT)), "blue"),
            (spark(history.series("peer", key), SPARK), "cyan"),
            (peer["path"].removeprefix(peer["kind"]).strip(), "dim"),
        ]
        rows.append(Row(key, cells))
    return rows


def flows(look: Look) -> list[Row]:
    """One line for a peer and a port, however many connections that are."""
    together: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for flow in look.view["flows"]:
        together[service_key(flow)].append(flow)
    rows = []
    for key, group in together.items():
        first, history = group[0], look.history
        rates = {way: sum(history.rate("flow", flow_key(flow), way) for flow in group) for way in (IN, OUT)}
        is_counted = first["protocol"] == "tcp"
        totals = [sum(flow[field] or 0 for flow in group) for field in ("bytes_received", "bytes_sent")]
        where = "via " + first["via"] if first["via"] else "for others" if first["is_forwarded"] else ""
        cells = [
            (str(key[0]) or "anybody", "bold"),
            ("→ us" if first["is_inbound"] else "us →", "dim"),
            (f"{first['protocol']} {first['port']}", ""),
            (str(len(group)), "dim"),
            (in_rate(rates[IN]) if is_counted else "", "green"),
            (in_rate(rates[OUT]) if is_counted else "", "blue"),
            (counted(totals[0]) if is_counted else "", ""),
            (counted(totals[1]) if is_counted else "", ""),
            (where, "magenta"),
        ]
        rows.append(Row(key, cells))
    return rows


def transfers(look: Look) -> list[Row]:
    rows = []
    for number, one in enumerate(look.view["transfers"]):
        total, done = one["total"] or 0, one["done"]
        part = min(1.0, done / total) if total else 0.0
        bar = "█" * int(part * 10) + "░" * (10 - int(part * 10))
        cells = [
            (one["name"], "bold"),
            ("→" if one["is_outgoing"] else "←", "dim"),
            (one["peer"], ""),
            (bar, "cyan"),
            (f"{part * 100:.0f} %", ""),
            (in_rate(one["rate"] or 0.0), "green"),
            (counted(total), "dim"),
        ]
        rows.append(Row((one["name"], one["peer"], number), cells))
    return rows


def exits(look: Look) -> list[Row]:
    rows = []
    for one in look.view["exits"]:
        cells = [
            ("●" if one["is_used"] else "", "magenta"),
            (one["node"], "bold" if one["online"] else "dim"),
            ({True: "online", False: "offline", None: "-"}[one["online"]], "green" if one["online"] else "dim"),
            (one["country"] or one["country_code"], ""),
            (one["city"], ""),
            (in_time(one["latency"]), ""),
            (one["path"], "dim"),
        ]
        rows.append(Row(one["id"], cells))
    return rows


# --- health ---------------------------------------------------------------------------------------


def health(look: Look, width: int, height: int) -> list[Line]:
    """Every warning with its remedy, then what was dropped."""
    view = look.view
    lines: list[Line] = []
    for warning in view["health"]:
        lines += [[("! ", "bold yellow"), (warning["code"], "yellow")]]
        lines += wrapped(warning["sentence"], width, indent="  ")
        if warning["remedy"]:
            lines += wrapped(warning["remedy"], width, "cyan", indent="  ")
    if not view["health"]:
        lines.append([("✓ ", "green"), ("nothing is wrong", "")])
    drops = sorted(view["drops"].items(), key=lambda item: (-item[1], item[0]))
    if drops:
        lines += [[], [("dropped since the start (docs/drops.md says what each means)", "dim")]]
        lines += [beside([(f"  {name}", "")], [(f"{count}", "bold")], min(width, 48)) for name, count in drops]
    return [cut(line, width) for line in lines]


def log(look: Look) -> list[Row]:
    return list(look.log)


def _none(_: Look) -> list[Row]:
    return []


RATES = (Column("↓", 8, 1, True), Column("↑", 8, 1, True))
PAGES: tuple[Page, ...] = (
    Page("Overview", (), _none, overview),
    Page(
        "Peers",
        (
            *(Column("name", 16, 0, share=2), Column("state", 8), Column("address", 15, 4)),
            *(Column("received", 8, 2, True), Column("sent", 8, 3, True)),
            *(Column("owner", 14, 5, share=1), Column("os", 8, 6)),
        ),
        peers,
        empty="nobody else is in this tailnet, or its policy shows us nobody",
    ),
    Page(
        "Paths",
        (
            *(Column("name", 10, 0, share=1), Column("path", 6), Column("latency", 8, 3, True), *RATES),
            *(Column("", SPARK, 5), Column("where", 22, 6, share=1)),
        ),
        paths,
        empty="no peer was spoken with yet",
    ),
    Page(
        "Flows",
        (
            *(Column("peer", 9, 0, share=2), Column("", 4, 4), Column("port", 9), Column("n", 4, 6, True)),
            *(*RATES, Column("received", 8, 7, True), Column("sent", 8, 8, True), Column("", 10, 9, share=1)),
        ),
        flows,
        empty="nothing is open",
    ),
    Page(
        "Transfers",
        (
            *(Column("file", 14, 0, share=2), Column("", 1), Column("peer", 10, 4, share=1), Column("", 10, 3)),
            *(Column("done", 5, 0, True), Column("rate", 9, 2, True), Column("size", 8, 5, True)),
        ),
        transfers,
        empty="no file is on its way",
    ),
    Page(
        "Exits",
        (
            *(Column("", 1), Column("name", 14, 0, share=1), Column("state", 7), Column("country", 12, 4)),
            *(Column("city", 12, 5), Column("latency", 8, 3, True), Column("path", 20, 6, share=1)),
        ),
        exits,
        empty="no peer offers to be an exit node",
    ),
    Page("Health", (), _none, health),
    Page("Log", (Column("at", 8, 1), Column("what", 20, 0, share=1)), log, empty="nothing has happened yet"),
)
