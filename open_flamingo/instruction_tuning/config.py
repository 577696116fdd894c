"""What a training run is told: frozen dataclasses, one field per flag, checked against each other."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from open_flamingo.instruction_tuning.command import flag
from open_flamingo.instruction_tuning.data.mixture import SamplingMode
from open_flamingo.instruction_tuning.data.packing import PackingMode
from open_flamingo.src.media import MediaAttention

Template = Literal["guanaco", "guanaco-no-prompt"]
Precision = Literal["fp32", "bf16", "amp_bf16", "amp_bfloat16", "fp16"]
Schedule = Literal["constant", "linear", "cosine"]
Sharding = Literal["full", "hybrid"]
OnBadImage = Literal["error", "skip"]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The model."""

    vision_encoder_path: str = flag(
        "open_clip model name, config JSON, or folder with open_clip_config.json and weights", "ViT-L-14"
    )
    vision_encoder_pretrained: str = flag("weights of the vision encoder: a tag, a file, or 'none'", "openai")
    quick_gelu: bool | None = flag(
        "the vision encoder's weights were trained with QuickGELU; not given: only those of the tag 'openai'", None
    )
    lm_path: str = flag("language model: a folder or a name on the Hugging Face hub", "facebook/opt-1.3b")
    tokenizer_path: str | None = flag("tokenizer; not given: the language model's", None)
    cross_attn_every_n_layers: int = flag("a gated cross-attention block before every N-th decoder layer", 1)
    media_attention: MediaAttention = flag(
        "text belongs to the image before it, or, in OpenFlamingo-9B v1 and Clever Flamingo v1, to the next", "previous"
    )
    decoder_layers_attr_name: str | None = flag(
        "dotted name of the list of decoder layers, where it is not found by itself", None
    )
    resampler_depth: int = flag("layers of the perceiver resampler; the released checkpoints have 6", 6)
    resampler_latents: int = flag("latents of an image; the released checkpoints have 64", 64)
    offline: bool = flag("look for models on this machine only", False)
    freeze_lm_embeddings: bool = flag("do not train the embeddings of <image> and <|endofchunk|>", False)

    def __post_init__(self) -> None:
        _at_least(1, cross_attn_every_n_layers=self.cross_attn_every_n_layers)
        _at_least(1, resampler_depth=self.resampler_depth, resampler_latents=self.resampler_latents)


@dataclass(frozen=True, kw_only=True)
class TrainedConfig:
    """The model: a checkpoint or an exported folder of this project needs no flag beside it."""

    checkpoint_paths: str | None = flag("checkpoints to load, separated by commas, one over the other")
    lm_path: str | None = flag("language model; not given: as the last checkpoint says, like the next seven", None)
    tokenizer_path: str | None = flag("tokenizer", None)
    vision_encoder_path: str | None = flag("open_clip model name, config JSON, or folder", None)
    vision_encoder_pretrained: str | None = flag("weights of the vision encoder", None)
    quick_gelu: bool | None = flag("these weights were trained with QuickGELU; not given: only those of 'openai'", None)
    tuning_config: str | None = flag("the tuning config of the checkpoints", None)
    cross_attn_every_n_layers: int | None = flag("a gated cross-attention block before every N-th layer", None)
    v1: bool = flag("the checkpoints are of the v1 family: OpenFlamingo-9B v1, Clever Flamingo v1", False)
    precision: Precision = flag("arithmetic and storage of the weights", "fp32")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The data."""

    instruction_data: Path = flag(
        "a data file, a folder of its shards, or a config that mixes several (JSON, JSON Lines, Parquet, gzip)"
    )
    instruction_prompt_template: Template = flag(
        "how an instruction becomes a prompt", "guanaco", aliases=["--instruction_prompt_templete"]
    )
    max_length: int = flag("tokens per sample, at most", 256)
    max_img: int = flag("images per sample, at most", 5)
    multiturn_augmentation: int = flag("append up to N further records as turns, to fill samples up", 1)
    pack: PackingMode = flag(
        "of N drawn records append those that come until the sample is full, the last one cut; or those that fit best",
        "fill",
    )
    train_num_samples: int = flag("records drawn for one epoch; -1: every record once", 10000)
    epoch_num_samples: int = flag("of the drawn records, train on the first N per epoch; -1: all", -1)
    dataset_sampling_mode: SamplingMode = flag(
        "share of each dataset: its ratio in the config, or the square root of its size", "ratio"
    )
    on_bad_image: OnBadImage = flag(
        "an image that is missing or cannot be read ends the run, or its sample is replaced by another and counted",
        "error",
    )
    skip_check_overlength: bool = flag("do not look for overlong records and missing images before training", False)
    data_cache: Path | None = flag("folder of prepared data; not given: ~/.cache/instruct_flamingo", None)
    workers: int = flag("processes that load data, per rank", 1)

    def __post_init__(self) -> None:
        _at_least(1, max_length=self.max_length)
        _at_least(0, max_img=self.max_img, workers=self.workers, multiturn_augmentation=self.multiturn_augmentation)
        _at_least(-1, train_num_samples=self.train_num_samples, epoch_num_samples=self.epoch_num_samples)


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Optimization."""

    tuning_config: Path = flag("which parameters train: a JSON such as those in instruction_tuning/tuning_config")
    num_epochs: int = flag("epochs", 1)
    batch_size: int = flag("samples per rank and micro-batch", 128)
    gradient_accumulation_steps: int = flag("micro-batches per optimizer step", 1)
    learning_rate: float = flag("peak learning rate", 1e-4)
    lr_scheduler: Schedule = flag("learning rate after the warm-up", "constant")
    warmup_steps: int = flag("optimizer steps until the peak learning rate", 5000)
    weight_decay: float = flag("weight decay, on the gated cross-attention only", 0.1)
    precision: Precision = flag(
        "fp32; amp_bf16: fp32 weights, bf16 arithmetic; bf16, fp16: frozen weights in half precision as well", "fp32"
    )
    gradient_checkpointing: bool = flag("recompute activations in the backward pass, to save memory", False)
    compile: bool = flag("compile the decoder layers by torch.compile: minutes at the start, faster steps", False)
    fsdp: bool = flag("shard weights, gradients and optimizer state over the ranks (FSDP2)", False)
    fsdp_sharding_strategy: Sharding = flag("over all ranks, or inside each node with a replica per node", "full")
    fsdp_use_orig_params: bool = flag("always so since FSDP2: taken, and without effect", False)

    def __post_init__(self) -> None:
        _at_least(1, num_epochs=self.num_epochs, batch_size=self.batch_size)
        _at_least(1, gradient_accumulation_steps=self.gradient_accumulation_steps)
        _at_least(0, warmup_steps=self.warmup_steps, weight_decay=self.weight_decay)
        if self.learning_rate <= 0:
            raise ValueError(f"--learning_rate must be positive, not {self.learning_rate}")

    @property
    def sharding(self) -> Sharding | None:
        """How FSDP shards, if it does."""
        return self.fsdp_sharding_strategy if self.fsdp else None


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The run."""

    run_name: Path = flag("folder of the run: log, TensorBoard, checkpoints", Path("runs/flamingo"))
    dry_run: bool = flag("build nothing: print parameters, memory, records and steps of this command, and end", False)
    seed: int = flag("every random choice follows from it", 42)
    resume_from_checkpoint: str | None = flag("checkpoints to load, separated by commas, one over the other", None)
    continue_training: bool = flag(
        "take optimizer, schedule and place in the data from the last of these checkpoints, or, where none is given, from"
        " the newest whole one of the run; a command that torchrun or Slurm restarts does so by itself",
        False,
    )
    save_steps: int = flag("save every N optimizer steps, besides each epoch; 0: epochs only", 0)
    keep_last: int = flag("keep the last N checkpoints of --save_steps", 2)
    delete_previous_checkpoint: bool = flag("keep the checkpoint of the newest epoch only", False)
    logging_steps: int = flag("show a sample with the model's answer every N optimizer steps", 100)
    val_data: Path | None = flag(
        "held-out data, as --instruction_data: its loss is logged, the best checkpoint kept", None
    )
    val_steps: int = flag("validate every N optimizer steps, besides each epoch; 0: epochs only", 0)
    val_num_samples: int = flag("validate on N records, the same ones each time; -1: on all", 1000)
    val_answers: int = flag("held-out records that the model answers at each validation", 4)
    report_to_wandb: bool = flag("log to Weights & Biases too", False)
    wandb_project: str | None = flag("project there", None)
    wandb_entity: str | None = flag("user or team there", None)
    save_checkpoints_to_wandb: bool = flag("upload checkpoints there", False)
    dist_url: str = flag("where ranks meet", "env://", aliases=["--dist-url"])
    dist_backend: str | None = flag("not given: nccl on CUDA, else gloo", None, aliases=["--dist-backend"])
    no_set_device_rank: bool = flag(
        "use cuda:0 on every rank (set CUDA_VISIBLE_DEVICES per rank)", False, aliases=["--no-set-device-rank"]
    )

    def __post_init__(self) -> None:
        _at_least(1, logging_steps=self.logging_steps, keep_last=self.keep_last)
        _at_least(0, save_steps=self.save_steps, val_steps=self.val_steps, val_answers=self.val_answers)
        _at_least(-1, val_num_samples=self.val_num_samples)
        if self.save_checkpoints_to_wandb and not self.report_to_wandb:
            raise ValueError("--save_checkpoints_to_wandb needs --report_to_wandb")
        if self.val_steps and not self.val_data:
            raise ValueError("--val_steps needs the held-out data: --val_data FILE")


@dataclass(frozen=True)
class Flags:
    """What the command line says."""

    model: ModelConfig
    data: DataConfig
    optim: OptimConfig
    run: RunConfig

    def to_json(self) -> dict[str, object]:
        """All flags in one."""
        return {name: value for part in vars(self).values() for name, value in asdict(part).items()}


def _at_least(minimum: int, **values: float) -> None:
    for name, value in values.items():
        if value < minimum:
            raise ValueError(f"--{name} must be at least {minimum}, not {value}")
