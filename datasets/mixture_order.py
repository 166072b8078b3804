"""Which sample stands at each place of an endless weighted mixture: a function of sizes, weights and seed.

Places come in blocks. A block holds every dataset as often as its weight says, in an order of its own; a
dataset's k-th turn takes place k of its own shuffled epochs. So there is nothing to remember but a place: any number of
workers and processes can share the places out, and a resumed run goes on exactly.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from volar.datasets.action_chunks import ShuffledIndices
from volar.robots.errors import VolarError

BLOCK = 2**14  # places; the smallest share that a dataset can have is one of them


class MixtureOrder:
    """`sizes`, `shares`: of each dataset by name, its samples and its part of the stream (any unit)."""

    def __init__(self, sizes: Mapping[str, int], shares: Mapping[str, float], seed: int) -> None:
        self.names = tuple(sizes)
        self.turns = _turns(np.array([shares[name] for name in sizes], dtype=np.float64), self.names)  # a block's (S,)
        self.seed = seed
        # With one dataset this is its `ShuffledIndices` of this seed.
        self._epochs = [ShuffledIndices(n, 1, seed + 7919 * i) for i, n in enumerate(sizes.values())]
        self._blocks: dict[int, tuple[NDArray[np.int64], NDArray[np.int64]]] = {}

    def at(self, places: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Dataset (B,) and index in it (B,), at rising places (B,)."""
        source, turn = np.empty(len(places), np.int64), np.empty(len(places), np.int64)
        blocks = places // BLOCK
        needed = np.unique(blocks).tolist()
        self._blocks = {b: found for b, found in self._blocks.items() if b in needed}
        for block in needed:
            here = blocks == block
            sources, ranks = self._block(block)
            source[here] = sources[places[here] % BLOCK]
            turn[here] = block * self.turns[source[here]] + ranks[places[here] % BLOCK]
        index = np.empty(len(places), np.int64)
        for s, epochs in enumerate(self._epochs):
            here = source == s
            if here.any():
                index[here] = epochs.places(turn[here])
        return source, index

    def _block(self, block: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The dataset at each of its places, and how many turns that dataset had in the block before."""
        if block not in self._blocks:
            starts = np.cumsum(self.turns) - self.turns
            order = np.random.default_rng([self.seed, block]).permutation(BLOCK)
            sources = np.empty(BLOCK, np.int64)
            sources[order] = np.repeat(np.arange(len(self.turns)), self.turns)
            ranks = np.empty(BLOCK, np.int64)
            ranks[np.argsort(sources, kind="stable")] = np.arange(BLOCK) - np.repeat(starts, self.turns)
            self._blocks[block] = (sources, ranks)
        return self._blocks[block]


def _turns(shares: NDArray[np.float64], names: tuple[str, ...]) -> NDArray[np.int64]:
    """Each dataset's places in a block, by the largest remainders. Raises `VolarError` on a share of none."""
    if not (np.isfinite(shares).all() and (shares > 0).all()):
        raise VolarError(f"weights must be above 0, are {dict(zip(names, shares.tolist(), strict=True))}")
    exact = shares / shares.sum() * BLOCK
    turns: NDArray[np.int64] = np.floor(exact).astype(np.int64)
    turns[np.argsort(turns - exact, kind="stable")[: BLOCK - int(turns.sum())]] += 1
    if (turns == 0).any():
        few = [name for name, n in zip(names, turns.tolist(), strict=True) if n == 0]
        raise VolarError(f"the share of {', '.join(few)} is below 1/{BLOCK}; leave it out or raise its weight")
    return turns
