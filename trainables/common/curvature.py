"""Curvature of a loss: exact spectra where a Gram matrix is small, Hessian-vector products where it is not.

Everything takes a fixed set of samples in the loss, in float32 or float64 (bfloat16 is too coarse); what is estimated
comes with its error: the residual |H v - lambda v| of an eigenvalue, the standard error of a trace.
"""

# N residuals (samples times outputs), D weights, K vectors

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, eigsh

from trainables.common.streams import Streams

Weights = Mapping[str, torch.Tensor]
DENSE_DIMENSION = 64  # up to here an eigenvalue problem is solved as a dense one


@dataclass(frozen=True)
class Spectrum:
    """Eigenvalues of a Gauss-Newton matrix that are not zero by its shape, largest first: [..., N]."""

    values: torch.Tensor
    top_vector: torch.Tensor  # of the largest, unit length, [..., D]

    @property
    def top(self) -> torch.Tensor:
        return self.values[..., 0]

    @property
    def trace(self) -> torch.Tensor:
        return self.values.sum(-1)

    @property
    def smallest_positive(self) -> torch.Tensor:
        """The smallest eigenvalue that is not zero within rounding: above N eps lambda_1."""
        floor = self.values.shape[-1] * torch.finfo(self.values.dtype).eps * self.values[..., :1]
        return torch.where(self.values > floor, self.values, torch.inf).amin(-1)


def gram_spectrum(jacobian: torch.Tensor, samples: int) -> Spectrum:
    """Spectrum of (2 / samples) J'J through the N x N matrix J J'; the Jacobian [..., N, D], any lanes before.

    It is the Hessian of a mean squared error wherever all residuals are zero; else the part
    (2 / samples) sum_i r_i H_i is left out. Exact, and cheap while N is at most a few thousand. A lane whose Jacobian
    is not finite has NaN eigenvalues and disturbs no other.

    >>> spectrum = gram_spectrum(torch.tensor([[3.0, 0.0, 0.0], [0.0, 1.0, 0.0]]), samples=2)
    >>> spectrum.values, spectrum.trace, spectrum.smallest_positive
    (tensor([9., 1.]), tensor(10.), tensor(1.))
    """
    gram = 2 / samples * jacobian @ jacobian.mT
    finite = gram.isfinite().flatten(-2).all(-1)[..., None]
    values, vectors = torch.linalg.eigh(torch.where(finite[..., None], gram, 0))
    values = torch.where(finite, values, torch.nan)
    top = (jacobian.mT @ vectors[..., -1:]).squeeze(-1)
    length = torch.linalg.vector_norm(top, dim=-1, keepdim=True)
    return Spectrum(values.flip(-1).clamp_min(0), torch.where(length > 0, top / length, top))


def jacobian(residuals: Callable[[dict[str, torch.Tensor]], torch.Tensor], weights: Weights) -> torch.Tensor:
    """Derivative of all residuals by all weights, [N, D], in the order of the weights' names; one batched pass.

    >>> jacobian(lambda w: w["x"] ** 2, {"x": torch.tensor([1.0, 3.0])})
    tensor([[2., 0.],
            [0., 6.]])
    """
    leaves = {name: value.detach().requires_grad_() for name, value in weights.items()}
    values = residuals(leaves).flatten()
    each = torch.eye(len(values), dtype=values.dtype, device=values.device)
    parts = torch.autograd.grad(values, list(leaves.values()), each, is_grads_batched=True, materialize_grads=True)
    return torch.cat([part.flatten(1) for part in parts], 1)


class Hessian:
    """The Hessian of a scalar loss at some weights, as a map of flat vectors [D]; one backward pass each.

    `loss` takes a dict of tensors; for a module that is `torch.func.functional_call(model, weights, inputs)` and so on
    with `dict(model.named_parameters())`.

    >>> hessian = Hessian(lambda w: (w["x"] ** 3).sum(), {"x": torch.tensor([1.0, 2.0])})
    >>> hessian(torch.tensor([1.0, 1.0]))
    tensor([ 6., 12.])
    """

    def __init__(self, loss: Callable[[dict[str, torch.Tensor]], torch.Tensor], weights: Weights):
        self.leaves = [value.detach().requires_grad_() for value in weights.values()]
        self.slopes = torch.autograd.grad(
            loss(dict(zip(weights, self.leaves, strict=True))), self.leaves, create_graph=True, materialize_grads=True
        )
        self.dimension = sum(leaf.numel() for leaf in self.leaves)
        self.dtype, self.device = self.leaves[0].dtype, self.leaves[0].device

    def __call__(self, vector: torch.Tensor) -> torch.Tensor:
        parts = vector.split([leaf.numel() for leaf in self.leaves])
        curved = [slope for slope in self.slopes if slope.requires_grad]
        given = [
            part.view_as(slope) for part, slope in zip(parts, self.slopes, strict=True) if slope.requires_grad
        ]  # a weight in which the loss is linear has no second derivative
        if not curved:
            return torch.zeros_like(vector)
        products = torch.autograd.grad(curved, self.leaves, given, retain_graph=True, materialize_grads=True)
        return torch.cat([product.flatten() for product in products])

    def columns(self, vectors: torch.Tensor) -> torch.Tensor:
        """The products with the columns of [D, K]."""
        return torch.stack([self(column) for column in vectors.T], 1)

    def dense(self) -> torch.Tensor:
        return self.columns(torch.eye(self.dimension, dtype=self.dtype, device=self.device))


@dataclass(frozen=True)
class Eigenpairs:
    """Largest eigenvalues first [K], unit vectors [D, K], and |H v - lambda v| of each [K]."""

    values: torch.Tensor
    vectors: torch.Tensor
    residuals: torch.Tensor


def top_eigenvalues(hessian: Hessian, count: int = 1, seed: int = 0, tolerance: float = 0.0) -> Eigenpairs:
    """The `count` algebraically largest eigenvalues by Lanczos (scipy's ARPACK), from a start fixed by `seed`.

    Up to DENSE_DIMENSION weights, or where nearly all eigenvalues are asked for, by a dense decomposition.
    `tolerance` is relative; 0 is machine precision. All are NaN where the Hessian is not finite. Raises ValueError for
    more eigenvalues than weights.
    """
    if not 1 <= count <= hessian.dimension:
        raise ValueError(f"need 1 <= count <= {hessian.dimension} weights, got {count} eigenvalues")
    first = Streams([seed], "lanczos", hessian.device).normal(0, hessian.dimension, dtype=hessian.dtype)[0]
    if not hessian(first).isfinite().all():
        undefined = first.new_full((count,), torch.nan)
        return Eigenpairs(undefined, first.new_full((hessian.dimension, count), torch.nan), undefined)
    if hessian.dimension <= max(DENSE_DIMENSION, 2 * count):
        values, vectors = torch.linalg.eigh(hessian.dense())
    else:

        def product(vector: np.ndarray) -> np.ndarray:
            given = torch.as_tensor(vector.reshape(-1), dtype=hessian.dtype, device=hessian.device)
            return hessian(given).double().cpu().numpy()

        operator = LinearOperator((hessian.dimension,) * 2, matvec=product, dtype=np.float64)
        found = eigsh(operator, k=count, which="LA", v0=first.double().cpu().numpy(), tol=tolerance)
        order = found[0].argsort()
        values, vectors = (
            torch.as_tensor(part.copy(), dtype=hessian.dtype, device=hessian.device)
            for part in (found[0][order], found[1][:, order])
        )
    values, vectors = values[-count:].flip(0), vectors[:, -count:].flip(1)
    residuals = torch.linalg.vector_norm(hessian.columns(vectors) - vectors * values, dim=0)
    return Eigenpairs(values, vectors, residuals)


@dataclass(frozen=True)
class Estimate:
    """A trace with its standard error, and the Hessian-vector products that it took."""

    value: float
    standard_error: float
    products: int


def hutchinson_trace(hessian: Hessian, probes: int, seed: int = 0) -> Estimate:
    """Mean of z'Hz over random signs z (Hutchinson 1989, doi:10.1080/03610918908812806).

    Its variance is 2 sum_(i != j) H_ij^2 / probes. The probes are a function of `seed`. Raises ValueError below two.
    """
    if probes < 2:
        raise ValueError(f"a standard error needs at least 2 probes, got {probes}")
    return _mean([float(z @ hessian(z)) for z in _probes(hessian, probes, seed)], products=probes)


def hutch_plus_plus_trace(hessian: Hessian, products: int, seed: int = 0) -> Estimate:
    """Hutch++ (arXiv:2010.09649, algorithm 1): exact on a sketched subspace, Hutchinson on what is left of it.

    A third of the products sketches H, a third takes its trace there, a third are probes; the error falls with
    1 / products instead of its square root for spectra that decay. Raises ValueError below six products.
    """
    third = products // 3
    if third < 2:
        raise ValueError(f"Hutch++ needs at least 6 products, got {products}")
    signs = _probes(hessian, 2 * third, seed)
    basis, _ = torch.linalg.qr(hessian.columns(signs[:third].T))
    inside = float((basis * hessian.columns(basis)).sum())
    left = signs[third:] - signs[third:] @ basis @ basis.T
    rest = _mean([float(z @ hessian(z)) for z in left], products=2 * third + basis.shape[1])
    return Estimate(inside + rest.value, rest.standard_error, rest.products)


def _probes(hessian: Hessian, count: int, seed: int) -> torch.Tensor:
    """Random signs [count, D], each a function of (seed, its number)."""
    streams = Streams([seed], "probes", hessian.device)
    return torch.cat([streams.signs(number, hessian.dimension, dtype=hessian.dtype) for number in range(count)])


def _mean(values: list[float], products: int) -> Estimate:
    return Estimate(float(np.mean(values)), float(np.std(values, ddof=1) / np.sqrt(len(values))), products)
