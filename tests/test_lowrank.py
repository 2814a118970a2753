"The algebra of (A, B) against dense matrices, on random shapes, ranks and scales."
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.linalg import subspace_angles

from sas_nb.files import UserError
from sas_nb.lowrank import canonical, delta, norm, principal_angles, recompress, reparametrise, svd

check = settings(max_examples=50, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))

sizes, seeds = st.integers(1, 12), st.integers(0, 2**31)

def close(x, y, scale=1.):
    "Equal up to rounding at magnitude `scale`."
    torch.testing.assert_close(x.double(), y.double(), atol=1e-10 * float(scale) + 1e-300, rtol=1e-9)

def randn(g, *shape): return torch.randn(*shape, generator=g, dtype=torch.float64)

def pair(g, out, in_, r, scale=1., deficient=False, batch=()):
    A, B = randn(g, *batch, r, in_) * scale, randn(g, *batch, out, r)
    if deficient: A[..., -1, :] = A[..., 0, :] * (r > 1)
    return A, B

@st.composite
def updates(draw, n=1, batch=()):
    "`n` pairs of one layer, their ranks drawn apart; r may exceed in and out; A may be rank deficient or zero."
    g = torch.Generator().manual_seed(draw(seeds))
    out, in_ = draw(sizes), draw(sizes)
    some = [pair(g, out, in_, draw(sizes), 10.**draw(st.integers(-6, 6)), draw(st.booleans()), batch) for _ in range(n)]
    return (g, *some)

def size(A, B): return A.norm() * B.norm()

def invertible(g, r, spread=1.):
    "A random (r, r) matrix with singular values between exp(-spread) and exp(spread)."
    q = lambda: torch.linalg.qr(randn(g, r, r))[0]
    return q() * (2 * torch.rand(r, generator=g, dtype=torch.float64) - 1).mul(spread).exp() @ q()


# lengths

@check
@given(updates(1))
def test_norm_is_dense(d):
    _, (A, B) = d
    close(norm(A, B), delta(A, B).norm(), size(A, B))

def test_norm_is_accurate_where_the_update_cancels():
    A = torch.tensor([[1., 2, 3], [1., 2, 3]], dtype=torch.float64)
    B = torch.tensor([[1., -1 + 1e-12], [0, 0]], dtype=torch.float64)
    assert norm(A, B).item() == pytest.approx(delta(A, B).norm().item(), rel=1e-3)

@check
@given(updates(1))
def test_reparametrising_changes_nothing_that_counts(d):
    g, (A, B) = d
    A2, B2 = reparametrise(A, B, invertible(g, len(A)))
    scale = size(A2, B2)
    close(delta(A2, B2), delta(A, B), scale)
    close(norm(A2, B2), norm(A, B), scale)
    close(svd(A2, B2)[1][:1], svd(A, B)[1][:1], scale)

def test_reparametrising_changes_the_raw_numbers():
    g = torch.Generator().manual_seed(0)
    A, B = pair(g, 6, 8, 3)
    A2, B2 = reparametrise(A, B, invertible(g, 3))
    assert not torch.allclose(A, A2) and not torch.allclose(B, B2)
    close(principal_angles(A, A2), torch.zeros(3))


# the canonical form

@check
@given(updates(1))
def test_canonical(d):
    _, (A, B) = d
    Q, C = canonical(A, B)
    k = min(A.shape)
    assert Q.shape == (k, A.shape[1]) and C.shape == (len(B), k)
    close(Q @ Q.T, torch.eye(k)); close(delta(Q, C), delta(A, B), size(A, B)); close(C.norm(), delta(A, B).norm(), size(A, B))
    Q2, C2 = canonical(A.clone(), B.clone())
    assert Q.equal(Q2) and C.equal(C2)

@check
@given(seeds, sizes, sizes, st.integers(1, 6), st.integers(0, 6))
def test_shared_basis_gives_isometric_coordinates(seed, out, out2, r, extra):
    g = torch.Generator().manual_seed(seed)
    A, B1, B2 = randn(g, r, r + extra), randn(g, out, r), randn(g, out, r)
    (Q1, C1), (Q2, C2) = canonical(A, B1), canonical(A, B2)
    assert Q1.equal(Q2)
    close((C1 - C2).norm(), (delta(A, B1) - delta(A, B2)).norm(), 10); close((C1 * C2).sum(), (delta(A, B1) * delta(A, B2)).sum(), 100)
    R = A @ Q1.T
    assert (R.diagonal() > 0).all(); close(R, R.tril(), 10)

@check
@given(seeds)
def test_sign_of_canonical_does_not_depend_on_scaling_rows(seed):
    g = torch.Generator().manual_seed(seed)
    A, B = pair(g, 5, 8, 3)
    positive = torch.diag(torch.rand(3, generator=g, dtype=torch.float64) + .1)
    A2, B2 = reparametrise(A, B, positive)
    close(canonical(A2, B2)[0], canonical(A, B)[0], 100); close(canonical(A2, B2)[1], canonical(A, B)[1], 100)


# singular values

@check
@given(updates(1))
def test_svd_is_dense(d):
    _, (A, B) = d
    U, S, Vh = svd(A, B)
    k = min(*A.shape, len(B))
    assert (U.shape, S.shape, Vh.shape) == ((len(B), k), (k,), (k, A.shape[1]))
    close(U.T @ U, torch.eye(k)); close(Vh @ Vh.T, torch.eye(k)); assert (S >= 0).all() and (S.diff() <= 0).all()
    close((U * S) @ Vh, delta(A, B), size(A, B))
    close(S, torch.from_numpy(np.linalg.svd(delta(A, B).numpy(), compute_uv=False))[:k], size(A, B))

@check
@given(updates(1), st.integers(1, 14))
def test_recompress_is_the_best_of_its_rank(d, rank):
    g, (A, B) = d
    W = delta(A, B)
    A2, B2, error = recompress(A, B, rank)
    s = torch.from_numpy(np.linalg.svd(W.numpy(), compute_uv=False))
    assert A2.shape[0] == B2.shape[1] == min(rank, *A.shape, len(B))
    close((delta(A2, B2) - W).norm(), s[rank:].norm(), size(A, B))
    close(error * W.norm(), s[rank:].norm(), size(A, B)); assert 0 <= error <= 1
    close(A2.norm(), B2.norm(), size(A, B)**.5)
    for _ in range(3):
        rival = delta(*pair(g, *W.shape, rank))
        rival = rival * (rival * W).sum() / rival.square().sum()
        assert (rival - W).norm() >= s[rank:].norm() - 1e-10 * size(A, B)

def test_zero_update():
    A, B = torch.randn(4, 6), torch.zeros(5, 4)
    a, b, error = recompress(A, B, 2)
    assert error == 0 and norm(A, B) == 0 and delta(a, b).abs().max() == 0


# subspaces

@check
@given(seeds, sizes, sizes, st.integers(1, 14), st.booleans())
def test_angles_are_scipys(seed, r1, r2, in_, deficient):
    g = torch.Generator().manual_seed(seed)
    A1, A2 = pair(g, 1, in_, r1, deficient=deficient)[0], randn(g, r2, in_)
    ours = principal_angles(A1, A2)
    ranks = [int(torch.linalg.matrix_rank(a)) for a in (A1, A2)]
    assert len(ours) == min(ranks) and (ours.diff() >= -1e-12).all() and ((ours >= 0) & (ours <= np.pi / 2 + 1e-12)).all()
    if min(ranks):
        shared = sum(ranks) - int(torch.linalg.matrix_rank(torch.cat([A1, A2]))) # so many angles are zero, where scipy's own error can be the root of a rounding
        expected = np.sort(subspace_angles(A1.T.numpy(), A2.T.numpy())); expected[:shared] = 0
        np.testing.assert_allclose(ours, expected, atol=1e-8)
    torch.testing.assert_close(ours, principal_angles(A2, A1), atol=1e-8, rtol=0)

@pytest.mark.parametrize("angle", [1e-12, 1e-8, 1e-3, .5, np.pi / 4, 1.5, np.pi / 2 - 1e-8, np.pi / 2])
def test_angles_are_accurate_at_every_size(angle):
    A1 = torch.eye(6, dtype=torch.float64)[[0, 1]]
    A2 = A1.clone(); A2[0] = torch.zeros(6); A2[0, 0], A2[0, 3] = np.cos(angle), np.sin(angle)
    small, large = principal_angles(A1, A2)
    assert small == 0 and large.item() == pytest.approx(angle, rel=1e-9, abs=1e-15)

def test_angles_of_a_zero_update():
    assert principal_angles(torch.zeros(2, 5), torch.randn(3, 5)).shape == (0,)

# batches, dtypes, errors

@check
@given(updates(1, batch=(2, 3)))
def test_batches_are_loops(d):
    g, (A, B) = d
    one = lambda f, *xs: [f(*(x[i, j] for x in xs)) for i in range(2) for j in range(3)]
    for f, xs in [(delta, (A, B)), (norm, (A, B))]:
        whole, parts = f(*xs), one(f, *xs)
        close(whole.flatten(0, 1), torch.stack(parts), whole.abs().max())
    close(delta(*canonical(A, B)), delta(A, B), size(A, B))
    a, b, error = recompress(A, B, 2)
    close(error.flatten(), torch.stack([e for *_, e in one(lambda x, y: recompress(x, y, 2), A, B)]), 1e4)
    close(svd(A, B)[1].flatten(0, 1), torch.stack([s for _, s, _ in one(svd, A, B)]), size(A, B))
    G = torch.stack([invertible(g, A.shape[-2]) for _ in range(6)]).view(2, 3, A.shape[-2], A.shape[-2])
    close(delta(*reparametrise(A, B, G)), delta(A, B), 10 * size(A, B))

@pytest.mark.parametrize("dtype, out", [(torch.bfloat16, torch.float32), (torch.float16, torch.float32),
                                        (torch.float32, torch.float32), (torch.float64, torch.float64)])
def test_dtypes(dtype, out):
    g = torch.Generator().manual_seed(0)
    A, B = (x.to(dtype) for x in pair(g, 6, 9, 3))
    assert all(x.dtype == out for x in (*canonical(A, B), *svd(A, B), *recompress(A, B, 2)[:2]))
    assert all(x.dtype == torch.float64 for x in (norm(A, B), principal_angles(A, A)))
    close(norm(A, B), delta(A.double(), B.double()).norm())
    torch.testing.assert_close(delta(*canonical(A, B)).double(), delta(A.double(), B.double()), atol=1e-5, rtol=1e-5)
    assert len(principal_angles(torch.cat([A, A]), A)) == 3

def test_errors():
    A, B = torch.randn(3, 8), torch.randn(5, 3)
    for f in (delta, norm, canonical, svd):
        with pytest.raises(UserError, match="do not share a rank"): f(B, A)
    with pytest.raises(UserError, match="singular"): reparametrise(A, B, torch.zeros(3, 3))
    with pytest.raises(UserError, match="at least one direction"): recompress(A, B, 0)
    with pytest.raises(UserError, match="same inputs"): principal_angles(A, torch.randn(3, 7))
