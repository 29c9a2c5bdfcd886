"""Curves as pictures, for those who look at a run in MLflow."""

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure


def curve(path: Path, title: str) -> Figure:
    """Return a drawing of a CSV: every column after the first against the first, all 0 to 1."""
    table = pd.read_csv(path, index_col=0)
    figure = Figure(figsize=(6, 4), dpi=120, layout="constrained")
    axes = figure.add_subplot(title=title, xlabel=str(table.index.name), xlim=(0, 1), ylim=(0, 1))
    for name in table.columns:
        axes.plot(table.index, table[name], label=str(name).replace("_", " "))
    axes.grid(alpha=0.3)
    axes.legend()
    return figure
