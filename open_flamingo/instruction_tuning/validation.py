"""Validation: the loss of held-out records, each by itself, and a few of the model's own answers."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from open_flamingo.instruction_tuning.config import Flags
from open_flamingo.instruction_tuning.data.batches import Batch, EqualShare, loader
from open_flamingo.instruction_tuning.data.loader import InstructionData
from open_flamingo.instruction_tuning.distributed import Ranks
from open_flamingo.instruction_tuning.samples import Shown, show, takes_part
from open_flamingo.instruction_tuning.trainer import Tally, Trainer, add, forward


@dataclass(frozen=True)
class Validation:
    """Held-out records and how many of them are answered."""

    data: InstructionData
    flags: Flags
    ranks: Ranks

    @cached_property
    def share(self) -> EqualShare:
        """This rank's records: the same drawn ones each time, or all."""
        total = sum(len(usable) for usable in self.data.usable)
        drawn = -1 if self.flags.run.val_num_samples >= total else self.flags.run.val_num_samples
        return EqualShare(self.data.epoch(0, drawn, "ratio"), self.ranks.rank, self.ranks.world_size)

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """This rank's records on its device."""
        for batch in loader(self.share, self.data, batch_size=batch_size, workers=self.flags.data.workers):
            yield batch.to(self.ranks.device)

    @torch.no_grad()
    def tally(self, trainer: Trainer) -> Tally:
        """Loss and accuracy of all records, by dataset."""
        sums = torch.zeros(len(self.data.datasets), 3, device=self.ranks.device)
        trainer.model.eval()
        try:
            with tqdm(total=len(self.share), desc="validation", leave=False, disable=not self.ranks.is_main) as bar:
                for batch in self.batches(self.flags.optim.batch_size):
                    add(sums, forward(trainer, batch), batch)
                    bar.update(len(batch.input_ids))
        finally:
            trainer.model.train()
        return Tally(self.ranks.sum(sums))

    def answered(self, trainer: Trainer, tokenizer: PreTrainedTokenizerBase) -> list[Shown]:
        """The first records with the model's own answers, on the main rank."""
        if not takes_part(trainer):
            return []
        first = zip(range(self.flags.run.val_answers), self.batches(batch_size=1))
        shown = [show(trainer, tokenizer, batch) for _, batch in first]
        return [sample for sample in shown if sample is not None]
