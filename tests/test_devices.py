"""The core on the CPU and on a GPU: the same masks from a CPU generator, the same numbers.

The CPU rows check the tests themselves where there is no GPU.
"""

import oracle
import pytest
import torch
from oracle import BUILDERS, SPECS, Case, build, gradient
from torch import Tensor

from dropreg import (
    CrossEntropy,
    dropout_k_loss,
    errors,
    explicit_regularizer,
    gradient_noise,
    implicit_noise,
    measure_explicit,
    replace_dropout,
    sample,
)

DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    ),
]
pytestmark = pytest.mark.parametrize("device", DEVICES)
NETWORKS = [
    "tanh_network",
    "locked_rnn",
    "channels",
    "batch_norm",
    "layer_norm",
    "attention",
    "lstm",
]
METHODS = [
    "exact",
    "sampled_labels",
    "jvp",
    "central",
    "full_hessian",
    "monte_carlo",
    "identity",
    "loss_jacobian",
    "central_identity",
    "central_loss_jacobian",
]


def setup(name: str, device: str, dtype: torch.dtype = torch.float64) -> tuple[Case, Tensor]:
    """The case with its model and inputs moved; the oracle's network goes with the weights."""
    case = build(BUILDERS[name])
    y = oracle.targets_for(case, SPECS["cross_entropy"])
    x = case.inputs.to(device)
    x = x.to(dtype) if x.is_floating_point() else x
    return Case(case.model.to(device, dtype), x, case.net, case.mask_shapes, case.ps), y.to(device)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("law", ["bernoulli", "rademacher", "gaussian"])
def test_a_cpu_generator_gives_the_same_mask_everywhere(device: str, law: str) -> None:
    here = sample(law, (3, 4), 0.3, generator=seeded())
    there = sample(law, (3, 4), 0.3, generator=seeded(), device=device)
    assert there.device.type == device
    assert torch.equal(here, there.cpu())
    own = torch.Generator(device).manual_seed(0)
    assert sample(law, (3, 4), 0.3, generator=own).device.type == device
    assert sample(law, (3, 4), 0.3, device=device).device.type == device


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("method", METHODS)
def test_explicit_as_on_the_cpu(device: str, name: str, method: str) -> None:
    """Value and gradient in float64, from the same random numbers."""
    results = []
    for where in ("cpu", device):
        case, y = setup(name, where)
        value = explicit_regularizer(
            case.model, case.inputs, targets=y, method=method, generator=seeded()
        )
        results.append(torch.cat([value[None].to(where), gradient(value, case)]).cpu())
    torch.testing.assert_close(*results, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("name", ["tanh_network", "locked_rnn", "lstm", "attention"])
def test_training_losses_as_on_the_cpu(device: str, name: str) -> None:
    results = []
    for where in ("cpu", device):
        case, y = setup(name, where)
        batch = (case.model, case.inputs, y)
        values = [
            implicit_noise(*batch, generator=seeded()),
            implicit_noise(*batch, method="central", generator=seeded()),
            implicit_noise(*batch, method="dropout_pair", generator=seeded()),
            dropout_k_loss(*batch, 3, generator=seeded()),
            dropout_k_loss(*batch, 3, chunk=2, generator=seeded()),
        ]
        for method in ("central", "even_odd", "sampled_labels", "full_hessian"):
            training = replace_dropout(case.model, method=method, generator=seeded())
            values.append(training.loss(case.inputs, y))
        assert all(value.device.type == where for value in values)
        rows = [torch.cat([v[None], gradient(v, case)]) for v in values]
        results.append(torch.stack(rows).cpu())
    torch.testing.assert_close(*results, rtol=1e-7, atol=1e-8)


def test_measurements_as_on_the_cpu(device: str) -> None:
    means, rows = [], []
    for where in ("cpu", device):
        case, y = setup("tanh_network", where)
        batch = (case.model, case.inputs, y)
        means.append(measure_explicit(*batch, mc_samples=20, generator=seeded()).mean)
        for method in ("dropout", "analytic"):
            rows.append(
                gradient_noise(
                    *batch, method=method, mc_samples=5, projections=4, generator=seeded()
                ).cpu()
            )
    assert means[0] == pytest.approx(means[1])
    torch.testing.assert_close(rows[:2], rows[2:])


@pytest.mark.parametrize("name", ["tanh_network", "lstm", "attention"])
def test_float32_by_every_method(device: str, name: str) -> None:
    """Also where PyTorch would use fused kernels: cuDNN, fused attention, oneDNN."""
    for method in METHODS:
        results = []
        for where, dtype in (("cpu", torch.float64), (device, torch.float32)):
            case, y = setup(name, where, dtype)
            value = explicit_regularizer(
                case.model, case.inputs, targets=y, method=method, generator=seeded()
            )
            results.append(torch.cat([value[None].to(where), gradient(value, case)]).double().cpu())
        scale = results[0].abs().max().item()
        torch.testing.assert_close(*results, rtol=1e-3, atol=1e-3 * scale)


def test_autocast(device: str) -> None:
    """Squares and sums in float32, close to the float32 value; "central" is refused."""
    case, y = setup("tanh_network", device, torch.float32)
    batch = (case.model, case.inputs)
    for method in ("exact", "sampled_labels", "jvp", "monte_carlo", "identity", "loss_jacobian"):
        values = []
        for enabled in (False, True):
            with torch.autocast(device, torch.bfloat16, enabled=enabled):
                values.append(
                    explicit_regularizer(*batch, targets=y, method=method, generator=seeded())
                )
        assert values[1].dtype is torch.float32
        torch.testing.assert_close(*values, rtol=0.05, atol=0.02)
        gradient(values[1], case)
    with torch.autocast(device, torch.bfloat16):
        with pytest.raises(errors.PrecisionError, match="float32"):
            explicit_regularizer(*batch, targets=y, method="central")
        with pytest.raises(errors.PrecisionError, match="float32"):
            implicit_noise(*batch, y, method="central")
        with pytest.raises(errors.PrecisionError, match="even_odd"):
            replace_dropout(case.model, method="central").loss(case.inputs, y)
        total = replace_dropout(case.model, method="even_odd", generator=seeded()).loss(
            case.inputs, y
        )
    assert total.dtype is torch.float32
    assert gradient(total, case).isfinite().all()


def test_half_precision_model(device: str) -> None:
    """A bfloat16 model by the methods that allow it, close to the float64 value."""
    case64, y = setup("tanh_network", "cpu")
    case, y = setup("tanh_network", device, torch.bfloat16)
    loss = CrossEntropy()
    for method in ("exact", "sampled_labels", "loss_jacobian"):
        reference = explicit_regularizer(
            case64.model,
            case64.inputs,
            loss=loss,
            targets=y.cpu(),
            method=method,
            generator=seeded(),
        )
        value = explicit_regularizer(
            case.model, case.inputs, loss=loss, targets=y, method=method, generator=seeded()
        )
        assert value.dtype is torch.float32
        torch.testing.assert_close(value.double().cpu(), reference, rtol=0.1, atol=0.02)
    with pytest.raises(errors.PrecisionError):
        explicit_regularizer(case.model, case.inputs, method="central")


def test_settings_of_the_backends_come_back(device: str) -> None:
    """Kernels and precision are chosen for one call, also when it fails."""
    backends = torch.backends

    def precisions() -> list[object]:
        if not hasattr(backends.cuda.matmul, "fp32_precision"):  # before PyTorch 2.9
            return [backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32]
        owners = (backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn)
        return [owner.fp32_precision for owner in owners]

    def state() -> list[object]:
        return [
            backends.cudnn.enabled,
            backends.cudnn.benchmark,
            backends.mkldnn.enabled,
            *precisions(),
            backends.cuda.flash_sdp_enabled(),
            backends.cuda.mem_efficient_sdp_enabled(),
            backends.cuda.math_sdp_enabled(),
        ]

    case, y = setup("lstm", device)
    before = state()
    for method in METHODS:
        explicit_regularizer(case.model, case.inputs, targets=y, method=method)
        assert state() == before
    implicit_noise(case.model, case.inputs, y)
    for method in ("full_hessian", "jvp", "central"):
        with pytest.raises(errors.InputError):
            explicit_regularizer(case.model, case.inputs, targets=y[:, :2], method=method)
        assert state() == before
