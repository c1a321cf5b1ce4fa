"""TokenCut (arXiv 2209.00383): the object of an image, cut out by its patch tokens alone.

Nothing is trained and no label is seen: two patches are joined where their tokens are alike, and
the graph falls into object and background where least is cut. Here as the authors of SOAP have it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import linalg, ndimage
from scipy.sparse import linalg as sparse_linalg

THRESHOLD = 0.3  # cosine above which two patches are joined
_UNJOINED = 1e-5  # weight between two others
_LANCZOS_FROM = 512  # patches, from which Lanczos is faster than the whole decomposition


class Cut(NamedTuple):
    """What TokenCut finds in an image of a grid (rows, columns) of patches.

    Attributes:
      mask: (rows, columns) bool, True on the object.
      eigenvector: (rows * columns,) float64, the second smallest generalised one, of y^T D y = 1
        and with its largest entry positive. All 0 where every patch is joined to every other, or
        none to another, so that nothing tells them apart; the object is then the whole image.
      seed: the patch that is surely on the object.
    """

    mask: np.ndarray
    eigenvector: np.ndarray
    seed: int


def tokencut(
    tokens: np.ndarray,
    grid: tuple[int, int],
    threshold: float = THRESHOLD,
    guide: np.ndarray | None = None,
) -> Cut:
    """Cuts the object out of an image.

    With A the weights between patches, 1 where the cosine of their tokens is above `threshold`
    and 1e-5 elsewhere, and D its row sums on the diagonal, y is the second smallest solution of
    (D - A) y = lambda D y. Foreground is where y is above its mean; the seed is the patch where
    |y| is largest, and the side on which it lies is the object. Of that side the 4-connected part
    around the seed is kept.

    Args:
      tokens: (rows * columns, D) patch tokens.
      guide: (rows * columns,), the seed is where it is largest instead.
    """
    joined = _joined(np.asarray(tokens), threshold)
    pairs = np.count_nonzero(joined) - len(joined)
    can_be_cut = 0 < pairs < len(joined) * (len(joined) - 1)
    eigenvector = _second(joined) if can_be_cut else np.zeros(len(joined))
    largest = int(np.argmax(np.abs(eigenvector)))
    eigenvector = eigenvector * (1.0 if eigenvector[largest] >= 0 else -1.0)
    seed = largest if guide is None else int(np.argmax(guide))
    foreground = eigenvector > eigenvector.mean()
    if not foreground[seed]:
        foreground = ~foreground
    parts, _ = ndimage.label(foreground.reshape(grid))
    return Cut(parts == parts.flat[seed], eigenvector, seed)


def mean_cosine(tokens: np.ndarray) -> float:
    """The mean cosine of two different tokens of (N, D)."""
    count = len(tokens)
    length = np.linalg.norm(_unit(tokens).sum(axis=0, dtype=np.float64))
    return float((length**2 - count) / (count * (count - 1)))


def _joined(tokens: np.ndarray, threshold: float) -> np.ndarray:
    """(N, N) bool: whose cosine is above the threshold; each patch is joined to itself."""
    unit = _unit(tokens)
    joined = unit @ unit.T > threshold
    np.fill_diagonal(joined, True)
    return joined


def _unit(tokens: np.ndarray) -> np.ndarray:
    return tokens / np.maximum(np.linalg.norm(tokens, axis=1, keepdims=True), 1e-12)


def _second(joined: np.ndarray) -> np.ndarray:
    """(N,) the second smallest solution of (D - A) y = lambda D y.

    It is that of the second largest eigenvalue of D^-1/2 A D^-1/2, times D^-1/2.
    """
    weights = np.where(joined, 1.0, _UNJOINED)
    roots = np.sqrt(weights.sum(axis=1))
    matrix = weights / roots / roots[:, None]
    count = len(matrix)
    if count >= _LANCZOS_FROM:
        try:
            # The largest one's eigenvector is known; from it alone the second would not be found.
            start = roots + np.linspace(-1, 1, count) * roots.mean()
            values, vectors = sparse_linalg.eigsh(matrix, k=2, which="LA", v0=start)
            return vectors[:, np.argmin(values)] / roots
        except sparse_linalg.ArpackNoConvergence:  # eigenvalues too near one another
            pass
    _, vectors = linalg.eigh(matrix, subset_by_index=[count - 2, count - 2])
    if not vectors.size:  # LAPACK's bisection may find none of several equal eigenvalues
        _, vectors = linalg.eigh(matrix)
        vectors = vectors[:, -2:]
    return vectors[:, 0] / roots
