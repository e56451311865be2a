"""Distributions of scores: what a metric can tell apart."""

from __future__ import annotations

import math

import numpy as np

from ..metrics.separation import SELF, Separation
from .plots import new_figure, png

BINS = 30


def separation_plot(found: Separation, title: str) -> bytes:
    """A histogram a set with its mean, and a tick for each picture. A PNG of 1100 × 660 pixels."""
    figure = new_figure(10.0, 6.0)
    axes = figure.add_subplot()
    everything = np.concatenate(list(found.scores.values()))
    low, high = float(everything.min()), float(everything.max())
    margin = max(0.01, 0.05 * (high - low))
    edges = np.linspace(low - margin, high + margin, BINS + 1)
    for place, (name, values) in enumerate(found.scores.items()):
        label = f"{name}: mean {values.mean():.3f}, n {len(values)}"
        if name != SELF:
            gap = found.gaps[name]
            apart = "" if math.isnan(gap.d_prime) else f", d′ {gap.d_prime:.2f}"
            label += f"; AUC {gap.auc:.3f}{apart}"
        share = np.full(len(values), 1 / len(values))
        axes.hist(values, edges, weights=share, color=f"C{place}", alpha=0.45, label=label)
        axes.axvline(values.mean(), color=f"C{place}", linestyle="--", linewidth=1.5)
        axes.plot(values, np.full(len(values), -0.02 * (place + 1)), "|", color=f"C{place}", markersize=9)
    axes.axhline(0, color="0.3", linewidth=0.8)
    axes.set_xlabel("mean cosine to the references")
    axes.set_ylabel("share of pictures")
    axes.set_title(title, fontsize=11)
    axes.legend(fontsize=9)
    axes.grid(alpha=0.3)
    return png(figure)
