"""phi+ whose rows are trained further with the supports, and are held near where they began.

The classifier of phi+, its trained base rows and its predicted novel rows, is trained by logistic regression on base
images and supports as in the row ``logistic``: classes are sampled uniformly. The penalty is not on the rows, but on
their difference from phi+'s rows: a normal prior about them, with precision ``held_decay`` (maximum a posteriori;
``logistic`` has the same prior about zero, and stops early). A novel row keeps what phi predicts where its few images
say nothing, and turns away from the base images that it would win.
"""

from __future__ import annotations

from typing import ClassVar

import torch

from dist_train.fewshot.calibration import NUMBERS
from dist_train.fewshot.method import Base, Number, Support
from dist_train.fewshot.methods.last_layer import LastLayer, Layer
from dist_train.fewshot.methods.phi_plus import Plus


class Held(LastLayer):
    labels: ClassVar = {"phi_plus_held": "φ+, trained further and held"}
    uses: ClassVar = {"phi_plus_held": "phi_plus"}
    numbers: ClassVar = {
        **NUMBERS, "held_lr": Number(0.01), "held_steps": Number(100, whole=True), "held_decay": Number(0.1)
    }  # fmt: skip

    def __init__(self, name: str, base: Base) -> None:
        self.name, self.base, self.base_labels, self.balanced = name, base, base.train.labels, True
        self.lr, self.steps = base.numbers["held_lr"], int(base.numbers["held_steps"])
        self.plus = Plus("phi_plus", base)

    def embed(self, activations: torch.Tensor) -> torch.Tensor:
        return self.plus.phi.query(activations)

    def embed_queries(self, queries: torch.Tensor) -> torch.Tensor:
        return self.plus.query(queries)

    def start(self, support: Support) -> Layer:
        """Return phi+'s rows, with the offset of its calibration as bias of the novel rows."""
        phi, base_rows = self.plus.phi, self.plus.base_rows
        novel = phi.novel_rows(support, self.plus.rule)[:, 0]
        bias = base_rows.new_zeros(len(base_rows) + len(novel))
        if len(novel):
            calibration = self.plus.calibrate
            assert calibration is not None
            responses = self.embed_queries(calibration.images) @ novel.T
            bias[len(base_rows) :] = calibration.offset(responses.amax(1), len(novel))
        rows = torch.cat([base_rows, novel])
        return Layer(rows.clone(), bias, self.lr, self.steps, self.base.numbers["held_decay"], rows)
