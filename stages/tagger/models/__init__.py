"""Models: backbones with heads, their weights, and taggers of any layout in use."""

from tagger.models.load import load_tagger

__all__ = ["load_tagger"]
