"""Estimate the whole evaluation on one H200-class GPU, or on a thread of a CPU, from counts of operations and bytes.

    python tools/plan_evaluate.py [--machine h200] [--methods nn mean ...] [--per-class 1281] [--draws 20] ...

It is an estimate, not a measurement: it counts what each row computes at these sizes, and divides by what a machine
computes in a second (``MACHINES``). ``tools/bench_evaluate.py`` measures. The counts of
operations are compared with PyTorch's own counter in tests/tools/test_plan_evaluate.py.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class Machine:
    """Hold what a machine computes in a second, and what it waits for.

    Attributes:
        operations: by type, in products, per second.
        bytes: per second, from mapped memory to where products are computed.
        batch: seconds to draw and read 256 base images for a step.
        step: seconds of a step of a training beside its products and its images.
        set: seconds for a set of supports beside its products.
        score: seconds for each score of a query in a set: ranks, checks, the seen-unseen curve.
        decomposition: seconds of the eigenvectors of a symmetric matrix of 2048 rows in fp64.
    """

    operations: dict[str, float]
    bytes: float
    batch: float
    step: float
    set: float
    score: float
    decomposition: float


MACHINES = {
    # Assumed, of NVIDIA's data sheet of the H200 SXM (989, 67 and 34 TFLOP/s): half for large products in bf16, 0.6 in
    # fp32 without tensor cores, a tenth for factors in fp64; a sixth of PCIe 5. A batch's 0.3 ms of the host and a
    # set's 2 to 5 ms are measured on a CPU core; beside them 10 us for each launch, about 20 and 150.
    "h200": Machine({"bf16": 495e12, "fp32": 40e12, "fp64": 3.4e12}, 10e9, 0.4e-3, 0.3e-3, 10e-3, 5e-11, 1.0),
    # Measured: one thread of an AMD EPYC (Zen 5), float32 by oneDNN, bf16 with the maxima of ``nearest.py``.
    "epyc": Machine({"bf16": 370e9, "fp32": 220e9, "fp64": 55e9}, 2e9, 0.3e-3, 4e-3, 5e-3, 5e-9, 10.0),
}
LOOKED_AT_AGAIN = 8
"""Classes of a query that are scored exactly: 6.5 were measured, on real activations of 160 classes."""
FECAM_DIMENSIONS = 256
"""``_DIMENSIONS`` of fewshot/methods/fecam.py."""
FEATURES, FEATURE_DRAWS, RIDGES = 2000, 100, 8
"""``ranpac_features``, ``ranpac_draws`` and the number of ridges that it tries."""


@dataclass(frozen=True)
class Sizes:
    """Hold the sizes of an evaluation, by the names of this tool's options."""

    base: int
    per_class: int
    novel: int
    novel_per_class: int
    val_per_class: int
    dim: int
    draws: int
    shots: tuple[int, ...]

    @property
    def queries(self) -> int:
        """Queries of all classes."""
        return (self.base + self.novel) * self.val_per_class

    @property
    def images(self) -> int:
        """Base training images."""
        return self.base * self.per_class

    @property
    def sets(self) -> int:
        """Sets of supports."""
        return self.draws * len(self.shots)

    @property
    def supports(self) -> int:
        """Supports of all classes in all sets."""
        return self.draws * self.novel * sum(self.shots)

    @property
    def most_supports(self) -> int:
        """Supports of all classes in the sets with the most."""
        return self.draws * self.novel * max(self.shots)

    @property
    def calibration_images(self) -> int:
        """Base images that a calibration scores, as if all were correct."""
        return 20 * self.base


@dataclass
class Work:
    """Hold what a row costs: operations by type, bytes read, batches of base images, steps of trainings, sets of
    supports, scores of queries in them, decompositions."""

    flops: dict[str, float] = field(default_factory=dict)
    bytes: float = 0.0
    batches: float = 0.0
    steps: float = 0.0
    sets: float = 0.0
    scores: float = 0.0
    decompositions: float = 0.0

    @classmethod
    def of_sets(cls, size: Sizes, moves_base: bool = False, **others: float) -> Work:
        """Return the work of all sets of supports beside products; all classes are scored in each where
        ``moves_base``."""
        classes = size.novel + moves_base * size.base
        return cls(sets=size.sets, scores=float(size.sets * size.queries * classes), **others)

    def product(self, kind: str, *sides: float) -> None:
        """Add a product of these sides: two operations for each combination."""
        count = 2.0
        for side in sides:
            count *= side
        self.flops[kind] = self.flops.get(kind, 0.0) + count

    def seconds(self, machine: Machine) -> float:
        """Return the time on a machine, as if nothing overlapped."""
        products = sum(count / machine.operations[kind] for kind, count in self.flops.items())
        training = self.batches * machine.batch + self.steps * machine.step
        scoring = self.sets * machine.set + self.scores * machine.score
        return products + self.bytes / machine.bytes + training + scoring + self.decompositions * machine.decomposition


def row_of_all(size: Sizes, layers: int = 0, calibrated: bool = False) -> Work:
    """Count a method in which k supports together give a class one row of weights, predicted through ``layers``."""
    return _predicted(size, layers, sum(size.shots), len(size.shots), calibrated)


def row_of_each(size: Sizes, layers: int, calibrated: bool = False) -> Work:
    """Count a method in which each support gives a row of weights: those of the most supports are all that there are,
    and their products are computed once."""
    return _predicted(size, layers, max(size.shots), max(size.shots), calibrated)


def _predicted(size: Sizes, layers: int, supports: int, rows: int, calibrated: bool) -> Work:
    """Count a method with rows of weights that are predicted through ``layers``.

    Args:
        supports: of a novel class that pass through the layers, in a draw.
        rows: of a novel class, in a draw.
        calibrated: whether the novel scores of 20 images of each base class are computed too, as if all were correct.
    """
    work = Work.of_sets(size)
    work.product("fp32", size.queries, size.base, size.dim)
    work.product("fp32", size.draws, size.queries, size.novel * rows, size.dim)
    for _ in range(layers):
        work.product("fp32", size.base + size.draws * size.novel * supports, size.dim, size.dim)
    if calibrated:
        work.product("fp32", size.calibration_images, size.base + size.draws * size.novel * rows, size.dim)
        work.bytes += 2.0 * size.calibration_images * size.dim
    return work


def attention(size: Sizes) -> Work:
    """Count the row whose supports attend to the base rows: a layer, and two products with as many rows."""
    work, supports = row_of_all(size), size.draws * size.novel * sum(size.shots)
    work.product("fp32", supports, size.dim, size.dim)
    work.product("fp32", 2 * supports, size.base, size.dim)
    return work


def nearest(size: Sizes, share: float = 1.0, layers: int = 0) -> Work:
    """Count a row of nearest neighbours among a share of the base images, embedded through ``layers``."""
    kept = size.base * max(1, round(share * size.per_class))
    work = Work.of_sets(size, bytes=2 * 2.0 * kept * size.dim)  # read twice
    work.product("bf16", size.queries, kept, size.dim)
    work.product("fp32", size.queries, size.base, size.dim)
    again = min(1.0, LOOKED_AT_AGAIN / size.base)
    work.product("fp32", again * size.queries, kept, size.dim)
    work.product("fp32", size.draws * size.queries, size.novel * max(size.shots), size.dim)
    for _ in range(layers):
        embedded = size.queries + 2 * kept + size.draws * size.novel * max(size.shots)
        work.product("fp32", embedded, size.dim, size.dim)
    return work


def oracle(size: Sizes) -> Work:
    """Count ``nn_oracle`` beside ``nn``, whose base scores it takes."""
    kept = size.novel * size.novel_per_class
    work = Work(bytes=2.0 * kept * size.dim, sets=1)
    work.product("bf16", size.queries, kept, size.dim)
    work.product("fp32", size.queries, size.novel, size.dim)
    work.product("fp32", min(1.0, LOOKED_AT_AGAIN / size.novel) * size.queries, kept, size.dim)
    return work


def trained(size: Sizes, steps: int) -> Work:
    """Count a method that trains the rows of all classes for each set of supports."""
    return _trained(size, steps, size.base + size.novel, _supports_of_sets(size))


def trained_beside(size: Sizes, steps: int) -> Work:
    """Count a method that trains the novel rows for each set of supports, beside base rows that stay: the scores of
    these are computed once, for the queries and for the images of all steps."""
    supports = _supports_of_sets(size)
    work = _trained(size, steps, size.novel, supports)
    work.product("fp32", steps * 256 + size.queries + size.novel * sum(supports), size.base, size.dim)
    work.steps += steps
    work.batches += steps
    return work


def trained_once(size: Sizes, steps: int) -> Work:
    """Count a method that trains the rows of all classes once, with all images of the novel classes."""
    return _trained(replace(size, draws=1), steps, size.base + size.novel, [size.novel_per_class])


def _supports_of_sets(size: Sizes) -> list[int]:
    """Return the supports of a novel class in each set."""
    return [k for k in size.shots for _ in range(size.draws)]


def _trained(size: Sizes, steps: int, rows: int, images: Sequence[int]) -> Work:
    """Count trainings of ``rows`` rows of weights, each with so many images of each novel class; those of a draw read
    the same base images."""
    work = _steps(size, steps, rows, images)
    work.sets, work.scores = len(images), float(len(images) * size.queries * rows)
    work.product("fp32", len(images) * size.queries, rows, size.dim)
    return work


def _steps(size: Sizes, steps: int, rows: int, images: Sequence[int]) -> Work:
    """Count what ``_trained`` does, without the queries."""
    work = Work(steps=steps * len(images), batches=steps * size.draws)
    work.bytes = 2.0 * 256 * size.dim * work.batches
    for k in images:
        batch = 256 + min(256, size.novel * k)
        work.product("fp32", 2 * steps, batch, rows, size.dim)  # logits and gradient
    return work


def logistic_trainings(size: Sizes) -> Work:
    """Count the trainings that ``logistic`` and ``phi_plus_logistic`` share."""
    return _steps(size, 300, size.base + size.novel, _supports_of_sets(size))


def logistic(size: Sizes) -> Work:
    """Count the scores of rows that are trained already."""
    work = Work.of_sets(size, moves_base=True)
    work.product("fp32", size.sets * size.queries, size.base + size.novel, size.dim)
    return work


def ridge(size: Sizes) -> Work:
    """Count ridge regression: a factor of the matrix, and all rows, for each set of supports."""
    dim, classes = size.dim + 1, size.base + size.novel
    work = Work.of_sets(size, moves_base=True, bytes=2.0 * size.images * size.dim)
    work.product("fp32", size.images, dim, dim)
    work.product("fp64", size.draws * sum(size.shots) * size.novel, dim, dim)
    work.product("fp64", size.sets, dim, dim, dim / 6 + classes)  # dim^3 / 3 for the factor, two triangles for the rows
    work.product("fp32", size.sets * size.queries, classes, dim)
    return work


def moments(size: Sizes) -> Work:
    """Count what heads of centred activations share: means and covariances of centred activations, and coordinates that
    diagonalise these."""
    work = Work(bytes=2.0 * size.images * size.dim, decompositions=1)
    work.product("fp32", size.images, size.dim, size.dim)
    work.product("fp64", size.dim, size.dim, size.dim / 6 + 3 * size.dim / 2)  # a Cholesky factor, three triangles
    return work


def gaussian(size: Sizes, products: int, rows: int = 0, calibrated: bool = True) -> Work:
    """Count a method that scores in coordinates, beside ``moments``. Those of the calibration's images are computed
    twice: of all, and of those that are correct.

    Args:
        products: with each class: 1 for linear scores, 2 for densities.
        rows: times that a query meets rows of base classes too.
    """
    asked = size.queries + calibrated * size.calibration_images
    work = Work.of_sets(size, bytes=2.0 * calibrated * size.calibration_images * size.dim)
    work.product("fp32", asked + calibrated * size.calibration_images + size.base + size.supports, size.dim, size.dim)
    work.product("fp32", (products + rows) * asked, size.base, size.dim)
    work.product("fp32", products * size.sets * asked, size.novel, size.dim)
    return work


def beside_gaussians(size: Sizes) -> Work:
    """Count the average of phi+ and ``plda_plus``, beside ``moments``: both meet phi+'s base rows."""
    work = gaussian(size, 2, 2)
    work.product("fp32", size.supports, size.dim, size.dim)
    work.product("fp32", size.sets * (size.queries + size.calibration_images), size.novel, size.dim)
    return work


def teen(size: Sizes, work: Work, prototypes: int) -> Work:
    """Add to a method that so many prototypes are moved towards base classes: two products with their means."""
    work.product("fp32", 2 * prototypes, size.base, size.dim)
    return work


def fecam(size: Sizes) -> Work:
    """Count distances by a covariance for each class, beside ``moments``."""
    asked, kept, sets = size.queries + size.calibration_images, min(FECAM_DIMENSIONS, size.dim), size.sets
    work = Work.of_sets(size, bytes=2.0 * (size.images + size.calibration_images) * size.dim)
    mapped = asked + size.calibration_images + 2 * size.base + size.supports + sets * size.novel + size.images
    work.product("fp32", mapped, size.dim, size.dim)
    work.product("fp32", size.images + size.supports, kept, kept)
    work.product("fp32", size.base + sets * size.novel, kept, kept, kept / 6 + kept / 2)  # Cholesky factors, triangles
    # Roots are upper triangular: only blocks of 64 columns down to the diagonal are multiplied.
    columns = [min(64, kept - first) for first in range(0, kept, 64)]
    triangle = sum(count * (64 * number + count) for number, count in enumerate(columns))
    work.product("fp32", asked, size.base + sets * size.novel, triangle)
    work.product("fp32", sets * size.novel, size.base, 3 * size.dim + kept * kept)  # what is moved towards base classes
    work.steps = size.base + sets  # a class waits as long as a step of a training
    return work


def ranpac(size: Sizes) -> Work:
    """Count ridge regression on random features."""
    images, classes, sets = FEATURE_DRAWS * size.novel, size.base + size.novel, size.sets
    work = Work.of_sets(size, moves_base=True, bytes=2.0 * (size.images + sets * images) * size.dim)
    work.steps = size.base + sets  # as in ``fecam``
    work.batches = sets * images / 256
    work.product("fp32", size.images + size.queries + sets * images, size.dim, FEATURES)
    work.product("fp32", size.images + sets * images, FEATURES, FEATURES)
    work.product("fp32", 3 * sets * size.novel, size.base, size.dim)
    work.product("fp32", sets * size.queries, classes, FEATURES)
    work.product("fp64", RIDGES + sets, FEATURES, FEATURES, FEATURES / 6)
    work.product("fp64", 2 * RIDGES * size.base + sets * classes, FEATURES, FEATURES)
    return work


def held(size: Sizes) -> Work:
    """Count phi+ whose rows are trained further for each set of supports."""
    work = trained(size, 100)
    work.product("fp32", size.supports, size.dim, size.dim)
    work.product("fp32", size.calibration_images, size.base + size.sets * size.novel, size.dim)
    work.bytes += 2.0 * size.calibration_images * size.dim
    return work


def beside_logistic(size: Sizes) -> Work:
    """Count the average of phi+ and logistic regression, which scores the calibration's images anew for each set of
    supports."""
    work, classes = logistic(size), size.base + size.novel
    work.product("fp32", size.supports + size.most_supports, size.dim, size.dim)
    work.product("fp32", size.sets * size.calibration_images, classes, size.dim)
    asked = size.queries + size.calibration_images  # by phi+, whose base rows stay
    work.product("fp32", asked, size.base + size.sets * size.novel, size.dim)
    work.bytes += 2.0 * size.calibration_images * size.dim
    return work


ROWS: dict[str, Callable[[Sizes], Work]] = {
    "mean": row_of_all,
    "imprint": row_of_all,
    "phi1": lambda size: row_of_each(size, 1),
    "phi2": lambda size: row_of_each(size, 2),
    "phi2star": lambda size: row_of_each(size, 2),
    "phi2mean": lambda size: row_of_each(size, 4),
    "phi2cal": lambda size: row_of_each(size, 2, calibrated=True),
    "phi_plus": lambda size: row_of_all(size, 1, calibrated=True),
    "attention": attention,
    "ridge": ridge,
    "nn": nearest,
    "nn10": lambda size: nearest(size, 0.1),
    "nn1": lambda size: nearest(size, 0.01),
    "triplet": lambda size: nearest(size, 1.0, 1),
    "triplet10": lambda size: nearest(size, 0.1, 1),
    "triplet1": lambda size: nearest(size, 0.01, 1),
    "finetune": lambda size: trained(size, 300),
    "child": lambda size: trained_beside(size, 300),
    "logistic": logistic,
    "nn_oracle": oracle,
    "linear_oracle": lambda size: trained_once(size, 3000),
    "gda": lambda size: gaussian(size, 1),
    "plda": lambda size: gaussian(size, 2),
    "plda_own": lambda size: gaussian(size, 2, calibrated=False),
    "plda_rows": lambda size: gaussian(size, 2, 1),
    "plda_plus": lambda size: gaussian(size, 2, 1),
    "phi_plus_plda": beside_gaussians,
    "centred": lambda size: row_of_all(size, calibrated=True),
    "teen": lambda size: teen(size, row_of_all(size, calibrated=True), size.sets * size.novel),
    "phi2_teen": lambda size: teen(size, row_of_each(size, 2, calibrated=True), size.most_supports),
    "phi_plus_teen": lambda size: teen(size, row_of_all(size, 1, calibrated=True), size.most_supports),
    "quantile": lambda size: row_of_all(size, calibrated=True),
    "fecam": fecam,
    "ranpac": ranpac,
    "phi_plus_held": held,
    "phi_plus_logistic": beside_logistic,
}
"""Name of a row -> what counts it."""
SHARED: dict[str, tuple[Callable[[Sizes], Work], Sequence[str]]] = {
    "moments": (moments, ("gda", "plda", "plda_own", "plda_rows", "plda_plus", "phi_plus_plda", "centred", "fecam")),
    "trainings": (logistic_trainings, ("logistic", "phi_plus_logistic")),
}
"""What an evaluation computes once for all rows that need it, and these rows."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("base", 900), ("per-class", 1281), ("novel", 100), ("novel-per-class", 1300),
                          ("val-per-class", 50), ("dim", 2048), ("draws", 20)):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 2, 5, 10, 20])
    parser.add_argument("--methods", nargs="+", choices=ROWS, default=list(ROWS), metavar="NAME")
    parser.add_argument("--machine", choices=MACHINES, default="h200", help="h200, or one thread of an epyc")
    options = vars(parser.parse_args(arguments))
    names, machine = options.pop("methods"), MACHINES[options.pop("machine")]
    size = Sizes(**{**options, "shots": tuple(options["shots"])})
    works = {f"`{name}`": ROWS[name](size) for name in names}
    for shared, (count, rows) in SHARED.items():
        if together := [f"`{name}`" for name in names if name in rows]:
            works[f"{shared}, once for {', '.join(together)}"] = count(size)
    print("| method | bf16 (TFLOP) | fp32 (TFLOP) | fp64 (TFLOP) | read (GB) | steps | estimate (s) |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for name, work in works.items():
        flops = " | ".join(f"{work.flops.get(kind, 0.0) / 1e12:.1f}" for kind in machine.operations)
        print(f"| {name} | {flops} | {work.bytes / 1e9:.1f} | {work.steps:.0f} | {work.seconds(machine):.1f} |")
    print(f"\n{len(names)} rows: {sum(work.seconds(machine) for work in works.values()) / 60:.1f} minutes (estimate)")


if __name__ == "__main__":
    main()
