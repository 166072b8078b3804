"""Success rates with their uncertainty."""

import math

Z95 = 1.959963984540054  # standard normal quantile at 0.975


def wilson_interval(successes: int, trials: int, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval of a success rate: (low, high) in [0, 1], 95 % by default.

    Wilson, "Probable inference, the law of succession, and statistical inference" (JASA 1927). Unlike the normal
    interval it stays inside [0, 1] and is not empty at 0 or 100 %. Raises `ValueError` unless
    0 <= successes <= trials and trials > 0.
    """
    if trials <= 0 or not 0 <= successes <= trials:
        raise ValueError(f"{successes} successes of {trials} trials")
    rate, z2 = successes / trials, z * z
    centre = (rate + z2 / (2 * trials)) / (1 + z2 / trials)
    half = z * math.sqrt(rate * (1 - rate) / trials + z2 / (4 * trials**2)) / (1 + z2 / trials)
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == trials else min(1.0, centre + half)
    return low, high
