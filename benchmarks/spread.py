"""What repeats of one measurement are summed up as."""

import statistics
from collections.abc import Iterable


def of(values: Iterable[float], scale: float = 1.0) -> dict[str, float]:
    """Median, least and most of `values`, each times `scale`."""
    values = [float(value) * scale for value in values]
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}
