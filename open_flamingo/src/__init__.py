"""The model: vision tower, resampler, gated cross-attention and their splice into a language model."""
