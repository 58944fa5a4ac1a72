r"""MC dropout: what a model predicts under its own masks, all else as at test time.

Dropout left on at test time makes a prediction random. The mean of the predictions is one of an
ensemble, and how far its members disagree says how little the data have settled (Gal and Ghahramani
2016, https://arxiv.org/abs/1506.02142).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils._pytree import tree_map

from dropreg import losses
from dropreg.control import Control, draws
from dropreg.control.audit import Watch, agree, looked_at
from dropreg.control.kernels import exclusive, without_gradients
from dropreg.control.passes import (
    Arguments,
    Output,
    call_arguments,
    find_logits,
    forward,
    require_sites,
)
from dropreg.errors import InputError, NotYetSupportedError
from dropreg.losses import AnyLoss, BinaryCrossEntropy, CrossEntropy, Loss, SquaredError
from dropreg.noise import Law
from dropreg.noisy_loss import Sampling
from dropreg.probes import Noise, clean


@dataclass(frozen=True, eq=False)  # whether two tensors are equal is no yes or no
class Prediction:
    r"""What a model predicts under its masks, for each example (or position).

    Attributes:
        mean: The mean of the predictions, in the shape of the logits: of the probabilities of the
            classes, of the probability of label 1, or of the output itself.
        variance: Their variance over the masks (with the divisor `mc_samples` - 1), in the same
            shape.
        entropy: Entropy of the mean prediction in nats, :math:`H(E\,p)`: all that is uncertain.
            Without the dimension of the classes; None for "squared_error".
        expected_entropy: Mean entropy of one prediction, :math:`E\,H(p)`: what stays uncertain
            whichever mask it is, such as a label that the input does not tell.
        mutual_information: Their difference, :math:`H(E\,p) - E\,H(p) \ge 0`: how far the masks
            disagree. An estimate from few masks is too small, by about (number of classes - 1) /
            (2 `mc_samples`) nats at most.
    """

    mean: Tensor
    variance: Tensor
    entropy: Tensor | None
    expected_entropy: Tensor | None
    mutual_information: Tensor | None


def predict(
    model: nn.Module,
    inputs: Any,
    *,
    loss: AnyLoss = "cross_entropy",
    output: Output | None = None,
    mc_samples: int = 20,
    generator: torch.Generator | None = None,
) -> Prediction:
    r"""Predict under the model's own random masks, also if it is in eval mode.

    Only dropout is on. All else is as in eval mode, batch norm for instance: without the masks the
    model computes what it computes there, or it is refused. Which dropouts are on is read from the
    modules' modes. If none is, as after ``model.eval()``, all are switched on. To have some of them
    only, or where a model cannot run in train mode, call ``model.eval()`` and then ``.train()`` of
    the modules that shall drop.

    Each of the `mc_samples` passes runs the whole batch without gradients, every example with masks
    of its own (a mask that the model shares, it shares here), and nothing of it is kept but sums.

    Args:
        model: Any model with dropout, in either mode; it is handed back as it came.
        inputs: A tensor, a tuple of positional or a dict of keyword arguments for the model.
        loss: Says what the logits mean: the loss that the model was trained with, by name, a
            `dropreg.Loss` or PyTorch's own module. "cross_entropy" takes their softmax,
            "binary_cross_entropy" the sigmoid of each, "squared_error" themselves.
        output: Picks the logits out of what the model returns, e.g. ``lambda o: o.start_logits``;
            if None, see `dropreg.control.passes.find_logits`.
        mc_samples: Number of masks, at least 2.
        generator: Source of randomness; the default generator if None.

    Returns:
        Mean, variance and, for classes, the entropies.

    Raises:
        InputError: If an argument is wrong, or the loss does not say what the logits mean.
        NoSitesError: If the model has no dropout, or its probabilities are 0.
        UnsupportedError: If the model draws noise that cannot be controlled, or its dropout cannot
            be switched on alone.

    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 2)).eval()
    >>> prediction = predict(model, torch.randn(5, 4), mc_samples=10)
    >>> prediction.mean.shape, prediction.mutual_information.shape
    (torch.Size([5, 2]), torch.Size([5]))
    """
    criterion = losses.resolve(loss)
    if not isinstance(criterion, CrossEntropy | BinaryCrossEntropy | SquaredError):
        raise InputError(
            f"{type(criterion).__name__} does not say which prediction the logits stand for. "
            "Choose 'cross_entropy' (their softmax), 'binary_cross_entropy' (the sigmoid of each) "
            "or 'squared_error' (themselves)."
        )
    sampling = Sampling(mc_samples, Law.BERNOULLI, generator=generator)
    if mc_samples < 2:
        raise InputError(f"mc_samples is {mc_samples}; a spread needs at least 2.")
    passes = _Passes(model, call_arguments(inputs), output or find_logits)
    with exclusive(), without_gradients(), _own_modes(model):
        with draws.restored():
            _switch_on_dropout_alone(passes)
        sums = _Sums(criterion)
        for number, probe in enumerate(sampling.probes()):
            control = passes.control(probe.at(1.0))
            sums.add(passes.logits(control, watched=number == 0))
    return sums.prediction()


class _Sums:
    """Running mean and variance of predictions, and the mean of their entropies, in float64."""

    def __init__(self, criterion: Loss) -> None:
        self._criterion = criterion
        self._count = 0
        self._mean = self._squares = self._entropy = torch.zeros(())

    def add(self, logits: Tensor) -> None:
        """Take in the logits of one pass."""
        p = self._predicted(logits)
        self._count += 1
        before = self._mean if self._count > 1 else torch.zeros_like(p)
        self._mean = before + (p - before) / self._count
        self._squares = self._squares + (p - before) * (p - self._mean)
        self._entropy = self._entropy + _entropy(p)
        self._dtype = torch.promote_types(logits.dtype, torch.float32)

    def _predicted(self, logits: Tensor) -> Tensor:
        if isinstance(self._criterion, CrossEntropy):
            logits = self._criterion.classes_to_last(logits)
            if logits.shape[-1] < 2:
                raise InputError(
                    f"logits of shape {tuple(logits.shape)} have one class, which is certain. For "
                    "one logit a label say loss='binary_cross_entropy'."
                )
            return logits.double().softmax(-1)
        if isinstance(self._criterion, BinaryCrossEntropy):  # of label 1, and of label 0
            return torch.stack([logits, -logits], -1).double().sigmoid()
        return logits.double()

    def prediction(self) -> Prediction:
        """What follows from all of them."""
        moments = [self._mean, self._squares / (self._count - 1)]
        if isinstance(self._criterion, CrossEntropy):
            moments = [self._criterion.classes_back(m) for m in moments]
        elif isinstance(self._criterion, BinaryCrossEntropy):
            moments = [m[..., 0] for m in moments]
        mean, variance = (m.to(self._dtype) for m in moments)
        if isinstance(self._criterion, SquaredError):
            return Prediction(mean, variance, None, None, None)
        entropy, expected = _entropy(self._mean), self._entropy / self._count
        information = (entropy - expected).clamp(min=0.0)  # below 0 by rounding alone
        return Prediction(
            mean, variance, *(x.to(self._dtype) for x in (entropy, expected, information))
        )


def _entropy(p: Tensor) -> Tensor:
    return torch.special.entr(p).sum(-1)


# ------------------------------------------------------------------------ dropout, and nothing else


class _Passes:
    """Passes of a model, each on copies of its inputs, buffers and attributes."""

    def __init__(self, model: nn.Module, arguments: Arguments, pick: Output) -> None:
        self.model, self._arguments, self._pick = model, arguments, pick
        self._audit = looked_at(model, arguments)

    def control(self, noise: Noise = clean) -> Control:
        """Control of one pass."""
        control = self._audit.control(noise)
        # So an in-place dropout does here what it does outside, whichever tensor is used then.
        control.write_back = True
        return control

    def run(self, control: Control, *, watched: bool = True) -> Any:
        """What the model returns in one pass; watched, it may not write to its parameters."""
        arguments = tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, self._arguments)
        with ExitStack() as stack:
            if watched:
                watch = Watch(control, self.model)
                stack.enter_context(watch.unwritten())
                stack.enter_context(watch)
            return forward(self.model, arguments, control, scratch=True, attributes=True)

    def logits(self, control: Control, *, watched: bool = True) -> Tensor:
        """The logits of one pass."""
        return find_logits(self._pick(self.run(control, watched=watched)))


@contextmanager
def _own_modes(model: nn.Module) -> Iterator[None]:
    """Set the modes of all modules back, whatever happens."""
    before = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, mode in before:
            module.training = mode


def _put(model: nn.Module, training: set[int]) -> None:
    """Put the modules with these ids into train mode, and all others into eval mode."""
    # Not by their train(), which may do more, or refuse to.
    for module in model.modules():
        module.training = id(module) in training


def _switch_on_dropout_alone(passes: _Passes) -> None:
    """Leave the modules in modes in which their dropouts are on and all else is as in eval mode."""
    model = passes.model
    # A norm of the batch drops nothing, and fails on a single example in train mode.
    able = {id(m) for m in model.modules() if not isinstance(m, _NormBase)}
    as_they_are = {id(m) for m in model.modules() if m.training} & able
    _put(model, set())
    never_off = passes.control()
    at_test_time = passes.logits(never_off).clone()  # the next pass may write to it
    for asked in (as_they_are, able):
        _put(model, asked)
        listed, running = _listed(passes)
        if listed.sites != never_off.sites:
            break
    require_sites(model, listed)
    # The module whose code drops mostly says by its own mode whether to; else one that called it.
    innermost = {id(modules[0]) for modules in running}
    for training in (innermost, {id(m) for modules in running for m in modules}):
        _put(model, training & asked)
        control = passes.control()
        same = agree(passes.logits(control), at_test_time)
        if same and control.sites == listed.sites:
            return
    why = (
        f"{len(listed.sites) - len(control.sites)} of {len(listed.sites)} dropouts are then off"
        if same
        else "even without noise the model then computes something else than in eval mode"
    )
    where = ", ".join(dict.fromkeys(site.name for site in listed.sites))
    raise NotYetSupportedError(
        f"dropout ({where}) cannot be switched on alone, with all else as at test time: {why}. A "
        "module that drops, or one that calls it, does something else in train mode too, such as "
        "F.batch_norm(..., training=self.training). Give its dropout an nn.Dropout of its own, or "
        "call model.eval() and then .train() of the modules that shall drop."
    )


def _listed(passes: _Passes) -> tuple[Control, list[list[nn.Module]]]:
    """A pass without noise that notes the sites, and which modules run at each, innermost first."""
    running: list[list[nn.Module]] = []
    control = passes.control(lambda _site: running.append(control.running()))
    passes.run(control)
    return control, running
