"""The losses: H_out against autograd, its root, sampled labels, and invariances."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dropreg import (
    BinaryCrossEntropy,
    CrossEntropy,
    Elementwise,
    ExplicitMethod,
    Loss,
    SquaredError,
    explicit_regularizer,
    replace_dropout,
)
from dropreg.errors import InputError
from dropreg.explicit import QUADRATICS
from dropreg.losses import resolve


class Poisson(Elementwise):
    """A loss outside the package: the log-likelihood of a count, for its log rate."""

    def per_term(self, logits: Tensor, targets: Tensor) -> Tensor:
        return logits.exp() - targets * logits

    def draw(self, logits: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return torch.poisson(logits.exp(), generator)


class PlainCrossEntropy(Loss):
    """Cross-entropy as somebody would write it who knows nothing of the closed forms."""

    def per_term(self, logits: Tensor, targets: Tensor) -> Tensor:
        return logits.logsumexp(-1) - logits.gather(-1, targets[..., None])[..., 0]

    def draw(self, logits: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return CrossEntropy().draw(logits, generator)


class PlainBinary(Elementwise):
    def per_term(self, logits: Tensor, targets: Tensor) -> Tensor:
        return F.softplus(logits) - targets * logits

    def draw(self, logits: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return BinaryCrossEntropy().draw(logits, generator)


class PlainSquared(Elementwise):
    def per_term(self, logits: Tensor, targets: Tensor) -> Tensor:
        return (logits - targets) ** 2


WEIGHT = torch.tensor([1.0, 0.2, 3.0, 0.7])
DERIVED: dict[str, tuple[Loss, Loss, tuple[int, ...]]] = {
    "cross_entropy": (CrossEntropy(), PlainCrossEntropy(), (2, 3, 4)),
    "binary": (BinaryCrossEntropy(), PlainBinary(), (3, 2)),
    "squared": (SquaredError(), PlainSquared(), (3, 2)),
}
CASES: dict[str, tuple[Loss, tuple[int, ...]]] = {
    "cross_entropy": (CrossEntropy(), (2, 3, 4)),
    "one position": (CrossEntropy(), (4,)),
    "ignore": (CrossEntropy(ignore_index=1), (5, 4)),
    "smoothing": (CrossEntropy(label_smoothing=0.2), (5, 4)),
    "binary": (BinaryCrossEntropy(), (3, 2)),
    "binary, one number": (BinaryCrossEntropy(), ()),
    "squared": (SquaredError(), (3, 2)),
    "class weights": (CrossEntropy(weight=WEIGHT), (2, 3, 4)),
    "class weights, smoothing": (
        CrossEntropy(1, 0.2, weight=WEIGHT),
        (5, 4),
    ),
    "probabilities": (CrossEntropy(), (5, 4)),
    "probabilities, class weights, smoothing": (
        CrossEntropy(label_smoothing=0.2, weight=WEIGHT),
        (5, 4),
    ),
    "sum": (CrossEntropy(ignore_index=1, reduction="sum"), (5, 4)),
    "normalizer": (CrossEntropy(weight=WEIGHT, normalizer=torch.tensor(7)), (5, 4)),
    "shift": (CrossEntropy(shift=True), (2, 3, 4)),
    "shift, class weights": (CrossEntropy(1, weight=WEIGHT, shift=True), (2, 3, 4)),
    "class_dim": (CrossEntropy(class_dim=1), (2, 4, 3)),
    "class_dim, class weights": (CrossEntropy(1, weight=WEIGHT, class_dim=1), (2, 4, 3)),
    "class_dim, probabilities": (CrossEntropy(weight=WEIGHT, class_dim=1), (2, 4, 3)),
    "binary, weights": (
        BinaryCrossEntropy(weight=torch.tensor([[1.0], [0.0], [3.0]])),
        (3, 2),
    ),
    "binary, all weights": (
        BinaryCrossEntropy(weight=torch.tensor([0.5, 3.0]), pos_weight=torch.tensor([2.0, 0.3])),
        (3, 2),
    ),
    "binary, sum": (BinaryCrossEntropy(pos_weight=torch.tensor(2.0), reduction="sum"), (3, 2)),
    "squared, normalizer": (SquaredError(normalizer=2.5), (3, 2)),
    "a loss of one's own": (Poisson(), (3, 2)),
    "classes of one's own": (PlainCrossEntropy(), (2, 3, 4)),
}


def example(name: str, dtype: torch.dtype = torch.float64) -> tuple[Loss, Tensor, Tensor]:
    loss, shape = CASES[name]
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    if "probabilities" in name:
        y = torch.rand(shape, generator=generator, dtype=torch.float64).softmax(1).to(dtype)
    elif loss.classes_last:
        y = torch.randint(0, 4, loss.classes_to_last(logits).shape[:-1], generator=generator)
    else:
        y = torch.rand(shape, generator=generator, dtype=torch.float64).to(dtype)
    return loss, logits, y


def hessian(loss: Loss, logits: Tensor, y: Tensor) -> Tensor:
    """Of the loss, as a matrix between the flattened logits."""
    size = logits.numel()
    return torch.autograd.functional.hessian(lambda f: loss.mean(f, y), logits).reshape(size, size)


@pytest.mark.parametrize("name", CASES)
def test_quadratic_is_the_hessian_of_the_mean(name: str) -> None:
    loss, logits, y = example(name)
    t = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1)).double()
    expected = t.flatten() @ hessian(loss, logits, y) @ t.flatten()
    torch.testing.assert_close(loss.quadratic(logits, t, y), expected)


@pytest.mark.parametrize("name", CASES)
def test_roots_make_the_hessian(name: str) -> None:
    """Sum over columns and terms of s s', over the number of terms that count."""
    loss, logits, y = example(name)
    rows = torch.stack([loss.classes_to_last(root) for root in loss.roots(logits, y)])
    rows = rows.reshape(len(rows), -1, rows.shape[-1] if loss.classes_last else 1)
    blocks = torch.einsum("rni,rnj->nij", rows, rows) / loss.count(logits, y)
    index = loss.classes_to_last(torch.arange(logits.numel()).view(logits.shape)).flatten()
    truth = hessian(loss, logits, y)[index][:, index]
    torch.testing.assert_close(torch.block_diag(*blocks), truth)


@pytest.mark.parametrize("name", CASES)
def test_sampled_score_has_mean_zero_and_covariance_h_out(name: str) -> None:
    """Every entry of mean and second moment: within 5 standard errors of 4,000 samples."""
    loss, logits, y = example(name)
    generator = torch.Generator().manual_seed(0)
    samples = torch.stack([loss.sampled_score(logits, y, generator) for _ in range(4000)])
    samples = samples.reshape(4000, -1)
    products = samples[:, :, None] * samples[:, None, :]
    truth = hessian(loss, logits, y) * loss.count(logits, y)
    for drawn, expected in ((samples, torch.zeros_like(samples[0])), (products, truth)):
        standard_error = drawn.std(0) / 4000**0.5
        assert ((drawn.mean(0) - expected).abs() <= 5 * standard_error + 1e-12).all()


@pytest.mark.parametrize("name", ["cross_entropy", "binary", "squared"])
def test_sampled_score_is_the_same_in_every_precision(name: str) -> None:
    """One seed draws the same labels: in half precision the scores are computed in float32."""
    scores = []
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        loss, logits, y = example(name, dtype)
        score = loss.sampled_score(logits, y, torch.Generator().manual_seed(3))
        assert score.dtype is torch.promote_types(dtype, torch.float32)
        scores.append(score.double())
    torch.testing.assert_close(scores[0], scores[1], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(scores[0], scores[2], rtol=0.05, atol=0.02)


def pytorchs(loss: Loss, logits: Tensor, y: Tensor) -> Tensor:
    """The same loss by `torch.nn.functional`."""
    divisor = loss.normalizer
    reduction = loss.reduction if divisor is None else "sum"
    if isinstance(loss, CrossEntropy):
        if loss.shift:
            logits, y = logits[:, :-1].reshape(-1, 4), y[:, 1:].flatten()
        elif loss.class_dim is None and logits.ndim > 1:
            y = y.reshape(-1, 4) if y.shape == logits.shape else y.flatten()
            logits = logits.reshape(-1, 4)
        value = F.cross_entropy(
            logits,
            y,
            weight=None if loss.weight is None else loss.weight.double(),
            ignore_index=loss.ignore_index,
            label_smoothing=loss.label_smoothing,
            reduction=reduction,
        )
    elif isinstance(loss, BinaryCrossEntropy):
        value = F.binary_cross_entropy_with_logits(
            logits, y, loss.weight, pos_weight=loss.pos_weight, reduction=reduction
        )
    elif isinstance(loss, Poisson):
        value = F.poisson_nll_loss(logits, y)
    elif isinstance(loss, PlainCrossEntropy):
        value = F.cross_entropy(logits.reshape(-1, 4), y.flatten())
    else:
        value = F.mse_loss(logits, y, reduction=reduction)
    return value if divisor is None else value / divisor


@pytest.mark.parametrize("name", CASES)
def test_mean_is_pytorchs(name: str) -> None:
    loss, logits, y = example(name)
    value = pytorchs(loss, logits, y)
    torch.testing.assert_close(loss.mean(logits, y), value)
    terms = loss.per_term(logits, y)
    counted = loss.counted(y)
    total = (terms if counted is None else terms[counted]).sum()
    torch.testing.assert_close(total / loss.count(logits, y), value)


@pytest.mark.parametrize(
    "name", [name for name in CASES if name not in ("one position", "binary, one number")]
)
@pytest.mark.parametrize("coupled", [False, True])
def test_the_regularizer_is_that_of_the_loss_that_is_trained(name: str, coupled: bool) -> None:
    """With J the dense Jacobian in the noise, half the trace of J' H J, at p = 1/2."""
    loss, logits, y = example(name)
    model = Offset(logits, coupled)
    x = torch.rand(logits.shape, generator=torch.Generator().manual_seed(2)).double() + 0.5
    noise = torch.zeros_like(model.dropped(x))
    jac = torch.autograd.functional.jacobian(lambda eta: model.after(x, eta), noise)
    jac = jac.reshape(logits.numel(), -1)
    out = model.after(x, noise)
    h = torch.autograd.functional.hessian(lambda f: pytorchs(loss, f, y), out)
    truth = 0.5 * (jac.T @ h.reshape(logits.numel(), -1) @ jac).trace()
    r = explicit_regularizer(model, x, loss=loss, targets=y)
    torch.testing.assert_close(r, truth)
    for method in ("central", "jvp", "sampled_labels"):
        draws = torch.stack(
            [
                explicit_regularizer(
                    model,
                    x,
                    loss=loss,
                    targets=y,
                    method=method,
                    step=0.01,
                    generator=torch.Generator().manual_seed(seed),
                )
                for seed in range(40)
            ]
        )
        assert (draws.mean() - truth).abs() <= 5 * draws.std() / 40**0.5 + 1e-3 * truth


class Offset(torch.nn.Module):
    """Logits that are linear in what is dropped, plus given ones."""

    def __init__(self, offset: Tensor, coupled: bool) -> None:
        super().__init__()
        self.offset, self.drop = torch.nn.Parameter(offset.clone()), torch.nn.Dropout(0.5)
        self.coupled = coupled

    def dropped(self, x: Tensor) -> Tensor:
        return x.sum(0, keepdim=True) if self.coupled else x

    def after(self, x: Tensor, eta: Tensor) -> Tensor:
        return self.offset + self.dropped(x) * (1 + eta)

    def forward(self, x: Tensor) -> Tensor:
        return self.offset + self.drop(self.dropped(x))


@pytest.mark.parametrize("name", DERIVED)
@pytest.mark.parametrize("with_targets", [False, True])
def test_closed_forms_are_what_automatic_differentiation_derives(
    name: str, with_targets: bool
) -> None:
    """Values, and gradients in logits and direction: of what a regularizer makes of each."""
    closed, derived, shape = DERIVED[name]
    generator = torch.Generator().manual_seed(0)
    logits, t, v = torch.randn((3, *shape), generator=generator, dtype=torch.float64)
    t = (t + logits.detach() ** 2).requires_grad_()
    logits.requires_grad_()
    y = None
    if with_targets:
        y = logits[..., 0].detach() > 0 if closed.classes_last else logits.detach().sigmoid()
        y = y.long() if closed.classes_last else y
    results = []
    for loss in (closed, derived):
        value = loss.quadratic(logits, t, y)
        squares = sum((root * v).sum(-1).square().sum() for root in loss.roots(logits, y))
        parts = [
            value,
            squares,
            *torch.autograd.grad(value + squares, (logits, t), materialize_grads=True),
        ]
        if name != "squared":  # whose score is the same wherever
            score = loss.sampled_score(logits, y, torch.Generator().manual_seed(0))
            parts += [score, *torch.autograd.grad((score * v).sum() ** 2, logits)]
        results.append(parts)
    torch.testing.assert_close(*results)
    for loss in (closed, derived):  # nothing is left behind where nobody asks for gradients
        with torch.no_grad():
            assert not loss.quadratic(logits, t, y).requires_grad
            if name != "squared":
                assert not loss.sampled_score(logits, y).requires_grad


def test_a_loss_of_ones_own_with_every_method() -> None:
    """One unit, F = w h (1 + eta): R_approx is h^2 w^2 exp(w h) / 2 at p = 1/2."""
    model = torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Linear(1, 1, bias=False)).double()
    x, y = torch.tensor([[0.7]]).double(), torch.tensor([[2.0]]).double()
    u = (x * model[1].weight).detach()
    truth, slope = u**2 * u.exp() / 2, (2 * u + u**2) * u.exp() / 2 * x
    for method in ("exact", "jvp", "central", "sampled_labels"):
        samples = 20_000 if method == "sampled_labels" else 1
        r = explicit_regularizer(
            model,
            x,
            targets=y,
            loss=Poisson(),
            method=method,
            step=1e-4,
            mc_samples=samples,
            generator=torch.Generator().manual_seed(0),
        )
        (grad,) = torch.autograd.grad(r, model[1].weight)
        # A count has a variance of its rate: 4.5 standard errors of the sampled squares.
        tolerance = 0.1 if method == "sampled_labels" else 1e-6
        torch.testing.assert_close(r, truth[0, 0], rtol=tolerance, atol=0.0)
        torch.testing.assert_close(grad, slope, rtol=tolerance, atol=0.0)
    replace_dropout(model, loss=Poisson()).loss(x, y).backward()


class Whole(Loss):
    """A loss with no terms of its own: what is asked for is given."""

    def mean(self, logits: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(logits, targets)

    def quadratic(self, logits: Tensor, t: Tensor, targets: Tensor | None = None) -> Tensor:
        return CrossEntropy().quadratic(logits, t, targets)


def test_a_loss_may_give_what_is_asked_for_in_place_of_its_terms() -> None:
    model = torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Linear(3, 4))
    x, y = torch.ones(2, 3), torch.tensor([1, 2])
    losses = [
        replace_dropout(model, loss=loss, generator=torch.Generator().manual_seed(0)).loss(x, y)
        for loss in (Whole(), CrossEntropy())
    ]
    torch.testing.assert_close(*losses)
    with pytest.raises(InputError, match="Whole gives one number"):
        explicit_regularizer(model, x, loss=Whole(), method="exact")


def test_a_loss_that_draws_no_labels_says_so() -> None:
    with pytest.raises(InputError, match="does not say how to draw a label"):
        PlainSquared().sampled_score(torch.zeros(2))


def test_targets_of_a_loss_of_ones_own() -> None:
    with pytest.raises(InputError, match=r"labels of shape \(2,\) for logits of shape \(2, 3\)"):
        PlainCrossEntropy().mean(torch.zeros(2, 3), torch.zeros(2, 3).long())
    with pytest.raises(InputError, match="floating-point targets"):
        Poisson().mean(torch.zeros(2), torch.zeros(2).long())


def test_ignored_positions_do_not_count() -> None:
    loss, logits, y = example("ignore")
    kept = y != 1
    assert 0 < kept.sum() < len(y)
    assert loss.count(logits, y) == kept.sum()
    t = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1)).double()
    torch.testing.assert_close(
        loss.quadratic(logits, t, y), CrossEntropy().quadratic(logits[kept], t[kept])
    )
    for root in loss.roots(logits, y):
        assert (root[~kept] == 0).all()
    assert (loss.sampled_score(logits, y)[~kept] == 0).all()
    assert (loss.weighted(torch.ones_like(logits), y).sum(-1) == 4 * kept).all()
    assert (loss.weighted(torch.ones_like(logits), None) == 1).all()
    assert loss.count(logits) == len(y)


def test_a_class_ruled_out_contributes_nothing() -> None:
    """A logit of -inf leaves the value and the gradient of the other classes as they are."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 3, generator=generator, dtype=torch.float64)
    t = torch.randn(3, 3, generator=generator, dtype=torch.float64)
    ruled_out = torch.full((3, 1), -math.inf, dtype=torch.float64)
    values, grads = [], []
    for f, direction in (
        (logits, t),
        (
            torch.cat([logits, ruled_out], 1),
            torch.cat([t, torch.full_like(ruled_out, math.nan)], 1),
        ),
    ):
        f = f.clone().requires_grad_()
        value = CrossEntropy().quadratic(f, direction)
        squares = sum(root.square().sum() for root in CrossEntropy().roots(f))
        score = CrossEntropy().sampled_score(f, None, torch.Generator().manual_seed(0))
        (grad,) = torch.autograd.grad(value + squares + score.square().sum(), f)
        values.append((value, squares, score[:, :3]))
        grads.append(grad[:, :3])
    torch.testing.assert_close(values[0], values[1])
    torch.testing.assert_close(grads[0], grads[1])


@pytest.mark.parametrize("loss", [CrossEntropy(), BinaryCrossEntropy()])
def test_saturated_logits_have_finite_gradients(loss: Loss) -> None:
    """Where p is 0 or 1 to the last bit, the root of p has an infinite derivative by itself."""
    logits = torch.tensor([[200.0, -200.0], [0.0, 800.0]], requires_grad=True)
    score = loss.sampled_score(logits, None, torch.Generator().manual_seed(0))
    total = sum(root.square().sum() for root in loss.roots(logits)) + score.square().sum()
    (grad,) = torch.autograd.grad(total + loss.quadratic(logits, torch.ones(2, 2)), logits)
    assert total.isfinite()
    assert grad.isfinite().all()


def test_labels_are_drawn_from_the_prediction() -> None:
    """Frequencies of 20,000 sampled classes: within 4.5 standard errors; a certain class always."""
    logits = torch.tensor([0.0, 1.0, -2.0, 0.5]).expand(20000, 4)
    p = logits[0].softmax(-1)
    score = CrossEntropy().sampled_score(logits, None, torch.Generator().manual_seed(0))
    drawn = (p - score).round()
    assert (drawn.sum(-1) == 1).all()
    error = drawn.mean(0) - p
    assert (error.abs() < 4.5 * (p * (1 - p) / 20000).sqrt()).all()
    certain = torch.tensor([-math.inf, 0.0, -math.inf]).expand(1000, 3)
    assert (CrossEntropy().sampled_score(certain) == 0).all()


def test_half_precision_is_computed_in_float32() -> None:
    for name in ("cross_entropy", "binary", "squared"):
        loss, logits, y = example(name, torch.bfloat16)
        reference = [a.float() if a.is_floating_point() else a for a in (logits, y)]
        mean = loss.mean(logits, y)
        assert mean.dtype is torch.float32
        torch.testing.assert_close(mean, loss.mean(*reference))
        value = loss.quadratic(logits, torch.ones_like(logits), y)
        assert value.dtype is torch.float32
        torch.testing.assert_close(
            value, loss.quadratic(reference[0], torch.ones_like(reference[0]), y)
        )


def test_resolve_by_name_and_by_object() -> None:
    for name in ("cross_entropy", "binary_cross_entropy", "squared_error"):
        assert isinstance(resolve(name), Loss)
    loss = CrossEntropy(ignore_index=0)
    assert resolve(loss) is loss


# ------------------------------------------------------------------------- overridden in a subclass


class OwnMean(CrossEntropy):
    """Class weights, as somebody would add them who knows `mean` alone."""

    def mean(self, logits: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(logits, targets, weight=WEIGHT.to(logits))


class OwnTerms(CrossEntropy):
    def per_term(self, logits: Tensor, targets: Tensor) -> Tensor:
        return super().per_term(logits, targets) * WEIGHT.to(logits)[targets]


class FirstHalf(CrossEntropy):
    def counted(self, targets: Tensor) -> Tensor:
        return torch.arange(len(targets)) < len(targets) // 2


class TwiceAsMany(CrossEntropy):
    def count(self, logits: Tensor, targets: Tensor | None = None) -> float | Tensor:
        return 2 * super().count(logits, targets)


class PoissonModule(torch.nn.PoissonNLLLoss):
    """Somebody's own object: one number, of labels in a form of its own."""

    def forward(self, log_input: Tensor, target: Tensor) -> Tensor:
        return super().forward(log_input, target[:, None].expand_as(log_input))


def classifier() -> torch.nn.Sequential:
    torch.manual_seed(0)
    layers = torch.nn.Linear(3, 6), torch.nn.Tanh(), torch.nn.Dropout(0.3), torch.nn.Linear(6, 4)
    return torch.nn.Sequential(*layers).double()


X = torch.randn((6, 3), generator=torch.Generator().manual_seed(5)).double()
Y = torch.tensor([0, 1, 2, 3, 0, 2])
OVERRIDDEN = {
    "mean": (OwnMean(), lambda f: F.cross_entropy(f, Y, weight=WEIGHT.double())),
    "per_term": (
        OwnTerms(),
        lambda f: (F.cross_entropy(f, Y, reduction="none") * WEIGHT.double()[Y]).mean(),
    ),
    "counted": (FirstHalf(), lambda f: F.cross_entropy(f[:3], Y[:3])),
    "count": (TwiceAsMany(), lambda f: F.cross_entropy(f, Y) / 2),
    "function": (
        resolve(lambda f, y: F.cross_entropy(f, y, weight=WEIGHT.to(f))),
        lambda f: F.cross_entropy(f, Y, weight=WEIGHT.double()),
    ),
    "function of terms": (
        resolve(lambda f, y: F.cross_entropy(f, y, reduction="none")),
        lambda f: F.cross_entropy(f, Y),
    ),
    "function of entries": (
        resolve(lambda f, y: (f - y[:, None]) ** 4),
        lambda f: ((f - Y[:, None]) ** 4).mean(),
    ),
    "module": (
        resolve(PoissonModule()),
        lambda f: F.poisson_nll_loss(f, Y.double()[:, None].expand(6, 4)),
    ),
}


@pytest.mark.parametrize("name", OVERRIDDEN)
def test_what_is_overridden_is_what_is_trained(name: str) -> None:
    """The clean loss, and R from a dense Hessian of it."""
    loss, truth = OVERRIDDEN[name]
    model = classifier()
    logits = model.eval()(X).detach()
    model.train()
    replacement = replace_dropout(model, loss=loss, step=1e-3)
    replacement.loss(X, Y)
    torch.testing.assert_close(replacement.parts["clean"], truth(logits))
    torch.testing.assert_close(loss.mean(logits, Y), truth(logits))
    t = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1)).double()
    h = torch.autograd.functional.hessian(truth, logits).reshape(24, 24)
    value = loss.quadratic(logits, t, Y)
    torch.testing.assert_close(value, t.flatten() @ h @ t.flatten())
    one_number = name in ("mean", "function", "module")
    for method in ("exact", "sampled_labels", "identity", "loss_jacobian", "central_identity"):
        if one_number:
            with pytest.raises(InputError, match=r"one number.*Choose 'central', 'jvp'"):
                explicit_regularizer(model, X, loss=loss, targets=Y, method=method)
    if one_number:
        for alone in (loss.roots, loss.sampled_score):
            with pytest.raises(InputError, match=r"one number|draw a label"):
                list(alone(logits, Y))
    else:
        roots = list(loss.roots(logits, Y))
        size = 24 if "entries" in name else 4
        blocks = torch.zeros(6, 4, 4).double()
        for root in roots:
            blocks += root.diag_embed() ** 2 if size == 24 else root[:, :, None] * root[:, None]
        torch.testing.assert_close(torch.block_diag(*blocks) / loss.count(logits, Y), h)


def test_closed_forms_of_a_users_class_are_given_up_too() -> None:
    class Doubled(Poisson):
        def hessian(self, logits: Tensor) -> Tensor:
            return logits.exp()

    class Quadrupled(Doubled):
        def per_term(self, logits: Tensor, targets: Tensor) -> Tensor:
            return 4 * super().per_term(logits, targets)

    logits, t, y = torch.randn(3, 5).double()
    expected = (logits.exp() * t**2).mean()
    torch.testing.assert_close(Doubled().quadratic(logits, t, y), expected)
    torch.testing.assert_close(Quadrupled().quadratic(logits, t, y), 4 * expected)


def test_a_method_of_one_object_is_refused() -> None:
    loss = CrossEntropy()
    with pytest.raises(InputError, match="write `mean` as a method of a subclass"):
        loss.mean = lambda logits, targets: logits.sum()  # type: ignore[method-assign]


# ------------------------------------------------------------------ a Hessian that needs the label


class Focal(Loss):
    def per_term(self, logits: Tensor, targets: Tensor) -> Tensor:
        ce = CrossEntropy().per_term(logits, targets)
        return (1 - (-ce).exp()) ** 2 * ce

    def draw(self, logits: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return CrossEntropy().draw(logits, generator)


class Huber(Elementwise):
    def per_term(self, logits: Tensor, targets: Tensor) -> Tensor:
        return F.huber_loss(logits, targets, reduction="none")

    def draw(self, logits: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return SquaredError().draw(logits, generator)


@pytest.mark.parametrize("loss", [Focal(), Huber()])
def test_a_hessian_that_depends_on_the_label_is_that_of_the_true_one(loss: Loss) -> None:
    logits = 2 * torch.randn((6, 4), generator=torch.Generator().manual_seed(0)).double()
    y = Y if loss.classes_last else torch.zeros(6, 4).double()
    t = torch.ones(6, 4).double() + logits
    expected = t.flatten() @ hessian(loss, logits, y) @ t.flatten()
    torch.testing.assert_close(loss.quadratic(logits, t, y), expected)
    for without in (lambda: loss.quadratic(logits, t), lambda: list(loss.roots(logits))):
        with pytest.raises(InputError, match="depends on the label: give targets"):
            without()
    with pytest.raises(InputError, match=r"do not make its Hessian.*Choose another method"):
        loss.sampled_score(logits, y)
    if isinstance(loss, Focal):
        assert torch.linalg.eigvalsh(hessian(loss, logits, y)).min() < -1e-3
        with pytest.raises(InputError, match="negative eigenvalue"):
            list(loss.roots(logits, y))


def test_a_negative_hessian_of_entries_has_no_root() -> None:
    class Sine(Elementwise):
        def per_term(self, logits: Tensor, targets: Tensor) -> Tensor:
            return logits.sin() - targets

    with pytest.raises(InputError, match="negative eigenvalue"):
        list(Sine().roots(torch.ones(3)))


def test_draws_that_do_not_fit_the_loss_are_refused() -> None:
    class Twice(PlainCrossEntropy):
        def per_term(self, logits: Tensor, targets: Tensor) -> Tensor:
            return 2 * super().per_term(logits, targets)

    class Smoothed(PlainCrossEntropy):
        def per_term(self, logits: Tensor, targets: Tensor) -> Tensor:
            return 0.8 * super().per_term(logits, targets) - 0.2 * logits.log_softmax(-1).mean(-1)

    class HalfSquared(Elementwise):
        def per_term(self, logits: Tensor, targets: Tensor) -> Tensor:
            return (logits - targets) ** 2 / 2

        def draw(self, logits: Tensor, generator: torch.Generator | None = None) -> Tensor:
            return SquaredError().draw(logits, generator)

    for loss in (Twice(), Smoothed(), HalfSquared()):
        with pytest.raises(InputError, match="not minus the log-likelihood of what `draw` draws"):
            loss.sampled_score(torch.zeros(6, 4))


def test_terms_that_share_logits_have_no_root() -> None:
    class Centred(Elementwise):
        def per_term(self, logits: Tensor, targets: Tensor) -> Tensor:
            return (logits - logits.mean() - targets) ** 2

    logits, t, y = torch.randn(3, 5).double()
    value = Centred().quadratic(logits, t, y)
    torch.testing.assert_close(value, 2 * (t - t.mean()).square().mean())
    with pytest.raises(InputError, match="depend on each other's logits"):
        list(Centred().roots(logits, y))


# ----------------------------------------------------------------------- weights are multiplicities


@pytest.mark.parametrize("kind", ["cross_entropy", "binary"])
def test_a_weight_of_two_is_two_examples(kind: str) -> None:
    """Also for the ablations, whose squares have the weight once."""
    logits, y = classifier().eval()(X).detach(), Y
    twice = torch.cat([torch.arange(6), torch.tensor([2, 5])])  # those of class 2
    if kind == "binary":
        logits, y = logits[:, :1], (Y == 2).double()[:, None]
        weighted: Loss = BinaryCrossEntropy(pos_weight=torch.tensor(2.0), normalizer=8)
        plain: Loss = BinaryCrossEntropy()
    else:
        weighted, plain = CrossEntropy(weight=torch.tensor([1.0, 1.0, 2.0, 1.0])), CrossEntropy()
    t = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1)).double()
    ends = logits + 0.1 * t, logits - 0.1 * t
    for method, quadratic in QUADRATICS.items():
        torch.testing.assert_close(
            quadratic(weighted, *ends, 0.1, y),
            quadratic(plain, *(end[twice] for end in ends), 0.1, y[twice]),
            msg=str(method),
        )
    values = []
    for loss, rows in ((weighted, torch.arange(6)), (plain, twice)):
        model = torch.nn.Sequential(Offset(logits[rows], coupled=False))
        x = torch.ones_like(logits)[rows]
        for method in ("exact", "loss_jacobian", "identity"):
            values.append(
                explicit_regularizer(model, x, loss=loss, targets=y[rows], method=method)
                if method != "identity"
                else loss.weighted(torch.ones_like(x), y[rows]).square().sum()
                / loss.count(x, y[rows])
            )
    torch.testing.assert_close(values[:3], values[3:])


# ---------------------------------------------------------------- shifted labels, classes elsewhere


class Sequences(torch.nn.Module):
    """Logits of every position, and with `cut` without the last; classes last or in dimension 1."""

    def __init__(self, cut: bool = False, channels: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.rnn = torch.nn.Embedding(4, 5), torch.nn.GRU(5, 5, batch_first=True)
        self.drop, self.out = torch.nn.Dropout(0.4), torch.nn.Linear(5, 4)
        self.cut, self.channels = cut, channels
        self.double()

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.out(self.rnn(self.drop(self.embed(tokens)))[0])
        out = out[:, :-1] if self.cut else out
        return out.movedim(-1, 1) if self.channels else out


TOKENS = torch.randint(4, (2, 6), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("method", ExplicitMethod, ids=str)
@pytest.mark.parametrize("kind", ["shift", "class_dim"])
def test_shift_and_class_dim_with_every_method(method: ExplicitMethod, kind: str) -> None:
    """Against the model that gives the usual logits: same probes, same R and same loss."""
    shift = kind == "shift"
    odd = (CrossEntropy(shift=True), Sequences(), TOKENS)
    usual = (CrossEntropy(), Sequences(cut=True), TOKENS[:, 1:])
    if not shift:
        odd = (torch.nn.CrossEntropyLoss(), Sequences(channels=True), TOKENS)
        usual = (CrossEntropy(), Sequences(), TOKENS)
    drawn = str(method) in ("sampled_labels", "identity")  # one for each entry of the logits
    results, rows = [], []
    for loss, model, y in (odd, usual):
        draws = torch.stack(
            [
                explicit_regularizer(
                    model,
                    TOKENS,
                    loss=loss,
                    targets=y,
                    method=method,
                    generator=torch.Generator().manual_seed(seed),
                )
                for seed in range(100 if drawn else 1)
            ]
        )
        rows.append(draws.detach())
        replacement = replace_dropout(model, loss=loss, generator=torch.Generator().manual_seed(0))
        total = replacement.loss(TOKENS, y)
        grads = torch.autograd.grad(total, list(model.parameters()))
        results.append([total, *replacement.parts.values(), *grads])
    if drawn:
        difference = rows[0].mean() - rows[1].mean()
        error = ((rows[0].var() + rows[1].var()) / 100) ** 0.5
        assert difference.abs() <= 5 * error
    else:
        torch.testing.assert_close(*rows)
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("method", ["exact", "central", "jvp"])
def test_shift_without_targets(method: str) -> None:
    results = [
        explicit_regularizer(
            model, TOKENS, loss=loss, method=method, generator=torch.Generator().manual_seed(0)
        )
        for loss, model in (
            (CrossEntropy(shift=True), Sequences()),
            ("cross_entropy", Sequences(True)),
        )
    ]
    torch.testing.assert_close(*results)


def test_a_square_of_classes_and_positions_is_refused_unless_it_is_said_which() -> None:
    logits, y = torch.randn(2, 4, 4), TOKENS[:, :4]
    for loss in (CrossEntropy(), CrossEntropy(label_smoothing=0.1)):
        for call in (
            lambda: loss.mean(logits, y),  # noqa: B023
            lambda: loss.quadratic(logits, logits),  # noqa: B023
        ):
            with pytest.raises(InputError, match=r"last or in dimension 1\. Say which"):
                call()
    first, last = CrossEntropy(class_dim=1), CrossEntropy(class_dim=-1)
    torch.testing.assert_close(first.mean(logits, y), F.cross_entropy(logits, y))
    torch.testing.assert_close(last.mean(logits, y), F.cross_entropy(logits.mT, y))
    torch.testing.assert_close(
        resolve(torch.nn.CrossEntropyLoss()).mean(logits, y), F.cross_entropy(logits, y)
    )
    three = torch.randn(2, 4, 3), TOKENS[:, :3]
    with pytest.raises(InputError, match=r"If the classes are in dimension 1, .*class_dim=1"):
        CrossEntropy().mean(*three)
    with pytest.raises(InputError, match="classes are in dimension 1; with the classes last"):
        first.mean(three[0].mT, three[1])
    soft = logits.softmax(1)[..., :3]
    with pytest.raises(InputError, match=r"do not add up to 1.*class_dim=1"):
        CrossEntropy().mean(logits[..., :3], soft)


# ---------------------------------------------------------------------------- what a loss may be


MODULES: list[tuple[torch.nn.Module, str]] = [
    (torch.nn.CrossEntropyLoss(), "classes"),
    (torch.nn.CrossEntropyLoss(WEIGHT, ignore_index=1, label_smoothing=0.1), "classes"),
    (torch.nn.CrossEntropyLoss(reduction="sum"), "classes"),
    (torch.nn.BCEWithLogitsLoss(), "entries"),
    (torch.nn.BCEWithLogitsLoss(WEIGHT, pos_weight=WEIGHT + 1, reduction="sum"), "entries"),
    (torch.nn.MSELoss(), "entries"),
    (torch.nn.MSELoss(reduction="sum"), "entries"),
]


@pytest.mark.parametrize(("module", "kind"), MODULES, ids=str)
def test_torchs_losses_as_they_are(module: torch.nn.Module, kind: str) -> None:
    """With closed forms: value, and R as the same object gives it where it is one number."""
    logits = classifier().eval()(X).detach()
    y = Y if kind == "classes" else logits.sigmoid()
    module = module.double()
    loss, function = resolve(module), resolve(lambda f, y: module(f, y))
    torch.testing.assert_close(loss.mean(logits, y), module(logits, y))
    t = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1)).double()
    torch.testing.assert_close(loss.quadratic(logits, t, y), function.quadratic(logits, t, y))
    assert sum(1 for _ in loss.roots(logits, y)) == (4 if kind == "classes" else 1)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ("mse", "loss 'mse' is unknown.*Perhaps you mean 'squared_error'"),
        ("BCE", "'BCE' is unknown.*Perhaps you mean 'binary_cross_entropy'"),
        ("crossentropy", "Choose one of 'cross_entropy', 'binary_cross_entropy', 'squared_error'"),
        ({}, r"loss \{\} is unknown"),
        (None, "loss None is unknown"),
        (torch.nn.MSELoss, r"is unknown.*an object such as torch\.nn\.CrossEntropyLoss\(\)"),
        (torch.nn.CrossEntropyLoss(reduction="none"), "reduction='none'.*'mean' or 'sum'"),
        (torch.nn.BCEWithLogitsLoss(reduction="none"), "reduction='none'.*'mean' or 'sum'"),
        (torch.nn.MSELoss(reduction="none"), "reduction='none'.*'mean' or 'sum'"),
        (torch.nn.NLLLoss(), "a loss of probabilities.*choose 'cross_entropy'"),
        (F.nll_loss, "a loss of probabilities.*choose 'cross_entropy'"),
        (torch.nn.BCELoss(), "a loss of probabilities.*choose 'binary_cross_entropy'"),
        (F.binary_cross_entropy, "a loss of probabilities.*choose 'binary_cross_entropy'"),
    ],
)
def test_what_is_no_loss(loss: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        resolve(loss)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda f, y: 1.0, "returned float; it must return a tensor"),
        (lambda f, y: y, r"returned torch\.int64; it must return a tensor"),
        (lambda f, y: f[:0], "the batch is empty"),
        (lambda f, y: f[:3, 0], r"returned shape \(3,\) for logits of shape \(6, 4\)"),
    ],
)
def test_a_function_that_is_no_loss(function: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        explicit_regularizer(classifier(), X, loss=function, targets=Y)


def test_a_function_needs_targets() -> None:
    for method in ("exact", "central"):
        with pytest.raises(InputError, match="needs targets"):
            explicit_regularizer(classifier(), X, loss=F.cross_entropy, method=method)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CrossEntropy(label_smoothing=2.0), "label_smoothing is 2.0; it must lie in"),
        (lambda: CrossEntropy(label_smoothing=-0.1), "must lie in"),
        (lambda: CrossEntropy(label_smoothing=math.nan), "must lie in"),
        (lambda: CrossEntropy(label_smoothing="a"), "must be a number"),  # type: ignore[arg-type]
        (lambda: CrossEntropy(0.5), "ignore_index is 0.5"),  # type: ignore[arg-type]
        (lambda: CrossEntropy(True), "ignore_index is True"),
        (lambda: CrossEntropy(weight=-WEIGHT), "weight must be finite and not negative"),
        (lambda: CrossEntropy(weight=WEIGHT / 0), "weight must be finite"),
        (lambda: CrossEntropy(weight=WEIGHT[None]), r"weight has shape \(1, 4\)"),
        (lambda: CrossEntropy(weight=[1.0]), "floating-point tensor"),  # type: ignore[arg-type]
        (lambda: CrossEntropy(weight=WEIGHT.clone().requires_grad_()), "detach it"),
        (lambda: CrossEntropy(reduction="avg"), "reduction is 'avg'; choose"),
        (lambda: CrossEntropy(reduction="none"), "reduction='none'"),
        (lambda: CrossEntropy(normalizer=0), "normalizer is 0; it must be a positive"),
        (lambda: CrossEntropy(normalizer=torch.tensor(-1.0)), "must be a positive"),
        (lambda: CrossEntropy(normalizer=WEIGHT), "must be a positive"),
        (lambda: CrossEntropy(normalizer=True), "must be a positive"),
        (lambda: CrossEntropy(class_dim=2), "class_dim is 2"),
        (lambda: CrossEntropy(class_dim=1, shift=True), "with the classes last"),
        (lambda: SquaredError(normalizer=math.inf), "must be a positive"),
        (lambda: SquaredError(reduction="none"), "reduction='none'"),
        (lambda: BinaryCrossEntropy(weight=-WEIGHT), "weight must be finite"),
        (lambda: BinaryCrossEntropy(pos_weight=-WEIGHT), "pos_weight must be finite"),
    ],
)
def test_options_are_checked_when_the_loss_is_made(make: Callable[[], Loss], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


def test_options_that_do_not_fit_the_logits() -> None:
    logits = torch.zeros(6, 4)
    for loss, y, message in (
        (CrossEntropy(weight=WEIGHT[:3]), Y, "weight has 3 classes, the logits have 4"),
        (BinaryCrossEntropy(weight=WEIGHT[:3]), logits, "weight has shape"),
        (BinaryCrossEntropy(pos_weight=torch.ones(2, 6, 4)), logits, "pos_weight has shape"),
        (CrossEntropy(shift=True), Y, "needs logits"),
        (CrossEntropy(shift=True), logits.softmax(-1), "not class probabilities"),
        (CrossEntropy(), logits - 1, "must not be negative"),
    ):
        logits_of = logits[:, None] if loss is not None and message == "needs logits" else logits
        with pytest.raises(InputError, match=message):
            loss.mean(logits_of, y[:, None] if message == "needs logits" else y)
    with pytest.raises(InputError, match="class weights need targets"):
        CrossEntropy(weight=WEIGHT).quadratic(logits, logits)
    with pytest.raises(InputError, match="pos_weight needs targets"):
        BinaryCrossEntropy(pos_weight=WEIGHT).quadratic(logits, logits)


def test_a_normalizer_may_change_between_steps() -> None:
    loss, logits = CrossEntropy(), torch.zeros(6, 4)
    assert loss.mean(logits, Y).item() == pytest.approx(math.log(4))
    loss.normalizer = 12
    assert loss.mean(logits, Y).item() == pytest.approx(math.log(4) / 2)
    with pytest.raises(InputError, match="normalizer is -1"):
        loss.normalizer = -1


# ---------------------------------------------------------------------------------- the targets


@pytest.mark.parametrize("method", ExplicitMethod, ids=str)
@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.int16], ids=str)
def test_labels_of_every_integer_type(method: ExplicitMethod, dtype: torch.dtype) -> None:
    values = []
    for y in (Y, Y.to(dtype)):
        options: dict[str, Any] = {"generator": torch.Generator().manual_seed(0)}
        values.append(explicit_regularizer(classifier(), X, targets=y, method=method, **options))
        if method in ("central", "even_odd"):
            values.append(replace_dropout(classifier(), method=method, **options).loss(X, y))
    half = len(values) // 2
    torch.testing.assert_close(values[:half], values[half:])


@pytest.mark.parametrize("method", ExplicitMethod, ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_where_no_term_counts_it_is_as_in_pytorch(method: ExplicitMethod, reduction: str) -> None:
    """NaN for a mean and 0 for a sum, and the gradient is 0 for both."""
    y, loss = torch.full((6,), -100), CrossEntropy(reduction=reduction)
    for call in (
        lambda model: explicit_regularizer(model, X, loss=loss, targets=y, method=method),
        lambda model: replace_dropout(model, loss=loss, method=method).loss(X, y),
        lambda model: F.cross_entropy(model(X), y, reduction=reduction),
    ):
        model = classifier()
        value = call(model)
        if reduction == "mean" and value != 0:  # a second derivative of NaN is 0 as its first is
            assert value.isnan()
        else:
            assert value == 0
            assert reduction == "sum" or method is ExplicitMethod.FULL_HESSIAN
        grads = torch.autograd.grad(value, list(model.parameters()), materialize_grads=True)
        assert all((grad == 0).all() for grad in grads)


@pytest.mark.parametrize("loss", ["cross_entropy", "binary_cross_entropy", "squared_error"])
def test_an_empty_batch_is_refused(loss: str) -> None:
    for targets in (None, torch.zeros(0).long() if loss == "cross_entropy" else torch.zeros(0, 4)):
        with pytest.raises(InputError, match="the batch is empty"):
            explicit_regularizer(classifier(), X[:0], loss=loss, targets=targets)


@pytest.mark.parametrize("loss", ["cross_entropy", "binary_cross_entropy", "squared_error"])
def test_bool_targets_are_refused(loss: str) -> None:
    y = (Y > 1) if loss == "cross_entropy" else torch.ones(6, 4).bool()
    with pytest.raises(InputError, match=r"got torch\.bool"):
        replace_dropout(classifier(), loss=loss).loss(X, y)


def test_probabilities_at_a_corner_are_labels() -> None:
    """One-hot rows by every method that draws nothing in logit space."""
    for method in ("exact", "central", "jvp", "loss_jacobian", "central_loss_jacobian"):
        values = [
            explicit_regularizer(
                classifier(),
                X,
                loss=CrossEntropy(label_smoothing=0.1, weight=WEIGHT, normalizer=6),
                targets=y,
                method=method,
                generator=torch.Generator().manual_seed(0),
            )
            for y in (Y, F.one_hot(Y, 4).double())
        ]
        torch.testing.assert_close(*values)


def test_a_loss_that_autograd_cannot_differentiate_twice() -> None:
    """A fused kernel's gradient is a constant to autograd: R would be 0 in silence."""

    class Fused(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, logits: Tensor, y: Tensor) -> Tensor:
            with torch.enable_grad():
                f = logits.detach().requires_grad_()
                loss = F.cross_entropy(f, y)
                ctx.save_for_backward(*torch.autograd.grad(loss, f))
            return loss.detach()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
            return grad * ctx.saved_tensors[0], None

    for loss in (Fused.apply, torch.nn.MultiMarginLoss(p=2)):
        with pytest.raises(InputError, match=r"cannot be differentiated twice.*'even_odd'"):
            explicit_regularizer(classifier(), X, loss=loss, targets=Y, method="central")
    with pytest.raises(InputError, match="does not depend on the logits"):
        resolve(lambda f, y: F.cross_entropy(f.detach(), y)).quadratic(X, X, Y % 3)
    # A loss with kinks is linear around almost every point.
    assert resolve(F.l1_loss).quadratic(X, X, torch.zeros_like(X)) == 0


def test_a_single_position_without_targets() -> None:
    assert CrossEntropy().count(torch.zeros(4)) == 1
    t = torch.tensor([1.0, -1.0, 1.0, -1.0])
    assert CrossEntropy().quadratic(torch.zeros(4), t) == 1  # its variance
