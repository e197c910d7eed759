"""Score the rows that a network of their own was trained for: on its activations, with the draws of all rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from dist_train.data.activations import load
from dist_train.distributed.context import Context
from dist_train.fewshot.base_head import read_head
from dist_train.fewshot.methods import make
from dist_train.fewshot.protocols.joint import Draw, JointScorer, Mixed
from dist_train.stages.network_store import finetuned_folder, triplet_folder
from dist_train.stages.scoring import BaseScoring, JointScoring, Scoring, naming

if TYPE_CHECKING:
    from dist_train.runs.run import Run


def scoring_of(network: str | None, run: Run, frozen: Scoring) -> Scoring:
    """Return what scores the rows that are made from a network of ``NETWORKS``.

    Args:
        network: its name; None for rows of the frozen backbone.
        frozen: what scores those.
    """
    if network is None or not isinstance(frozen, (JointScoring, BaseScoring)):
        return frozen
    if network == "finetune_network":
        return FinetunedScoring(run, frozen.context)
    return type(frozen)(run, frozen.context, triplet_folder(run.config))


class FinetunedScoring(JointScoring):
    """Score the networks that were fine-tuned on the supports of the first ``networks.draws`` draws, each on its own
    activations of the validation images."""

    def __init__(self, run: Run, context: Context) -> None:
        super().__init__(run, context)
        self.run = run
        self.num_draws = run.config.networks.draws

    def _drawn(self, scorer: JointScorer, name: str, number: int) -> Iterator[tuple[str, Draw]]:
        """Yield a draw's results by number of shots, each of a network of its own."""
        support = self.load(self.novel_train.rows[self.supports[number]])
        for k in self.config.shots:
            with naming(name):
                yield str(k), self._scorer_at(name, number, k).draw(support[:, :k], self.orders[number])

    def _scorer_at(self, name: str, draw: int, shots: int) -> JointScorer:
        """Return the scorer of the network that was fine-tuned on these supports."""
        folder = finetuned_folder(self.run.config, draw, shots)
        rows, bias = read_head(folder / "head.npz", self.context.device)
        method = make(name, replace(self.base, rows=rows, bias=bias))
        tables = load(folder, "base_val").select(self.run.kept), load(folder, "novel_val")
        base, novel = map(self._queries, tables)
        return self._make_scorer(method, base, novel, mixed=Mixed.of(base, novel))
