"""Names and sentences that table.md and the report share."""

from __future__ import annotations

from collections.abc import Iterable

from dist_train.errors import counted
from dist_train.fewshot.methods import LABELS
from dist_train.fewshot.results import Results
from dist_train.report import paper


def display_name(method: str) -> str:
    """Return the name of a method in tables; a method that this version does not know keeps its own."""
    return LABELS.get(method, method)


def marked_name(method: str) -> str:
    """Return the name of a row that stands beside the paper's, with a mark where ``footnote`` explains a difference."""
    return display_name(method) + (" ¹" if method in paper.LAST_LAYER else "")


def footnote(methods: Iterable[str]) -> str:
    """Say how the rows that ``marked_name`` marks differ from the paper's; "" where no method is marked."""
    if not set(paper.LAST_LAYER) & set(methods):
        return ""
    return "¹ Trains one layer on the frozen activations, where the paper's row trains the whole network."


def describe_fewer_draws(results: Results) -> str:
    """Say which rows are of fewer draws than the others; "" where none is."""
    notes = []
    for method, result in results.methods.items():
        if 0 < result.draws < results.draws:
            draws = f"of the first {result.draws} draws" if result.draws > 1 else "of the first draw, without interval"
            notes.append(f"{display_name(method)} is {draws}, as are its differences.")
    return " ".join(notes)


def describe_backbone(results: Results) -> str:
    """Say which trained network the figures are of, and what it has seen of the novel classes; "" where the run trained
    its network from scratch."""
    backbone, novel, count = results.backbone, results.split.holdout, results.classes.novel
    if results.samples == "features":
        unknown = f"; it is not known whether {novel} classes were in the training of their network" * bool(count)
        return f"The activations are features from elsewhere{unknown}."
    if backbone is None:
        return ""
    where = f" ({backbone.trained_on})" if backbone.trained_on else ""
    began = "began as" if backbone.fine_tuned else "is"
    network = f"The backbone {began} {backbone.source}, which was trained elsewhere"
    if not count:
        return f"{network}{where}."
    if backbone.novel_seen is None:
        return f"{network}{where}; it is not known whether {novel} classes were in that training."
    if not backbone.novel_seen:
        return f"{network}{where}; none of the {counted(count, f'{novel} class')} was in that training."
    return (
        f"{novel.capitalize()} is not novel to the backbone: {backbone.novel_seen} of its {count} {novel} classes were "
        f"in the training of {backbone.source}{where}{', as which it began' * backbone.fine_tuned}."
    )


def describe_figures(results: Results) -> str:
    """Say what the figures of joint scoring are, in sentences."""
    classes, queries, novel = results.classes, results.queries, results.split.holdout
    assert queries is not None  # only episodes are without
    if results.base_only:
        left_out = ", ".join(map(display_name, results.left_out))
        oracles = "oracle" if len(results.left_out) == 1 else "oracles"
        return (
            f"No novel classes: base accuracy only. Percent of {counted(queries.base, 'validation image')}; "
            f"the candidates are {counted(classes.base, 'class')}."
            + f" Left out, for want of novel images: the {oracles} {left_out}."
            * bool(left_out)
        )
    return (
        f"Percent; mean ± half-width of the {results.interval}, {counted(results.draws, 'draw')}. "
        f"All {classes.base + classes.novel} classes ({classes.base} base, {classes.novel} {novel}) "
        f"are scored together, on {queries.base:,} base and {counted(queries.novel, f'{novel} image')}. "
        "H = harmonic mean of base and novel top-1. "
        "The paper's rows are of other classes: they show what to expect, not a target."
    )


def describe_origin(results: Results) -> str:
    """Say what the numbers can be made again from, with the run's config.yaml."""
    split = results.split
    parts = [f"Split {split.name} ({split.hash})", f"{results.samples} {results.shards}"]
    if results.rule != "max":
        parts.append(f"evaluate.rule={results.rule}")
    parts += [f"{name}={value:g}" for name, value in results.options.items()]
    older = ", ".join(f"{display_name(method)} of {commit}" for method, commit in results.older.items())
    parts.append(f"commit {results.commit}" + (f" ({older})" if older else ""))
    return f"{', '.join(parts)}, command: {results.command}"
