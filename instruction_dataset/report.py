"""What a check found as one page that needs nothing else: no network, no script, all pictures inside."""

from collections import Counter
from collections.abc import Iterator, Sequence
from html import escape
from itertools import groupby

from instruction_dataset.charts import COLORS, color, histogram, quantile, ring
from instruction_dataset.findings import SHOWN, Findings, Health, Kind, Picture, Report, Sample, Segment
from instruction_dataset.report_style import STYLE

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""Even if something of the data slipped through, the browser would neither fetch nor run it."""

COLUMNS = ("dataset", "ratio", "share", "records", "share", "usable", "images", "format")


def render(report: Report) -> str:
    """The page."""
    name = escape(report.path.name or str(report.path))
    colors = "".join(
        f".{color(i)}{{background:var(--c{i});fill:var(--c{i})}}.arc.{color(i)}{{fill:none;background:none;"
        f"stroke:var(--c{i})}}"
        for i in range(COLORS)
    )
    head = (
        f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{name} · data check</title><style>{STYLE}{colors}</style>"
    )
    body = [_header(report, name), _problems(report), _mixture(report), _lengths(report), _gallery(report)]
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head><body>{"".join(body)}</body></html>\n'


def _header(report: Report, name: str) -> str:
    errors, warnings = report.total(fails=True), report.total(fails=False)
    tiles = [
        ("records", sum(health.records for health in report.datasets), ""),
        ("usable", sum(health.usable for health in report.datasets), ""),
        ("distinct images", report.images, ""),
        ("errors", errors, "bad" if errors else ""),
        ("warnings", warnings, "warn" if warnings else ""),
    ]
    shown = "".join(
        f'<div class="tile {kind}"><b>{value:,}</b><span>{what}</span></div>' for what, value, kind in tiles
    )
    good = "<b>Ready to train.</b>" + (" Warnings do not stop a run." if warnings else " Nothing was found.")
    verdict = "<b>Training would fail.</b> Correct the errors below." if errors else good
    settings = "".join(f"<span>{escape(key)} <b>{escape(value)}</b></span>" for key, value in report.settings.items())
    return (
        f'<p class="eyebrow">Data check</p><h1>{name}</h1>'
        f'<p class="path">{escape(str(report.path.absolute()))}</p><p class="settings">{settings}</p>'
        f'<p class="verdict {"bad" if errors else "good"}">{verdict}</p><div class="tiles">{shown}</div>'
    )


def _problems(report: Report) -> str:
    cards = [_problem_card("The whole mixture", "", report.config)] if report.config.counts else []
    cards += [
        _problem_card(health.source.name, str(health.source.path), health.findings)
        for health in report.datasets
        if health.findings.counts
    ]
    return f"<h2>Problems</h2>{''.join(cards)}" if cards else ""


def _problem_card(name: str, path: str, findings: Findings) -> str:
    kinds = "".join(_problem(kind, count, examples) for kind, count, examples in findings)
    return (
        f'<section class="card"><header><h3>{escape(name)}</h3><span class="path">{escape(path)}</span></header>'
        f"{kinds}</section>"
    )


def _problem(kind: Kind, count: int, examples: Sequence[str]) -> str:
    items = "".join(f"<li>{escape(example)}</li>" for example in examples)
    if count > len(examples):
        items += f'<li class="soft">the first {SHOWN}; {count - len(examples):,} more were found</li>'
    word, badge = ("error", "bad") if kind.fails else ("warning", "warn")
    return (
        f'<details{" open" if kind.fails else ""}><summary><span class="badge {badge}">{word}</span>'
        f'<span>{escape(kind.title)}</span><span class="number">{count:,}</span></summary>'
        f'<ol class="examples">{items}</ol></details>'
    )


def _mixture(report: Report) -> str:
    if not report.datasets:
        return ""
    names = [health.source.name for health in report.datasets]
    ratios = [health.source.ratio for health in report.datasets]
    records = [float(health.records) for health in report.datasets]
    header = "".join(f"<th>{title}</th>" for title in COLUMNS)
    rows = "".join(
        f'<tr><td><span class="swatch {color(i)}"></span>{escape(health.source.name)}</td>'
        + "".join(f"<td>{cell}</td>" for cell in _cells(health, sum(ratios), sum(records)))
        + "</tr>"
        for i, health in enumerate(report.datasets)
    )
    table = f'<div class="scroll"><table><tr>{header}</tr>{rows}</table></div>'
    if len(names) == 1:
        return f'<h2>Data</h2><section class="card">{table}</section>'
    rings = f"<figure>{ring(names, ratios, 'by ratio')}</figure><figure>{ring(names, records, 'by records')}</figure>"
    return f'<h2>Mixture</h2><section class="card mixture"><div class="rings">{rings}</div>{table}</section>'


def _cells(health: Health, ratios: float, records: float) -> list[str]:
    return [
        f"{health.source.ratio:g}",
        f"{health.source.ratio / (ratios or 1):.1%}",
        f"{health.records:,}",
        f"{health.records / (records or 1):.1%}",
        f"{health.usable:,}",
        f"{health.pictures:,}",
        escape(", ".join(health.formats)) or "none",
    ]


def _lengths(report: Report) -> str:
    names = [health.source.name for health in report.datasets]
    limit = report.max_length
    unit = "characters" if limit is None else "tokens"
    cards = [
        _chart("Prompts", unit, [health.prompts for health in report.datasets], names, limit),
        _chart("Answers", unit, [health.answers for health in report.datasets], names, None),
        _chart("Images", "per record", [health.images for health in report.datasets], names, None),
    ]
    hint = (
        "" if limit else '<p class="legend soft">With --tokenizer, lengths are in tokens, as --max_length counts.</p>'
    )
    return f'<h2>Lengths</h2>{hint}<div class="charts">{"".join(cards)}</div>'


def _chart(title: str, unit: str, series: list[Counter[int]], names: list[str], limit: int | None) -> str:
    merged = sum(series, Counter[int]())
    middle, high, most = quantile(merged, 0.5), quantile(merged, 0.95), max(merged, default=0)
    figures = f"median {middle:,} · 95% up to {high:,} · at most {most:,}"
    line = f" · line: --max_length {limit:,}" if limit is not None and limit <= most else ""
    return (
        f'<section class="card"><h3>{title} <small>{escape(unit)}</small></h3><small>{figures}{line}</small>'
        f"{histogram(series, names, f'{title}, {unit}: {figures}', limit)}</section>"
    )


def _gallery(report: Report) -> str:
    if not report.samples:
        return ""
    key = (
        '<p class="legend soft"><span><mark>marked</mark> what the model is trained to say</span>'
        '<span><b class="token">token</b> one special token</span></p>'
    )
    cards = "".join(_card(sample) for sample in report.samples)
    return f'<h2>{len(report.samples)} random records</h2>{key}<div class="gallery">{cards}</div>'


def _card(sample: Sample) -> str:
    pictures = "".join(_picture(picture) for picture in sample.pictures)
    shown = f'<div class="pictures">{pictures}</div>' if pictures else ""
    return (
        f'<article class="card">{shown}<div class="text">{"".join(_marked(sample.segments))}</div>'
        f"<footer><b>{escape(sample.dataset)}</b> <small>{escape(sample.note)}<br>{escape(sample.where)}</small></footer>"
        "</article>"
    )


def _picture(picture: Picture) -> str:
    name = escape(picture.path)
    if picture.thumbnail is None:
        return f'<div class="gone">cannot be shown<span>{name}</span></div>'
    return f'<img src="{escape(picture.thumbnail)}" alt="{name}" title="{name}">'


def _marked(segments: Sequence[Segment]) -> Iterator[str]:
    for supervised, group in groupby(segments, lambda segment: segment.supervised):
        text = "".join(
            f'<b class="token">{escape(segment.text)}</b>' if segment.special else escape(segment.text)
            for segment in group
        )
        yield f"<mark>{text}</mark>" if supervised else text
