"""Train a model, and resume it after an interruption."""
