"""Fine-tuned network: the backbone with a row more for each novel class, all of it trained on base images and supports
(paper, Table 1, "Fine-tuned ResNet").

The stage ``networks`` trains a network for each draw and number of shots (stages/networks.py). The queries of this
method are that network's activations, and the rows of its ``Base`` are that network's classifier.
"""

from __future__ import annotations

from typing import ClassVar

from dist_train.fewshot.method import Base, Method, Scorer, Support


class FinetunedNetwork(Method):
    labels: ClassVar = {"finetune_network": "Fine-tuned network"}
    moves_base = True

    def __init__(self, name: str, base: Base) -> None:
        self.rows, self.bias = base.rows, base.bias

    def take(self, support: Support) -> Scorer:
        return lambda queries: queries @ self.rows.T + self.bias
