"""Results as a run's evaluate leaves them, without a run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dist_train.fewshot.results import Counts, Interval, MethodResult, Results, SplitFacts


def save_results(run: Path, shots: int, methods: Mapping[str, Mapping[str, Interval]], **facts: Any) -> None:
    """Write results at a single number of shots.

    Args:
        methods: the metrics of each.
        facts: fields of ``Results`` that matter to the test, such as its draws.
    """
    results = Results(
        methods={method: MethodResult({shots: metrics}) for method, metrics in methods.items()},
        shots=[shots],
        interval="interval",
        classes=Counts(base=6, novel=3),
        split=SplitFacts("drawn", "0"),
        shards="0",
        command="dist-train evaluate",
        **{"draws": 1, "commit": "0", **facts},
    )
    (run / "evaluate").mkdir(parents=True)
    (run / "evaluate" / "results.json").write_text(json.dumps(results.to_json()))
