"""The fast bilateral solver (Barron and Poole, arXiv 1511.03296): a mask that keeps to the edges of
its image.

Pixels of alike place and colour share a vertex of a grid in (x, y, luma, two chromas). A smooth
target on that grid is solved for, by conjugate gradients from the target itself. As the authors of
SOAP do, it stops after `STEPS` of them, which is not where it converges (2e-4 away).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import ndimage, sparse
from scipy.sparse import linalg

STEPS = 25  # of conjugate gradients
_TOLERANCE = 1e-5  # relative, at which they stop earlier
_SMOOTHNESS = 256.0
_CONFIDENCE = 0.999  # in the target, of each pixel
_BALANCING = 10  # rounds
_LEAST_DIAGONAL = 1e-5
_TO_YUV = np.array(
    [[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]]
)


class Sigmas(NamedTuple):
    """The side of a cell of the grid: in pixels, and in levels of luma and of chroma."""

    space: float = 16.0
    luma: float = 16.0
    chroma: float = 8.0


SIGMAS = Sigmas()


def smoothed(image: np.ndarray, target: np.ndarray, sigmas: Sigmas = SIGMAS) -> np.ndarray:
    """A target that is smooth but at the edges of the image.

    Args:
      image: (H, W, 3) uint8.
      target: (H, W) from 0 to 1.

    Returns:
      (H, W) float64, about 0 to 1.
    """
    vertex_of, blur = _grid(image, sigmas)
    ones = np.ones(len(vertex_of))
    splat = sparse.csr_array((ones, (vertex_of, np.arange(len(ones)))))
    mass, balance = _balanced(blur, splat @ ones)
    weight = splat @ (_CONFIDENCE * ones)
    wanted = splat @ (_CONFIDENCE * target.ravel().astype(np.float64))
    inner = sparse.diags_array(balance)
    smooth = sparse.diags_array(mass) - inner @ blur @ inner
    matrix = (_SMOOTHNESS * smooth + sparse.diags_array(weight)).tocsr()
    jacobi = sparse.diags_array(1 / np.maximum(matrix.diagonal(), _LEAST_DIAGONAL))
    found, _ = linalg.cg(
        matrix, wanted, x0=wanted / weight, rtol=_TOLERANCE, maxiter=STEPS, M=jacobi
    )
    return found[vertex_of].reshape(target.shape)


def object_of(smooth: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The mask that a smoothed mask stands for: the largest connected part above one half, with
    holes filled; where nothing is above, the mask that was smoothed.

    The authors' code takes the second largest of these parts and all that is not above one half,
    which is the background where the object is large, and means to invert what overlaps with less
    than half of the mask. But a mask of few large patches overlaps little with an object that is
    cut out well; so the background does not count here.

    Args:
      smooth: (H, W), of `smoothed`.
      mask: (H, W) bool, what was smoothed.

    Returns:
      (H, W) bool.
    """
    parts, count = ndimage.label(ndimage.binary_fill_holes(smooth > 0.5))
    if not count:
        return mask
    return parts == 1 + np.argmax(np.bincount(parts.ravel())[1:])


def _grid(image: np.ndarray, sigmas: Sigmas) -> tuple[np.ndarray, sparse.csr_array]:
    """(the vertex of each pixel (H * W,), the (n, n) kernel 1 2 1 along each of the five axes)."""
    yuv = image.astype(np.float64) @ _TO_YUV.T + [0.0, 128.0, 128.0]
    rows, columns = np.indices(image.shape[:2])
    levels = (columns / sigmas.space, rows / sigmas.space, yuv[..., 0] / sigmas.luma)
    chromas = (yuv[..., 1] / sigmas.chroma, yuv[..., 2] / sigmas.chroma)
    cells = [level.astype(np.int64).ravel() + 1 for level in (*levels, *chromas)]
    shape = [int(cell.max()) + 2 for cell in cells]  # with an empty cell at either end
    vertices, vertex_of = np.unique(np.ravel_multi_index(cells, shape), return_inverse=True)
    count = len(vertices)
    kernel = sparse.diags_array(np.full(count, 2.0 * len(shape))).tocsr()
    for axis in range(len(shape)):
        stride = int(np.prod(shape[axis + 1 :]))
        place = np.minimum(np.searchsorted(vertices, vertices + stride), count - 1)
        lower = np.flatnonzero(vertices[place] == vertices + stride)
        beside = sparse.csr_array((np.ones(len(lower)), (lower, place[lower])), (count, count))
        kernel = kernel + beside + beside.T
    return vertex_of, kernel


def _balanced(blur: sparse.csr_array, mass: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Diagonals (m, n) that make n blur n doubly stochastic with mass m."""
    balance = np.ones(len(mass))
    for _ in range(_BALANCING):
        balance = np.sqrt(balance * mass / (blur @ balance))
    return balance * (blur @ balance), balance
