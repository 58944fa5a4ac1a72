"""The models under noise, against their forms written out by hand; and what dropreg makes of them.

Nothing here is approximate but the methods that are: all is in float64, with the noise given.
"""

import copy
import math

import oracle
import pytest
import torch
from cases import CASES, SITE_PS
from oracle import FINE, SPECS, Case, build, drawn, gradient, run
from torch import Tensor

from dropreg import (
    ExplicitMethod,
    ImplicitMethod,
    Site,
    dropout_k_loss,
    explicit_regularizer,
    find_sites,
    implicit_noise,
    replace_dropout,
)
from dropreg.book.models import (
    MLP,
    LSTMLanguageModel,
    QRNNLanguageModel,
    Sized,
    TransformerLanguageModel,
    TransformerXL,
)
from dropreg.control.passes import find_logits

CE = SPECS["cross_entropy"]


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return build(CASES[request.param])


def targets(case: Case) -> Tensor:
    return oracle.targets_for(case, CE)


def noise(case: Case, seed: int = 7) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(case.size, generator=generator, dtype=torch.float64)


def test_forward_under_given_noise(case):
    eta = noise(case)
    parts = iter(eta.split([math.prod(shape) for shape in case.mask_shapes]))

    def given(site: Site) -> Tensor:
        return next(parts).reshape(site.mask_shape)

    output, sites = run(case.model, case.inputs, given)
    logits = find_logits(output)
    assert tuple(site.mask_shape for site in sites) == case.mask_shapes
    assert tuple(site.p for site in sites) == case.ps
    torch.testing.assert_close(logits, case.logits(eta))
    assert not torch.allclose(logits, case.logits(case.zero), rtol=1e-2)  # the noise does something


def test_eval_mode_is_the_net_without_noise(case):
    args = case.inputs if isinstance(case.inputs, tuple) else (case.inputs,)
    logits = find_logits(case.model.eval()(*args))
    torch.testing.assert_close(logits, case.logits(case.zero))


def test_sites_of_the_lstm():
    case = build(CASES["lstm"])
    sites = find_sites(case.model, *case.inputs)
    assert tuple(site.p for site in sites) == SITE_PS
    assert repr(sites) == (
        "site               kind            shape      p    mask shared\n"
        "embedding          shared dropout  (5, 2)     0.1  over dim 1\n"
        "embedding_dropout  shared dropout  (2, 3, 2)  0.2  over dim 1\n"
        "layers.0           shared dropout  (12, 3)    0.3  none\n"
        "dropouts.0         shared dropout  (2, 3, 3)  0.4  over dim 1\n"
        "layers.1           shared dropout  (8, 2)     0.3  none\n"
        "dropouts.1         shared dropout  (2, 3, 2)  0.5  over dim 1"
    )


def test_exact_regularizer_is_the_dense_one(case):
    expected = oracle.r_approx(case, CE, targets(case))
    value = explicit_regularizer(case.model, case.inputs)
    torch.testing.assert_close(value, expected, check_dtype=False)
    torch.testing.assert_close(gradient(value, case), gradient(expected, case))


@pytest.mark.parametrize("method", ["jvp", "central"])
def test_a_probe_from_the_inside_is_the_dense_one(case, method):
    eta = noise(case)
    t = oracle.jacobian(case) @ eta
    expected = 0.5 * t @ CE.hessian(case.logits(case.zero), targets(case)) @ t
    with drawn(eta):
        value = explicit_regularizer(case.model, case.inputs, method=method, step=FINE)
    rtol = 1e-5 if method == "central" else 1e-10
    torch.testing.assert_close(value, expected, check_dtype=False, rtol=rtol, atol=0)
    size = gradient(expected, case).norm()
    assert (gradient(value, case) - gradient(expected, case)).norm() < 100 * rtol * size


def test_full_hessian_along_a_probe_is_the_dense_one(case):
    eta, y = noise(case), targets(case)
    curvature = torch.func.hessian(lambda s: CE.mean(case.logits(s * eta), y))
    expected = 0.5 * curvature(torch.zeros((), dtype=torch.float64))
    with drawn(eta):
        value = explicit_regularizer(case.model, case.inputs, targets=y, method="full_hessian")
    torch.testing.assert_close(value, expected)


@pytest.mark.parametrize("method", ["analytic", "central"])
def test_implicit_noise_is_the_dense_slope(case, method):
    eta, y = noise(case), targets(case)
    expected = gradient(oracle.slope(case, CE, y, eta), case)
    with drawn(eta):
        value = implicit_noise(case.model, case.inputs, y, method=method, step=FINE)
    rtol = 1e-5 if method == "central" else 1e-10
    assert (gradient(value, case) - expected).norm() < rtol * expected.norm()


def test_dropout_k_is_the_mean_over_masks(case):
    y, etas = targets(case), torch.stack([noise(case, seed) for seed in range(3)])
    with drawn(etas):
        value = dropout_k_loss(case.model, case.inputs, y, 3)
    torch.testing.assert_close(value, oracle.loss_at(case, CE, y, etas).mean())


# ------------------------------------------------------------ all methods, in the usual precision

TINY: dict[str, tuple[type[Sized], dict[str, float]]] = {
    "lstm": (LSTMLanguageModel, {"row_p": 0.1}),
    "qrnn": (QRNNLanguageModel, {"row_p": 0.1, "weight_p": 0.2}),
    "transformer": (TransformerLanguageModel, {"attention_p": 0.1}),
    "transformer_xl": (TransformerXL, {"attention_p": 0.1}),
}


def tiny(name: str) -> tuple[torch.nn.Module, torch.nn.Module, Tensor, Tensor]:
    """A model of size "tiny" in float32, its copy in float64, inputs and labels."""
    torch.manual_seed(0)
    if name == "mlp":
        model: torch.nn.Module = MLP.of_size("tiny", 4, 6)
        inputs = torch.randn(3, 4)
        y = torch.randint(0, 6, (3,))
    else:
        model_class, ps = TINY[name]
        model = model_class.of_size("tiny", 6, **ps)
        inputs, y = torch.randint(0, 6, (2, 3)), torch.randint(0, 6, (2, 3))
    with torch.no_grad():  # away from the nearly linear network at initialisation
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.2)
    return model, copy.deepcopy(model).double(), inputs, y


def like(model: torch.nn.Module, inputs: Tensor) -> Tensor:
    return inputs.to(next(model.parameters()).dtype) if inputs.is_floating_point() else inputs


def values_and_gradients(single, double, inputs, f):
    """A loss f(model, inputs, generator) and its gradient in both precisions."""
    out = []
    for model in (single, double):
        value = f(model, like(model, inputs), torch.Generator().manual_seed(1))
        value.backward()
        grads = [p.grad for p in model.parameters()]
        assert all(grad is not None for grad in grads)
        out.append((value.detach().double(), torch.cat([g.flatten().double() for g in grads])))
    return out


def assert_precisions_agree(single, double, inputs, f):
    (value, grad), (expected, expected_grad) = values_and_gradients(single, double, inputs, f)
    assert value.isfinite()
    assert expected_grad.norm() > 0
    torch.testing.assert_close(value, expected, rtol=1e-3, atol=1e-4)
    assert (grad - expected_grad).norm() < 5e-3 * expected_grad.norm()


@pytest.mark.parametrize("method", ExplicitMethod)
@pytest.mark.parametrize("name", ["mlp", *TINY])
def test_replace_dropout_with_every_method(name, method):
    single, double, inputs, y = tiny(name)

    def f(model: torch.nn.Module, inputs: Tensor, generator: torch.Generator) -> Tensor:
        return replace_dropout(model, method=method, generator=generator).loss(inputs, y)

    assert_precisions_agree(single, double, inputs, f)


@pytest.mark.parametrize("method", ImplicitMethod)
@pytest.mark.parametrize("name", ["mlp", *TINY])
def test_implicit_noise_with_every_method(name, method):
    single, double, inputs, y = tiny(name)

    def f(model: torch.nn.Module, inputs: Tensor, generator: torch.Generator) -> Tensor:
        return implicit_noise(model, inputs, y, method=method, generator=generator)

    assert_precisions_agree(single, double, inputs, f)


@pytest.mark.parametrize("name", ["mlp", *TINY])
def test_dropout_k_in_chunks(name):
    single, double, inputs, y = tiny(name)

    def f(model: torch.nn.Module, inputs: Tensor, generator: torch.Generator) -> Tensor:
        return dropout_k_loss(model, inputs, y, 4, chunk=2, generator=generator)

    assert_precisions_agree(single, double, inputs, f)


@pytest.mark.parametrize("name", TINY)
def test_state_is_carried_through_replace_dropout(name):
    single, _, inputs, y = tiny(name)
    objective = replace_dropout(single, generator=torch.Generator().manual_seed(0))
    objective.loss((inputs, None), y)
    logits, state = objective.output
    assert logits.shape == (*inputs.shape, 6)
    objective.loss((inputs, state), y).backward()
