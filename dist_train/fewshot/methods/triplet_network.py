"""Triplet network: NN + cosine on the activations of a network that was trained to bring the images of a class
together (paper, Table 1).

The stage ``networks`` trains it from the backbone, and computes its activations of all images (stages/networks.py).
They are what this method is given.
"""

from __future__ import annotations

from typing import ClassVar

from dist_train.fewshot.methods.nearest_neighbour import NearestNeighbour


class TrainedTripletNetwork(NearestNeighbour):
    labels: ClassVar = {
        "triplet_network": "Triplet network",
        "triplet_network10": "Triplet network, 10% of base",
        "triplet_network1": "Triplet network, 1% of base",
    }
