"""Which method of a run a model is made with, where the user names none: the one that the run's own table has ahead."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dist_train.classifier.predicted import MODEL_METHODS
from dist_train.errors import UserError, counted
from dist_train.fewshot.methods import METHODS
from dist_train.fewshot.results import Metrics, Results

PREFERRED = ("phi_plus_plda", "phi_plus", "phi2", "phi1", "phi2star", "phi2mean", "attention")
"""Methods by preference where the run has no table: the first whose network was trained. The order is that of
docs/methods.md, "Which method to take"."""


@dataclass(frozen=True)
class MethodChoice:
    """A method with the reason why it was chosen, a line for people."""

    method: str
    reason: str


def trained_methods(run: Path) -> list[str]:
    """Return the methods that a model can be made with and that the run has trained, the preferred first."""
    names = [name for name in MODEL_METHODS if (run / "learn" / METHODS[name].learned(name) / "final").is_dir()]
    return sorted(names, key=lambda name: PREFERRED.index(name) if name in PREFERRED else len(PREFERRED))


def choose_method(run: Path, photos: Sequence[int]) -> MethodChoice:
    """Choose a method by the run's table: the largest harmonic mean of base and novel accuracy at the number of shots
    that is nearest to the median number of photos of a class. The best of several is a little worse than its figure.

    Args:
        run: the folder of the run.
        photos: of each class that is to be added; none: the fewest shots count.

    Raises:
        UserError: no method that gives rows was trained.
    """
    trained = trained_methods(run)
    if not trained:
        raise UserError(f"{run}: no method that a model can be made with was trained; learn one of "
                        f"{', '.join(PREFERRED)} first")  # fmt: skip
    fallback = next((name for name in PREFERRED if name in trained), trained[0])
    try:
        results = Results.read(run / "evaluate" / "results.json")
    except FileNotFoundError:
        return MethodChoice(fallback, _without_table(fallback, "the run has no table (evaluate is not done)"))
    except (ValueError, OSError) as error:
        return MethodChoice(fallback, _without_table(fallback, f"the run's table cannot be read ({error})"))
    shots = _nearest(results, photos)
    scored = {
        name: result.shots[shots] for name, result in results.methods.items()
        if name in trained and "harmonic" in result.shots.get(shots, {})
    }  # fmt: skip
    if not scored:
        return MethodChoice(fallback, _without_table(fallback, "the run's table compares no trained method on old and "
                                                               "new classes together"))  # fmt: skip
    return _best(scored, shots, [name for name in trained if name not in scored and name in PREFERRED])


def _nearest(results: Results, photos: Sequence[int]) -> int:
    """Return the number of shots in the table that is nearest to the median number of photos."""
    ranked = sorted(photos) or [min(results.shots)]
    median = ranked[len(ranked) // 2]
    return min(results.shots, key=lambda shots: (abs(shots - median), shots))


def _best(scored: dict[str, Metrics], shots: int, unscored: Sequence[str]) -> MethodChoice:
    best, *others = sorted(scored, key=lambda name: -scored[name]["harmonic"].mean)
    text = f"method: {best}, the best of the run's table at {counted(shots, 'shot')}: {_figures(scored[best])}"
    if others:
        second, own = scored[others[0]], scored[best]
        difference = second["base_top1"].mean - own["base_top1"].mean
        text += f"; next {others[0]}: {_figures(second)} ({difference:+.2f} on old classes)"
    if unscored:
        text += f"; trained, but not in the table: {', '.join(unscored)}"
    return MethodChoice(best, f"{text}; --method takes another")


def _figures(metrics: Metrics) -> str:
    return (f"harmonic mean {metrics['harmonic'].mean:.2f}%, old classes {metrics['base_top1'].mean:.2f}%, new "
            f"{metrics['novel_top1'].mean:.2f}%")  # fmt: skip


def _without_table(method: str, why: str) -> str:
    return f"method: {method}, the first of {', '.join(PREFERRED)} that was trained, as {why}; --method takes another"
