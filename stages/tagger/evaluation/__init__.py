"""Predict over a split, compute metrics, fit thresholds, find mistakes."""
