"""How predictions compare with targets."""

from dataclasses import dataclass
from functools import cache

from rouge_score.rouge_scorer import RougeScorer


@dataclass(frozen=True)
class Scores:
    """The scores of one dataset's predictions."""

    rouge_l: float
    """Mean ROUGE-L F-measure, with stemming."""
    target_length: float
    """Mean, in words."""
    prediction_length: float
    """Mean, in words."""
    exact: int
    """Predictions equal to their target but for surrounding space."""
    total: int

    @property
    def exact_share(self) -> float:
        """Exact matches over all samples."""
        return self.exact / self.total


@cache
def _rouge() -> RougeScorer:
    return RougeScorer(["rougeL"], use_stemmer=True)


def score(predictions: list[str], targets: list[str]) -> Scores:
    """The scores of `predictions` against `targets`, pair by pair; there must be at least one."""
    total = len(predictions)
    pairs = list(zip(predictions, targets, strict=True))
    return Scores(
        rouge_l=sum(_rouge().score(target, prediction)["rougeL"].fmeasure for prediction, target in pairs) / total,
        target_length=sum(len(target.split()) for target in targets) / total,
        prediction_length=sum(len(prediction.split()) for prediction in predictions) / total,
        exact=sum(prediction.strip() == target.strip() for prediction, target in pairs),
        total=total,
    )


def markdown_table(scores: dict[str, Scores]) -> str:
    """The scores of several datasets as the table of `summary.md`."""
    head = "Dataset | Avg ROUGE-L | Avg target length | Avg prediction length | Exact matches | Match percentage | Total samples"
    rows = [
        f"{name} | {s.rouge_l:.4f} | {s.target_length:.2f} | {s.prediction_length:.2f} | {s.exact}"
        f" | {100 * s.exact_share:.2f}% | {s.total}"
        for name, s in scores.items()
    ]
    rule = " | ".join(["---"] * 7)
    return "\n".join(f"| {row} |" for row in [head, rule, *rows]) + "\n"
