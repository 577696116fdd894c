"""Fine-tune on instruction data: `torchrun --nproc_per_node N open_flamingo/instruction_tuning/train.py --help`.

Top to bottom: main > train > train_epoch; one optimizer step is in trainer.py.
"""

import logging
import math
import os
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from open_flamingo.instruction_tuning.build import Recipe, build_model
from open_flamingo.instruction_tuning.checkpoint import load_payloads, read_checkpoints
from open_flamingo.instruction_tuning.command import parse, run
from open_flamingo.instruction_tuning.config import DataConfig, Flags, ModelConfig, OptimConfig, RunConfig
from open_flamingo.instruction_tuning.data.batches import batches, windows
from open_flamingo.instruction_tuning.data.conversation import TurnTokenizer
from open_flamingo.instruction_tuning.data.formats import Dataset, load_datasets
from open_flamingo.instruction_tuning.data.loader import InstructionData
from open_flamingo.instruction_tuning.data.summary import mixture_table
from open_flamingo.instruction_tuning.distributed import Ranks, joined
from open_flamingo.instruction_tuning.plan import dry_run
from open_flamingo.instruction_tuning.reporting import Reporter
from open_flamingo.instruction_tuning.saving import Place, Saver, continued_from, is_restarted, restore
from open_flamingo.instruction_tuning.signals import Stop, stop_on_signals
from open_flamingo.instruction_tuning.tracking import log_to_terminal, open_run, refuse_unwritable
from open_flamingo.instruction_tuning.trainer import Trainer, make_trainer, train_step
from open_flamingo.instruction_tuning.tuning import prepare_model_for_tuning, read_tuning_config
from open_flamingo.instruction_tuning.validation import Validation
from open_flamingo.src.flamingo import Flamingo
from open_flamingo.src.vision import NO_WEIGHTS, uses_quick_gelu

logger = logging.getLogger("open_flamingo.train")

INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Train as the flags say; see `--help`."""
    parts = [ModelConfig, DataConfig, OptimConfig, RunConfig]
    flags = Flags(*parse("Fine-tune a Flamingo on instruction data.", parts, argv))
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # loader workers are forked after its first use
    run = flags.run
    with joined(run.dist_url, run.dist_backend, set_device=not run.no_set_device_rank) as ranks:
        log_to_terminal(is_main=ranks.is_main)
        if run.dry_run:
            return dry_run(flags, ranks, partial(instruction_data, flags=flags, quiet=True))
        stopped_by = train(flags, ranks)
    return INTERRUPTED if stopped_by == signal.SIGINT else 0


def train(flags: Flags, ranks: Ranks) -> signal.Signals | None:
    """Build everything, cheapest first so that mistakes show early, then train; the signal that ended it early, if any."""
    tuning = read_tuning_config(flags.optim.tuning_config)
    datasets, held_out = (
        load_datasets(path, flags.data.data_cache, quiet=not ranks.is_main) if path else []
        for path in (flags.data.instruction_data, flags.run.val_data)
    )
    refuse_unwritable(flags.run.run_name)
    continued = continued_from(flags.run, ranks)
    torch.manual_seed(flags.run.seed)
    model, transform, tokenizer = build_model(flags.model, flags.optim.precision)
    flags = replace(flags, model=replace(flags.model, quick_gelu=uses_quick_gelu(model.vision_encoder)))
    prepare_model_for_tuning(model, tuning, freeze_lm_embeddings=flags.model.freeze_lm_embeddings)
    bases = load_weights(model, continued or flags.run.resume_from_checkpoint, continues=continued is not None)
    turns = TurnTokenizer(tokenizer, model.media_token_id, flags.data.instruction_prompt_template)
    data = instruction_data(datasets, turns, transform, flags, quiet=not ranks.is_main)
    validation = None
    if held_out:
        held_out_data = instruction_data(held_out, turns, transform, flags, quiet=not ranks.is_main, held_out=True)
        validation = Validation(held_out_data, flags, ranks)
    loader = partial(epoch_batches, data, flags, ranks)
    steps = math.ceil(len(loader(Place())) / flags.optim.gradient_accumulation_steps) * flags.optim.num_epochs
    trainer = make_trainer(model, flags.optim, tuning.learning_rates, steps, ranks, flags.run.seed)
    place = restore(trainer, continued) if continued else Place()
    if place.epoch >= flags.optim.num_epochs:
        if is_restarted():
            logger.info("%s has done all %d epochs: nothing is left to do", continued, place.epoch)
            return None
        raise ValueError(f"{continued} has done {place.epoch} epochs already: raise --num_epochs to train on")
    tracker = open_run(flags.run, flags.to_json(), first_step=trainer.step + 1, is_main=ranks.is_main)
    log_plan(trainer, data, flags, steps, continued)
    recipe = Recipe(flags.model, tuning, flags.data.instruction_prompt_template)
    also = found_nowhere_else(model, flags.model, bases)
    about = {"config": recipe.to_json(), "base_checkpoints": bases}
    bar = tqdm(total=steps, initial=trainer.step, unit="step", disable=not ranks.is_main)
    try:
        with bar, stop_on_signals() as stop:
            session = Session(
                flags=flags,
                trainer=trainer,
                loader=loader,
                saver=Saver(trainer, flags.run, also, about, tracker),
                reporter=Reporter(trainer, data, tokenizer, tracker, flags.run.logging_steps, bar),
                validation=validation,
                stop=stop,
            )
            while place.epoch < flags.optim.num_epochs and not session.is_stopped:
                place = train_epoch(session, place)
    except BaseException:
        with suppress(ValueError):  # what could not be logged is no news beside what ended the run
            tracker.close()
        raise
    tracker.close()
    return stop.received


@dataclass
class Session:
    """A run under way: what its loop works with."""

    flags: Flags
    trainer: Trainer
    loader: Callable[[Place], DataLoader]
    saver: Saver
    reporter: Reporter
    validation: Validation | None
    stop: Stop
    is_stopped: bool = False
    """On all ranks alike."""


def train_epoch(session: Session, place: Place) -> Place:
    """Train on an epoch from `place` on, an optimizer step for each window of micro-batches; the place it ends at."""
    trainer, flags, ranks = session.trainer, session.flags, session.trainer.ranks
    waiting = windows(session.loader(place), trainer.accumulation)
    for window in session.reporter.timed(waiting):
        step = train_step(trainer, window, len(session.reporter.data.datasets))
        samples = ranks.world_size * sum(len(batch.input_ids) for batch in window)
        place = replace(place, samples=place.samples + samples)
        session.reporter.after(step, window)
        if is_due(flags.run.val_steps, trainer.step):
            validate(session, place)
        session.is_stopped = ranks.any(session.stop.is_asked)
        if session.is_stopped or is_due(flags.run.save_steps, trainer.step):
            session.saver.step(place)
        if session.is_stopped:
            logger.info("stopped after %d steps: go on with --continue_training", trainer.step)
            return place
    ended = Place(place.epoch + 1)
    if not is_due(flags.run.val_steps, trainer.step):
        validate(session, ended)
    session.saver.epoch(place.epoch)
    return ended


def is_due(every: int, step: int) -> bool:
    """Whether what is done every so many steps, if at all, is done after this one."""
    return every > 0 and step % every == 0


def validate(session: Session, place: Place) -> None:
    """Log the loss of the held-out data and a few answers, and keep the best checkpoint; nothing without such data."""
    if session.validation is None:
        return
    trainer, reporter = session.trainer, session.reporter
    tally = session.validation.tally(trainer)
    values = {"val/loss": tally.loss, "val/accuracy": tally.accuracy}
    reporter.tracker.scalars(values | reporter.by_dataset("val", tally, session.validation.data), trainer.step)
    logger.info("step %d, validation loss %.4f, accuracy %.4f", trainer.step, tally.loss, tally.accuracy)
    for number, shown in enumerate(session.validation.answered(trainer, reporter.tokenizer), start=1):
        reporter.show(shown, f"val/answer_{number}", tally.loss)
    if tally.loss < trainer.best_loss:
        trainer.best_loss = tally.loss
        session.saver.best(place)


def instruction_data(
    datasets: list[Dataset],
    turns: TurnTokenizer,
    transform: Callable,
    flags: Flags,
    *,
    quiet: bool,
    held_out: bool = False,
) -> InstructionData:
    """The records, checked; held-out ones as they are: none is packed behind another, no image is augmented."""
    data = InstructionData(
        datasets,
        turns,
        transform,
        max_length=flags.data.max_length,
        max_img=flags.data.max_img,
        multiturn_augmentation=0 if held_out else flags.data.multiturn_augmentation,
        seed=flags.run.seed,
        packing=flags.data.pack,
        skip_bad_images=flags.data.on_bad_image == "skip",
        augmented=not held_out,
        cache=flags.data.data_cache,
        quiet=quiet,
    )
    if held_out or not flags.data.skip_check_overlength:
        data.check()
    return data


def load_weights(model: Flamingo, paths: str | None, *, continues: bool) -> list[str]:
    """Load checkpoints; the files that a checkpoint of this run will need below it."""
    if not paths:
        return []
    payloads = read_checkpoints(paths)
    load_payloads(model, payloads)
    files = [str(Path(file).resolve()) for file in payloads]
    # a continued run saves again all that its last checkpoint holds
    return files[:-1] if continues else files


def found_nowhere_else(model: Flamingo, config: ModelConfig, bases: list[str]) -> list[nn.Module]:
    """The frozen modules that a checkpoint has to hold: what started at random, and is in no file below it."""
    started_here = [] if bases else [model.perceiver, *model.gated_cross_attn_layers]
    return [*started_here, model.vision_encoder] if config.vision_encoder_pretrained == NO_WEIGHTS else started_here


def epoch_batches(data: InstructionData, flags: Flags, ranks: Ranks, place: Place) -> DataLoader:
    """This rank's batches of one epoch, from a place in it on."""
    samples = data.epoch(
        place.epoch, flags.data.train_num_samples, flags.data.dataset_sampling_mode, flags.data.epoch_num_samples
    )
    return batches(
        samples,
        batch_size=flags.optim.batch_size,
        rank=ranks.rank,
        world_size=ranks.world_size,
        done=place.batches(flags.optim.batch_size, ranks.world_size),
        workers=flags.data.workers,
        pin_memory=ranks.device.type == "cuda",
    )


def log_plan(trainer: Trainer, data: InstructionData, flags: Flags, steps: int, continued: str | None) -> None:
    """Say what trains, on what."""
    parameters = [*trainer.model.parameters()]
    count, total = sum(p.numel() for p in parameters if p.requires_grad), sum(p.numel() for p in parameters)
    logger.info("training %.2f M of %.2f M parameters for %d steps", count / 1e6, total / 1e6, steps)
    if continued:
        logger.info("going on from %s after %d steps", continued, trainer.step)
    counts = data.counts(flags.data.train_num_samples, flags.data.dataset_sampling_mode)
    logger.info("%s", mixture_table(data, counts))


if __name__ == "__main__":
    run(main)
