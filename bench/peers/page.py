"""Page: what a comparison found, as Markdown between a page's markers, as a plot, and as JSON.

Where a peer is ahead comes first; then the figures, what could not be measured, the settings with their reasons and
sources, and the machine. The page is made from the JSON alone, so that it can be made again without a run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from bench import plot, report
from bench.peers import catalog, summary
from bench.peers.ahead import ahead
from bench.peers.choosing import reason
from bench.peers.figures import Result
from bench.peers.probes.table import without_paths
from bench.peers.summary import Line, StartLine
from bench.peers.verdicts import FAILED_SHARE_MAX, ROUNDS_MIN
from bench.peers.wording import one_line, remark, table, times
from bench.wrk import whole_seconds
from gateway.errors import ConfigInvalid

MARKS = {
    False: ("<!-- peers: begin -->", "<!-- peers: end -->"),
    True: ("<!-- pinned: begin -->", "<!-- pinned: end -->"),
}
"""By whether ours was pinned to the peer's settings."""


def demand_markers(page: str, *, pinned: bool) -> None:
    """Raise ConfigInvalid unless a page has a place for the figures: now rather than after hours."""
    begin, end = MARKS[pinned]
    if end not in page.partition(begin)[2]:
        msg = f"the page has no place for figures: expected a line {begin} and below it a line {end}"
        raise ConfigInvalid(msg)


def written(page: str, result: Result, picture: str = "") -> str:
    """A page with a result between its markers.

    Args:
        picture: the plot's file name, as the page links it; "": none.

    Raises:
        ConfigInvalid: the page has no markers.
    """
    demand_markers(page, pinned=result.pinned)
    begin, end = MARKS[result.pinned]
    before, _, rest = page.partition(begin)
    _, _, after = rest.partition(end)
    return f"{before}{begin}\n\n{markdown(result, picture)}\n\n{end}{after}"


def markdown(result: Result, picture: str = "") -> str:
    """The figures, without a line end behind the last."""
    found = summary.lines(result.found)
    parts = [
        ahead(result, found),
        _goals(result),
        _per_cpu_s(result, found),
        f"![ratios by peer]({picture})" if picture else "",
        _latency(result, found),
        _memory(result, found),
        _starts(result, summary.starts(result.found)),
        _failed(result),
        _settings(result),
        _sources(result),
        _facts(result, found),
    ]
    return "\n\n".join(part for part in parts if part)


def goals(result: Result) -> list[report.Row]:
    """What our requests per CPU second are to be over each peer's, each side at its best: of a pinned run nothing.

    Undecided where a run cannot tell, where too many of our requests failed, or where the interval of a median that
    meets it begins below it.
    """
    rows = []
    for line in summary.lines(result.found) if not result.pinned else ():
        goal = catalog.GOALS.get(line.peer)
        if goal is None or line.cell not in catalog.GOAL_CELLS:
            continue
        name, found = f"{result.title(line.peer)}, {line.cell.text()}", line.per_cpu_s
        if found is None:
            rows.append(report.Row(name, "no figure", f">= {goal:g} x"))
            continue
        row = report.at_least(name, found, goal, digits=1)
        failed = line.failed.ours > FAILED_SHARE_MAX
        if failed or line.verdict not in ("ours", "theirs") or found.low < goal <= found.median:
            said = row.measured + (f" ({line.failed.ours:.2%} of ours failed)" if failed else "")
            row = msgspec.structs.replace(row, met=None, measured=said)
        rows.append(row)
    return rows


def _goals(result: Result) -> str:
    rows = goals(result)
    return f"### Goals: requests per CPU second, ours / theirs\n\n{report.markdown(rows)}" if rows else ""


NO_LOG, WHOLE = "¹", "²"
"""Marks of cells in which the two logs are not alike."""
_UNLIKE = {
    NO_LOG: "it offers no log: in this cell ours is on, and it has none.",
    WHOLE: "its log has the image whole, ours the digest.",
}


def _unlike(result: Result, line: Line) -> str:
    """The mark of a cell with audit on in which one side logs more than the other."""
    about = result.peers.get(line.peer)
    if not line.cell.audit or about is None:
        return ""
    if not about.audit:
        return f" {NO_LOG}"
    return f" {WHOLE}" if line.peer in catalog.LOGS_WHOLE and line.cell.model in catalog.LARGE else ""


def _footnotes(result: Result, found: Sequence[Line]) -> str:
    used = {_unlike(result, line).strip() for line in found}
    return "".join(f"\n\n{mark} Logs are not alike: {said}" for mark, said in _UNLIKE.items() if mark in used)


def _matrix(
    result: Result, found: Sequence[Line], shown: Callable[[Line], str], *, headline: bool = False
) -> str:
    peers = list(dict.fromkeys(line.peer for line in found))
    by_place = {(line.cell, line.peer): line for line in found}
    wrong = summary.wrongs(result.found)
    every = sorted({line.cell for line in found}, key=lambda cell: _order(cell))
    chosen = [cell for cell in every if (cell in catalog.HEADLINE) or not headline]
    rows = []
    for cell in chosen:
        name = f"**{cell.text()}**" if cell in catalog.HEADLINE else cell.text()
        row = [name]
        for peer in peers:
            line = by_place.get((cell, peer))
            missing = "a wrong answer" if (peer, cell.text()) in wrong else "–"
            row.append(shown(line) if line is not None else missing)
        rows.append(row)
    return table(["", *(result.title(peer) for peer in peers)], rows)


def _order(cell: catalog.Cell) -> tuple[int, bool, bool, int]:
    return (catalog.MODELS.index(cell.model), not cell.audit, cell.form == "binary", cell.rows)


def _per_cpu_s(result: Result, found: Sequence[Line]) -> str:
    if not found:
        return ""

    def shown(line: Line) -> str:
        both = f"{line.ours_per_cpu_s:,.0f} / {line.theirs_per_cpu_s:,.0f}"
        return f"{times(line.per_cpu_s, line.verdict, line.failed)}{_unlike(result, line)}; {both}"

    bold = " Bold cells had more rounds." if len({line.rounds for line in found}) > 1 else ""
    return (
        "### Requests per CPU second, ours / theirs\n\n"
        "Closed loop; processor time of all of a product's processes. Median of the rounds' ratios and its interval,"
        f" then the medians of either side. Where there is no remark, ours is ahead.{bold} An interval"
        " holds the rounds of one start of either side, or of two: another start can lie beside it.\n\n"
        + _matrix(result, found, shown)
        + _footnotes(result, found)
    )


def _latency(result: Result, found: Sequence[Line]) -> str:
    if not found:
        return ""

    def shown(line: Line) -> str:
        its = line.latency
        if its is None:
            return "–"
        late = "; the generator was late" if its.ours_late or its.theirs_late else ""
        if late and its.opens > 1:
            late += f" in {its.ours_late} of our and {its.theirs_late} of their {its.opens} loops"
        said = remark(its.verdict if its.opens >= ROUNDS_MIN else "ours", its.failed)
        return (
            f"{_percentiles(its.ours_ms)} against {_percentiles(its.theirs_ms)}{said} at"
            f" {its.offered_per_second:,.0f}/s{late}{_unlike(result, line)}"
        )

    return (
        "### p50 / p99 / p99.9 at equal offered load, ms, ours against theirs\n\n"
        "Poisson arrivals at half of what the slower side can, counted from when a request was due: the slower side is"
        " half busy then, the quicker one less. The remark is on p99, and there is none where fewer than"
        f" {ROUNDS_MIN} loops were made; p99.9 is of all loops together, if those had {summary.P999_REQUESTS_MIN:,}"
        " requests. The generator was late: it handed over more than 1% of a loop's requests over 1 ms after they were"
        " due, and the times hold its own lag; where it was in most loops of a side, nobody is ahead. All times are of"
        " what was answered with 2xx or had no answer.\n\n"
        + _matrix(result, found, shown)
        + _footnotes(result, [line for line in found if line.latency is not None])
    )


def _percentiles(its: summary.Latency) -> str:
    return " / ".join("–" if one is None else f"{one:.1f}" for one in (its.p50, its.p99, its.p999))


def _memory(result: Result, found: Sequence[Line]) -> str:
    if not found:
        return ""

    def shown(line: Line) -> str:
        return f"{line.ours_memory_mb:,.0f} / {line.theirs_memory_mb:,.0f}, {line.ours_errors} / {line.theirs_errors}"

    others = [line for line in found if line.cell not in catalog.HEADLINE]
    failed = [
        f"* {result.title(line.peer)}, {line.cell.text()}: {line.ours_errors} / {line.theirs_errors} failed"
        for line in others
        if line.ours_errors or line.theirs_errors
    ]
    rest = "\n".join(failed) if failed else "In no other cell a request failed." if others else ""
    return (
        "### Memory of all processes, MB, and failed requests, ours / theirs\n\n"
        "Pages that processes of a product share count once.\n\n"
        + _matrix(result, found, shown, headline=True)
        + (f"\n\n{rest}" if rest else "")
    )


def _starts(result: Result, found: Sequence[StartLine]) -> str:
    if not found:
        return ""
    ratios = {(one.peer, one.model): one for one in summary.start_ratios(result.found)}
    rows = []
    for one in found:
        its = ratios.get((one.peer, one.model)) if one.side == one.peer else None
        versions = ["–", "–"] if one.version_s is None else [f"{one.version_s:.2f}", str(one.refused)]
        rows.append(
            [
                result.title(one.peer), one.model, "theirs" if one.side == one.peer else "ours",
                str(one.rounds), f"{one.cold_s:.2f}", times(its.cold, its.cold_verdict) if its else "",
                *versions, times(its.version, its.version_verdict) if its and its.versions else "",
            ]
        )  # fmt: skip
    head = (
        "beside", "model", "side", "starts", "cold start, s", "theirs / ours",
        "new version, s", "polls refused meanwhile, at most", "theirs / ours",
    )  # fmt: skip
    return (
        "### Starts\n\nFrom the spawn to the first right prediction; from asking for another version, by the product's"
        " own way, to its first prediction. Medians; of the refused polls the most of one start. Ratios are of starts"
        f" in pairs, with their interval; of fewer than {ROUNDS_MIN} no one is ahead. Where there is no remark, ours is"
        " ahead.\n\n" + table(head, rows)
    )


def _failed(result: Result) -> str:
    if not result.found.failed:
        return ""
    out = ["### What has no figure, and why"]
    for one in result.found.failed:
        lines = without_paths(one.last_lines).strip()[-1500:]
        said = f"\n\n```\n{lines}\n```" if lines else ""
        whose = "" if not one.side else " (theirs failed)" if one.side == one.peer else " (ours failed)"
        out.append(f"**{result.title(one.peer)}**, {one.what}{whose}: {one_line(one.why)}{said}")
    return "\n\n".join(out)


def _settings(result: Result) -> str:
    if not result.found.pairs:
        return ""
    rows = []
    if not result.pinned:
        mine = {pair.model: pair.ours for pair in result.found.pairs}
        rows = [["ours", model, one.setting.text(), reason(one)] for model, one in mine.items()]
    for pair in result.found.pairs:
        rows.append([result.title(pair.peer), pair.model, pair.theirs.setting.text(), reason(pair.theirs)])
        if result.pinned:
            rows.append(["ours", pair.model, pair.ours.setting.text(), "pinned to theirs"])
    return "### Settings\n\n" + table(("product", "model", "setting", "because"), rows)


def _sources(result: Result) -> str:
    out = ["### Whose advice is followed"]
    for about in result.peers.values():
        audit = about.audit or "none is offered: its cells with audit on have none, ours do"
        claims = "".join(
            f"\n  * {one.says} ([{one.title}]({one.address}))"
            if one.address.startswith("https://")
            else f"\n  * {one.says} ({one.title}: {one.address})"
            for one in about.sources
        )
        out.append(f"* **{about.title} {about.version}**. Audit: {audit}.{claims}")
    return out[0] + "\n\n" + "\n".join(out[1:])


def _facts(result: Result, found: Sequence[Line]) -> str:
    foreign = max((line.foreign_cpus for line in found), default=0.0)
    fewest = min((line.rounds for line in found), default=0)
    most = max((line.rounds for line in found), default=0)
    checked = sum(
        side.closed.checked + (side.open.checked if side.open else 0)
        for one in result.found.rounds
        for side in (one.ours, one.theirs)
    )
    wrong = sum(one.is_wrong for one in result.found.failed)
    equal = f"{checked:,} replies compared with ONNX Runtime, all equal"
    if wrong:
        equal = f"{checked:,} replies equal to ONNX Runtime's, {wrong} wrong, each of which ended what it was asked in"
    rounds = f"{fewest} rounds" if fewest == most else f"{fewest} to {most} rounds"
    coverage = (
        "" if fewest >= 6 else "; with fewer than 6 the interval is the whole range of the rounds (of 3: 75%)"
    )
    loops = f"closed loops of {whole_seconds(result.how.seconds)} s, open ones of {result.how.seconds:g} s or longer"
    return (
        f"{result.at}, commit {result.commit or 'unknown'}, `{result.command}`; {rounds}{coverage}; {loops};"
        f" {equal}; others"
        f" took at most {foreign:.2f} processors in the median of a cell's rounds. {result.machine.text()}."
    )


def draw(result: Result, file: Path) -> None:
    """The ratios as a picture: each peer a row, each headline cell a mark, on a log scale; an SVG.

    Raises:
        ConfigInvalid: matplotlib is not installed.
    """
    figure = plot.empty(11, 4.6)
    left, right = figure.subplots(1, 2, sharey=True)
    found = [line for line in summary.lines(result.found) if line.cell in catalog.HEADLINE]
    peers = list(dict.fromkeys(line.peer for line in found))
    panels: tuple[tuple[str, Callable[[Line], report.Interval | None]], ...] = (
        ("requests per CPU second, ours / theirs", lambda line: line.per_cpu_s),
        ("p99 at equal load, theirs / ours", lambda line: line.latency.p99 if line.latency else None),
    )
    for axes, (title, of) in zip((left, right), panels, strict=True):
        for number, cell in enumerate(catalog.HEADLINE):
            beside = (number - len(catalog.HEADLINE) / 2 + 0.5) * 0.15
            its = [(peers.index(line.peer) + beside, of(line)) for line in found if line.cell == cell]
            shown = [(at, ratio) for at, ratio in its if ratio is not None]
            reach = [
                [max(ratio.median - ratio.low, 0.0) for _, ratio in shown],
                [max(ratio.high - ratio.median, 0.0) for _, ratio in shown],
            ]
            axes.errorbar(
                [ratio.median for _, ratio in shown], [at for at, _ in shown], xerr=reach, fmt="o", capsize=2,
                label=cell.text(), markersize=4,
            )  # fmt: skip
        axes.axvline(1.0, color="#888888", linewidth=1)
        axes.set(xscale="log", xlabel=title)
        axes.grid(alpha=0.3, which="both", axis="x")
    left.set_yticks(range(len(peers)), [result.title(peer) for peer in peers])
    left.invert_yaxis()
    left.legend(fontsize=8)
    plot.write(figure, file)
