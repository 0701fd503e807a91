"""A picture of size against expected accuracy for all allocations that were considered."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from edgekit.mixed_search import MixedChoice

FILE = "mixed.png"


def plot_mixed(choice: MixedChoice, directory: Path) -> Path | None:
    """Write ``mixed.png`` and return its path.

    Nothing is drawn where allocations have no sizes (a latency was bounded) or matplotlib is not
    installed.

    Args:
        choice: what was chosen, and from what.
        directory: where the file goes.
    """
    if not choice.points or importlib.util.find_spec("matplotlib") is None:
        return None
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    sizes = [point.size_bytes / 1e6 for point in choice.points]
    axes.plot(sizes, [point.drop for point in choice.points], ".-", label="allocations")
    axes.plot(
        [choice.chosen.size_bytes / 1e6],
        [choice.chosen.drop],
        "o",
        markersize=9,
        label=f"chosen ({choice.budget})",
    )
    axes.set_xlabel("model file, MB")
    axes.set_ylabel("expected loss of accuracy, points")
    axes.legend()
    path = directory / FILE
    figure.savefig(path, dpi=120, metadata={"Software": None})
    plt.close(figure)
    return path
