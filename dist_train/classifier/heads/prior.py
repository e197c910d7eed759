"""How frequent the classes of a model of photos alone are taken to be."""

from __future__ import annotations

from typing import Literal, get_args

import torch

from dist_train.names import check_choice

Prior = Literal["equal", "photos"]
"""equal: every class is as frequent as any other. photos: each is as frequent as its photos among all photos."""
PRIORS = get_args(Prior)


def check_prior(name: str) -> None:
    """Check the name of a prior.

    Raises:
        UserError: there is no such prior.
    """
    check_choice("--prior", name, PRIORS)


def frequencies(prior: str, counts: torch.Tensor) -> torch.Tensor:
    """Return how frequent each class is taken to be, but for a common factor: float64 [classes].

    Heads are fitted so that their probabilities are those of equally frequent classes. Where class c has the frequency
    f, its probability is p(c) f(c) divided by the sum of that over all classes (Saerens, Latinne & Decaestecker 2002,
    equation 2.4): the logarithm of f joins its score. Equal frequencies are ones, so that nothing joins.

    Args:
        prior: one of ``PRIORS``.
        counts: photos of each class, [classes].
    """
    return counts.double() if prior == "photos" else torch.ones_like(counts, dtype=torch.float64)
