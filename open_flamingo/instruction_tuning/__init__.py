"""Fine-tuning and inference: data, tuning, the training loop, checkpoints and the commands."""
