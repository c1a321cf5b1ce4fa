"""NumPy references for the DPP selector: one to be right, one to be timed, and exact sampling.

`gains`, `brute_force_order` and `check_order` follow the definition (Schur complements solved anew
for every pick, float64) and share nothing with the incremental factor of `dppmask_jax.dpp`.
`incremental_order` is how the method is usually written in NumPy; the benchmark times it.
"""

import numpy as np


def kernel_matrix(features, kernel="gaussian", bandwidth=1.0):
    """(N, D) -> (N, N) float64, entry by entry from the definition."""
    rows = [np.asarray(row, np.float64) for row in features]
    rows = [row / max(np.sqrt((row**2).sum()), 1e-12) for row in rows]
    matrix = np.ones((len(rows), len(rows)))
    for i, a in enumerate(rows):
        for j, b in enumerate(rows):
            if i != j:
                distance = ((a - b) ** 2).sum()
                matrix[i, j] = a @ b if kernel == "cosine" else np.exp(-distance / bandwidth)
    return matrix


def gains(matrix, chosen):
    """det L[Y + i] / det L[Y] of every i, -inf for the chosen: (N,) float64."""
    matrix = np.asarray(matrix, np.float64)
    chosen = list(chosen)
    result = np.diag(matrix).copy()
    if chosen:
        inverse = np.linalg.pinv(matrix[np.ix_(chosen, chosen)], rcond=1e-9, hermitian=True)
        cross = matrix[chosen]
        result -= np.einsum("kn,kl,ln->n", cross, inverse, cross)
    result[chosen] = -np.inf
    return result


def brute_force_order(matrix, noise, num_keep, tau, threshold_on="d2", tie=1e-9):
    """The whole selection by the definition. Gains closer than `tie` count as equal."""
    chosen = []
    while len(chosen) < num_keep:
        gain = gains(matrix, chosen)
        best = max(gain.max(), 0.0)
        if tau >= 1 or (np.sqrt(best) if threshold_on == "d" else best) < tau:
            break
        tied = np.flatnonzero(gain >= gain.max() - tie)
        chosen.append(int(tied[np.argmin(noise[tied])]))
    rest = [int(i) for i in np.argsort(noise, kind="stable") if i not in chosen]
    return np.array(chosen + rest), len(chosen)


def check_order(matrix, noise, num_keep, tau, order, num_greedy, threshold_on="d2", tol=1e-5):
    """Asserts that a float32 answer is one the definition allows, up to `tol` in the gains."""
    order, num_greedy, noise = np.asarray(order), int(num_greedy), np.asarray(noise)
    assert order.dtype == np.int32
    assert sorted(order) == list(range(len(matrix)))
    assert 0 <= num_greedy <= num_keep
    limit = np.inf if tau >= 1 else max(tau, 0.0) ** (2 if threshold_on == "d" else 1)
    for pick in range(num_greedy):
        gain = gains(matrix, order[:pick])
        assert gain[order[pick]] >= gain.max() - tol, (pick, gain[order[pick]], gain.max())
        assert gain.max() >= limit - tol, (pick, gain.max(), limit)
    if num_greedy < num_keep:
        assert gains(matrix, order[:num_greedy]).max() < limit + tol
    if num_greedy and np.all(np.diag(matrix) == 1):
        assert order[0] == np.argmin(noise)
    assert np.all(np.diff(noise[order[num_greedy:num_keep]]) >= 0)
    assert np.all(np.diff(noise[order[num_keep:]]) >= 0)
    if num_greedy < num_keep < len(order):
        assert noise[order[num_keep - 1]] <= noise[order[num_keep]]


def fast_kernel(features):
    """The Gaussian kernel with bandwidth 1, vectorised, in the dtype of `features`."""
    norm = np.maximum(np.sqrt(np.einsum("nd,nd->n", features, features)), 1e-12)
    unit = features / norm[:, None]
    matrix = unit @ unit.T
    np.subtract(1.0, matrix, out=matrix)
    np.maximum(matrix, 0.0, out=matrix)
    matrix *= -2.0
    np.exp(matrix, out=matrix)
    np.fill_diagonal(matrix, 1.0)
    return matrix


def incremental_order(matrix, noise, num_keep, tau=0.0, *, stop=True):
    """Greedy selection with an incremental Cholesky factor (arXiv 1709.05135, Algorithm 1).

    With `stop` the loop ends at the first gain below `tau`; without, all `num_keep` picks are made
    and those from the first gain below `tau` on are replaced at random afterwards.
    """
    factor = np.zeros((num_keep, len(matrix)), matrix.dtype)
    gain = np.diag(matrix).copy()
    chosen, best = [], []
    pick = int(np.argmin(noise))  # all gains are 1
    while True:
        done = len(chosen)
        chosen.append(pick)
        best.append(gain[pick])
        if done + 1 == num_keep:
            break
        update = matrix[pick] - factor[:done, pick] @ factor[:done]
        update /= np.sqrt(max(gain[pick], 1e-10))
        factor[done] = update
        gain -= update * update
        gain[pick] = -np.inf
        pick = int(np.argmax(gain))
        if stop and gain[pick] < tau:
            break
    if not stop:
        chosen = chosen[: int(np.sum(np.array(best) >= tau))]
    unchosen = np.ones(len(matrix), bool)
    unchosen[chosen] = False
    shuffled = np.argsort(noise, kind="stable")
    return np.concatenate([np.array(chosen, int), shuffled[unchosen[shuffled]]]), len(chosen)


def eigendecompose(matrix):
    """Eigenvalues (clamped at 0) and eigenvectors in float64."""
    values, vectors = np.linalg.eigh(np.asarray(matrix, np.float64))
    return np.maximum(values, 0.0), vectors


def sample_k_dpp(values, vectors, num_keep, rng):
    """One exact sample of a k-DPP from its eigendecomposition, in float64.

    Kulesza and Taskar, "Determinantal point processes for machine learning" (2012), Algorithms 8
    (which eigenvectors) and 1 (which items, by the chain rule).
    """
    size = len(values)
    # Eigenvalues on a common scale: only ratios of the polynomials matter, and these overflow less.
    scaled = values / values.max()
    polynomials = np.zeros((num_keep + 1, size + 1))
    polynomials[0] = 1.0
    for n in range(1, size + 1):
        polynomials[1:, n] = polynomials[1:, n - 1] + scaled[n - 1] * polynomials[:-1, n - 1]
    if polynomials[num_keep, size] <= 0:
        raise ValueError(f"the kernel's rank is below {num_keep}")
    kept, need = [], num_keep
    for n in range(size, 0, -1):
        if need == 0:
            break
        ratio = scaled[n - 1] * polynomials[need - 1, n - 1] / polynomials[need, n]
        if rng.random() < ratio:
            kept.append(n - 1)
            need -= 1
    basis = vectors[:, kept]
    score = np.einsum("nk,nk->n", basis, basis)
    factor = np.zeros((num_keep, size))
    chosen = np.zeros(num_keep, int)
    for m in range(num_keep):
        cumulative = np.cumsum(np.maximum(score, 0.0))
        item = int(np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right"))
        chosen[m] = item = min(item, size - 1)
        update = basis @ basis[item] - factor[:m, item] @ factor[:m]
        update /= np.sqrt(score[item])
        factor[m] = update
        score = score - update * update
        score[chosen[: m + 1]] = 0.0
    return chosen


def log_det(matrix, chosen):
    """log det of the chosen rows and columns, in float64."""
    chosen = np.asarray(chosen)
    return np.linalg.slogdet(np.asarray(matrix, np.float64)[np.ix_(chosen, chosen)])[1]
