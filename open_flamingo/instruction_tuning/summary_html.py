"""The scores of answered datasets as one page that needs nothing else: no network, no script, all pictures inside."""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from itertools import chain
from pathlib import Path

from instruction_dataset.pictures import thumbnail
from instruction_dataset.records import split_images, write_whole
from instruction_dataset.report import POLICY
from instruction_dataset.report_style import STYLE
from open_flamingo.instruction_tuning.data.images import open_image
from open_flamingo.instruction_tuning.metrics import Metric, RowScores, Scores, summarize, table

BINS = 10
EXAMPLES = 5
"""Best answers shown of each dataset, and as many of the worst."""
PICTURES = 4
"""Shown of each example."""
ERRORS = 20
"""Shown of each dataset."""
OPEN_ERRORS = 5
"""Longer lists are folded."""
CHARACTERS = 2000
"""Shown of each text."""
NAMES = 3
"""Datasets that the title names."""

Row = dict[str, str]

LOOK = """
:root { --accent: var(--c0); }
h1 { font-size: 1.75rem; }
h2 { scroll-margin-top: 1rem; }
h2 small { margin-left: .6rem; font-weight: 400; }
h3 { margin: 0 0 .9rem; }
h3 small { font-weight: 400; }
h3.examples { margin-top: 2rem; }
a { color: var(--accent); text-decoration-thickness: 1px; text-underline-offset: .2em; }
ol { margin: 0; padding: 0; list-style: none; }
.tiles, .big, .rows, .columns, .figures { font-variant-numeric: tabular-nums; }
.tiles { margin-top: 1.5rem; }
th, td { padding: .6rem .55rem; }
th { white-space: normal; vertical-align: bottom; line-height: 1.35; }
th span { white-space: nowrap; }
th:last-child, td:last-child { padding-right: .2rem; }
td:first-child { font-weight: 600; text-align: left; }
.scroll:focus-visible, .text:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
.sr { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }
.pair { display: grid; grid-template-columns: minmax(0, 2fr) minmax(0, 1fr); gap: .75rem; }
.pair .card + .card { margin-top: 0; }
.columns { display: flex; height: 13rem; padding: 0 .7rem 1.6rem; font-size: .75rem; }
.columns li {
  position: relative; flex: 1 1 0; min-width: 0; display: flex; flex-direction: column; justify-content: flex-end;
  border-bottom: 1px solid var(--line); padding: 0 1.5px; text-align: center;
}
.columns .bar { background: var(--accent); border-radius: 4px 4px 0 0; flex: 0 0 auto; }
.count, .tick { color: var(--soft); text-align: center; }
.tick { position: absolute; left: 0; bottom: -1.5rem; transform: translateX(-50%); }
.tick.last { left: auto; right: 0; transform: translateX(50%); }
.rows { display: grid; gap: 1.1rem; margin-top: 1.25rem; font-size: .9rem; }
.rows p { display: flex; justify-content: space-between; gap: .75rem; margin-bottom: .35rem; }
.rows .count { white-space: nowrap; }
.track { background: var(--faint); border-radius: 99px; height: .6rem; overflow: hidden; }
.track .bar { background: var(--accent); height: 100%; border-radius: 99px; }
.track .bar.rest { background: var(--soft); }
.big { font-size: 2.1rem; font-weight: 600; letter-spacing: -.02em; line-height: 1.2; }
.answers { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(20rem, 100%), 1fr)); gap: .9rem; }
.answers .card { margin: 0; padding: 0; overflow: hidden; display: flex; flex-direction: column; }
.answers header {
  display: flex; justify-content: space-between; align-items: baseline; gap: .75rem; margin: 0; padding: .8rem 1.1rem;
  border-bottom: 1px solid var(--line); font-variant-numeric: tabular-nums;
}
.answers header b { color: var(--accent); font-weight: 600; }
.pictures.many { display: grid; grid-template-columns: 1fr 1fr; }
.pictures.many img, .pictures.many .gone { height: 8rem; width: 100%; }
.further { padding: .35rem 1.1rem; color: var(--soft); font-size: .85rem; background: var(--faint); }
.answers dl { margin: 0; padding: .9rem 1.1rem; flex: 1; }
dt { color: var(--soft); font-size: .78rem; }
dd { margin: .1rem 0 .8rem; }
.answers dl .text {
  padding: 0; max-height: 14rem; color: var(--ink); font: inherit; font-size: .93rem; line-height: 1.5;
}
.answers dl dd.answer { border-left: 3px solid var(--accent); padding-left: .7rem; }
.figures {
  display: flex; flex-wrap: wrap; gap: .15rem 1.1rem; padding: .7rem 1.1rem .8rem; border-top: 1px solid var(--line);
}
.token { white-space: nowrap; }
.figures span { color: var(--soft); font-size: .85rem; }
.figures b { color: var(--ink); font-weight: 500; margin-left: .3rem; }
.meaning { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: .5rem 1.5rem; margin: 0; }
.meaning dt { color: var(--ink); font-weight: 600; font-size: .9rem; }
.meaning dd { margin: 0; color: var(--soft); font-size: .9rem; }
.errors { margin-top: .75rem; padding-top: .5rem; padding-bottom: .5rem; }
.errors ol { margin: .4rem 0 .6rem; }
@media (max-width: 48rem) {
  h1 { font-size: 1.45rem; }
  .tile:first-child { grid-column: auto; }
  .pair { grid-template-columns: minmax(0, 1fr); }
  .columns { font-size: .68rem; height: 11rem; }
  .meaning { grid-template-columns: minmax(0, 1fr); gap: .1rem; }
  .meaning dd { margin-bottom: .7rem; }
}
@media print { .answers dl .text { max-height: none; } .card { break-inside: avoid; } }
"""

MEANINGS = {
    "ROUGE-L": "The longest series of words, gaps allowed, that both share by their stems: F-measure, 0 to 1.",
    "Exact match": "The answer equals the target, but for space around it.",
    "Token F1": "How far the words of both overlap, in any order, without case, punctuation and articles: 0 to 1.",
    "ANLS": "1 less the edits per letter of the longer text, without case; 0 where that is half or more.",
}


def write_html(
    path: Path, rows: dict[str, list[Row]], scores: dict[str, Scores], metrics: Mapping[str, Metric] = {}
) -> None:
    """Write the page at `path`, whole or not at all; the first lines of the docstrings of `metrics` explain them."""
    write_whole(path, render(rows, scores, metrics))


def render(rows: dict[str, list[Row]], scores: dict[str, Scores], metrics: Mapping[str, Metric] = {}) -> str:
    """The page."""
    title = _title(list(scores))
    head = (
        f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title} · answers and scores</title><style>{STYLE}{LOOK}</style>"
    )
    datasets = "".join(_dataset(i, name, rows[name], scores[name]) for i, name in enumerate(scores))
    body = _header(title, scores) + _table(scores) + datasets + _meanings(metrics)
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head><body><main>{body}</main></body></html>\n'


def best_and_worst(scores: Sequence[RowScores | None]) -> tuple[list[int], list[int]]:
    """The places of the answers with the highest ROUGE-L, from the top down, and of those with the lowest, from below.

    Where there are few answers, none is in both.
    """
    answered = {i: row.rouge_l for i, row in enumerate(scores) if row is not None}
    best = sorted(answered, key=lambda i: -answered[i])[: min(EXAMPLES, (len(answered) + 1) // 2)]
    others = sorted(answered.keys() - best, key=lambda i: (answered[i], i))
    return best, others[:EXAMPLES]


def bins(scores: Sequence[RowScores | None]) -> list[int]:
    """How many answers have a ROUGE-L in each tenth of 0 to 1; 1 itself is in the last."""
    counts = [0] * BINS
    for row in scores:
        if row is not None:
            counts[min(int(round(BINS * row.rouge_l, 6)), BINS - 1)] += 1
    return counts


def _title(names: Sequence[str]) -> str:
    further = f" and {len(names) - NAMES} more" if len(names) > NAMES else ""
    return escape(", ".join(names[:NAMES]) + further) or "No dataset"


def _header(title: str, scores: Mapping[str, Scores]) -> str:
    own = list(dict.fromkeys(name for s in scores.values() for name in s.metrics))
    total = summarize(list(chain.from_iterable(s.rows for s in scores.values())), own)
    means = {"mean ROUGE-L": total.rouge_l, "mean token F1": total.token_f1, "mean ANLS": total.anls}
    means |= {f"mean {name}": value for name, value in total.metrics.items()}
    tiles = [
        ("records", f"{total.total:,}", ""),
        ("errors", f"{total.errors:,}", " bad" if total.errors else ""),
        ("exact matches", f"{total.exact_share:.1%}" if total.answered else "-", ""),
        *((name, f"{value:.3f}" if total.answered else "-", "") for name, value in means.items()),
    ]
    shown = "".join(
        f'<div class="tile{kind}"><b>{value}</b><span>{escape(what)}</span></div>' for what, value, kind in tiles
    )
    return f'<header><p class="eyebrow">Answers and scores</p><h1>{title}</h1><div class="tiles">{shown}</div></header>'


def _table(scores: Mapping[str, Scores]) -> str:
    head, rows = table(scores)
    titles = "".join(f'<th scope="col">{_unbroken(title)}</th>' for title in head)
    lines = "".join(
        f'<tr><td><a href="#dataset-{i}">{escape(name)}</a></td>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'
        for i, (name, *cells) in enumerate(rows)
    )
    return (
        '<section><h2>Scores</h2><div class="card"><div class="scroll" tabindex="0">'
        f"<table><thead><tr>{titles}</tr></thead><tbody>{lines}</tbody></table></div></div></section>"
    )


def _unbroken(title: str) -> str:
    """Lines end between words, not after the hyphen of ROUGE-L."""
    return " ".join(f"<span>{escape(word)}</span>" for word in title.split())


def _dataset(number: int, name: str, rows: Sequence[Row], scores: Scores) -> str:
    failed = [(i, row["error"]) for i, row in enumerate(rows, start=1) if "error" in row]
    size = f"{scores.answered:,} answered" + (f" · {_count(len(failed), 'error')}" if failed else "")
    best, worst = best_and_worst(scores.rows)
    charts = f'<div class="pair">{_histogram(scores)}{_exact(scores)}</div>' if scores.answered else ""
    return (
        f'<section><h2 id="dataset-{number}">{escape(name)} <small>{size}</small></h2>{charts}{_failures(failed)}'
        f"{_examples('Best answers', best, rows, scores)}{_examples('Worst answers', worst, rows, scores)}</section>"
    )


def _histogram(scores: Scores) -> str:
    counts = bins(scores.rows)
    columns = "".join(_column(i, count, count / max(counts)) for i, count in enumerate(counts))
    title = "<h3>ROUGE-L <small>answers in each tenth</small></h3>"
    return f'<section class="card">{title}<ol class="columns">{columns}</ol></section>'


def _column(number: int, count: int, height: float) -> str:
    low, high = f"{number / BINS:.1f}", f"{(number + 1) / BINS:.1f}"
    last = f'<span class="tick last" aria-hidden="true">{high}</span>' if number == BINS - 1 else ""
    size = f"height:{88 * height:.1f}%;min-height:{2 * bool(count)}px"
    # an empty bin says nothing to the eye: nine zeros above an axis are noise
    shown = f"{count:,}" if count else '<span class="sr">0</span>'
    return (
        f'<li title="{low} to {high}: {_count(count, "answer")}"><span class="sr">{low} to {high}: </span>'
        f'<span class="count">{shown}</span><span class="bar" style="{size}"></span>'
        f'<span class="tick" aria-hidden="true">{low}</span>{last}</li>'
    )


def _exact(scores: Scores) -> str:
    parts = [("exact", scores.exact, ""), ("different", scores.answered - scores.exact, " rest")]
    bars = "".join(
        f'<li><p><span>{what}</span> <span class="count">{count:,}</span></p>'
        f'<div class="track"><div class="bar{kind}" style="width:{count / scores.answered:.2%}"></div></div></li>'
        for what, count, kind in parts
    )
    share = f'<p class="big">{scores.exact_share:.1%}</p>'
    return f'<section class="card"><h3>Exact matches</h3>{share}<ol class="rows">{bars}</ol></section>'


def _failures(failed: Sequence[tuple[int, str]]) -> str:
    if not failed:
        return ""
    items = "".join(f"<li>row {number}: {escape(sentence)}</li>" for number, sentence in failed[:ERRORS])
    if len(failed) > ERRORS:
        items += f'<li class="soft">the first {ERRORS}; {len(failed) - ERRORS:,} more rows have an error</li>'
    title = f'<span class="badge bad">{_count(len(failed), "error")}</span><span>rows without an answer</span>'
    is_open = " open" if len(failed) <= OPEN_ERRORS else ""
    return (
        f'<details class="card errors"{is_open}><summary>{title}</summary><ol class="examples">{items}</ol></details>'
    )


def _examples(title: str, chosen: Sequence[int], rows: Sequence[Row], scores: Scores) -> str:
    cards = "".join(_card(i, rows[i], row) for i in chosen if (row := scores.rows[i]) is not None)
    return f'<h3 class="examples">{title}</h3><div class="answers">{cards}</div>' if cards else ""


def _card(place: int, row: Row, scores: RowScores) -> str:
    pieces, paths = split_images(row["input"])
    figures = {"token F1": scores.token_f1, "ANLS": scores.anls, **scores.metrics}
    shown = "".join(f"<span>{escape(name)} <b>{value:.3g}</b></span>" for name, value in figures.items())
    exact = " · exact" if scores.is_exact else ""
    texts = (
        f'<dt>Question</dt><dd class="text" dir="auto" tabindex="0">{_question(pieces)}</dd>'
        f'<dt>Target</dt><dd class="text" dir="auto" tabindex="0">{_text(row["target"])}</dd>'
        f'<dt>Answer</dt><dd class="text answer" dir="auto" tabindex="0">{_text(row["output"])}</dd>'
    )
    return (
        f'<article class="card"><header><b>ROUGE-L {scores.rouge_l:.3f}</b>'
        f"<small>row {place + 1}{exact}</small></header>"
        f'{_pictures(paths)}<dl>{texts}</dl><p class="figures">{shown}</p></article>'
    )


def _pictures(paths: Sequence[str]) -> str:
    if not paths:
        return ""
    many = " many" if len(paths) > 2 else ""
    more = len(paths) - PICTURES
    further = f'<p class="further">and {_count(more, "more picture")}</p>' if more > 0 else ""
    return f'<div class="pictures{many}">{"".join(map(_picture, paths[:PICTURES]))}</div>{further}'


def _picture(path: str) -> str:
    name, data = escape(Path(path).name), thumbnail(Path(path), open_image)
    if data is None:
        what = f'role="img" aria-label="{name}, a picture that cannot be read" title="{escape(path)}"'
        return f'<div class="gone" {what}>cannot be read<span>{name}</span></div>'
    return f'<img src="{escape(data)}" alt="{name}" title="{escape(path)}">'


def _question(pieces: Sequence[str]) -> str:
    """The text; where several pictures stand between its pieces, each leaves its number."""
    if len(pieces) <= 2:
        return _text("".join(pieces).strip())
    marks = (f'<b class="token">picture {i}</b>' for i in range(1, len(pieces)))
    after = (escape(" " * (not piece or piece[0].isalnum()) + _cut(piece)) for piece in pieces[1:])
    return escape(_cut(pieces[0])) + "".join(chain.from_iterable(zip(marks, after, strict=True)))


def _text(text: str) -> str:
    return escape(_cut(text)) or '<span class="soft">empty</span>'


def _cut(text: str) -> str:
    more = len(text) - CHARACTERS
    return f"{text[:CHARACTERS]} … and {_count(more, 'more character')}" if more > 0 else text


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _meanings(metrics: Mapping[str, Metric]) -> str:
    lines = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in _explained(metrics))
    return (
        f'<section><h2>What the numbers mean</h2><div class="card"><dl class="meaning">{lines}</dl></div>'
        '<p class="soft">Means and percentages leave rows with an error out. Lengths are in words.</p></section>'
    )


def _explained(metrics: Mapping[str, Metric]) -> Iterator[tuple[str, str]]:
    yield from MEANINGS.items()
    for name, metric in metrics.items():
        yield name, (inspect.getdoc(metric) or "Given with --metrics.").splitlines()[0]
