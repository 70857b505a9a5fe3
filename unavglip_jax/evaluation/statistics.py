"""Means over clips, and how far to trust them."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.special import stdtrit

CONFIDENCE = 0.95


class Interval(NamedTuple):
    """A mean and its confidence interval.

    Attributes:
      mean: of the values; NaN if there are none.
      low: lower end; NaN where two finite values are not there to tell.
      high: upper end, likewise.
      count: of the values.
    """

    mean: float
    low: float
    high: float
    count: int


def interval(values: Sequence[float] | Float[np.ndarray, " N"]) -> Interval:
    """The mean of a metric over clips with its 95 % interval by Student's t.

    It supposes that clips are independent and that their mean is about normal, which means of unlike
    clips are from about ten on; with two or three clips it is as wide as it should be, which a bootstrap
    is not.

    Args:
      values: one a clip. NaN, a clip without a value, is left out. An infinite value, as the PSNR of
        equal pictures, makes the mean infinite.
    """
    values = np.asarray(values, np.float64).ravel()
    values = values[~np.isnan(values)]
    if not len(values):
        return Interval(np.nan, np.nan, np.nan, 0)
    mean = float(values.mean())
    if len(values) < 2 or not np.isfinite(mean):
        return Interval(mean, np.nan, np.nan, len(values))
    error = values.std(ddof=1) / np.sqrt(len(values))
    reach = float(stdtrit(len(values) - 1, (1 + CONFIDENCE) / 2) * error)
    return Interval(mean, mean - reach, mean + reach, len(values))
