"""Which episodes of a dataset are kept from training, to be measured on."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from volar.datasets.mixture import Source
from volar.robots.errors import VolarError


def split_episodes(source: Source, share: float, seed: int) -> tuple[Source, Source]:
    """(to train on, held out): whole episodes, at least one each, chosen by `seed` and nothing else.

    The statistics of the source's contract are left as they are: of all its episodes. Raises `VolarError` when there
    are too few episodes to share out.
    """
    ends, episode = np.unique(source.frames.episode_end, return_inverse=True)  # (E,), (N,)
    if len(ends) < 2:
        raise VolarError(f"{source.name} has {len(ends)} episodes, too few to hold some out: leave validation= away")
    count = min(max(1, round(share * len(ends))), len(ends) - 1)
    chosen = np.zeros(len(ends), dtype=bool)
    chosen[np.random.default_rng([seed, len(ends)]).permutation(len(ends))[:count]] = True
    held: NDArray[np.bool_] = chosen[episode]
    return replace(source, rows=np.flatnonzero(~held)), replace(source, rows=np.flatnonzero(held))
