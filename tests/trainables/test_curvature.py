"""Curvature against dense Hessians (torch.func.hessian), closed forms and the known variance of Hutchinson's trace."""

import numpy as np
import pytest
import torch

from trainables.common.curvature import (
    Hessian,
    gram_spectrum,
    hutch_plus_plus_trace,
    hutchinson_trace,
    jacobian,
    top_eigenvalues,
)

DOUBLE = torch.float64


def network(dtype=DOUBLE, hidden=6, targets=None):
    """A net with 1 output on 5 samples: weights, its loss, and its residuals; by default it fits its targets."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(5, 3, generator=generator, dtype=DOUBLE).to(dtype)
    weights = {
        "first": torch.randn(hidden, 3, generator=generator, dtype=DOUBLE).to(dtype),
        "second": torch.randn(hidden, generator=generator, dtype=DOUBLE).to(dtype),
    }

    def outputs(w):
        return torch.tanh(inputs @ w["first"].T) @ w["second"]

    fitted = outputs(weights).detach() if targets is None else targets
    return weights, lambda w: ((outputs(w) - fitted) ** 2).mean(), lambda w: outputs(w) - fitted


def dense(loss, weights):
    """The Hessian in the order of the weights' names, by torch.func."""
    shapes = {name: value.shape for name, value in weights.items()}
    sizes = [value.numel() for value in weights.values()]

    def flat(vector):
        parts = vector.split(sizes)
        return loss({name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)})

    return torch.func.hessian(flat)(torch.cat([value.flatten() for value in weights.values()]))


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_the_gram_spectrum_of_a_fitted_net_is_that_of_its_hessian(dtype, tolerance):
    weights, loss, residuals = network(dtype)
    spectrum = gram_spectrum(jacobian(residuals, weights), samples=5)
    values, vectors = torch.linalg.eigh(dense(loss, weights))
    assert torch.allclose(spectrum.values, values.flip(0)[:5], rtol=tolerance, atol=tolerance)
    assert float(spectrum.trace) == pytest.approx(float(values.sum()), rel=tolerance)
    assert float(spectrum.top) == pytest.approx(float(values[-1]), rel=tolerance)
    assert abs(float(spectrum.top_vector @ vectors[:, -1])) == pytest.approx(1, abs=100 * tolerance)
    assert float(spectrum.smallest_positive) == pytest.approx(float(values.flip(0)[4]), rel=10 * tolerance)


def test_the_smallest_positive_eigenvalue_passes_over_a_dependent_sample():
    rows = torch.tensor([[2.0, 0.0, 1.0], [0.0, 1.0, 1.0], [2.0, 1.0, 2.0]], dtype=DOUBLE)
    spectrum = gram_spectrum(rows, samples=2)
    wanted = torch.linalg.eigvalsh(rows.T @ rows)
    assert float(spectrum.smallest_positive) == pytest.approx(float(wanted[1]), rel=1e-12)
    assert float(gram_spectrum(torch.zeros(2, 3), 2).top) == 0


def test_the_gram_spectrum_takes_lanes():
    rows = torch.randn(3, 4, 7, generator=torch.Generator().manual_seed(5), dtype=DOUBLE)
    together = gram_spectrum(rows, samples=4)
    for lane in range(3):
        assert torch.allclose(together.values[lane], gram_spectrum(rows[lane], 4).values, rtol=1e-12)


def test_what_is_not_finite_gives_nan_and_leaves_other_lanes_alone():
    rows = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(5), dtype=DOUBLE)
    clean = gram_spectrum(rows, 3)
    rows[0, 1, 2] = torch.inf
    broken = gram_spectrum(rows, 3)
    assert broken.values[0].isnan().all() and torch.equal(broken.values[1], clean.values[1])
    assert torch.equal(broken.top_vector[1], clean.top_vector[1])
    cubic = Hessian(lambda w: (w["x"] ** 3).sum(), {"x": torch.tensor([1.0, torch.nan])})
    assert top_eigenvalues(cubic).values.isnan().all()


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-10), (torch.float32, 2e-4)])
def test_products_are_those_of_the_dense_hessian_where_the_loss_is_not_zero(dtype, tolerance):
    weights, loss, _ = network(dtype, targets=torch.ones(5, dtype=dtype))
    wanted = dense(loss, weights)
    got = Hessian(loss, weights).dense()
    assert torch.allclose(got, wanted, rtol=tolerance, atol=tolerance * float(wanted.abs().max()))


def test_products_of_a_module_and_of_weights_in_which_the_loss_is_linear_or_absent():
    module = torch.nn.Linear(2, 1).double()
    inputs = torch.tensor([[1.0, 2.0]], dtype=DOUBLE)

    def loss(w):
        return torch.func.functional_call(module, w, (inputs,)).square().sum()

    hessian = Hessian(loss, dict(module.named_parameters()))
    row = torch.tensor([1.0, 2.0, 1.0], dtype=DOUBLE)
    assert torch.allclose(hessian.dense(), 2 * torch.outer(row, row))
    linear = Hessian(lambda w: (w["a"] ** 2).sum() + w["b"].sum(), {n: torch.ones(2) for n in "abc"})
    assert torch.equal(linear.dense(), torch.diag(torch.tensor([2.0, 2.0, 0.0, 0.0, 0.0, 0.0])))


@pytest.mark.parametrize("hidden", [6, 40])  # 24 weights: dense; 160: Lanczos
def test_top_eigenvalues_are_the_dense_ones_and_their_residuals_are_told(hidden):
    weights, loss, _ = network(hidden=hidden, targets=torch.zeros(5, dtype=DOUBLE))
    wanted = torch.linalg.eigvalsh(dense(loss, weights)).flip(0)
    found = top_eigenvalues(Hessian(loss, weights), 3)
    assert torch.allclose(found.values, wanted[:3], rtol=1e-9)
    assert float(found.residuals.max()) < 1e-9 * float(wanted[0])
    rough = top_eigenvalues(Hessian(loss, weights), 3, tolerance=0.1)
    error = (rough.values[:, None] - wanted).abs().amin(1)
    assert (error <= rough.residuals + 1e-9).all()  # an eigenvalue of H lies within the residual
    with pytest.raises(ValueError, match="got 0 eigenvalues"):
        top_eigenvalues(Hessian(loss, weights), 0)


def matrix_hessian(decay, dimension=48):
    """The Hessian of a quadratic with eigenvalues i ** -decay, and its matrix."""
    generator = torch.Generator().manual_seed(1)
    basis = torch.linalg.qr(torch.randn(dimension, dimension, generator=generator, dtype=DOUBLE))[0]
    matrix = basis @ torch.diag(torch.arange(1, dimension + 1, dtype=DOUBLE) ** -decay) @ basis.T
    return Hessian(lambda w: 0.5 * w["x"] @ matrix @ w["x"], {"x": torch.zeros(dimension, dtype=DOUBLE)}), matrix


def test_hutchinsons_error_falls_with_the_root_of_the_probes_at_its_known_variance():
    hessian, matrix = matrix_hessian(decay=0.5)
    off = matrix - torch.diag(matrix.diag())
    for probes in (4, 16):
        errors = [hutchinson_trace(hessian, probes, seed).value - float(matrix.trace()) for seed in range(150)]
        spread = float(torch.sqrt(2 * (off**2).sum() / probes))
        assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(spread, rel=0.2)  # 150 draws: 6 % each
        assert abs(np.mean(errors)) < 3.5 * spread / np.sqrt(150)


@pytest.mark.parametrize("estimate, count", [(hutchinson_trace, 24), (hutch_plus_plus_trace, 60)])
def test_two_standard_errors_hold_the_trace_as_often_as_they_should(estimate, count):
    hessian, matrix = matrix_hessian(decay=1.0)
    held = [
        abs(found.value - float(matrix.trace())) < 2.1 * found.standard_error
        for found in (estimate(hessian, count, seed) for seed in range(100))
    ]
    assert 0.87 <= np.mean(held) <= 1  # 0.95 for a normal; 100 draws have a standard error of 0.02


def test_hutch_plus_plus_beats_hutchinson_at_equal_products_on_a_decaying_spectrum_and_is_exact_on_low_rank():
    hessian, matrix = matrix_hessian(decay=2.0)
    errors = {
        name: np.sqrt(np.mean([(make(hessian, 30, seed).value - float(matrix.trace())) ** 2 for seed in range(30)]))
        for name, make in (("plain", hutchinson_trace), ("sketched", hutch_plus_plus_trace))
    }
    assert errors["sketched"] < errors["plain"] / 4
    rows = torch.randn(3, 48, generator=torch.Generator().manual_seed(2), dtype=DOUBLE)
    low = Hessian(lambda w: 0.5 * (rows @ w["x"]).square().sum(), {"x": torch.zeros(48, dtype=DOUBLE)})
    assert hutch_plus_plus_trace(low, 18).value == pytest.approx(float((rows**2).sum()), rel=1e-10)


def test_estimates_are_a_function_of_the_seed_and_refuse_too_few_products():
    hessian, _ = matrix_hessian(decay=1.0)
    assert hutchinson_trace(hessian, 6, seed=4) == hutchinson_trace(hessian, 6, seed=4)
    assert hutchinson_trace(hessian, 6, seed=4) != hutchinson_trace(hessian, 6, seed=5)
    assert hutch_plus_plus_trace(hessian, 20).products == 18
    with pytest.raises(ValueError, match="at least 2 probes, got 1"):
        hutchinson_trace(hessian, 1)
    with pytest.raises(ValueError, match="at least 6 products, got 5"):
        hutch_plus_plus_trace(hessian, 5)
