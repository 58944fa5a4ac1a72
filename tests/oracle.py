"""A dense oracle in float64, written for the tests alone.

A `Case` holds a network twice: as a module, which the library sees, and as an explicit function of
its weights and of one flat vector of noise, which the library does not see. From the second form
everything is computed the slow and obvious way: full Jacobians, full Hessians, explicit H_out
matrices, sums over all masks.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dropreg import CrossEntropy, LockedDropout, Loss, Site, shared_dropout
from dropreg.control import Control
from dropreg.control.passes import call_arguments, forward, require_sites
from dropreg.probes import Noise

Net = Callable[[Mapping[str, Tensor], Any, Sequence[Tensor]], Tensor]

FINE = 6e-6
"""The step at which rounding and truncation of a central difference balance in float64."""


def run(
    model: nn.Module, inputs: Any, noise: Noise, *, scratch: bool = True
) -> tuple[Any, list[Site]]:
    """One pass under a noise: what the model returns, and the sites met."""
    control = Control(noise)
    output = forward(model, call_arguments(inputs), control, scratch=scratch)
    require_sites(model, control)
    return output, control.sites


@dataclass(frozen=True)
class Case:
    """One network, as a module and as a function net(weights, inputs, one noise a site)."""

    model: nn.Module
    inputs: Any
    net: Net
    mask_shapes: tuple[tuple[int, ...], ...]
    ps: tuple[float, ...]

    @property
    def size(self) -> int:
        return sum(map(math.prod, self.mask_shapes))

    @property
    def variances(self) -> Tensor:
        return per_coordinate(self, lambda p: p / (1 - p))

    @property
    def zero(self) -> Tensor:
        return torch.zeros(self.size, dtype=torch.float64)

    def logits(self, eta: Tensor, weights: Mapping[str, Tensor] | None = None) -> Tensor:
        parts = eta.split([math.prod(shape) for shape in self.mask_shapes])
        etas = [part.reshape(shape) for part, shape in zip(parts, self.mask_shapes, strict=True)]
        return self.net(weights or dict(self.model.named_parameters()), self.inputs, etas)

    def at(self, q: float) -> "Case":
        """The same network with probability q at every site."""
        for module in self.model.modules():
            if hasattr(module, "p"):
                module.p = q
        return replace(self, ps=(q,) * len(self.ps))


def per_coordinate(case: Case, f: Callable[[float], float]) -> Tensor:
    return torch.cat(
        [
            torch.full((math.prod(shape),), f(p), dtype=torch.float64)
            for shape, p in zip(case.mask_shapes, case.ps, strict=True)
        ]
    )


@dataclass(frozen=True)
class Spec:
    """A loss: what the library is given, and its mean and Hessian in the flat logits, spelt out."""

    loss: str | Loss
    mean: Callable[[Tensor, Tensor], Tensor]
    hessian: Callable[[Tensor, Tensor], Tensor]
    targets: Callable[[tuple[int, ...]], Tensor]
    counted: Callable[[Tensor, Tensor], Tensor]
    """1 for each logit of a term that counts, 0 for the others, in the logits' shape."""
    count: Callable[[Tensor, Tensor], int]


def _cross_entropy(ignore_index: int | None = None, smoothing: float = 0.0) -> Spec:
    def counts(y: Tensor) -> Tensor:
        return torch.ones_like(y).double() if ignore_index is None else (y != ignore_index).double()

    def mean(logits: Tensor, y: Tensor) -> Tensor:
        classes = logits.shape[-1]
        label = torch.eye(classes, dtype=torch.float64)[y.clamp(min=0)]
        label = (1 - smoothing) * label + smoothing / classes
        per_term = logits.logsumexp(-1) - (label * logits).sum(-1)
        return (per_term * counts(y)).sum() / counts(y).sum()

    def hessian(logits: Tensor, y: Tensor) -> Tensor:
        p = logits.softmax(-1).flatten(0, -2) if logits.ndim > 1 else logits.softmax(-1)[None]
        weight = counts(y).flatten() / counts(y).sum()
        blocks = [
            w * (torch.diag(row) - torch.outer(row, row)) for w, row in zip(weight, p, strict=True)
        ]
        return torch.block_diag(*blocks)

    def targets(shape: tuple[int, ...]) -> Tensor:
        generator = torch.Generator().manual_seed(3)
        y = torch.randint(0, shape[-1], shape[:-1], generator=generator)
        if ignore_index is not None and y.numel() > 1:
            y.view(-1)[1] = ignore_index
        return y

    loss = CrossEntropy(-100 if ignore_index is None else ignore_index, smoothing, class_dim=-1)
    return Spec(
        loss,
        mean,
        hessian,
        targets,
        lambda logits, y: counts(y)[..., None].expand(logits.shape),
        lambda logits, y: int(counts(y).sum()),
    )


def _elementwise(
    name: str, mean: Callable[[Tensor, Tensor], Tensor], second: Callable[[Tensor], Tensor]
) -> Spec:
    def targets(shape: tuple[int, ...]) -> Tensor:
        generator = torch.Generator().manual_seed(3)
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    return Spec(
        name,
        mean,
        lambda logits, y: torch.diag(second(logits.flatten()) / logits.numel()),
        targets,
        lambda logits, y: torch.ones_like(logits),
        lambda logits, y: logits.numel(),
    )


SPECS: dict[str, Spec] = {
    "cross_entropy": _cross_entropy(),
    "ignore_index": _cross_entropy(ignore_index=-100),
    "ignore_class_0": _cross_entropy(ignore_index=0),
    "label_smoothing": _cross_entropy(smoothing=0.3),
    "smoothing_and_ignore": _cross_entropy(ignore_index=-100, smoothing=0.2),
    "binary_cross_entropy": _elementwise(
        "binary_cross_entropy",
        lambda logits, y: (F.softplus(logits) - y * logits).mean(),
        lambda f: torch.sigmoid(f) * (1 - torch.sigmoid(f)),
    ),
    "squared_error": _elementwise(
        "squared_error",
        lambda logits, y: (logits - y).square().mean(),
        lambda f: torch.full_like(f, 2.0),
    ),
}


# --- networks ------------------------------------------------------------------------------------


class _Lambda(nn.Module):
    """Layers and a forward pass written out in place."""

    def __init__(
        self, forward: Callable[[nn.Module, Any], Tensor], **parts: nn.Module | nn.Parameter
    ) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self._forward = forward

    def forward(self, x: Any) -> Tensor:
        return self._forward(self, x)


def _module(forward: Callable[[Any, Any], Tensor], **parts: Any) -> nn.Module:
    return _Lambda(forward, **parts).double()


def _lin(w: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def _tanh_network(shape: tuple[int, ...], p0: float = 0.2, p1: float = 0.5) -> Case:
    """Two sites with masks of their own for each example."""
    model = _module(
        lambda m, x: m.b(m.d1(m.a(m.d0(x)).tanh())),
        d0=nn.Dropout(p0),
        a=nn.Linear(shape[-1], 3),
        d1=nn.Dropout(p1),
        b=nn.Linear(3, 3),
    )

    def net(w: Mapping[str, Tensor], x: Tensor, etas: Sequence[Tensor]) -> Tensor:
        h = _lin(w, "a", x * (1 + etas[0])).tanh()
        return _lin(w, "b", h * (1 + etas[1]))

    x = torch.randn(shape, dtype=torch.float64)
    return Case(model, x, net, (shape, (*shape[:-1], 3)), (p0, p1))


def tanh_network() -> Case:
    return _tanh_network((4, 2))


def unbatched() -> Case:
    """Logits of shape (C,)."""
    return _tanh_network((4,))


def many_dims() -> Case:
    """Logits of shape (2, 1, 3, C)."""
    return _tanh_network((2, 1, 3, 2))


def batch_mask() -> Case:
    """One mask over the batch."""
    model = _module(
        lambda m, x: m.b(shared_dropout(m.a(x).tanh(), 0.3, m.training, (0,)).tanh()),
        a=nn.Linear(2, 4),
        b=nn.Linear(4, 3),
    )

    def net(w: Mapping[str, Tensor], x: Tensor, etas: Sequence[Tensor]) -> Tensor:
        return _lin(w, "b", (_lin(w, "a", x).tanh() * (1 + etas[0])).tanh())

    return Case(model, torch.randn(4, 2, dtype=torch.float64), net, ((1, 4),), (0.3,))


def locked_rnn(batch: int = 2, time: int = 4, width: int = 2) -> Case:
    """Locked masks before and after a recurrent layer."""
    model = _module(
        lambda m, tokens: m.decode(m.d1(m.rnn(m.d0(m.embed(tokens)))[0])),
        embed=nn.Embedding(5, width),
        d0=LockedDropout(0.3),
        rnn=nn.RNN(width, width, batch_first=True),
        d1=LockedDropout(0.45),
        decode=nn.Linear(width, 3),
    )

    def net(w: Mapping[str, Tensor], tokens: Tensor, etas: Sequence[Tensor]) -> Tensor:
        state = torch.zeros(batch, width, dtype=torch.float64)
        logits = []
        for t in range(time):
            x = w["embed.weight"][tokens[:, t]] * (1 + etas[0][:, 0])
            state = torch.tanh(
                x @ w["rnn.weight_ih_l0"].T
                + w["rnn.bias_ih_l0"]
                + state @ w["rnn.weight_hh_l0"].T
                + w["rnn.bias_hh_l0"]
            )
            logits.append(_lin(w, "decode", state * (1 + etas[1][:, 0])))
        return torch.stack(logits, 1)

    tokens = torch.randint(0, 5, (batch, time))
    return Case(model, tokens, net, ((batch, 1, width), (batch, 1, width)), (0.3, 0.45))


def channels(batch: int = 3) -> Case:
    """One mask value a channel of a convolution."""
    model = _module(
        lambda m, x: m.head(m.drop(m.conv(x).tanh()).tanh().flatten(1)),
        conv=nn.Conv2d(1, 2, 2),
        drop=nn.Dropout2d(0.35),
        head=nn.Linear(8, 3),
    )

    def net(w: Mapping[str, Tensor], x: Tensor, etas: Sequence[Tensor]) -> Tensor:
        patches = x[:, 0].unfold(1, 2, 1).unfold(2, 2, 1)  # (batch, 2, 2, kernel, kernel)
        conv = torch.einsum("bijkl,okl->boij", patches, w["conv.weight"][:, 0])
        h = (conv + w["conv.bias"][:, None, None]).tanh() * (1 + etas[0])
        return _lin(w, "head", h.tanh().reshape(len(x), -1))

    x = torch.randn(batch, 1, 3, 3, dtype=torch.float64)
    return Case(model, x, net, ((batch, 2, 1, 1),), (0.35,))


def drop_connect() -> Case:
    """A mask for each weight of the first layer."""
    model = _module(
        lambda m, x: m.b(F.linear(x, shared_dropout(m.a.weight, 0.4, m.training), m.a.bias).tanh()),
        a=nn.Linear(2, 3),
        b=nn.Linear(3, 3),
    )

    def net(w: Mapping[str, Tensor], x: Tensor, etas: Sequence[Tensor]) -> Tensor:
        h = x @ (w["a.weight"] * (1 + etas[0])).T + w["a.bias"]
        return _lin(w, "b", h.tanh())

    return Case(model, torch.randn(4, 2, dtype=torch.float64), net, ((3, 2),), (0.4,))


def embedding_rows() -> Case:
    """One mask value a word of the vocabulary, shared by all positions where it stands."""
    model = _module(
        lambda m, tokens: m.b(
            F.embedding(tokens, shared_dropout(m.e.weight, 0.15, m.training, (1,))).tanh()
        ),
        e=nn.Embedding(4, 3),
        b=nn.Linear(3, 3),
    )

    def net(w: Mapping[str, Tensor], tokens: Tensor, etas: Sequence[Tensor]) -> Tensor:
        return _lin(w, "b", (w["e.weight"] * (1 + etas[0]))[tokens].tanh())

    return Case(model, torch.tensor([[0, 1, 1, 2], [3, 1, 0, 1]]), net, ((4, 1),), (0.15,))


def batch_norm() -> Case:
    """Examples coupled by the statistics of their batch."""
    model = _module(
        lambda m, x: m.b(m.norm(m.a(m.drop(x))).tanh()),
        drop=nn.Dropout(0.25),
        a=nn.Linear(2, 3),
        norm=nn.BatchNorm1d(3),
        b=nn.Linear(3, 3),
    )

    def net(w: Mapping[str, Tensor], x: Tensor, etas: Sequence[Tensor]) -> Tensor:
        h = _lin(w, "a", x * (1 + etas[0]))
        centred = h - h.mean(0)
        h = centred / (centred.square().mean(0) + 1e-5).sqrt()
        return _lin(w, "b", (h * w["norm.weight"] + w["norm.bias"]).tanh())

    return Case(model, torch.randn(4, 2, dtype=torch.float64), net, ((4, 2),), (0.25,))


def layer_norm() -> Case:
    """Dropout before two norms that see one example at a time."""
    model = _module(
        lambda m, x: m.b(m.instance(m.layer(m.a(m.drop(x)))[:, None]).flatten(1).tanh()),
        drop=nn.Dropout(0.25),
        a=nn.Linear(2, 4),
        layer=nn.LayerNorm(4),
        instance=nn.InstanceNorm1d(1, affine=True),
        b=nn.Linear(4, 3),
    )

    def standardized(h: Tensor) -> Tensor:
        centred = h - h.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()

    def net(w: Mapping[str, Tensor], x: Tensor, etas: Sequence[Tensor]) -> Tensor:
        h = standardized(_lin(w, "a", x * (1 + etas[0])))
        h = standardized(h * w["layer.weight"] + w["layer.bias"])
        return _lin(w, "b", (h * w["instance.weight"] + w["instance.bias"]).tanh())

    return Case(model, torch.randn(3, 2, dtype=torch.float64), net, ((3, 2),), (0.25,))


def frozen_norms() -> Case:
    """Norms in eval mode inside a model in train mode: their statistics are constants."""
    model = _module(
        lambda m, x: m.b(m.inst(m.norm(m.a(m.drop(x)))[..., None]).squeeze(-1).tanh()),
        drop=nn.Dropout(0.25),
        a=nn.Linear(2, 3),
        norm=nn.BatchNorm1d(3).eval(),
        inst=nn.InstanceNorm1d(3, affine=True, track_running_stats=True).eval(),
        b=nn.Linear(3, 3),
    )
    norms = (model.norm, model.inst)
    for norm in norms:
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2.0)

    def net(w: Mapping[str, Tensor], x: Tensor, etas: Sequence[Tensor]) -> Tensor:
        h = _lin(w, "a", x * (1 + etas[0]))
        for name, norm in zip(("norm", "inst"), norms, strict=True):
            h = (h - norm.running_mean) / (norm.running_var + 1e-5).sqrt()
            h = h * w[f"{name}.weight"] + w[f"{name}.bias"]
        return _lin(w, "b", h.tanh())

    return Case(model, torch.randn(3, 2, dtype=torch.float64), net, ((3, 2),), (0.25,))


def twice() -> Case:
    """One dropout module called at two places, and a functional one with another p."""
    model = _module(
        lambda m, x: m.b(F.dropout(m.drop(m.a(m.drop(x)).tanh()), 0.1, m.training)),
        drop=nn.Dropout(0.3),
        a=nn.Linear(2, 2),
        b=nn.Linear(2, 2),
    )

    def net(w: Mapping[str, Tensor], x: Tensor, etas: Sequence[Tensor]) -> Tensor:
        h = _lin(w, "a", x * (1 + etas[0])).tanh()
        return _lin(w, "b", h * (1 + etas[1]) * (1 + etas[2]))

    shapes = ((3, 2),) * 3
    return Case(model, torch.randn(3, 2, dtype=torch.float64), net, shapes, (0.3, 0.3, 0.1))


def attention() -> Case:
    """Dropout on causal attention weights, inside the fused function."""

    def forward(m: Any, x: Tensor) -> Tensor:
        q, k, v = m.qkv(x).chunk(3, -1)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=0.3)
        return m.b(x + y)

    model = _module(forward, qkv=nn.Linear(2, 6), b=nn.Linear(2, 3))

    def net(w: Mapping[str, Tensor], x: Tensor, etas: Sequence[Tensor]) -> Tensor:
        q, k, v = _lin(w, "qkv", x).chunk(3, -1)
        scores = torch.einsum("bid,bjd->bij", q, k) / math.sqrt(2)
        scores = scores + torch.full((4, 4), -math.inf, dtype=torch.float64).triu(1)
        weights = scores.softmax(-1) * (1 + etas[0])
        return _lin(w, "b", x + torch.einsum("bij,bjd->bid", weights, v))

    x = torch.randn(2, 4, 2, dtype=torch.float64)
    return Case(model, x, net, ((2, 4, 4),), (0.3,))


def lstm() -> Case:
    """Dropout between the two layers of a fused LSTM."""
    model = _module(
        lambda m, x: m.b(m.lstm(x)[0]),
        lstm=nn.LSTM(2, 2, num_layers=2, dropout=0.2, batch_first=True),
        b=nn.Linear(2, 3),
    )

    def layer(w: Mapping[str, Tensor], index: int, x: Tensor) -> Tensor:
        h = c = torch.zeros(x.shape[0], 2, dtype=torch.float64)
        outputs = []
        for t in range(x.shape[1]):
            gates = (
                x[:, t] @ w[f"lstm.weight_ih_l{index}"].T
                + w[f"lstm.bias_ih_l{index}"]
                + h @ w[f"lstm.weight_hh_l{index}"].T
                + w[f"lstm.bias_hh_l{index}"]
            )
            i, f, g, o = gates.chunk(4, -1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            outputs.append(h)
        return torch.stack(outputs, 1)

    def net(w: Mapping[str, Tensor], x: Tensor, etas: Sequence[Tensor]) -> Tensor:
        return _lin(w, "b", layer(w, 1, layer(w, 0, x) * (1 + etas[0])))

    x = torch.randn(2, 4, 2, dtype=torch.float64)
    return Case(model, x, net, ((2, 4, 2),), (0.2,))


BUILDERS: dict[str, Callable[[], Case]] = {
    build.__name__: build
    for build in (
        tanh_network,
        unbatched,
        many_dims,
        batch_mask,
        locked_rnn,
        channels,
        drop_connect,
        embedding_rows,
        batch_norm,
        layer_norm,
        frozen_norms,
        twice,
        attention,
        lstm,
    )
}
# At most eight noise coordinates each.
TINY: dict[str, Callable[[], Case]] = {
    "own masks": lambda: _tanh_network((2, 1)),
    "locked": lambda: locked_rnn(batch=1, time=4, width=3),
    "channel": lambda: channels(batch=2),
    "one mask for the batch": batch_mask,
    "weights": drop_connect,
}


def build(builder: Callable[[], Case], seed: int = 0) -> Case:
    """The case, with larger weights than PyTorch's, norms included: curvature shall matter."""
    torch.manual_seed(seed)
    case = builder()
    with torch.no_grad():
        for weight in case.model.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.7)
    return case


# --- quantities ----------------------------------------------------------------------------------


def targets_for(case: Case, spec: Spec) -> Tensor:
    with torch.no_grad():
        return spec.targets(tuple(case.logits(case.zero).shape))


def jacobian(case: Case) -> Tensor:
    """dF/d eta at 0: (flat logits, noise coordinates)."""
    return torch.func.jacrev(lambda eta: case.logits(eta).flatten())(case.zero)


def r_approx(case: Case, spec: Spec, y: Tensor) -> Tensor:
    """1/2 sum_j v_j (J' H_out J)_jj."""
    j = jacobian(case)
    h_out = spec.hessian(case.logits(case.zero), y)
    return 0.5 * (case.variances * (j.T @ h_out @ j).diagonal()).sum()


def r_full(case: Case, spec: Spec, y: Tensor) -> Tensor:
    """1/2 sum_j v_j d^2 loss / d eta_j^2."""
    hessian = torch.func.hessian(lambda eta: spec.mean(case.logits(eta), y))(case.zero)
    return 0.5 * (case.variances * hessian.diagonal()).sum()


def r_dropped(case: Case, spec: Spec, y: Tensor) -> Tensor:
    """1/2 sum_j v_j <grad_F loss, d^2 F / d eta_j^2>, what Gauss-Newton leaves out."""
    second = torch.func.jacfwd(torch.func.jacrev(lambda eta: case.logits(eta).flatten()))(case.zero)
    slope = torch.func.grad(lambda f: spec.mean(f, y))(case.logits(case.zero)).flatten()
    return 0.5 * torch.einsum("f,fjj,j->", slope, second, case.variances)


def r_identity(case: Case, spec: Spec, y: Tensor) -> Tensor:
    """1/2N sum over counted terms, with the identity in place of H_out."""
    logits, j = case.logits(case.zero), jacobian(case)
    weight = spec.counted(logits, y).flatten()
    return 0.5 * (weight[:, None] * j.square() * case.variances).sum() / spec.count(logits, y)


def r_loss_jacobian(case: Case, spec: Spec, y: Tensor) -> Tensor:
    """1/2N sum_j v_j (d sum of losses / d eta_j)^2."""
    n = spec.count(case.logits(case.zero), y)
    slope = torch.func.jacrev(lambda eta: n * spec.mean(case.logits(eta), y))(case.zero)
    return 0.5 * (case.variances * slope.square()).sum() / n


def r_term_jacobians(case: Case, spec: Spec, y: Tensor) -> Tensor:
    """1/2N sum over terms n and entries j of v_j (d loss of n / d eta_j)^2."""
    logits, n = case.logits(case.zero), spec.count(case.logits(case.zero), y)
    score = torch.func.grad(lambda f: n * spec.mean(f, y))(logits)
    along = score.flatten()[:, None] * jacobian(case)  # (logits, noise entries)
    if y.shape != logits.shape:  # a term is a row of logits, and not a logit
        along = along.view(-1, logits.shape[-1], case.size).sum(1)
    return 0.5 * (case.variances * along.square()).sum() / n


def slope(case: Case, spec: Spec, y: Tensor, eta: Tensor) -> Tensor:
    """sum_i <dl/dh_i, eta_i * h_i>: its gradient is the implicit noise."""
    return torch.func.grad(lambda e: spec.mean(case.logits(e), y))(case.zero) @ eta


def loss_at(case: Case, spec: Spec, y: Tensor, etas: Tensor) -> Tensor:
    """The loss for each row of noise."""
    return torch.func.vmap(lambda eta: spec.mean(case.logits(eta), y))(etas)


def gradients_at(case: Case, spec: Spec, y: Tensor, etas: Tensor) -> Tensor:
    """The flat gradient in the weights for each row of noise."""
    weights = {name: w.detach() for name, w in case.model.named_parameters()}

    def one(weights: dict[str, Tensor], eta: Tensor) -> Tensor:
        return spec.mean(case.logits(eta, weights), y)

    rows = torch.func.vmap(torch.func.grad(one), (None, 0))(weights, etas)
    return torch.cat([rows[name].flatten(1) for name in weights], 1)


def gradient_slopes(case: Case, spec: Spec, y: Tensor) -> Tensor:
    """d/d eta_j of the flat gradient, at 0: (noise coordinates, weights)."""
    one = torch.func.jacfwd(lambda eta: gradients_at(case, spec, y, eta[None])[0])
    return one(case.zero).T


def all_signs(n: int) -> Tensor:
    return torch.tensor(list(itertools.product((-1.0, 1.0), repeat=n)), dtype=torch.float64)


def rademacher(case: Case) -> tuple[Tensor, Tensor]:
    """Every value of Rademacher noise, and its probability."""
    signs = all_signs(case.size)
    weight = torch.full((len(signs),), 1 / len(signs), dtype=torch.float64)
    return signs * case.variances.sqrt(), weight


def bernoulli(case: Case) -> tuple[Tensor, Tensor]:
    """Every value of dropout noise, and its probability."""
    kept = (all_signs(case.size) + 1) / 2
    q = per_coordinate(case, lambda p: p)
    etas = kept * case.variances - (1 - kept)
    return etas, (kept * (1 - q) + (1 - kept) * q).prod(1)


def r_drop(case: Case, spec: Spec, y: Tensor, law: Callable[[Case], Any] = bernoulli) -> Tensor:
    """R_drop by brute force, as a sum over all values of the noise."""
    etas, weight = law(case)
    return (weight * (loss_at(case, spec, y, etas) - loss_at(case, spec, y, case.zero[None]))).sum()


def covariance(rows: Tensor, weight: Tensor) -> Tensor:
    centred = rows - weight @ rows
    return centred.T @ (weight[:, None] * centred)


def gradient(value: Tensor, case: Case) -> Tensor:
    """The flat gradient in the weights of a scalar."""
    weights = list(case.model.parameters())
    grads = torch.autograd.grad(value, weights, retain_graph=True, materialize_grads=True)
    return torch.cat([g.flatten() for g in grads])


@contextmanager
def drawn(rows: Tensor, where: str = "dropreg.probes.sample") -> Iterator[None]:
    """Let the library draw these numbers in place of random ones: a row a probe, site after site.

    What the library does with its noise is then tested with no sampling error.
    """
    stream, position = rows.flatten(), 0

    def sample(law: Any, shape: Sequence[int], p: float, *, dtype: Any = None, **_: Any) -> Tensor:
        nonlocal position
        size = math.prod(shape)
        part = stream[position : position + size]
        position += size
        return part.reshape(tuple(shape)).to(dtype)

    with mock.patch(where, sample):
        yield
    assert position == stream.numel(), "the library drew another number of values"


def log_slope(x: Tensor, y: Tensor) -> float:
    """The exponent k of y ~ x^k, by least squares in logarithms."""
    a, b = x.log(), y.abs().log()
    return float(((a - a.mean()) * (b - b.mean())).sum() / (a - a.mean()).square().sum())
