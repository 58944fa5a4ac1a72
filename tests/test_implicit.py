"""The implicit noise and Dropout_k: values, gradients and covariances, mostly with no sampling.

On tiny networks every mask, pair and tuple of masks is summed over, so covariances are exact.
"""

import itertools

import oracle
import pytest
import torch
from oracle import BUILDERS, FINE, SPECS, TINY, Case, Spec, build, drawn, gradient, targets_for
from torch import Tensor, nn

from dropreg import (
    dropout_k_loss,
    errors,
    explicit_regularizer,
    gradient_noise,
    implicit_noise,
    replace_dropout,
)


def setup(case_name: str, spec_name: str = "cross_entropy") -> tuple[Case, Spec, Tensor]:
    case, spec = build({**BUILDERS, **TINY}[case_name]), SPECS[spec_name]
    return case, spec, targets_for(case, spec)


def two_masks() -> tuple[Case, Spec, Tensor]:
    """A network with two noise coordinates and q = 1/2: four masks, all equally likely."""
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2)).double()

    def net(w, x, etas):
        h = torch.tanh((x * (1 + etas[0])) @ w["1.weight"].T + w["1.bias"])
        return h @ w["3.weight"].T + w["3.bias"]

    torch.manual_seed(0)
    case = Case(model, torch.randn(1, 2, dtype=torch.float64), net, ((1, 2),), (0.5,))
    return build(lambda: case), SPECS["cross_entropy"], torch.tensor([1])


def plain_covariance(rows: Tensor) -> Tensor:
    """Over all outcomes, which are equally likely: divided by their number."""
    return oracle.covariance(rows, torch.full((len(rows),), 1 / len(rows), dtype=torch.float64))


# --- value and gradient --------------------------------------------------------------------------


@pytest.mark.parametrize("case_name", BUILDERS)
@pytest.mark.parametrize("spec_name", ["cross_entropy", "smoothing_and_ignore", "squared_error"])
def test_analytic_noise_is_the_slope_and_its_gradient(case_name: str, spec_name: str) -> None:
    """xi_approx = grad of sum_i <J_loss,i, eta_i * h_i> for a given eta."""
    case, spec, y = setup(case_name, spec_name)
    eta = torch.randn(case.size, dtype=torch.float64)
    expected = oracle.slope(case, spec, y, eta)
    with drawn(eta):
        value = implicit_noise(case.model, case.inputs, y, loss=spec.loss)
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(
        gradient(value, case), gradient(expected, case), rtol=1e-9, atol=1e-10
    )
    with drawn(eta):
        value = implicit_noise(
            case.model, case.inputs, y, loss=spec.loss, method="central", step=1e-4
        )
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        gradient(value, case), gradient(expected, case), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("case_name", ["tanh_network", "locked_rnn", "drop_connect", "batch_norm"])
def test_dropout_pair_is_the_difference_of_two_masks(case_name: str) -> None:
    case, spec, y = setup(case_name)
    etas = torch.randn(2, case.size, dtype=torch.float64)
    losses = oracle.loss_at(case, spec, y, etas)
    with drawn(etas):
        value = implicit_noise(case.model, case.inputs, y, method="dropout_pair")
    expected = (losses[0] - losses[1]) / 2**0.5
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(gradient(value, case), gradient(expected, case))


@pytest.mark.parametrize("case_name", ["tanh_network", "locked_rnn", "drop_connect", "batch_norm"])
def test_odd_part_is_half_the_difference_of_an_antithetic_pair(case_name: str) -> None:
    case, spec, y = setup(case_name)
    eta = torch.randn(case.size, dtype=torch.float64)
    up, down = oracle.loss_at(case, spec, y, torch.stack([eta, -eta]))
    with drawn(eta):
        value = implicit_noise(case.model, case.inputs, y, method="even_odd")
    torch.testing.assert_close(value, (up - down) / 2)
    torch.testing.assert_close(gradient(value, case), gradient((up - down) / 2, case))


@pytest.mark.parametrize("method", ["analytic", "central", "dropout_pair", "even_odd"])
def test_without_gradients_the_value_is_the_same(method: str) -> None:
    case, _, y = setup("tanh_network")
    values = []
    for enabled in (True, False):
        generator = torch.Generator().manual_seed(0)
        with torch.set_grad_enabled(enabled):
            values.append(
                implicit_noise(case.model, case.inputs, y, method=method, generator=generator)
            )
    assert values[0].requires_grad
    assert not values[1].requires_grad
    torch.testing.assert_close(values[0].detach(), values[1])


# --- covariance, exactly -------------------------------------------------------------------------


@pytest.mark.parametrize("case_name", TINY)
def test_gradients_under_every_mask(case_name: str) -> None:
    """gradient_noise("dropout") row by row: with q = 1/2 all masks are equally likely."""
    case, spec, y = setup(case_name)
    half = case.at(0.5)
    etas, weight = oracle.bernoulli(half)
    expected = oracle.gradients_at(half, spec, y, etas)
    with drawn(etas):
        rows = gradient_noise(case.model, case.inputs, y, mc_samples=len(etas))
    torch.testing.assert_close(rows, expected)
    torch.testing.assert_close(plain_covariance(rows), oracle.covariance(expected, weight))


@pytest.mark.parametrize("case_name", TINY)
@pytest.mark.parametrize("method", ["analytic", "central"])
def test_covariance_of_the_analytic_noise(case_name: str, method: str) -> None:
    """Over all sign vectors: mean 0, covariance sum_j v_j (d_j grad l)(d_j grad l)'."""
    case, spec, y = setup(case_name)
    etas, _ = oracle.rademacher(case)
    with drawn(etas):
        rows = gradient_noise(
            case.model, case.inputs, y, method=method, step=FINE, mc_samples=len(etas)
        )
    slopes = oracle.gradient_slopes(case, spec, y)
    expected = slopes.T @ (case.variances[:, None] * slopes)
    atol = 1e-12 if method == "analytic" else 1e-7
    torch.testing.assert_close(rows.mean(0), torch.zeros_like(rows[0]), rtol=0, atol=atol)
    torch.testing.assert_close(plain_covariance(rows), expected, rtol=1e-6, atol=atol)


@pytest.mark.parametrize("method", ["dropout", "analytic", "dropout_pair"])
def test_sampled_covariance(method: str) -> None:
    """Each entry of the covariance of 600 draws: within 5 standard errors of the exact one."""
    case, spec, y = setup("locked")
    rows = gradient_noise(
        case.model,
        case.inputs,
        y,
        method=method,
        mc_samples=600,
        generator=torch.Generator().manual_seed(0),
    )
    if method == "analytic":
        slopes = oracle.gradient_slopes(case, spec, y)
        expected = slopes.T @ (case.variances[:, None] * slopes)
    else:
        etas, weight = oracle.bernoulli(case)
        expected = oracle.covariance(oracle.gradients_at(case, spec, y, etas), weight)
    centred = rows - rows.mean(0)
    products = centred[:, :, None] * centred[:, None, :]
    standard_error = products.std(0) / len(rows) ** 0.5
    assert ((rows.T.cov() - expected).abs() <= 5 * standard_error + 1e-12).all()
    assert rows.T.cov().trace() > 0.8 * expected.trace() > 0


def test_projected_noise_is_the_image_of_the_full_noise() -> None:
    """P Sigma P' for a P with orthonormal rows, the same for every call."""
    case, _, y = setup("tanh_network")
    size = sum(p.numel() for p in case.model.parameters())

    def rows(projections: int | None) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        return gradient_noise(
            case.model,
            case.inputs,
            y,
            mc_samples=2 * size,
            projections=projections,
            generator=generator,
        )

    full, projected, rotated = rows(None), rows(3), rows(size)
    # The matrix is made in float32. With all directions it is a rotation.
    torch.testing.assert_close(rotated @ rotated.T, full @ full.T, rtol=1e-5, atol=1e-5)
    solution = torch.linalg.lstsq(full, projected, driver="gelsd").solution
    torch.testing.assert_close(full @ solution, projected, rtol=1e-5, atol=1e-5)
    assert torch.linalg.matrix_norm(solution, 2) <= 1 + 1e-5


SMALL_Q = torch.logspace(-4, -2.5, 5, dtype=torch.float64)


def covariance_errors(case: Case, spec: Spec, y: Tensor, law: object) -> list[Tensor]:
    """Cov of the gradient under the law's noise, less Cov of xi_approx, for falling q."""
    errors = []
    slopes = oracle.gradient_slopes(case, spec, y)
    for q in SMALL_Q.tolist():
        small = case.at(q)
        etas, weight = law(small)
        truth = oracle.covariance(oracle.gradients_at(small, spec, y, etas), weight)
        errors.append(truth - slopes.T @ (small.variances[:, None] * slopes))
    return errors


@pytest.mark.parametrize("case_name", TINY)
def test_covariance_with_rademacher_noise_as_q_falls(case_name: str) -> None:
    """Cov / (q/(1-q)) tends to that of xi_approx with an error of order q.

    The noise has no third moment, so the next term of Cov has the fourth one, which is of order
    q^2. Slope of the difference in log-log: 2, within 0.02.
    """
    case, spec, y = setup(case_name)
    errors = covariance_errors(case, spec, y, oracle.rademacher)
    norms = torch.stack([error.norm() for error in errors])
    assert oracle.log_slope(SMALL_Q, norms) == pytest.approx(2, abs=0.02)


@pytest.mark.parametrize("case_name", TINY)
def test_covariance_with_dropout_noise_as_q_falls(case_name: str) -> None:
    """Cov / q of dropout itself has a limit, but it is not that of xi_approx.

    To first order in q at most one unit is dropped, whole: the gradient jumps by
    D_j = g(-e_j) - g(0), and Cov / q tends to sum_j D_j D_j'. xi_approx has the derivative in place
    of the jump. The difference is of order q: slope 1, within 0.02.
    """
    case, spec, y = setup(case_name)
    errors = covariance_errors(case, spec, y, oracle.bernoulli)
    norms = torch.stack([error.norm() for error in errors])
    assert oracle.log_slope(SMALL_Q, norms) == pytest.approx(1, abs=0.02)
    eye = torch.eye(case.size, dtype=torch.float64)
    clean = oracle.gradients_at(case, spec, y, case.zero[None])
    jumps = oracle.gradients_at(case, spec, y, -eye) - clean
    slopes = oracle.gradient_slopes(case, spec, y)
    limit = jumps.T @ jumps - slopes.T @ slopes
    assert (errors[0] / SMALL_Q[0] - limit).norm() < 0.01 * limit.norm()


@pytest.mark.parametrize(("q", "order"), [(0.3, 1), (0.5, 2)])
def test_covariance_in_the_strength_of_the_noise(q: float, order: int) -> None:
    """At fixed q, Cov under epsilon * eta over epsilon^2 tends to Cov of xi_approx.

    The error is O(epsilon), by the third moment, and O(epsilon^2) at q = 1/2, where it is 0: slope
    within 0.1. This is the sense in which the two covariances agree for small noise.
    """
    case, spec, y = setup("own masks")
    case = case.at(q)
    etas, weight = oracle.bernoulli(case)
    slopes = oracle.gradient_slopes(case, spec, y)
    expected = slopes.T @ (case.variances[:, None] * slopes)
    strengths = torch.tensor([0.1, 0.05, 0.025, 0.0125], dtype=torch.float64)
    norms = []
    for strength in strengths:
        rows = oracle.gradients_at(case, spec, y, strength * etas)
        norms.append((oracle.covariance(rows, weight) / strength**2 - expected).norm())
    assert oracle.log_slope(strengths, torch.stack(norms)) == pytest.approx(order, abs=0.1)


# --- Dropout_k and putting the noise back --------------------------------------------------------


def test_covariance_of_the_dropout_pair_is_that_of_dropout() -> None:
    """Over all 16 ordered pairs of the four masks."""
    case, spec, y = two_masks()
    etas, weight = oracle.bernoulli(case)
    pairs = torch.stack([torch.cat(pair) for pair in itertools.product(etas, etas)])
    with drawn(pairs):
        rows = gradient_noise(
            case.model, case.inputs, y, method="dropout_pair", mc_samples=len(pairs)
        )
    dropout = oracle.covariance(oracle.gradients_at(case, spec, y, etas), weight)
    torch.testing.assert_close(rows.mean(0), torch.zeros_like(rows[0]), rtol=0, atol=1e-14)
    torch.testing.assert_close(plain_covariance(rows), dropout)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_dropout_k_keeps_the_mean_and_divides_the_covariance(k: int) -> None:
    """Over all 4^k tuples of masks."""
    case, spec, y = two_masks()
    etas, weight = oracle.bernoulli(case)
    values, rows = [], []
    for masks in itertools.product(etas, repeat=k):
        with drawn(torch.stack(masks)):
            value = dropout_k_loss(case.model, case.inputs, y, k)
        values.append(value)
        rows.append(gradient(value, case))
    expected = oracle.loss_at(case, spec, y, case.zero[None])[0] + oracle.r_drop(case, spec, y)
    torch.testing.assert_close(torch.stack(values).mean(), expected)
    gradients = oracle.gradients_at(case, spec, y, etas)
    torch.testing.assert_close(torch.stack(rows).mean(0), weight @ gradients)
    covariance = oracle.covariance(gradients, weight)
    torch.testing.assert_close(plain_covariance(torch.stack(rows)), covariance / k)


def test_the_pair_puts_the_noise_of_dropout_back() -> None:
    """Dropout_2 + sqrt(1 - 1/2) times the pair has the mean and covariance of Dropout_1.

    Over all 256 choices of the four masks that it takes.
    """
    case, spec, y = two_masks()
    etas, weight = oracle.bernoulli(case)
    rows = []
    for masks in itertools.product(etas, repeat=4):
        with drawn(torch.stack(masks)):
            total = dropout_k_loss(case.model, case.inputs, y, 2) + 0.5**0.5 * implicit_noise(
                case.model, case.inputs, y, method="dropout_pair"
            )
        rows.append(gradient(total, case))
    gradients = oracle.gradients_at(case, spec, y, etas)
    torch.testing.assert_close(torch.stack(rows).mean(0), weight @ gradients)
    covariance = oracle.covariance(gradients, weight)
    torch.testing.assert_close(plain_covariance(torch.stack(rows)), covariance)


@pytest.mark.parametrize("case_name", ["tanh_network", "locked_rnn", "batch_norm", "drop_connect"])
@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 8])
def test_chunks_change_memory_and_not_the_result(case_name: str, chunk: int) -> None:
    """Value, gradient and buffers are those of k = 5 masks at once, with the same generator."""
    results = []
    for size in (None, chunk):
        case, spec, y = setup(case_name)
        generator = torch.Generator().manual_seed(0)
        value = dropout_k_loss(
            case.model, case.inputs, y, 5, loss=spec.loss, chunk=size, generator=generator
        )
        (3 * value).backward()
        grads = [p.grad for p in case.model.parameters()]
        results.append([value.detach(), *grads, *(b.detach() for b in case.model.buffers())])
    torch.testing.assert_close(*results)


def test_chunks_without_gradients_and_with_frozen_parameters() -> None:
    case, spec, y = setup("tanh_network")
    frozen = next(case.model.parameters()).requires_grad_(False)
    values = []
    for chunk, enabled in ((None, True), (2, True), (2, False)):
        generator = torch.Generator().manual_seed(0)
        with torch.set_grad_enabled(enabled):
            values.append(
                dropout_k_loss(
                    case.model, case.inputs, y, 4, loss=spec.loss, chunk=chunk, generator=generator
                )
            )
        if enabled:
            values[-1].backward()
    torch.testing.assert_close(values[0], values[1])
    torch.testing.assert_close(values[0].detach(), values[2])
    assert frozen.grad is None


def test_dropout_1_is_training_with_dropout() -> None:
    """One mask of the library at k = 1 is the loss of one noisy pass."""
    case, spec, y = setup("own masks")
    eta = oracle.bernoulli(case)[0][123]
    with drawn(eta):
        value = dropout_k_loss(case.model, case.inputs, y, 1)
    torch.testing.assert_close(value, oracle.loss_at(case, spec, y, eta[None])[0])


# --- replace_dropout -----------------------------------------------------------------------------

SEPARATE = ["exact", "sampled_labels", "jvp", "full_hessian", "monte_carlo", "identity"]


@pytest.mark.parametrize("case_name", ["tanh_network", "locked_rnn", "batch_norm"])
@pytest.mark.parametrize("method", [*SEPARATE, "central", "loss_jacobian"])
def test_replacement_is_the_sum_of_its_parts(case_name: str, method: str) -> None:
    """loss = clean + lambda_e R + lambda_i xi, each as its own function gives it.

    With "central" the same probe serves both effects; elsewhere the noise is drawn after R's.
    """
    case, spec, y = setup(case_name)
    generator = torch.Generator().manual_seed(5)
    training = replace_dropout(
        case.model,
        explicit=0.7,
        implicit=1.3,
        method=method,
        step=FINE,
        share=1,
        generator=generator,
    )
    total = training.loss(case.inputs, y)

    generator = torch.Generator().manual_seed(5)
    explicit = explicit_regularizer(
        case.model, case.inputs, targets=y, method=method, step=FINE, generator=generator
    )
    if method == "central":
        generator = torch.Generator().manual_seed(5)
    implicit = implicit_noise(
        case.model,
        case.inputs,
        y,
        method="central" if method == "central" else "analytic",
        step=FINE,
        generator=generator,
    )
    clean = oracle.loss_at(case, spec, y, case.zero[None])[0]
    expected = clean + 0.7 * explicit + 1.3 * implicit
    # "central" reads the clean loss off the pair, up to the square of its step.
    tolerance = {"rtol": 1e-8, "atol": 1e-8}
    torch.testing.assert_close(total, expected, **tolerance)
    torch.testing.assert_close(gradient(total, case), gradient(expected, case), **tolerance)
    parts = {"clean": clean, "explicit": explicit, "implicit": implicit}
    assert list(training.parts) == list(parts)
    for name, part in parts.items():
        assert not training.parts[name].requires_grad
        torch.testing.assert_close(training.parts[name], part.detach(), **tolerance)


@pytest.mark.parametrize("method", ["central", "exact"])
def test_every_nth_loss_has_all_of_the_effects(method: str) -> None:
    """n R and sqrt(n) xi in the first of n losses, the clean loss in the others."""
    case, spec, y = setup("locked_rnn")
    options = {"explicit": 0.7, "implicit": 1.3, "method": method, "step": FINE}
    clean = oracle.loss_at(case, spec, y, case.zero[None])[0]
    training = replace_dropout(
        case.model, every=4, generator=torch.Generator().manual_seed(5), **options
    )
    each = replace_dropout(
        case.model, share=1, generator=torch.Generator().manual_seed(5), **options
    )
    for number in range(9):
        total = training.loss(case.inputs, y)
        if number % 4:
            assert list(training.parts) == ["clean"]
            torch.testing.assert_close(total, clean)
            continue
        each.loss(case.inputs, y)
        parts = training.parts
        assert parts.keys() == each.parts.keys()
        for name, part in parts.items():  # as they are, before any strength
            torch.testing.assert_close(part, each.parts[name], rtol=1e-8, atol=1e-8)
        expected = clean + 4 * 0.7 * parts["explicit"] + 2 * 1.3 * parts["implicit"]
        torch.testing.assert_close(total, expected, rtol=1e-8, atol=1e-8)


def test_a_loss_that_fails_is_not_counted() -> None:
    case, _, y = setup("tanh_network")
    training = replace_dropout(case.model, every=2)
    with pytest.raises(errors.InputError, match="needs targets"):
        training.loss(case.inputs, None)
    training.loss(case.inputs, y)
    assert "explicit" in training.parts


@pytest.mark.parametrize("method", ["central", "even_odd", "exact"])
@pytest.mark.parametrize(
    ("strengths", "expected"),
    [
        ((1.0, 0.0), {"clean", "explicit"}),
        ((0.5, 0.0), {"clean", "explicit"}),
        ((0.0, 1.0), {"clean", "implicit"}),
        ((0.0, 0.0), {"clean"}),
    ],
)
def test_parts_that_are_present(
    method: str, strengths: tuple[float, float], expected: set[str]
) -> None:
    """What is not computed is absent; the strengths may change during training."""
    case, spec, y = setup("tanh_network")
    training = replace_dropout(case.model, method=method, share=1)
    training.loss(case.inputs, y)
    training.explicit, training.implicit = strengths
    total = training.loss(case.inputs, y)
    if method == "even_odd" and strengths[0] == 1:
        assert set(training.parts) == {"even"}
    elif method == "even_odd" and strengths[1] == 1:
        # The difference of what it has anyway.
        assert set(training.parts) == {"clean", "explicit", "implicit"}
    else:
        assert set(training.parts) == expected
    weights = {"explicit": strengths[0], "implicit": strengths[1]}
    recomposed = sum(weights.get(name, 1.0) * part for name, part in training.parts.items())
    torch.testing.assert_close(total.detach(), recomposed)
    torch.testing.assert_close(training.output.shape, (4, 3))
    if strengths == (0.0, 0.0):
        torch.testing.assert_close(total, oracle.loss_at(case, spec, y, case.zero[None])[0])


def test_even_and_odd_parts_at_one_half_are_a_mask_and_its_complement() -> None:
    """With q = 1/2: L+ is the loss under a dropout mask, L- that under the complementary one."""
    case, spec, y = setup("own masks")
    case = case.at(0.5)
    for eta in oracle.bernoulli(case)[0][::17]:
        mask = 1 + eta
        assert set(mask.tolist()) <= {0.0, 2.0}
        up, down = oracle.loss_at(case, spec, y, torch.stack([mask - 1, (2 - mask) - 1]))
        training = replace_dropout(case.model, method="even_odd", distribution="bernoulli", share=1)
        with drawn(eta):
            total = training.loss(case.inputs, y)
        torch.testing.assert_close(total, up)  # even + odd = the loss under the mask
        assert list(training.parts) == ["even", "implicit"]
        torch.testing.assert_close(training.parts["even"], ((up + down) / 2).detach())
        torch.testing.assert_close(training.parts["implicit"], ((up - down) / 2).detach())


@pytest.mark.parametrize("explicit", [1.0, 0.0, 0.4])
@pytest.mark.parametrize("implicit", [1.0, 0.0, 0.6])
def test_even_and_odd_parts_at_any_strength(explicit: float, implicit: float) -> None:
    """loss = clean + lambda_e (even - clean) + lambda_i odd, value and gradient."""
    case, spec, y = setup("locked_rnn")
    eta = oracle.rademacher(case)[0][77]
    up, down = oracle.loss_at(case, spec, y, torch.stack([eta, -eta]))
    clean = oracle.loss_at(case, spec, y, case.zero[None])[0]
    expected = clean + explicit * ((up + down) / 2 - clean) + implicit * (up - down) / 2
    training = replace_dropout(
        case.model,
        method="even_odd",
        explicit=explicit,
        implicit=implicit,
        loss=spec.loss,
        share=1,
    )
    if explicit == implicit == 0:
        total = training.loss(case.inputs, y)
    else:
        with drawn(eta):
            total = training.loss(case.inputs, y)
    torch.testing.assert_close(total, expected)
    torch.testing.assert_close(gradient(total, case), gradient(expected, case))


def test_clean_part_of_a_pair_is_free_of_the_explicit_effect() -> None:
    """Its error is the term that Gauss-Newton drops, which is 0 here, and then O(step^4)."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Dropout(0.3), nn.Linear(4, 3)).double()
    x, y = torch.randn(5, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1])
    clean = nn.functional.cross_entropy(model[1](x), y)
    error = []
    for step in (0.2, 0.1):
        generator = torch.Generator().manual_seed(0)
        training = replace_dropout(model, step=step, generator=generator)
        training.loss(x, y)
        error.append((training.parts["clean"] - clean).abs())
    assert 0 < error[0] < 1e-2 * 0.2**2 * training.parts["explicit"]
    assert 14 < error[0] / error[1] < 18


def test_batch_norm_statistics_move_once_a_step() -> None:
    """As by one ordinary training pass on the clean network, or at one end of the pair."""
    case, _, y = setup("batch_norm")
    norm = case.model.norm
    for method in ("central", "exact", "jvp"):
        norm.reset_running_stats()
        replace_dropout(case.model, method=method, step=1e-3).loss(case.inputs, y)
        assert norm.num_batches_tracked == 1
        with torch.no_grad():
            h = case.model.a(case.inputs)
        torch.testing.assert_close(norm.running_mean, 0.1 * h.mean(0), rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(norm.running_var, 0.9 + 0.1 * h.var(0), rtol=1e-3, atol=1e-4)


def test_every_part_needs_targets() -> None:
    case, _, _ = setup("tanh_network")
    calls = [
        lambda: implicit_noise(case.model, case.inputs, None),
        lambda: dropout_k_loss(case.model, case.inputs, None, 2),
        lambda: replace_dropout(case.model).loss(case.inputs, None),
    ]
    for call in calls:
        with pytest.raises(errors.InputError, match="needs targets"):
            call()


@pytest.mark.parametrize("chunk", [None, 2])
def test_dropout_k_moves_batch_norm_statistics_once(chunk: int | None) -> None:
    case, _, y = setup("batch_norm")
    dropout_k_loss(case.model, case.inputs, y, 3, chunk=chunk)
    assert case.model.norm.num_batches_tracked == 1
    before = case.model.norm.running_mean.clone()
    for measure in (explicit_regularizer, implicit_noise):
        measure(case.model, case.inputs, targets=y)
    assert case.model.norm.num_batches_tracked == 1
    assert torch.equal(case.model.norm.running_mean, before)


# --- finite differences --------------------------------------------------------------------------


@pytest.mark.parametrize("spec_name", ["cross_entropy", "binary_cross_entropy", "squared_error"])
@pytest.mark.parametrize(
    "what", ["analytic", "central", "dropout_pair", "dropout_k", "chunked", "pair of steps", "even"]
)
def test_gradient_against_finite_differences(what: str, spec_name: str) -> None:
    case, spec, y = setup("lstm", spec_name)

    def value() -> Tensor:
        options = {"loss": spec.loss, "generator": torch.Generator().manual_seed(0)}
        batch = (case.model, case.inputs, y)
        if what in ("dropout_k", "chunked"):
            return dropout_k_loss(*batch, 3, chunk=2 if what == "chunked" else None, **options)
        if what == "pair of steps":
            training = replace_dropout(case.model, method="central", step=0.05, **options)
            return training.loss(case.inputs, y)
        if what == "even":
            training = replace_dropout(case.model, method="even_odd", explicit=0.5, **options)
            return training.loss(case.inputs, y)
        step = {"step": 0.05} if what == "central" else {}
        return implicit_noise(*batch, method=what, **step, **options)

    weights = list(case.model.parameters())
    torch.manual_seed(1)
    directions = [torch.randn_like(w) for w in weights]
    slope = gradient(value(), case) @ torch.cat([d.flatten() for d in directions])
    ends, h = [], 1e-5
    for sign in (1, -2):  # forth, and from there back to the other side
        with torch.no_grad():
            for w, d in zip(weights, directions, strict=True):
                w.add_(d, alpha=sign * h)
        ends.append(value().detach())
    torch.testing.assert_close((ends[0] - ends[1]) / (2 * h), slope, rtol=1e-6, atol=1e-8)
