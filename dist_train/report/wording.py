"""Names and sentences that table.md and the report share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dist_train.fewshot.methods import LABELS
from dist_train.report import paper


def display_name(method: str) -> str:
    return LABELS.get(method, method)


def marked_name(method: str) -> str:
    """The name of a row that stands beside the paper's; with a mark where ``footnote`` says what is not the same."""
    return display_name(method) + (" ¹" if method in paper.WHOLE_NETWORK else "")


def footnote(results: Mapping[str, Any]) -> str:
    """Say how the rows that ``marked_name`` marks differ from the paper's; nothing where there are none."""
    if not set(paper.WHOLE_NETWORK) & set(results["methods"]):
        return ""
    return "¹ Trains one layer on the frozen activations, where the paper's row trains the whole network."


def describe_figures(results: Mapping[str, Any]) -> str:
    """What was measured, in sentences."""
    classes, queries = results["classes"], results["queries"]
    novel = results["split"].get("holdout", "novel")  # or pseudo-novel
    return (
        f"Percent; mean ± half-width of the {results['interval']}, {results['draws']} draws. "
        f"All {classes['base'] + classes['novel']} classes ({classes['base']} base, {classes['novel']} {novel}) "
        f"are scored together, on {queries['base']:,} base and {queries['novel']:,} {novel} images. "
        "H = harmonic mean of base and novel top-1. "
        "The paper's rows are of other classes: they show what to expect, not a target."
    )


def describe_origin(results: Mapping[str, Any]) -> str:
    """The same numbers can be made again from this, and the run's config.yaml."""
    split, options = results["split"], results.get("options") or {}
    chosen = [f"evaluate.rule={results['rule']}"] if results.get("rule", "max") != "max" else []
    chosen += [f"{name}={value:g}" for name, value in options.items()]
    older = [f"{display_name(method)} of {commit}" for method, commit in (results.get("older") or {}).items()]
    parts = [f"Split {split['name']} ({split['hash']})", f"shards {results['shards']}", *chosen]
    parts += [f"commit {results['commit']}" + (f" ({', '.join(older)})" if older else "")]
    return f"{', '.join(parts)}, command: {results['command']}"
