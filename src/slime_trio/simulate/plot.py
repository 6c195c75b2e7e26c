"""Results as a picture. matplotlib is an extra, and imported only where a picture is asked for."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from slime_core.simulation import Result
from slime_trio.config import ConfigurationError
from slime_trio.simulate.report import Run
from slime_trio.simulate.words import shown, word_of

__all__ = ["check_plot", "plot"]

_PANELS: Final[tuple[tuple[str, Callable[[Result], float]], ...]] = (
    ("requests per s", lambda r: r.requests_per_s),
    ("sampled tokens per s", lambda r: r.output_tokens_per_s),
    ("latency, p50, s", lambda r: r.latency_s.p50),
    ("latency, p99, s", lambda r: r.latency_s.p99),
    ("first token, p50, s", lambda r: r.first_token_s.p50),
    ("first token, p99, s", lambda r: r.first_token_s.p99),
    ("prompt tokens in workers' caches, %", lambda r: 100 * r.cache_hit_rate),
    ("imbalance (1: even)", lambda r: r.imbalance),
    ("lost tokens", lambda r: r.lost_tokens),
)
_ROWS: Final = 3
_HIGHEST: Final = 300  # inches, of which each bar gets a quarter
_DASHES: Final = ("-", "--", "-.", ":")
_MARKS: Final = ("o", "s", "^", "v", "D", "x")


def check_plot(path: Path) -> None:
    """Raise :class:`ConfigurationError` where the extra is not installed, or cannot draw a file of
    the kind that ``path`` ends in."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigurationError("--plot needs matplotlib: pip install 'slime-router[plot]'")
    from matplotlib.backend_bases import FigureCanvasBase

    kinds = FigureCanvasBase.get_supported_filetypes()
    if path.suffix.lower().removeprefix(".") not in kinds:
        told = ", ".join(f".{kind}" for kind in sorted(kinds))
        raise ConfigurationError(f"--plot: {path}: expected a name that ends in one of {told}")


def plot(path: Path, runs: Sequence[Run]) -> None:
    """Draw ``runs`` into a file of the kind that its name ends in.

    One swept field gives lines over its values, one for each policy; otherwise there is a bar for
    every run. :func:`check_plot` knows whether ``path`` will do. Raises
    :class:`ConfigurationError` if the file cannot be written.
    """
    from matplotlib.figure import Figure

    swept = list(runs[0][0].swept)
    bars = 0 if len(swept) == 1 else len(runs)
    height = min(_HIGHEST, max(10, _ROWS * bars / 4))
    figure = Figure(figsize=(15, height), layout="constrained")
    axes = figure.subplots(_ROWS, len(_PANELS) // _ROWS).flat
    for axis, (title, measure) in zip(axes, _PANELS, strict=True):
        axis.set_title(title)
        if len(swept) == 1:
            _lines(axis, runs, measure)
            axis.set_xlabel(swept[0])
        else:
            _bars(axis, runs, measure)
    if len(swept) == 1:
        figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=5)
    try:
        figure.savefig(path)
    except OSError as error:
        raise ConfigurationError(f"--plot: {path}: {error.strerror}") from error


def _lines(axis: Any, runs: Sequence[Run], measure: Callable[[Result], float]) -> None:
    (name,) = runs[0][0].swept
    places = list(dict.fromkeys(word_of(shown(point.swept[name])) for point, _ in runs))
    for place, policy in enumerate(dict.fromkeys(point.policy for point, _ in runs)):
        values = [measure(result) for point, result in runs if point.policy == policy]
        # Lines that lie on one another must still be seen: each has its own dashes and mark.
        style = {"linestyle": _DASHES[place % len(_DASHES)], "marker": _MARKS[place % len(_MARKS)]}
        axis.plot(range(len(places)), values, label=policy, fillstyle="none", **style)
    axis.set_xticks(range(len(places)), places)
    axis.set_ylim(0, _beyond(runs, measure))


def _bars(axis: Any, runs: Sequence[Run], measure: Callable[[Result], float]) -> None:
    labels = [
        " ".join([*(word_of(shown(one)) for one in point.swept.values()), point.policy])
        for point, _ in runs
    ]
    axis.barh(range(len(runs)), [measure(result) for _, result in runs])
    axis.set_yticks(range(len(runs)), labels)
    axis.invert_yaxis()
    axis.set_xlim(0, _beyond(runs, measure))


def _beyond(runs: Sequence[Run], measure: Callable[[Result], float]) -> float:
    """Somewhat more than the most of all runs."""
    return 1.1 * max(measure(result) for _, result in runs) or 1.0
