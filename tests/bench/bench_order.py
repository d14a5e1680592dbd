"""What lanes and windows give on an index of ImageNet's shape: how well they mix, and what a node reads.

    python -m tests.bench.bench_order

prints the tables of docs/data.md. Nothing is read: the index is made up, the order is arithmetic.
"""

from shards.mixing import mixing, reading
from shards.order import Order
from tests.bench.synthetic import imagenet

BATCH = 1024
ORDERS = [(1, 0), (1, 8), (16, 8), (64, 1), (64, 2), (64, 4), (64, 8), (64, 16), (256, 8)]


def main() -> None:
    index = imagenet("s3://bucket/imagenet")
    whole = sum(row.bytes for row in index.shards)
    print("lanes window | classes | evenness | neighbours | together   (then: a full permutation)")
    for lanes, window in ORDERS:
        order = Order(index.samples_per_shard, 0, lanes, window)
        found = mixing(index, order, BATCH)
        print(
            f"{lanes:5d} {window:6d} | {found.classes[0]:.1f} {found.classes[1]:.1f} | {found.repeat[0]:.3f} "
            f"{found.repeat[1]:.3f} | {found.distance[0]:.3f} {found.distance[1]:.3f} | {found.together[0]:.3%} "
            f"{found.together[1]:.3%}"
        )
    print(f"set {whole / 1e9:.1f} GB")
    print("lanes window nodes | shards | GB an epoch, cache | of the set | GB by ranges | GB at a time")
    for lanes, window in [(64, 8), (64, 2)]:
        order = Order(index.samples_per_shard, 0, lanes, window)
        for nodes in (1, 2, 4, 8, 16, 32, 64):
            read = reading(index, order, BATCH, nodes)
            print(
                f"{lanes:5d} {window:6d} {nodes:5d} | {read.shards} | {read.cached_bytes / 1e9:.1f} | "
                f"{read.cached_bytes / whole:.1%} | {read.ranged_bytes / 1e9:.1f} | {read.window_bytes / 1e9:.1f}"
            )


if __name__ == "__main__":
    main()
