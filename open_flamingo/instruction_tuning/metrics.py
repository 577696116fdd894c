"""How predictions compare with targets, row by row and on average."""

import importlib
import math
import re
import string
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import SupportsFloat

from rouge_score.rouge_scorer import RougeScorer

Metric = Callable[[str, str], float]
"""A number for (prediction, target)."""

FURTHEST = 0.5
"""ANLS is 0 for an edit distance of this share of the longer text."""

PUNCTUATION = str.maketrans("", "", string.punctuation)
ARTICLES = re.compile(r"\b(?:a|an|the)\b")

COLUMNS = (
    *("Dataset", "Avg ROUGE-L", "Avg target length", "Avg prediction length"),
    *("Exact matches", "Match percentage", "Total samples"),
    *("Token F1", "ANLS", "Errors"),
)


@dataclass(frozen=True, slots=True)
class RowScores:
    """The scores of one answer."""

    rouge_l: float
    """F-measure, with stemming."""
    token_f1: float
    anls: float
    is_exact: bool
    """Equal to the target but for surrounding space."""
    target_length: int
    """In words."""
    prediction_length: int
    """In words."""
    metrics: Mapping[str, float]
    """What the user's own metrics say, by name."""


@dataclass(frozen=True)
class Scores:
    """The scores of one dataset; means and shares are over the rows that were answered, 0 where there are none."""

    rouge_l: float
    token_f1: float
    anls: float
    target_length: float
    prediction_length: float
    exact: int
    """Rows whose answer is exact."""
    total: int
    """All rows, those with an error too."""
    errors: int
    metrics: Mapping[str, float]
    """The mean of each of the user's own metrics."""
    rows: tuple[RowScores | None, ...]
    """In the order of the rows; None for an error."""

    @property
    def answered(self) -> int:
        """Rows without an error."""
        return self.total - self.errors

    @property
    def exact_share(self) -> float:
        """Exact matches over all answered rows."""
        return self.exact / max(self.answered, 1)


def score(rows: Sequence[dict[str, str]], metrics: Mapping[str, Metric] = {}) -> Scores:
    """The scores of rows of results, each with "output" and "target"; one with "error" is counted and not scored.

    Raises ValueError naming metric and row, counted from 1, where a user's metric gives no finite number; what the metric
    itself raises comes with its own traceback.
    """
    scored = [None if "error" in row else _score_row(row, number, metrics) for number, row in enumerate(rows, start=1)]
    return summarize(scored, list(metrics))


def summarize(rows: Sequence[RowScores | None], metrics: Sequence[str]) -> Scores:
    """The means of rows that are scored already; `metrics` names the user's own."""
    answered = [row for row in rows if row is not None]
    return Scores(
        rouge_l=_mean([row.rouge_l for row in answered]),
        token_f1=_mean([row.token_f1 for row in answered]),
        anls=_mean([row.anls for row in answered]),
        target_length=_mean([row.target_length for row in answered]),
        prediction_length=_mean([row.prediction_length for row in answered]),
        exact=sum(row.is_exact for row in answered),
        total=len(rows),
        errors=len(rows) - len(answered),
        metrics={name: _mean([row.metrics[name] for row in answered]) for name in metrics},
        rows=tuple(rows),
    )


def rouge_l(prediction: str, target: str) -> float:
    """The F-measure of the longest common subsequence of stemmed words (Lin, 2004)."""
    return _rouge().score(target, prediction)["rougeL"].fmeasure


def token_f1(prediction: str, target: str) -> float:
    """How far two bags of words overlap, without case, punctuation and articles (SQuAD; Rajpurkar et al., 2016)."""
    predicted, wanted = _words(prediction), _words(target)
    if not predicted or not wanted:
        return float(predicted == wanted)
    return 2 * (predicted & wanted).total() / (predicted.total() + wanted.total())


def anls(prediction: str, target: str) -> float:
    """1 less the edit distance per letter of the longer text; 0 from half of it on (Biten et al., 2019)."""
    a, b = prediction.strip().lower(), target.strip().lower()
    longest = max(len(a), len(b))
    if not longest:
        return 1.0
    if abs(len(a) - len(b)) >= FURTHEST * longest:
        return 0.0  # the distance is never less than that
    distance = levenshtein(a, b) / longest
    return 1 - distance if distance < FURTHEST else 0.0


def levenshtein(a: str, b: str) -> int:
    """The letters to insert, remove or replace that make `b` of `a`.

    A column of the table of distances is two integers: bit i says whether row i + 1 is one more than row i, or one less
    (Myers, 1999, in the form of Hyyrö, 2003). So a column costs a few operations, whatever the length of `a`.
    """
    if not a:
        return len(b)
    places: dict[str, int] = {}
    for i, letter in enumerate(a):
        places[letter] = places.get(letter, 0) | 1 << i
    every, last = (1 << len(a)) - 1, len(a) - 1
    more, less, distance = every, 0, len(a)
    for letter in b:
        equal = places.get(letter, 0)
        diagonal = (((equal & more) + more) ^ more) | equal | less
        right_more, right_less = less | (every & ~(diagonal | more)), diagonal & more
        distance += (right_more >> last & 1) - (right_less >> last & 1)
        right_more, right_less = right_more << 1 | 1, right_less << 1
        more, less = every & (right_less | ~(diagonal | right_more)), every & right_more & diagonal
    return distance


def load_metrics(names: Sequence[str]) -> dict[str, Metric]:
    """The functions that `module:function` and `path/to/file.py:function` name, by the function's name.

    Raises ValueError where a file, module or function does not exist, is not callable, or has the name of another.
    """
    metrics: dict[str, Metric] = {}
    for name in names:
        place, _, function = name.rpartition(":")
        if not place or not function:
            raise ValueError(f"--metrics {name} is not module:function or path/to/file.py:function; write one of these")
        if function in metrics:
            raise ValueError(f"--metrics names two functions {function}; rename one, since results go by that name")
        metrics[function] = _function(name, place, function)
    return metrics


def table(scores: Mapping[str, Scores]) -> tuple[list[str], list[list[str]]]:
    """The head and the rows of the table of scores: a row for each dataset, a column for each of the user's metrics."""
    own = list(dict.fromkeys(name for s in scores.values() for name in s.metrics))
    return [*COLUMNS, *own], [[name, *_cells(s, own)] for name, s in scores.items()]


def markdown_table(scores: dict[str, Scores]) -> str:
    """The scores of several datasets as the table of `summary.md`."""
    head, rows = table(scores)
    lines = [head, ["---"] * len(head), *([name.replace("|", r"\|"), *cells] for name, *cells in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


@cache
def _rouge() -> RougeScorer:
    return RougeScorer(["rougeL"], use_stemmer=True)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _words(text: str) -> Counter[str]:
    return Counter(ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split())


def _score_row(row: dict[str, str], number: int, metrics: Mapping[str, Metric]) -> RowScores:
    prediction, target = row["output"], row["target"]
    return RowScores(
        rouge_l=rouge_l(prediction, target),
        token_f1=token_f1(prediction, target),
        anls=anls(prediction, target),
        is_exact=prediction.strip() == target.strip(),
        target_length=len(target.split()),
        prediction_length=len(prediction.split()),
        metrics={name: _apply(name, metric, row, number) for name, metric in metrics.items()},
    )


def _apply(name: str, metric: Metric, row: dict[str, str], number: int) -> float:
    given: object = metric(row["output"], row["target"])
    value = float(given) if isinstance(given, SupportsFloat) else math.nan
    if not math.isfinite(value):
        raise ValueError(f"metric {name} gave {given!r} for row {number}; let it return a finite number")
    return value


def _module(name: str, place: str) -> ModuleType:
    path = Path(place)
    if path.suffix == ".py" and not path.is_file():
        raise ValueError(f"--metrics {name}: file {place} does not exist; give the path of a Python file")
    try:
        return _run_file(path) if path.suffix == ".py" else importlib.import_module(place)
    except (ImportError, SyntaxError) as error:
        why = f"{type(error).__name__}: {error}"
        raise ValueError(
            f"--metrics {name}: {place} cannot be imported ({why}); correct the name or the code"
        ) from error


def _run_file(path: Path) -> ModuleType:
    spec = spec_from_file_location(f"_metrics_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses and pickle look their module up
    spec.loader.exec_module(module)
    return module


def _function(name: str, place: str, function: str) -> Metric:
    module = _module(name, place)
    if not hasattr(module, function):
        raise ValueError(f"--metrics {name}: {place} has no {function}; correct the name")
    metric: Metric = getattr(module, function)
    if not callable(metric):
        raise ValueError(f"--metrics {name}: {function} is not a function but {type(metric).__name__}; name a function")
    return metric


def _cells(s: Scores, own: Sequence[str]) -> list[str]:
    means = [f"{s.rouge_l:.4f}", f"{s.target_length:.2f}", f"{s.prediction_length:.2f}"]
    more = [f"{s.token_f1:.4f}", f"{s.anls:.4f}"]
    mine = [f"{s.metrics[name]:.4f}" if name in s.metrics else "-" for name in own]
    share = f"{100 * s.exact_share:.2f}%"
    if not s.answered:
        means, more, mine, share = ["-"] * 3, ["-"] * 2, ["-"] * len(own), "-"
    return [*means, str(s.exact), share, str(s.total), *more, str(s.errors), *mine]
