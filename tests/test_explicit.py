"""The explicit regularizer against the dense oracle, sums over all masks, and its own samples.

Where a test says "within k standard errors", the seed is fixed and the standard error is that of
the samples at hand.
"""

from types import SimpleNamespace
from typing import Any
from unittest import mock

import oracle
import pytest
import torch
from oracle import BUILDERS, SPECS, TINY, Case, Spec, build, drawn, gradient, targets_for
from torch import Tensor, nn

from dropreg import explicit, explicit_regularizer, measure_explicit
from dropreg.control.kernels import float32_precision
from dropreg.errors import InputError
from dropreg.noisy_loss import NoisyLoss
from dropreg.probes import Probe

MAIN = ["cross_entropy", "binary_cross_entropy", "squared_error"]
BOTH = pytest.mark.parametrize(
    ("case_name", "spec_name"),
    [(case, spec) for case in BUILDERS for spec in MAIN]
    + [
        (case, spec)
        for case in ("tanh_network", "locked_rnn", "batch_norm")
        for spec in SPECS
        if spec not in MAIN
    ],
)


def regularizer(case: Case, spec: Spec, y: Tensor | None, method: str, **options: object) -> Tensor:
    return explicit_regularizer(
        case.model, case.inputs, loss=spec.loss, targets=y, method=method, **options
    )


def setup(case_name: str, spec_name: str = "cross_entropy") -> tuple[Case, Spec, Tensor]:
    case, spec = build({**BUILDERS, **TINY}[case_name]), SPECS[spec_name]
    return case, spec, targets_for(case, spec)


def assert_same(value: Tensor, expected: Tensor, case: Case, rtol: float = 1e-9) -> None:
    """The same scalar, with the same gradient in every weight."""
    torch.testing.assert_close(value, expected, rtol=rtol, atol=1e-12)
    torch.testing.assert_close(
        gradient(value, case), gradient(expected, case), rtol=rtol, atol=rtol * 1e-1
    )


# --- the oracle itself ---------------------------------------------------------------------------


@BOTH
def test_the_oracle_is_the_model(case_name: str, spec_name: str) -> None:
    """Its network under random masks is the module's, its loss and Hessian are PyTorch's."""
    case, spec, y = setup(case_name, spec_name)
    eta = torch.randn(case.size, dtype=torch.float64)
    objective = NoisyLoss(case.model, case.inputs, spec.loss, y)
    with drawn(eta):
        logits, sites = objective.logits(Probe("gaussian").at(0.3))
    assert tuple(site.mask_shape for site in sites) == case.mask_shapes
    assert tuple(site.p for site in sites) == case.ps
    torch.testing.assert_close(logits, case.logits(0.3 * eta))
    torch.testing.assert_close(objective.mean(logits), spec.mean(logits, y))
    shape = logits.shape
    hessian = torch.func.hessian(lambda f: spec.mean(f.reshape(shape), y))(logits.flatten())
    torch.testing.assert_close(spec.hessian(logits, y), hessian)


# --- against the oracle --------------------------------------------------------------------------


@BOTH
def test_exact_value_and_gradient(case_name: str, spec_name: str) -> None:
    case, spec, y = setup(case_name, spec_name)
    value = regularizer(case, spec, y, "exact")
    assert_same(value, oracle.r_approx(case, spec, y), case)


@pytest.mark.parametrize("spec_name", MAIN)
def test_exact_needs_no_targets(spec_name: str) -> None:
    case, spec, y = setup("locked_rnn", spec_name)
    assert_same(regularizer(case, spec, None, "exact"), oracle.r_approx(case, spec, y), case)


@pytest.mark.parametrize("case_name", BUILDERS)
@pytest.mark.parametrize("spec_name", ["cross_entropy", "ignore_index", "squared_error"])
def test_loss_jacobian_value_and_gradient(case_name: str, spec_name: str) -> None:
    case, spec, y = setup(case_name, spec_name)
    value = regularizer(case, spec, y, "loss_jacobian")
    assert_same(value, oracle.r_loss_jacobian(case, spec, y), case)


def test_loss_jacobian_is_the_papers_where_each_example_has_its_own_mask() -> None:
    """Table 1: the mean over examples of 1/2 q/(1-q) sum_i ||h_i * J_loss,i||^2."""
    case, spec, y = setup("tanh_network")
    x, w = case.inputs, dict(case.model.named_parameters())
    per_example = []
    for n in range(len(x)):
        h0 = x[n].detach().requires_grad_()
        h1 = torch.tanh(h0 @ w["a.weight"].T + w["a.bias"])
        loss = spec.mean((h1 @ w["b.weight"].T + w["b.bias"])[None], y[n : n + 1])
        j0, j1 = torch.autograd.grad(loss, (h0, h1))
        squares = [(h * j).square().sum() for h, j in ((h0, j0), (h1, j1))]
        per_example.append(
            0.5 * sum(p / (1 - p) * s for p, s in zip(case.ps, squares, strict=True))
        )
    expected = torch.stack(per_example).mean()
    torch.testing.assert_close(regularizer(case, spec, y, "loss_jacobian"), expected)


@pytest.mark.parametrize(
    ("case_name", "spec_name"),
    [
        ("unbatched", "cross_entropy"),
        ("own masks", "ignore_index"),
        ("own masks", "squared_error"),
        ("weights", "binary_cross_entropy"),
    ],
)
def test_identity_over_all_signs(case_name: str, spec_name: str) -> None:
    """Its mean over all sign vectors in logit space is the trace, exactly; so is its gradient."""
    case, spec, y = setup(case_name, spec_name)
    if case_name == "weights":
        case, y = Case(case.model, case.inputs[:2], case.net, case.mask_shapes, case.ps), y[:2]
    signs = oracle.all_signs(case.logits(case.zero).numel())
    with drawn(signs, "dropreg.explicit.sample"):
        value = regularizer(case, spec, y, "identity", mc_samples=len(signs))
    assert_same(value, oracle.r_identity(case, spec, y), case)


@pytest.mark.parametrize("case_name", TINY)
@pytest.mark.parametrize("spec_name", MAIN)
@pytest.mark.parametrize(
    "method", ["jvp", "full_hessian", "central", "central_identity", "central_loss_jacobian"]
)
def test_mean_over_all_sign_vectors_is_exact(case_name: str, spec_name: str, method: str) -> None:
    """The mean of a quadratic form over all sign vectors is its trace: no sampling error is left.

    For "central" and its ablations that holds up to the square of the step.
    """
    case, spec, y = setup(case_name, spec_name)
    etas, _ = oracle.rademacher(case)
    central = method.startswith("central")
    step = {"step": 1e-4} if central else {}
    with drawn(etas):
        value = regularizer(case, spec, y, method, mc_samples=len(etas), **step)
    others = {
        "full_hessian": oracle.r_full,
        "central_identity": oracle.r_identity,
        "central_loss_jacobian": oracle.r_term_jacobians,
    }
    expected = others.get(method, oracle.r_approx)(case, spec, y)
    assert_same(value, expected, case, rtol=1e-6 if central else 1e-10)


def test_the_two_loss_jacobians_agree_where_no_terms_share_a_mask_and_only_there() -> None:
    case, spec, y = setup("tanh_network")
    of_terms = oracle.r_term_jacobians(case, spec, y)
    torch.testing.assert_close(regularizer(case, spec, y, "loss_jacobian"), of_terms)
    case, spec, y = setup("locked_rnn")
    of_terms = oracle.r_term_jacobians(case, spec, y)
    assert not torch.isclose(regularizer(case, spec, y, "loss_jacobian"), of_terms, rtol=0.01)


def test_error_of_central_falls_with_the_square_of_the_step() -> None:
    case, spec, y = setup("own masks")
    eta = oracle.rademacher(case)[0][37]
    steps = torch.tensor([0.02, 0.01, 0.005], dtype=torch.float64)
    with drawn(eta):
        limit = regularizer(case, spec, y, "jvp").detach()
    errors = []
    for step in steps.tolist():
        with drawn(eta):
            errors.append(regularizer(case, spec, y, "central", step=step).detach() - limit)
    assert oracle.log_slope(steps, torch.stack(errors)) == pytest.approx(2, abs=0.02)


@pytest.mark.parametrize("case_name", BUILDERS)
def test_gauss_newton_and_dropped_term_make_the_full_second_order(case_name: str) -> None:
    """One sample of "full_hessian" less one of "jvp", along the same probe, is the dropped term."""
    case, spec, y = setup(case_name)
    signs = torch.randn(case.size, dtype=torch.float64).sign()
    eta = signs * case.variances.sqrt()
    with drawn(eta):
        full = regularizer(case, spec, y, "full_hessian")
    with drawn(eta):
        gauss_newton = regularizer(case, spec, y, "jvp")

    def line(s: Tensor) -> Tensor:
        return case.logits(s * eta)

    zero = torch.zeros((), dtype=torch.float64)
    second = torch.func.jacfwd(torch.func.jacfwd(line))(zero)
    score = torch.func.grad(lambda f: spec.mean(f, y))(line(zero))
    assert_same(full - gauss_newton, 0.5 * (score * second).sum(), case)
    total = oracle.r_approx(case, spec, y) + oracle.r_dropped(case, spec, y)
    assert_same(oracle.r_full(case, spec, y), total, case)


def test_several_probes_are_averaged() -> None:
    case, spec, y = setup("tanh_network")
    for method in ("jvp", "central", "full_hessian", "monte_carlo", "sampled_labels", "identity"):
        generator = torch.Generator().manual_seed(1)
        one_by_one = [regularizer(case, spec, y, method, generator=generator) for _ in range(3)]
        generator = torch.Generator().manual_seed(1)
        together = regularizer(case, spec, y, method, mc_samples=3, generator=generator)
        torch.testing.assert_close(together, torch.stack(one_by_one).mean())


# --- sampled labels, label by label --------------------------------------------------------------


def every_label(p: Tensor) -> list[tuple[Tensor, Tensor]]:
    """All combinations of a class for each row of `p`: uniforms that draw it, its probability."""
    cdf = p.cumsum(-1)
    combinations = torch.cartesian_prod(*[torch.arange(p.shape[-1])] * len(p)).reshape(-1, len(p))
    found = []
    for labels in combinations:
        chosen = p.gather(-1, labels[:, None])[:, 0]
        uniforms = cdf.gather(-1, labels[:, None])[:, 0] - chosen / 2  # the middle of its interval
        found.append((uniforms, chosen.prod()))
    return found


@pytest.mark.parametrize(
    ("case_name", "spec_name"),
    [
        ("unbatched", "cross_entropy"),
        ("own masks", "cross_entropy"),
        ("own masks", "ignore_index"),
        ("locked", "label_smoothing"),
        ("one mask for the batch", "cross_entropy"),
        ("unbatched", "binary_cross_entropy"),
        ("own masks", "binary_cross_entropy"),
    ],
)
def test_mean_over_all_labels_is_exact(case_name: str, spec_name: str) -> None:
    """Value and gradient of "sampled_labels", summed over all labels by their probability."""
    case, spec, y = setup(case_name, spec_name)
    logits = case.logits(case.zero).detach()
    if spec_name == "binary_cross_entropy":
        flat = logits.sigmoid().flatten()
        # A uniform below p draws the label 1, which is the first of the two classes here.
        draws = every_label(torch.stack([flat, 1 - flat], -1))
        shape = logits.shape
    else:
        draws = every_label(logits.softmax(-1).reshape(-1, logits.shape[-1]))
        shape = logits.shape[:-1]
    total = torch.zeros((), dtype=torch.float64)
    for uniforms, probability in draws:
        with mock.patch("dropreg.losses._uniform", lambda *_, u=uniforms: u.reshape(shape)):
            total = total + probability * regularizer(case, spec, y, "sampled_labels")
    assert_same(total, oracle.r_approx(case, spec, y), case)


def test_sampled_labels_without_the_factor_has_a_biased_gradient() -> None:
    """Differentiating a sample forgets that the law of the label depends on the weights.

    Summed over all labels of one example: without the factor sqrt(p / stop-grad p) the value is
    right and the gradient is not. The factor makes up for exactly what is missing.
    """
    case, spec, y = setup("unbatched")
    j, p = oracle.jacobian(case), case.logits(case.zero).softmax(-1)
    eye = torch.eye(3, dtype=torch.float64)
    plain = sum(
        p[c].detach() * 0.5 * (case.variances * ((p - eye[c]) @ j).square()).sum() for c in range(3)
    )
    exact = oracle.r_approx(case, spec, y)
    torch.testing.assert_close(plain, exact)
    right, biased = gradient(exact, case), gradient(plain, case)
    assert (biased - right).norm() > 0.2 * right.norm()


# --- brute force over all masks ------------------------------------------------------------------


@pytest.mark.parametrize("case_name", TINY)
@pytest.mark.parametrize("spec_name", ["cross_entropy", "squared_error"])
def test_monte_carlo_over_all_masks_is_r_drop(case_name: str, spec_name: str) -> None:
    """With q = 1/2 all masks are equally likely: their plain mean is R_drop, and its gradient."""
    case, spec, y = setup(case_name, spec_name)
    half = case.at(0.5)
    etas, weight = oracle.bernoulli(half)
    torch.testing.assert_close(weight, torch.full_like(weight, 2.0**-case.size))
    with drawn(etas):
        value = regularizer(case, spec, y, "monte_carlo", mc_samples=len(etas))
    assert_same(value, oracle.r_drop(half, spec, y), case)
    with drawn(etas):
        measured = measure_explicit(
            case.model, case.inputs, y, loss=spec.loss, mc_samples=len(etas)
        )
    assert measured.mean == pytest.approx(value.item(), abs=1e-12)
    draws = oracle.loss_at(case, spec, y, etas)
    assert measured.standard_error == pytest.approx(draws.std().item() / len(etas) ** 0.5)


@pytest.mark.parametrize("case_name", TINY)
def test_measured_r_drop_agrees_with_brute_force(case_name: str) -> None:
    """At the cases' own probabilities, with sampled masks: within 4 standard errors."""
    case, spec, y = setup(case_name)
    measured = measure_explicit(
        case.model,
        case.inputs,
        y,
        loss=spec.loss,
        mc_samples=1000,
        generator=torch.Generator().manual_seed(0),
    )
    truth = oracle.r_drop(case, spec, y).item()
    assert measured.samples == 1000
    assert abs(measured.mean - truth) < 4 * measured.standard_error
    # The test could not fail if the error were large against the effect.
    assert measured.standard_error < 0.35 * abs(truth)
    assert str(measured) == f"{measured.mean:.4f} ± {measured.standard_error:.4f}"


SMALL_Q = torch.logspace(-4, -2.5, 6, dtype=torch.float64)


def taylor_errors(case: Case, spec: Spec, y: Tensor, law: object) -> Tensor:
    errors = []
    for q in SMALL_Q.tolist():
        small = case.at(q)
        errors.append(oracle.r_drop(small, spec, y, law) - oracle.r_full(small, spec, y))
    return torch.stack(errors).detach()


@pytest.mark.parametrize("case_name", TINY)
def test_taylor_error_with_dropout_is_of_first_order_in_q(case_name: str) -> None:
    """All moments of dropout noise are of order q: E eta^3 = -q + O(q^3), E eta^4 = q + O(q^4).

    So the error of the second-order term is of order q, like the term itself, and the ratio of the
    two does not go to 0 with q. What is left can be named: to first order in q at most one unit is
    dropped, so R_drop / q tends to sum_j [l(-e_j) - l(0) + d_j l], and the term takes its second
    derivative only. Slope of the error in log-log: 1, within 0.02.
    """
    case, spec, y = setup(case_name)
    errors = taylor_errors(case, spec, y, oracle.bernoulli)
    assert oracle.log_slope(SMALL_Q, errors) == pytest.approx(1, abs=0.02)
    one_out = oracle.loss_at(case, spec, y, -torch.eye(case.size, dtype=torch.float64))
    clean = oracle.loss_at(case, spec, y, case.zero[None])

    def loss(eta: Tensor) -> Tensor:
        return spec.mean(case.logits(eta), y)

    slopes = torch.func.grad(loss)(case.zero)
    curvatures = torch.func.hessian(loss)(case.zero).diagonal()
    limit = (one_out - clean + slopes - 0.5 * curvatures).sum()
    torch.testing.assert_close(errors[0] / SMALL_Q[0], limit, rtol=0.01, atol=0)


@pytest.mark.parametrize("case_name", TINY)
def test_taylor_error_with_rademacher_noise_is_of_second_order_in_q(case_name: str) -> None:
    """Its third moment is 0 and its fourth is (q/(1-q))^2. Slope in log-log: 2, within 0.02."""
    case, spec, y = setup(case_name)
    errors = taylor_errors(case, spec, y, oracle.rademacher)
    assert oracle.log_slope(SMALL_Q, errors) == pytest.approx(2, abs=0.02)


@pytest.mark.parametrize(("q", "order"), [(0.3, 3), (0.5, 4)])
def test_taylor_error_in_the_strength_of_the_noise(q: float, order: int) -> None:
    """At a fixed q and noise epsilon * eta the error is O(epsilon^3), and O(epsilon^4) at q = 1/2.

    There dropout noise is Rademacher noise, which has no third moment. This is the order in which
    "second-order Taylor" is meant. Slope within 0.1.
    """
    case, spec, y = setup("own masks")
    case = case.at(q)
    etas, weight = oracle.bernoulli(case)
    strengths = torch.tensor([0.1, 0.05, 0.025], dtype=torch.float64)
    errors = []
    for strength in strengths:
        with drawn(etas), torch.no_grad():
            objective = NoisyLoss(case.model, case.inputs, spec.loss, y)
            noisy = [objective(Probe("bernoulli").at(strength.item())) for _ in etas]
            clean = objective(lambda site: None)
        effect = (weight * torch.stack(noisy)).sum() - clean
        errors.append(effect - strength**2 * oracle.r_full(case, spec, y).detach())
    assert oracle.log_slope(strengths, torch.stack(errors)) == pytest.approx(order, abs=0.1)


# --- sampled estimators --------------------------------------------------------------------------


@pytest.mark.parametrize("case_name", ["tanh_network", "locked_rnn", "batch_norm", "drop_connect"])
@pytest.mark.parametrize("method", ["sampled_labels", "jvp", "central", "full_hessian"])
@pytest.mark.parametrize("spec_name", ["cross_entropy", "squared_error"])
def test_estimators_are_unbiased(case_name: str, method: str, spec_name: str) -> None:
    """Value and every entry of the gradient: within 4.5 standard errors of 150 samples.

    About 30 numbers are compared a case, so 4.5 standard errors are exceeded by chance in about one
    of 5,000 seeds; the seed is fixed.
    """
    case, spec, y = setup(case_name, spec_name)
    exact = (oracle.r_full if method == "full_hessian" else oracle.r_approx)(case, spec, y)
    truth = torch.cat([exact[None], gradient(exact, case)]).detach()
    generator, rows = torch.Generator().manual_seed(0), []
    for _ in range(150):
        value = regularizer(case, spec, y, method, generator=generator)
        rows.append(torch.cat([value[None], gradient(value, case)]).detach())
    samples = torch.stack(rows)
    error = samples.mean(0) - truth
    standard_error = samples.std(0) / len(rows) ** 0.5
    assert (error.abs() <= 4.5 * standard_error + 1e-8).all()
    assert 0 < standard_error[0] < 0.4 * truth[0].abs()


@pytest.mark.parametrize("law", ["bernoulli", "gaussian", "rademacher"])
def test_any_law_of_the_probe_is_unbiased(law: str) -> None:
    """R_approx needs two moments of the noise: within 4.5 standard errors of 225 samples."""
    case, spec, y = setup("tanh_network")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        samples = torch.stack(
            [
                regularizer(case, spec, y, "jvp", distribution=law, generator=generator)
                for _ in range(225)
            ]
        )
        error = samples.mean() - oracle.r_approx(case, spec, y)
    assert error.abs() < 4.5 * samples.std() / 15


# --- finite differences --------------------------------------------------------------------------


@pytest.mark.parametrize("spec_name", MAIN)
@pytest.mark.parametrize(
    "method",
    [
        "exact",
        "jvp",
        "central",
        "full_hessian",
        "monte_carlo",
        "identity",
        "loss_jacobian",
        "central_identity",
        "central_loss_jacobian",
        "sampled_labels",
    ],
)
def test_gradient_against_finite_differences(method: str, spec_name: str) -> None:
    """Along a random direction, with the same random numbers at both ends.

    "sampled_labels" is left to `test_mean_over_all_labels_is_exact`, except for squared error: its
    gradient is by design not that of a sample with the labels held fixed.
    """
    if method == "sampled_labels" and spec_name != "squared_error":
        spec_name = "squared_error"
    case, spec, y = setup("locked_rnn", spec_name)
    # A long step of its own: the derivative is that of the quotient at whatever step.
    options = {"step": 0.05} if method.startswith("central") else {}

    def value() -> Tensor:
        generator = torch.Generator().manual_seed(0)
        return regularizer(case, spec, y, method, generator=generator, **options)

    weights = list(case.model.parameters())
    torch.manual_seed(1)
    directions = [torch.randn_like(w) for w in weights]
    slope = gradient(value(), case) @ torch.cat([d.flatten() for d in directions])
    ends, h = [], 1e-5
    for sign in (1, -1):
        with torch.no_grad():
            for w, d in zip(weights, directions, strict=True):
                w.add_(d, alpha=sign * h)
        ends.append(value().detach())
        with torch.no_grad():
            for w, d in zip(weights, directions, strict=True):
                w.add_(d, alpha=-sign * h)
    torch.testing.assert_close((ends[0] - ends[1]) / (2 * h), slope, rtol=1e-6, atol=1e-8)


# --- which terms share a backward pass -----------------------------------------------------------


def count_passes(case: Case, spec: Spec, y: Tensor) -> int:
    """Backward passes with a graph: those whose squares "exact" sums, without its tests."""
    original, tests, count = torch.autograd.grad, explicit.uncoupled, 0

    def grad(*args: object, **options: object) -> object:
        nonlocal count
        count += bool(options.get("create_graph"))
        return original(*args, **options)

    def uncoupled(*args: Any) -> Any:
        nonlocal count
        groups, count = tests(*args), 0
        return groups

    with (
        mock.patch("torch.autograd.grad", grad),
        mock.patch.object(explicit, "uncoupled", uncoupled),
    ):
        regularizer(case, spec, y, "exact")
    return count


@pytest.mark.parametrize(
    ("case_name", "spec_name", "passes"),
    [
        ("tanh_network", "cross_entropy", 3),  # a pass a class: the 4 examples share it
        ("many_dims", "cross_entropy", 3),  # so do all 2 x 1 x 3 positions
        ("locked_rnn", "cross_entropy", 3 * 4),  # time steps share a mask
        ("channels", "cross_entropy", 3),
        ("batch_mask", "cross_entropy", 4 * 3),
        ("batch_norm", "cross_entropy", 4 * 3),
        ("drop_connect", "squared_error", 4 * 3),
        ("tanh_network", "squared_error", 3),  # here every entry is a term, and its root one column
        ("lstm", "cross_entropy", 3 * 4),
    ],
)
def test_terms_with_no_mask_value_in_common_share_a_pass(
    case_name: str, spec_name: str, passes: int
) -> None:
    case, spec, y = setup(case_name, spec_name)
    assert count_passes(case, spec, y) == passes


@pytest.mark.parametrize("anomaly", [False, True])
def test_terms_are_kept_apart_where_a_derivative_is_zero_by_chance(anomaly: bool) -> None:
    """One-hot inputs and identity weights: no coordinate acts on both examples, until a step.

    The value would be right with one pass for both, and the gradient wrong.
    """
    case, spec, _ = setup("batch_mask")
    with torch.no_grad():
        case.model.a.weight.copy_(torch.eye(4, 2))
        case.model.a.bias.zero_()
    inputs = torch.eye(2, dtype=torch.float64)
    case = Case(case.model, inputs, case.net, case.mask_shapes, case.ps)
    y = torch.tensor([0, 2])
    with torch.autograd.set_detect_anomaly(anomaly):
        value = regularizer(case, spec, y, "exact")
    assert_same(value, oracle.r_approx(case, spec, y), case)


def test_many_passes_are_announced() -> None:
    """Here warnings are errors: the work is not begun."""
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(1, 101)).double()
    x = torch.ones(1, dtype=torch.float64)

    def everywhere(x: Tensor) -> Tensor:
        return model(x).expand(100, 101)

    shared = nn.Module()
    shared.inner, shared.forward = model, everywhere
    with pytest.raises(UserWarning, match=r"10,100 backward passes .*'sampled_labels'"):
        explicit_regularizer(shared, x)


def test_tf32_is_switched_off_in_older_versions_of_pytorch_too() -> None:
    """Before 2.9 the setting had another name; it comes back after an exception as well."""
    matmul, cudnn = SimpleNamespace(allow_tf32=True), SimpleNamespace(allow_tf32=True)
    with (
        mock.patch.object(torch.backends.cuda, "matmul", matmul),
        mock.patch.object(torch.backends, "cudnn", cudnn),
    ):
        inside = []

        def fail() -> None:
            with float32_precision():
                inside.extend([matmul.allow_tf32, cudnn.allow_tf32])
                raise RuntimeError("stop")

        with pytest.raises(RuntimeError, match="stop"):
            fail()
        assert inside == [False, False]
        assert matmul.allow_tf32
        assert cudnn.allow_tf32


def test_strengths_of_sites() -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(4, 6), nn.Tanh(), nn.Dropout(0.3), nn.Linear(6, 5), nn.Dropout(0.5)]
    model = nn.Sequential(*layers, nn.Linear(5, 3)).double()
    x = torch.randn(6, 4, dtype=torch.float64)

    def r(active: list[int], method: str = "exact", **options: Any) -> Tensor:
        for index in (2, 4):
            model[index].train(index in active)
        generator = torch.Generator().manual_seed(0)
        return explicit_regularizer(model, x, method=method, generator=generator, **options)

    both = r([2, 4], strengths={"*": 0.25, "4": 2.0})
    torch.testing.assert_close(both, 0.25 * r([2]) + 2.0 * r([4]))
    torch.testing.assert_close(r([2, 4], strengths={"4": 0.0}), r([2]))
    for method in ("sampled_labels", "jvp", "central"):  # with the same draws
        options: dict[str, Any] = {"method": method}
        options |= {"step": 1e-4} if method == "central" else {}
        weaker = r([2, 4], strengths={"*": 0.25}, **options)
        torch.testing.assert_close(weaker, 0.25 * r([2, 4], **options))
    for wrong in ({"5": 1.0}, {"4": -1.0}, {"4": float("nan")}):
        with pytest.raises(InputError, match="strength"):
            r([2, 4], strengths=wrong)
