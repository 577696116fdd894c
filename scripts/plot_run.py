"""Command: `python scripts/plot_run.py RUN` draws a run's loss and accuracy, read from its TensorBoard log."""

import argparse
import sys
from pathlib import Path

import matplotlib
import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

SMOOTHING_STEPS = 10


def main(argv: list[str] | None = None) -> int:
    """Write RUN/curve.png; 0, or 1 after one line on stderr."""
    parser = argparse.ArgumentParser(description="Draw loss and accuracy of a training run as RUN/curve.png.")
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a training run")
    run = parser.parse_args(argv).run
    log = run / "tensorboard"
    events = EventAccumulator(str(log), size_guidance={"scalars": 0})
    if log.is_dir():
        events.Reload()
    if "train/loss" not in events.Tags()["scalars"]:
        sys.stderr.write(f"error: {run} holds no training log (tensorboard/); give the folder named by --run_name\n")
        return 1
    draw(events, run / "curve.png")
    sys.stdout.write(f"curves: {run / 'curve.png'}\n")
    return 0


def draw(events: EventAccumulator, path: Path) -> None:
    """Loss above, accuracy below, each step faint and the running mean strong."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, 1, sharex=True, figsize=(7, 5), layout="constrained")
    for axis, tag, label in zip(axes, ["train/loss", "train/accuracy"], ["loss per answer token", "token accuracy"]):
        scalars = events.Scalars(tag)
        steps, values = [scalar.step for scalar in scalars], [scalar.value for scalar in scalars]
        axis.plot(steps, values, color="tab:blue", alpha=0.25, linewidth=0.8)
        axis.plot(steps, running_mean(values), color="tab:blue")
        axis.set_ylabel(label)
        axis.grid(alpha=0.3)
    axes[1].set_xlabel("optimizer step")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def running_mean(values: list[float]) -> np.ndarray:
    """The mean of the last `SMOOTHING_STEPS` values, of fewer at the start."""
    sums = np.cumsum(np.concatenate([[0.0], values]))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - SMOOTHING_STEPS, 0)
    return (sums[ends] - sums[starts]) / (ends - starts)


if __name__ == "__main__":
    sys.exit(main())
