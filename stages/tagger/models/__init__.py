"""Backbones, heads, pretrained weights, and loading a tagger of any layout."""
