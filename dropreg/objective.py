r"""The loss as a function of the noise, :math:`\ell(\theta;\, \varepsilon\,\eta)`.

Every site computes :math:`h + \varepsilon\,\eta \odot h`. At :math:`\varepsilon = 0` the network is
clean, at :math:`\varepsilon = 1` with Bernoulli noise it is under dropout. The slope of the loss at
0 is the implicit noise, and the mean curvature in logit space is the explicit regularizer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from dropreg import losses
from dropreg.audit import audited
from dropreg.errors import InputError, PrecisionError
from dropreg.noise import Probe
from dropreg.sites import Noise, Site, find_logits, run


def clean(site: Site) -> None:
    """The noise of the clean network: none."""


class NoisyLoss:
    """A model's mean loss on one batch, for any noise at its sites."""

    def __init__(
        self,
        model: nn.Module,
        inputs: Any,
        loss: str | losses.Loss,
        targets: Tensor | None = None,
    ) -> None:
        """Bind model and batch.

        Args:
            model: The model, in train mode.
            inputs: A tensor, a tuple of positional or a dict of keyword arguments for it.
            loss: Name of the loss, or a `dropreg.losses.Loss`.
            targets: Labels; without them only the logits can be asked for.

        Raises:
            InputError: If the loss is unknown.
            NoSitesError: If the model has no active dropout.
            UnsupportedError: If the model draws noise that cannot be controlled.
        """
        if torch.is_inference_mode_enabled():
            raise InputError("torch.inference_mode() forbids derivatives; use torch.no_grad().")
        self.criterion = losses.resolve(loss)
        self.model, self.inputs, self.targets = model, inputs, targets
        self.output: Any = None
        self._changes_buffers = audited(model, inputs)

    def logits(self, noise: Noise, *, update_buffers: bool = False) -> tuple[Tensor, list[Site]]:
        """One forward pass.

        Args:
            noise: The noise of each site.
            update_buffers: Whether batch-norm statistics and the like may change.

        Returns:
            The logits (..., C), and the sites that the pass met. `output` keeps all that the model
            returned.
        """
        scratch = self._changes_buffers and not update_buffers
        self.output, sites = run(self.model, self.inputs, noise, scratch=scratch)
        return find_logits(self.output), sites

    def __call__(self, noise: Noise, *, update_buffers: bool = False) -> Tensor:
        """The mean loss under the noise, a scalar; arguments as for `logits`."""
        logits, _ = self.logits(noise, update_buffers=update_buffers)
        return self.mean(logits)

    def mean(self, logits: Tensor) -> Tensor:
        """The mean loss of given logits, a scalar."""
        if self.targets is None:
            raise InputError("the loss needs targets.")
        return self.criterion.mean(logits, self.targets)


def default_step(dtype: torch.dtype) -> float:
    """The step that balances truncation and rounding in a central difference."""
    return float(torch.finfo(dtype).eps ** (1 / 3))


def central_logits(
    objective: NoisyLoss, probe: Probe, step: float | None, *, update_buffers: bool = False
) -> tuple[Tensor, Tensor, float]:
    r"""Logits at both ends of a short antithetic pair.

    Args:
        objective: Model and batch.
        probe: The noise.
        step: The strength :math:`\varepsilon`; `default_step` of the parameters' type if None.
        update_buffers: Whether the first of the two passes may change buffers.

    Returns:
        :math:`F(+\varepsilon\eta)`, :math:`F(-\varepsilon\eta)` and :math:`\varepsilon`.

    Raises:
        InputError: If the step is not positive.
        PrecisionError: If the forward pass runs below float32.
    """
    if step is None:
        types = (p.dtype for p in objective.model.parameters() if p.is_floating_point())
        dtype = next(types, torch.float32)
        step = default_step(torch.promote_types(dtype, torch.float32))
    if not step > 0:
        raise InputError(f"step is {step}; it must be positive.")
    with full_precision():
        up, sites = objective.logits(probe.at(step), update_buffers=update_buffers)
        low = {t for t in (up.dtype, *(s.dtype for s in sites)) if t.itemsize < 4}
        if low or torch.is_autocast_enabled(up.device.type):
            raise PrecisionError(
                "central differences need a float32 forward pass: half precision has too few bits "
                "for the difference of two nearby outputs. Leave autocast for this call, or use "
                "method='sampled_labels' or, in replace_dropout, 'even_odd'."
            )
        down, _ = objective.logits(probe.at(-step))
    return up, down, step


@contextmanager
def full_precision() -> Iterator[None]:
    """Switch TF32 off: its 10 bits of mantissa would drown a small difference."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    if hasattr(matmul, "fp32_precision"):  # PyTorch 2.9 and later
        off = _set([matmul, cudnn.conv, cudnn.rnn], "fp32_precision", "ieee")  # type: ignore[attr-defined]
    else:
        off = _set([matmul, cudnn], "allow_tf32", False)
    with off:
        yield


@contextmanager
def differentiable_kernels(*, forward_mode: bool = False) -> Iterator[None]:
    """Use kernels that can be differentiated twice, where PyTorch's fused ones cannot.

    Args:
        forward_mode: Whether they must support forward-mode differentiation as well.
    """
    # Not by the flags() contexts of the backends: those reset every other option as well.
    backends: list[Any] = [torch.backends.cudnn]
    if forward_mode:
        backends.append(torch.backends.mkldnn)
    with sdpa_kernel(SDPBackend.MATH), _set(backends, "enabled", False):
        yield


@contextmanager
def _set(owners: Sequence[Any], name: str, value: Any) -> Iterator[None]:
    """Set an attribute of each owner for the time being."""
    before = [getattr(owner, name) for owner in owners]
    try:
        for owner in owners:
            setattr(owner, name, value)
        yield
    finally:
        for owner, old in zip(owners, before, strict=True):
            setattr(owner, name, old)
