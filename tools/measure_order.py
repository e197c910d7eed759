"""Measure how well a block-wise order shuffles, beside one permutation of all samples.

    python tools/measure_order.py

The index has ImageNet's size (1,281,167 samples of 1,000 classes, shuffled by pack into shards of
about 1,170). For several block_shards the tool prints:

* classes: the variance of a class's count in a batch, over the variance of drawing without replacement (1 = as
  good as any order can be);
* again: how many times more often than by chance two samples that shared a batch in one epoch share a
  batch in the next (1 = no memory);
* cache: the share of the data that must be on the node (three blocks).
"""

from __future__ import annotations

import argparse

import numpy as np

from dist_train.data.loading.order import Order


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=1_281_167)
    parser.add_argument("--classes", type=int, default=1_000)
    parser.add_argument("--shards", type=int, default=1_100)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--blocks", default="0,512,128,64,16,4", help="values of data.block_shards; 0 = no blocks")
    args = parser.parse_args()
    n, batch = args.samples, args.batch
    shards = np.arange(n) * args.shards // n
    labels = np.random.RandomState(0).permutation(np.arange(n) % args.classes)  # as pack shuffles
    print("| data.block_shards | classes | again | cache |\n|---:|---:|---:|---:|")
    for block in map(int, args.blocks.split(",")):
        order = Order(n, batch, 0, shards, block)
        first, second = order.epoch(0), order.epoch(1)
        whole = n // batch * batch
        counts = np.zeros((n // batch, args.classes), np.int32)
        np.add.at(counts, (np.arange(whole) // batch, labels[first[:whole]]), 1)
        p = 1 / args.classes
        expected = batch * p * (1 - p) * (n - batch) / (n - 1)
        classes = float(counts.var(0).mean() / expected)
        place = np.empty(n, np.int64)
        place[second] = np.arange(n) // batch
        together, pairs = 0, 0
        for number in range(n // batch):  # pairs of one batch that meet again
            _, sizes = np.unique(place[first[number * batch : (number + 1) * batch]], return_counts=True)
            together += int((sizes * (sizes - 1)).sum())
            pairs += batch * (batch - 1)
        again = together / pairs * (n - 1) / (batch - 1)
        share = min(1.0, 3 * block / args.shards) if block else 1.0
        print(f"| {block or 'one permutation'} | {classes:.3f} | {again:.2f} | {share:.1%} |", flush=True)


if __name__ == "__main__":
    main()
