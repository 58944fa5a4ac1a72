"""The losses: H_out against autograd, its root, sampled labels, and invariances."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dropreg import (
    BinaryCrossEntropy,
    CrossEntropy,
    Elementwise,
    Loss,
    SquaredError,
    explicit_regularizer,
    replace_dropout,
)
from dropreg.errors import InputError
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
