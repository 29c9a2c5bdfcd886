"""A tagger in use: an export, a training's model, or another author's."""
