r"""Training losses: Dropout_k, dropout replaced by its derived effects, any objective and noise.

One update follows the gradient of an objective, the plain loss or one that is regularized, plus a
gradient noise of mean zero (Algorithm 2 of Wei, Kakade and Ma 2020). A `Rule` names the two, an
`Update` carries them out; `replace_dropout` and `dropout_k_loss` are the rules that most people
want, as a scalar for ``backward`` and any optimizer. Batch-norm statistics are updated once an
update, as by one ordinary training pass, however many passes are made: by the last of the
objective's, so that all of them start from the same buffers.

Where several processes train one model (DDP, FSDP), each must draw its own noise: the same seed on
every rank gives the same masks on every rank, and the noise does not average out as it does with
one large batch. ``transformers.Trainer`` seeds every rank alike (huggingface/transformers#31412).
So give each rank a generator of its own, ``torch.Generator().manual_seed(seed + rank)``.
"""

from __future__ import annotations

import math
import operator
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial, reduce
from itertools import islice
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo  # torch.compiler.disable, but brings no compiler
from torch.autograd.graph import Node
from torch.utils._pytree import tree_map

from dropreg.control.kernels import float32_precision, without_gradients
from dropreg.control.passes import Output
from dropreg.errors import Choice, InputError, NotYetSupportedError, PrecisionError
from dropreg.explicit import QUADRATICS, ExplicitMethod, regularizer
from dropreg.fused import Pair, pair
from dropreg.implicit import ImplicitMethod, noise_term
from dropreg.losses import AnyLoss, Loss, ratio, resolve
from dropreg.noise import Law, Sampler, sampler_of
from dropreg.noisy_loss import (
    DEFAULT_STEP,
    NoisyLoss,
    Sampling,
    central_logits,
    require_count,
    require_precise,
)
from dropreg.probes import clean
from dropreg.share import Split, Taken, layout, passes, size


class Objective(Choice):
    """What the expected update descends."""

    NONE = "none"
    """The loss of the clean network."""
    L2 = "l2"
    """The clean loss and half the strength times the squared norm of all parameters."""
    DROPOUT_K = "dropout_k"
    """The loss averaged over k dropout masks (Algorithm 1)."""
    EVEN = "even"
    """The even part of the noisy loss, (l(+eta) + l(-eta))/2: dropout's objective up to fourth
    moments of the noise, without the odd orders that are most of its noise."""
    EXPLICIT = "explicit"
    """The clean loss and the strength times R_approx, by the rule's method; some methods are the
    ablations of Section 5.2 and Table 1."""


_WITH_STRENGTH = (Objective.L2, Objective.EVEN, Objective.EXPLICIT)


class GradientNoise(Choice):
    """What is added to the gradient, with mean zero."""

    NONE = "none"
    """Nothing."""
    DROPOUT_PAIR = "dropout_pair"
    """The difference of two masks' gradients over the root of 2 (Section 3.1)."""
    ANALYTIC = "analytic"
    """xi_approx with Rademacher noise (Section 4)."""
    ODD = "odd"
    """The odd part of the noisy loss, (l(+eta) - l(-eta))/2."""


@dataclass(frozen=True)
class Rule:
    """An objective and a noise.

    Attributes:
        objective: What the expected update descends.
        noise: What is added to it.
        k: Number of masks of "dropout_k".
        strength: Factor on the regularizer of "l2" and "explicit", and on the explicit effect in
            "even"; 1 is dropout's own.
        method: How "explicit" computes its regularizer. Its analytic noise comes with "central" and
            its two ablations from the same two passes, and with every other method from a double
            backward, as published.
        noise_scale: Factor on the noise. If None the paper's: sqrt(1 - 1/k) for "dropout_k", which
            brings the covariance back to that of a single mask, and else 1.
        every: Take "explicit" and its noise at every n-th update only, n times as strong and the
            noise sqrt(n) times: over n updates the same mean and the same covariance, at 1 + 1/n
            passes an update. The others follow the clean loss.
        probes: How many probes "even" and "explicit" average in each update. One has a noise of its
            own: its regularizer is right in the mean only. The gradient noise stays as strong.
        share: Share f of the batch whose examples have noise; the others follow the clean loss.
            The regularizer is 1/f times as strong there and the noise 1/sqrt(f) times, so that mean
            and covariance stay, at 1 + f passes an update (1 + 2f with "even"); see
            `dropreg.share`. For "even", and for "explicit" by two passes.

    Raises:
        InputError: If a name is unknown, or an option does not belong to the objective.
    """

    objective: Objective | str
    noise: GradientNoise | str = GradientNoise.NONE
    k: int = 1
    strength: float = 1.0
    method: ExplicitMethod | str = ExplicitMethod.CENTRAL
    noise_scale: float | None = None
    every: int = 1
    probes: int = 1
    share: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what cannot be, and fill in the noise's scale."""
        for name, kind in (
            ("objective", Objective),
            ("noise", GradientNoise),
            ("method", ExplicitMethod),
        ):
            object.__setattr__(self, name, kind(getattr(self, name)))
        for name in ("k", "every", "probes"):
            require_count(name, getattr(self, name))
        object.__setattr__(self, "strength", _finite("strength", self.strength))
        if self.k > 1 and self.objective is not Objective.DROPOUT_K:
            raise InputError(f"k={self.k} masks belong to 'dropout_k', not to '{self.objective}'.")
        if self.every > 1 and self.objective is Objective.EVEN:
            raise InputError(
                f"every={self.every} with 'even_odd' would give the clean loss the weight "
                f"{1 - self.every}, and training could run away. Use method='central'."
            )
        if self.every > 1 and self.objective is not Objective.EXPLICIT:
            raise InputError(
                f"every={self.every} belongs to 'explicit', not to '{self.objective}'."
            )
        if self.probes > 1 and self.objective not in (Objective.EVEN, Objective.EXPLICIT):
            raise InputError(
                f"probes={self.probes} belongs to 'even' and 'explicit', not to '{self.objective}'."
            )
        self._check_share()
        if self.objective is Objective.L2 and not self.strength >= 0:
            raise InputError(f"strength is {self.strength}; it must not be negative.")
        if self.noise_scale is None:
            share = 1 - 1 / self.k if self.objective is Objective.DROPOUT_K else 1.0
            object.__setattr__(self, "noise_scale", share**0.5)
        object.__setattr__(self, "noise_scale", _finite("noise_scale", self.noise_scale))

    def _check_share(self) -> None:
        share = _finite("share", self.share)
        if not 0 < share <= 1:
            raise InputError(f"share is {share}; it must be above 0 and at most 1, all examples.")
        if share == 1:
            return
        two_passes = self.objective is Objective.EVEN or (
            self.objective is Objective.EXPLICIT and ExplicitMethod(self.method).is_central
        )
        if not two_passes:
            raise InputError(
                f"share={share} belongs to the methods by two passes, 'central' and 'even_odd', "
                "not to this one."
            )
        if self.every > 1:
            raise InputError(f"share={share} and every={self.every} do one thing: choose one.")
        if self.noise not in (GradientNoise.NONE, self._matching):
            raise InputError(
                f"share={share} brings its own noise, '{self._matching}', not '{self.noise}'."
            )

    @property
    def _matching(self) -> GradientNoise:
        """The noise that comes with an even part or R_approx from the same passes."""
        return GradientNoise.ODD if self.objective is Objective.EVEN else GradientNoise.ANALYTIC

    @property
    def label(self) -> str:
        """A short name, different for different rules, that can be part of a file's name."""
        name = str(self.objective)
        if self.objective is Objective.DROPOUT_K:
            name = f"dropout_{self.k}"
        elif self.objective is Objective.EXPLICIT:
            name = str(self.method)
        if self.objective in _WITH_STRENGTH and self.strength != 1:
            name += f"-{self.strength:g}"
        if self.noise is not GradientNoise.NONE:
            name += f"+{self.noise}"
            usual = Rule(self.objective, k=self.k).noise_scale
            name += "" if self.noise_scale == usual else f"-{self.noise_scale:g}"
        counts = {"every": self.every, "probes": self.probes}
        name += "".join(f"-{what}{n}" for what, n in counts.items() if n > 1)
        return name if self.share == 1 else f"{name}-share{self.share:g}"


def _finite(name: str, value: Any) -> float:
    """A strength as a number."""
    if isinstance(value, Tensor):
        if value.requires_grad:
            raise InputError(
                f"{name} is a tensor that requires a gradient, and none reaches a strength: a loss "
                "that could lower its own regularizer would. Pass a number, or the tensor's "
                ".detach(), and tune it on held-out data."
            )
        value = value.item() if value.ndim == 0 else value
    if not isinstance(value, Real) or isinstance(value, bool) or not math.isfinite(value):
        raise InputError(f"{name} is {value!r}; it must be a finite number.")
    return value  # type: ignore[return-value]


class Update:
    r"""Algorithm 2: one update's loss after the other, by a rule.

    An update is a sum of scalars, whose gradients add up: those of the objective, and those of the
    gradient noise. They come one at a time, so that memory is needed for one.

    Attributes:
        rule: The rule; may be changed between two updates.
        parts: What the last update was made of, as detached scalars before their strengths:
            "clean", the loss without noise; "explicit"; "implicit". With "even" at strength 1 there
            is "even", clean and explicit in one. After `backward` there are "objective" and "noise"
            too, in float64. What was not computed is absent.

    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 2))
    >>> noisy = NoisyLoss(model, torch.randn(2, 4), "cross_entropy", torch.tensor([0, 1]))
    >>> update = Update(Rule("dropout_k", noise="dropout_pair", k=2))
    >>> [name for name, scalar in update.terms(noisy)]
    ['objective', 'objective', 'noise', 'noise']
    """

    def __init__(
        self,
        rule: Rule,
        *,
        law: Law | str | Sampler | None = None,
        step: float = DEFAULT_STEP,
        generator: torch.Generator | None = None,
        carry: bool = False,
        split: Split | None = None,
    ) -> None:
        """Begin with no update done.

        Args:
            rule: The rule.
            law: Law of the noise; if None Bernoulli for masks, and else Rademacher.
            step: Scale of the probe in "central"; see `dropreg.noisy_loss.DEFAULT_STEP`.
            generator: Source of the noise; the default generator if None.
            carry: Whether the clean network's output is wanted after "central" too, whose two
                passes end in the states of a probe and its mirror image; it costs a pass without
                gradients. On a share of the batch the mean of the two stands for it, for nothing.
            split: Takes the inputs of some examples; see `dropreg.share.layout`.
        """
        self.rule, self.parts = rule, dict[str, Tensor]()
        self._returned: Callable[[], Any] = _nothing
        self._split = split
        self._sampling = Sampling(1, law, step, generator)
        self._carry, self._done = carry, 0

    @property
    def output(self) -> Any:
        """What the model returned in the pass that counts, for instance logits and a recurrent
        state to carry on: under a mask for objectives with dropout, else of the clean network (with
        "central" of its second pass, unless `carry`). On a share of the batch it is put together
        when it is asked for: for an example with noise the mean of probe and mirror image.
        """  # noqa: D205
        return self._returned()

    @output.setter
    def output(self, value: Any) -> None:
        self._returned = partial(_as_it_is, value)

    def terms(self, noisy: NoisyLoss) -> Iterator[tuple[str, Tensor]]:
        """The scalars whose gradients add up to the update.

        Where every dropout has probability 0, as at the start of a schedule, both effects are zero,
        and so is what an ablation takes in their place: there is the clean loss alone.

        Args:
            noisy: Model and batch.

        Yields:
            "objective" or "noise", and a scalar.
        """
        rule, self.parts = self._rule_of_this_update(), {}
        if not noisy.sites:
            kept = Objective.L2 if rule.objective is Objective.L2 else Objective.NONE
            rule = Rule(kept, strength=rule.strength if kept is Objective.L2 else 1.0)
        derived = rule.objective in (Objective.EVEN, Objective.EXPLICIT)
        together = derived and rule.noise is rule._matching
        assert rule.noise_scale is not None
        if rule.objective is Objective.DROPOUT_K:
            for index in range(rule.k):
                yield "objective", self._masked(noisy, last=index == rule.k - 1) / rule.k
        elif derived:
            # A mean over n draws has an n-th of their covariance; the noise is to keep all of it.
            noise_scale = rule.probes**0.5 * rule.noise_scale if together else 0.0
            totals: dict[str, Tensor] = {}
            for index in range(rule.probes):
                last = index == rule.probes - 1
                yield "objective", self._derived(noisy, rule, noise_scale, last) / rule.probes
                for name, part in self.parts.items():
                    totals[name] = totals[name] + part if name in totals else part
            self.parts = {name: total / rule.probes for name, total in totals.items()}
        else:
            loss = noisy(clean, update_buffers=True)
            self.output, self.parts = noisy.output, {"clean": loss.detach()}
            if rule.objective is Objective.L2:
                weights = (p for p in noisy.model.parameters() if p.requires_grad)
                squares = torch.stack([w.square().sum() for w in weights])
                loss = loss + 0.5 * rule.strength * squares.sum()
            yield "objective", loss
        if rule.noise is GradientNoise.DROPOUT_PAIR:
            at_full_strength = rule.objective in (Objective.DROPOUT_K, Objective.EVEN)
            for sign in (+1, -1):
                masked = self._masked(noisy, output=at_full_strength)
                yield "noise", sign * rule.noise_scale / 2**0.5 * masked
        elif rule.noise is not GradientNoise.NONE and not together:
            odd = rule.noise is GradientNoise.ODD
            method = ImplicitMethod.EVEN_ODD if odd else ImplicitMethod.CENTRAL
            yield "noise", rule.noise_scale * noise_term(noisy, method, self._sampling)
        self._done += 1

    def loss(self, noisy: NoisyLoss) -> Tensor:
        """The sum of the terms.

        Args:
            noisy: Model and batch.

        Returns:
            A scalar in the loss's unit.
        """
        return reduce(operator.add, (scalar for _, scalar in self.terms(noisy)))

    def backward(self, noisy: NoisyLoss) -> None:
        """Add the update's gradient to every parameter's ``.grad``, one term at a time.

        Args:
            noisy: Model and batch.
        """
        totals: dict[str, Tensor] = {}
        for name, scalar in self.terms(noisy):
            scalar.backward()
            value = scalar.detach().double()
            totals[name] = totals[name] + value if name in totals else value
        self.parts |= totals

    def __getstate__(self) -> dict[str, Any]:
        """What a copy or a pickle takes along: all but `output`, which is bound to a graph."""
        return self.__dict__ | {"_returned": _nothing}

    def _rule_of_this_update(self) -> Rule:
        """The rule with the strengths that it has now."""
        n = self.rule.every
        if n == 1:
            return self.rule
        if self._done % n:
            return Rule(Objective.NONE)
        assert self.rule.noise_scale is not None
        # Independent draws: n terms of strength 1 and one of sqrt(n) have the same covariance.
        strengths = {
            "strength": n * self.rule.strength,
            "noise_scale": n**0.5 * self.rule.noise_scale,
        }
        return replace(self.rule, **strengths, every=1)

    def _masked(self, noisy: NoisyLoss, *, last: bool = False, output: bool = True) -> Tensor:
        """The loss under one dropout mask."""
        if output:
            self._returned = _nothing  # that of the mask before takes up memory
        loss = noisy(self._sampling.probe(Law.BERNOULLI).at(1.0), update_buffers=last)
        if output:
            self.output = noisy.output
        return loss

    def _derived(self, noisy: NoisyLoss, rule: Rule, implicit: float, last: bool) -> Tensor:
        """The clean loss plus each derived effect times its strength; the last may set buffers."""
        strengths, method = {"explicit": rule.strength, "implicit": implicit}, rule.method
        assert isinstance(method, ExplicitMethod)
        if not any(strengths.values()):
            parts = {"clean": noisy(clean, update_buffers=last)}
        elif (taken := self._taken(noisy, rule, last)) is not None:
            return self._of_share(taken, rule, strengths)
        elif rule.objective is Objective.EVEN:
            parts = self._even_odd(noisy, **strengths, last=last)
        elif method.is_central:
            return self._central(noisy, method, strengths, last)
        else:
            parts = self._separate(noisy, method, **strengths, last=last)
        self.output = noisy.output
        self.parts = {name: part.detach() for name, part in parts.items()}
        return reduce(operator.add, (strengths.get(n, 1.0) * part for n, part in parts.items()))

    def _taken(self, noisy: NoisyLoss, rule: Rule, last: bool) -> Taken | None:
        """The batch taken apart, after its passes; None where all examples have noise."""
        if rule.share == 1:
            return None
        found = layout(noisy, self._split)
        some = size(found, rule.share)
        if some == found.examples:
            return None
        is_even = rule.objective is Objective.EVEN
        scale = 1.0 if is_even else self._sampling.step
        options: dict[str, Any] = {"split": self._split, "update_buffers": last}
        with nullcontext() if is_even else float32_precision():
            taken = passes(noisy, found, some, self._sampling, scale, clean_too=is_even, **options)
        if not is_even:
            require_precise(noisy, taken.ends[0].up, noisy.sites, scale)
        return taken

    def _of_share(self, taken: Taken, rule: Rule, strengths: Mapping[str, float]) -> Tensor:
        """The clean loss and both effects from passes in which a share has noise."""
        step, criterion = self._sampling.step, taken.criterion
        total = torch.zeros((), device=taken.ends[0].up.device)
        if taken.rest is not None:
            total = criterion.mean(*taken.rest)
        sums = defaultdict(lambda: torch.zeros_like(total), clean=total.detach())
        for ends in taken.ends:
            factors = {"explicit": ends.explicit, "implicit": ends.implicit}
            weights = {name: factors[name] * s for name, s in strengths.items()}
            if rule.objective is Objective.EVEN:
                assert ends.clean is not None
                base, up, down = (
                    criterion.mean(x, ends.targets) for x in (ends.clean, ends.up, ends.down)
                )
                of = {
                    "clean": base,
                    "explicit": (up + down) / 2 - base,
                    "implicit": (up - down) / 2,
                }
                total = total + base + sum(w * of[name] for name, w in weights.items() if w)
            else:
                method = rule.method
                assert isinstance(method, ExplicitMethod)
                of_pair = _pair(method, criterion, ends.up, ends.down, ends.targets, step, weights)
                total, of = total + of_pair.total, of_pair._asdict()
            sums["clean"] = sums["clean"] + of["clean"].detach()
            for name, factor in factors.items():
                sums[name] = sums[name] + factor * of[name].detach()
        kept = ["clean", *(name for name, s in strengths.items() if s != 0)]
        self.parts = {name: ratio(sums[name], taken.count).detach() for name in kept}
        self._returned = taken.output
        return ratio(total, taken.count)

    def _central(
        self, noisy: NoisyLoss, method: ExplicitMethod, strengths: dict[str, float], last: bool
    ) -> Tensor:
        """Both effects from a short antithetic pair."""
        step, targets = self._sampling.step, noisy.require_targets()
        up, down = central_logits(noisy, self._sampling.probe(), step, update_buffers=last)
        self.output = noisy.output
        both = _pair(method, noisy.criterion, up, down, targets, step, strengths)
        kept = ["clean", *(name for name, s in strengths.items() if s != 0)]
        self.parts = {name: part for name, part in both._asdict().items() if name in kept}
        if self._carry and last:
            with without_gradients():
                noisy(clean)
            self.output = noisy.output
        return both.total

    def _even_odd(
        self, noisy: NoisyLoss, *, explicit: float, implicit: float, last: bool
    ) -> dict[str, Tensor]:
        """Both effects from an antithetic pair at full strength."""
        probe = self._sampling.probe()
        down = noisy(probe.at(-1.0))
        base = None if explicit == 1 else noisy(clean)
        up = noisy(probe.at(1.0), update_buffers=last)
        even = (up + down) / 2
        parts = {"even": even} if base is None else {"clean": base, "explicit": even - base}
        return parts | ({"implicit": (up - down) / 2} if implicit else {})

    def _separate(
        self,
        noisy: NoisyLoss,
        method: ExplicitMethod,
        *,
        explicit: float,
        implicit: float,
        last: bool,
    ) -> dict[str, Tensor]:
        """The clean loss, and each effect by a computation of its own."""
        parts: dict[str, Tensor] = {}
        if explicit:
            parts["explicit"] = regularizer(noisy, method, self._sampling)
        if implicit:
            parts["implicit"] = noise_term(noisy, ImplicitMethod.ANALYTIC, self._sampling)
        return {"clean": noisy(clean, update_buffers=last), **parts}


def _pair(
    method: ExplicitMethod,
    criterion: Loss,
    up: Tensor,
    down: Tensor,
    targets: Tensor,
    step: float,
    strengths: Mapping[str, float],
) -> Pair:
    """Both effects from the logits of a short pair, or with what a method puts in place of one."""
    ablated = method is not ExplicitMethod.CENTRAL
    of_pair = {**strengths, "explicit": 0.0} if ablated else strengths
    both = pair(criterion, up, down, targets, step=step, **of_pair)
    if not ablated:
        return both
    in_place = QUADRATICS[method](criterion, up, down, step, targets)
    total = both.total + strengths["explicit"] * in_place
    return both._replace(total=total, explicit=in_place.detach())


# Control of a model is Python that runs around every operation, which torch.compile cannot trace.
# So in a compiled step it runs as it is, between two compiled parts, as PyTorch's optimizers do.
@_disable_dynamo
def dropout_k_loss(
    model: nn.Module,
    inputs: Any,
    targets: Tensor,
    k: int,
    *,
    loss: AnyLoss = "cross_entropy",
    output: Output | None = None,
    chunk: int | None = None,
    distribution: Law | str | Sampler = "bernoulli",
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""The loss averaged over `k` independent masks (Dropout_k, Algorithm 1).

    Its expectation is that of dropout for every `k`; the covariance of its gradient noise falls as
    :math:`1/k`.

    Args:
        model: Any model with dropout, in train mode.
        inputs: A tensor, a tuple of positional or a dict of keyword arguments for the model.
        targets: Labels.
        k: Number of masks, at least 1.
        loss: Name of the loss, a `dropreg.Loss`, PyTorch's own loss module, or a function.
        output: Picks the logits out of what the model returns, e.g. ``lambda o: o.start_logits``;
            if None, see `dropreg.control.passes.find_logits`.
        chunk: How many masks' activations to keep at a time. If None, all `k`. Otherwise gradients
            are taken chunk by chunk already in this call, which needs the memory of `chunk` masks
            and of one set of gradients, their sum so far. They are those of chunk=None, in whatever
            the loss depends on: parameters, inputs that require a gradient, and what lies before
            them. The result can then be differentiated once.
        distribution: Law of the noise.
        generator: Source of randomness; the default generator if None. With several processes seed
            it with seed + rank: the same seed on each rank gives the same masks.

    Returns:
        A scalar in the loss's unit. Where every dropout has probability 0 it is the clean loss.

    Raises:
        InputError: If an argument is wrong, or the targets do not fit.
        NoSitesError: If the model has no active dropout.
        UnsupportedError: If the model draws noise that cannot be controlled.
        LogitsError: If the output is not floating-point logits, or holds NaN.

    >>> _ = torch.manual_seed(0)
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 2))
    >>> dropout_k_loss(model, torch.randn(2, 4), torch.tensor([0, 1]), k=8, chunk=2).backward()
    """
    if chunk is not None:
        require_count("chunk", chunk)
    update = Update(Rule(Objective.DROPOUT_K, k=k), law=distribution, generator=generator)
    if chunk is None or not torch.is_grad_enabled():
        return update.loss(NoisyLoss(model, inputs, loss, targets, output))
    # What lies before the inputs is not to be walked through for each chunk: so the model is given
    # copies that begin a graph of their own. Their gradients are handed on at the end.
    copies: dict[Tensor, Tensor] = {}

    def begin_here(x: Any) -> Any:
        if not isinstance(x, Tensor) or x.is_leaf:
            return x
        return copies.setdefault(x, x.detach().requires_grad_())

    plain = dict(inputs) if isinstance(inputs, Mapping) else inputs
    noisy = NoisyLoss(model, tree_map(begin_here, plain), loss, targets, output)
    oldest = _age_of_a_node_made_now()
    masks = map(operator.itemgetter(1), update.terms(noisy))
    total, grads, leaves = torch.zeros(()), list[Tensor | None](), list[Tensor]()
    while some := list(islice(masks, chunk)):
        # The sum so far is the first thing that the backward pass meets: it adds to it, leaf by
        # leaf, whatever it finds later, so that there is never a second set of gradients.
        so_far = _WithGradients.apply(total.to(some[0]), grads, *leaves)
        share = reduce(operator.add, some, so_far)
        total = share.detach()
        if share.grad_fn is not None:  # else everything is frozen
            leaves, older = _leaves(share.grad_fn, oldest)
            with _without_hooks(leaves):
                # What was computed before this call, and not as an input, serves the next chunk.
                grads = [*torch.autograd.grad(share, leaves, retain_graph=older, allow_unused=True)]
        # Whatever holds a graph: this chunk's is to be gone before the next one's is made.
        del some, so_far, share
        noisy.output = update.output = None
    origin = {copy: x for x, copy in copies.items()}
    return _WithGradients.apply(total, grads, *(origin.get(x, x) for x in leaves))


def _nothing() -> None:
    return None


def _as_it_is(value: Any) -> Any:
    return value


def _age_of_a_node_made_now() -> int:
    """Nodes of the graph are numbered in the order in which they are made."""
    node: Any = torch.zeros((), requires_grad=True).view(()).grad_fn
    return int(node._sequence_nr())


def _leaves(root: Node, oldest: int) -> tuple[list[Tensor], bool]:
    """The tensors in which a graph ends, and whether a part of it is older than `oldest`."""
    leaves, older = list[Tensor](), False
    seen, found = {root}, [root]
    while found:
        node: Any = found.pop()
        if hasattr(node, "variable"):  # where a leaf's gradient is accumulated
            leaves.append(node.variable)
            continue
        older |= node._sequence_nr() < oldest
        new = {parent for parent, _ in node.next_functions if parent is not None} - seen
        seen |= new
        found += new
    return leaves, older


@contextmanager
def _without_hooks(leaves: Sequence[Tensor]) -> Iterator[None]:
    """Put the hooks of tensors aside: they are to see the whole gradient, once, at the end."""
    hooks = [(leaf._backward_hooks, dict(leaf._backward_hooks or {})) for leaf in leaves]
    try:
        for live, _ in hooks:
            if live:
                live.clear()
        yield
    finally:
        for live, kept in hooks:
            if live is not None:
                live.update(kept)


class _WithGradients(torch.autograd.Function):
    """A value whose gradients in some tensors are known already."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, grads: list[Tensor | None], *tensors: Tensor) -> Tensor:
        ctx.grads = grads
        return value.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        grads, ctx.grads = ctx.grads, None
        if grads is None:
            raise RuntimeError("the loss of a chunked dropout_k_loss can be differentiated once.")
        scaled = list[Tensor | None]()
        while grads:  # one at a time, as there may be no room for a copy of all
            grad = grads.pop(0)  # not scaled in place: two leaves may have been given one tensor
            # Factor by factor, as the loss may lie on another device than a weight.
            scaled.append(None if grad is None else grad * grad_output.to(grad.device))
        return None, None, *scaled


class DropoutReplacement:
    """A training loss without dropout and with its two effects; made by `replace_dropout`.

    It can be copied and pickled, also as a part of a module (`copy.deepcopy`,
    `torch.optim.swa_utils.AveragedModel`): the copy has a model and a generator of its own, in the
    same states, and no `output`, which belongs to a step that is past.

    Attributes:
        model: The model, as it was given.
        method: How the last loss was computed; None if that is left to the first, yet to come.
        parts: What the last loss was made of; see `Update`.
        share: The share of the batch on which the last loss took the effects.
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: Loss,
        update: Update,
        method: ExplicitMethod | None = None,
        pick: Output | None = None,
        strengths: Mapping[str, float] | None = None,
        share: float | None = None,
    ) -> None:
        """Bind a model, a loss, an update and its method; see `replace_dropout`."""
        self._pick, self._strengths = pick, strengths
        self.model, self._criterion, self._update = model, criterion, update
        self.method, self._chooses = method, method is None
        self._explicit, self._implicit = update.rule.strength, update.rule.noise_scale
        self.parts: dict[str, Tensor] = {}
        self.share = update.rule.share if share is None else share
        self._chooses_share = share is None

    @property
    def output(self) -> Any:
        """What the model returned for the last loss, for instance logits and a recurrent state to
        carry on; see `Update.output`.
        """  # noqa: D205
        return self._update.output

    @property
    def explicit(self) -> float:
        """Strength of the explicit effect; may be changed during training."""
        return self._explicit

    @explicit.setter
    def explicit(self, strength: float) -> None:
        self._explicit = _finite("explicit", strength)

    @property
    def implicit(self) -> float:
        """Strength of the implicit effect; may be changed during training."""
        assert self._implicit is not None
        return self._implicit

    @implicit.setter
    def implicit(self, strength: float) -> None:
        self._implicit = _finite("implicit", strength)

    @_disable_dynamo
    def loss(self, inputs: Any, targets: Tensor) -> Tensor:
        """The training loss of one batch.

        Args:
            inputs: A tensor, a tuple of positional or a dict of keyword arguments for the model.
            targets: Labels.

        Returns:
            A scalar in the loss's unit: the clean loss plus each effect times its strength; with
            `every` above 1, the clean loss alone in the updates between.

        Raises:
            InputError: If the targets do not fit.
            NoSitesError: If the model has no active dropout, for instance in eval mode.
            PrecisionError: If "central" runs in half precision or under autocast, or would if it
                could be replaced.
            UnsupportedError: If the model draws noise that cannot be controlled.
            LogitsError: If the output is not floating-point logits, or holds NaN.
        """
        noisy = NoisyLoss(self.model, inputs, self._criterion, targets, self._pick, self._strengths)
        low = noisy.sites.uses_half_precision or any(s.dtype.itemsize < 4 for s in noisy.sites)
        try:
            total = self._by(self._suitable(low), noisy)
        except PrecisionError:  # of "central": the audit was of the model in another precision
            if low or not self._chooses:
                raise
            total = self._by(self._suitable(True), noisy)
        self.parts = self._update.parts
        return total

    def _by(self, method: ExplicitMethod, noisy: NoisyLoss) -> Tensor:
        """The loss by a method."""
        self.method, update = method, self._update
        every = update.rule.every
        if self._chooses_share:
            self.share = self._default_share(noisy, method, every)
        update.rule = _rule_of(method, self.explicit, self.implicit, every, self.share)
        return update.loss(noisy)

    def _default_share(self, noisy: NoisyLoss, method: ExplicitMethod, every: int) -> float:
        """The share that a model, its batch and a method allow."""
        # On a share the even part at full strength is too noisy: see "What it costs".
        if every > 1 or not noisy.sites or not method.is_central:
            return 1.0
        try:
            found = layout(noisy, self._update._split)
        except NotYetSupportedError:
            return 1.0
        # No share has the covariance of noise that examples share, nor the statistics of a batch.
        return 1.0 if found.kinds[1] or found.normalizes else DEFAULT_SHARE

    def _suitable(self, low: bool) -> ExplicitMethod:
        """The method that was asked for, or else the default that suits a precision."""
        if not self._chooses:
            assert self.method is not None
            return self.method
        if not low:
            return ExplicitMethod.CENTRAL
        every = self._update.rule.every
        if every > 1 or not 0 <= self.explicit <= 1:
            raise PrecisionError(
                "the forward pass runs below float32, where the default method, 'central', is not "
                f"accurate, and 'even_odd' is not for every={every}, explicit={self.explicit}: the "
                "clean loss would have a negative weight. Use method='sampled_labels', or every=1 "
                "and explicit between 0 and 1, or leave autocast for this call."
            )
        if self.method is not ExplicitMethod.EVEN_ODD:
            warnings.warn(
                "the forward pass runs below float32 (autocast, or a model in half precision), "
                "where the difference of two nearby outputs drowns in rounding. So the effects are "
                "computed by method='even_odd' in place of 'central'; say method='even_odd' to "
                "choose it yourself.",
                stacklevel=5,  # where `loss` was called, past PyTorch's wrapper around it
            )
        return ExplicitMethod.EVEN_ODD

    def state_dict(self) -> dict[str, Any]:
        """What a training run needs to go on as if it had not stopped, beside the model's state.

        Returns:
            Numbers and a tensor, for `torch.save`: the strengths, how many losses have been
            computed (which counts for `every`), and the state of the generator, if there is one.
        """
        generator = self._update._sampling.generator
        return {
            "explicit": self.explicit,
            "implicit": self.implicit,
            "done": self._update._done,
            "generator": None if generator is None else generator.get_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another object, made with the same arguments, stopped.

        Args:
            state: What its `state_dict` returned.

        Raises:
            InputError: If it is no such state, or has the state of a generator where this object
                has none, or the other way round. Then nothing has changed.
        """
        names = set(self.state_dict())
        if not isinstance(state, Mapping) or set(state) != names:
            got = sorted(map(str, state)) if isinstance(state, Mapping) else type(state).__name__
            raise InputError(f"the state must have the entries {sorted(names)}; it has {got}.")
        strengths = {name: _finite(name, state[name]) for name in ("explicit", "implicit")}
        done, generator = state["done"], self._update._sampling.generator
        if not isinstance(done, int) or isinstance(done, bool) or done < 0:
            raise InputError(f"done is {done!r}; it must be a whole number, at least 0.")
        if (generator is None) != (state["generator"] is None):
            has, lacks = ("state", "object") if generator is None else ("object", "state")
            raise InputError(
                f"the {has} has a generator and the {lacks} has none: make this object with "
                f"generator={'None' if has == 'object' else 'torch.Generator()'}, as that one was."
            )
        if generator is not None:
            try:
                generator.set_state(state["generator"])
            except (RuntimeError, TypeError) as error:
                raise InputError(
                    f"the state's generator does not fit one of the device {generator.device}: "
                    f"{error}"
                ) from error
        self.explicit, self.implicit = strengths["explicit"], strengths["implicit"]
        self._update._done = done


DEFAULT_SHARE = 0.25
"""The share of the batch on which `replace_dropout` takes both effects, where it is free to choose.
The book's page *What it costs* has the measurements."""


def _rule_of(
    method: ExplicitMethod | str, explicit: float, implicit: float, every: int, share: float = 1.0
) -> Rule:
    """The rule of `replace_dropout`."""
    even_odd = ExplicitMethod(method) is ExplicitMethod.EVEN_ODD
    return Rule(
        objective=Objective.EVEN if even_odd else Objective.EXPLICIT,
        noise=GradientNoise.ODD if even_odd else GradientNoise.ANALYTIC,
        strength=explicit,
        method=ExplicitMethod.CENTRAL if even_odd else method,
        noise_scale=implicit,
        every=every,
        share=share,
    )


def replace_dropout(
    model: nn.Module,
    *,
    explicit: float = 1.0,
    implicit: float = 1.0,
    method: ExplicitMethod | str | None = None,
    loss: AnyLoss = "cross_entropy",
    output: Output | None = None,
    strengths: Mapping[str, float] | None = None,
    distribution: Law | str | Sampler | None = None,
    step: float = DEFAULT_STEP,
    every: int = 1,
    share: float | None = None,
    split: Split | None = None,
    generator: torch.Generator | None = None,
) -> DropoutReplacement:
    r"""Train a model without dropout, with dropout's explicit and implicit effect in its place.

    The loss is :math:`\ell(F(x)) + \lambda_e R_{approx} + \lambda_i\, \xi_{approx}` (Algorithm 2
    with the analytic forms of Section 4). The model keeps its dropout layers, which say where and
    how much; nothing in it is changed, and in eval mode it is the plain network, as always.

    Args:
        model: Any model with dropout, in train mode.
        explicit: Strength :math:`\lambda_e` of the explicit effect; 1 is dropout's own.
        implicit: Strength :math:`\lambda_i` of the implicit effect; 1 is dropout's own.
        method: "central" takes both effects from two ordinary passes close to the clean network.
            "even_odd" takes them from two passes at full strength: then the even part of the noisy
            loss stands for loss plus explicit effect, with all its orders, and the odd part is the
            noise, with all its odd orders; it also works in half precision. Keep `explicit` between
            0 and 1 there: beyond 1 the clean loss has a negative weight, and training can run away.
            "central_identity" and "central_loss_jacobian" are ablations that take both from the
            same two passes as "central". Any other `ExplicitMethod` computes the explicit effect
            by itself, and the noise by a double backward, as the paper does. The book's table of
            methods compares them. If None, "central"; where the forward pass runs below float32,
            and "central" is not accurate, "even_odd" with a warning. The result's `method` says
            which it was.
        loss: Name of the loss, a `dropreg.Loss`, PyTorch's own loss module, or a function.
        output: Picks the logits out of what the model returns, e.g. ``lambda o: o.start_logits``;
            if None, see `dropreg.control.passes.find_logits`.
        strengths: Factors on the variance of the noise by patterns of sites' names, for instance
            ``{"encoder.*": 0.5}``: on their explicit effect and on the covariance of their noise;
            see `dropreg.NoisyLoss`.
        distribution: Law of the noise; Rademacher if None.
        step: Scale of the probe in "central". Half the default is closer to the derivative for
            a smooth network, and farther from it for one with kinks; see
            `dropreg.noisy_loss.DEFAULT_STEP`.
        every: Take the effects in every n-th loss only, n times the explicit and sqrt(n) times the
            implicit one, and the clean loss in between: the same mean and covariance over n
            updates, for 1 + 1/n passes an update in place of two. Gradients clipped tightly undo
            this, as the stronger ones are cut; the book's chapter "What it costs" shows both. Not
            for "even_odd", whose explicit strength must not exceed 1.
        share: Share f of the batch on which both effects are taken, at random anew in each loss;
            the others have the clean loss. The effects are as strong there as mean and covariance
            need, 1/f and 1/sqrt(f) times, and a step takes 1 + f passes (1 + 2f by "even_odd") in
            place of 2. All examples if 1. If None, a quarter for "central" and its ablations, but
            all where examples share noise (dropped weights) or batch norm, where the batch cannot
            be taken apart, or for another method. See `dropreg.share`.
        split: Takes the model's inputs and the numbers of some examples, an int64 tensor, and
            returns the inputs of these; if None, found out by trying.
        generator: Source of randomness; the default generator if None. With several processes seed
            it with seed + rank: the same seed on each rank gives the same masks on each, and
            ``transformers.Trainer`` seeds every rank alike.

    Returns:
        An object whose ``loss(inputs, targets)`` is the loss to train on, and whose ``parts`` are
        its parts, for logging.

    Raises:
        InputError: If the method, the loss or the law is unknown, or another argument cannot be.

    >>> _ = torch.manual_seed(0)
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 2))
    >>> objective = replace_dropout(model)
    >>> objective.loss(torch.randn(2, 4), torch.tensor([0, 1])).backward()
    >>> list(objective.parts)
    ['clean', 'explicit', 'implicit']
    """
    explicit, implicit = _finite("explicit", explicit), _finite("implicit", implicit)
    chosen = None if method is None else ExplicitMethod(method)
    of_all = 1.0 if share is None else share
    rule = _rule_of(chosen or ExplicitMethod.CENTRAL, explicit, implicit, every, of_all)
    law = None if distribution is None else sampler_of(distribution)
    update = Update(rule, law=law, step=step, generator=generator, split=split)
    return DropoutReplacement(model, resolve(loss), update, chosen, output, strengths, share)
