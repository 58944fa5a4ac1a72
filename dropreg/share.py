r"""Both effects on a share of the batch: taking a batch apart, and the passes that it then needs.

Of N examples a random share S of m has noise, the others have none. Let :math:`f = m/N`, and let
:math:`R_n` and :math:`\xi_n` be what example n adds to the regularizer and to the gradient noise.

- :math:`\frac1f \sum_{n \in S} R_n` has the mean :math:`\sum_n R_n`, whoever shares which mask.
- Where each example has noise of its own, :math:`\frac1{\sqrt f} \sum_{n \in S} \xi_n` has the
  covariance of :math:`\sum_n \xi_n`: the cross terms are zero.
- Where examples share noise (dropped weights, rows of an embedding) they are not, and no share has
  the covariance: weights :math:`w_n` would need :math:`E\, w_n w_{n'} = 1` for every pair, so
  :math:`w_n = 1`. There the factor is :math:`1/f`: given the noise, the mean over S is
  :math:`\sum_n \xi_n`, and what S adds to the covariance is that of a smaller batch.

The rows of one pass are the others, and the share twice, under :math:`+\eta` and :math:`-\eta`:
:math:`(1 + f) N` of them. Noise that examples share needs two further passes, of a share of its
own. Which dimension counts the examples, in inputs, sites and logits, is tried out: see `layout`.

Where examples meet in batch norm, its statistics are those of these rows: the share counts twice,
and what the noise of one example does to the others through them is lost, as :math:`+\eta` and
:math:`-\eta` cancel there to first order.
"""

from __future__ import annotations

import copy
import itertools
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from dropreg.control.kernels import float32_precision, without_gradients
from dropreg.control.passes import call_arguments
from dropreg.errors import InputError, NotYetSupportedError
from dropreg.losses import Loss, ratio
from dropreg.noise import Law
from dropreg.noisy_loss import NoisyLoss, Sampling
from dropreg.probes import Noise, OnRows, Probe, clean
from dropreg.sites import Site

Split = Callable[[Any, Tensor], Any]
"""Takes a model's inputs and the numbers of examples, int64 of shape (rows,), some of them more
than once; returns the inputs of these examples, in that order."""

_MOST_TRIALS = 48
_MOST_KNOWN = 16
_ROWS = 4
"""How many rows a trial takes."""


@dataclass
class Layout:
    """Which dimension counts the examples.

    Attributes:
        examples: How many examples the batch has.
        inputs: That of each leaf of the inputs, None where it has none; see `Split` for "split".
        logits: That of the logits, and of the targets.
        each: How many entries of that dimension an example has.
        sites: That of the mask of each site by name; None where examples share it.
        outputs: That of each leaf of what the model returns.
        one_number: Whether the loss is one number of a whole batch, and not a sum over its rows.
        normalizes: Whether examples meet in batch norm.
    """

    examples: int
    inputs: tuple[int | None, ...]
    logits: int
    each: int
    sites: dict[str, int | None]
    outputs: tuple[int | None, ...]
    one_number: bool
    normalizes: bool

    @property
    def kinds(self) -> tuple[bool, bool]:
        """Whether there are sites where each example has noise of its own, and where they share."""
        dims = self.sites.values()
        return any(dim is not None for dim in dims), any(dim is None for dim in dims)


_Known = dict[Any, tuple[int, Loss, Layout | str]]
_LAYOUTS: weakref.WeakKeyDictionary[nn.Module, _Known] = weakref.WeakKeyDictionary()
"""By model; then by structure of the inputs and loss: how often it was asked for, and the answer,
or why there is none. The loss is kept, as long as it is known by its `id`."""


def layout(noisy: NoisyLoss, split: Split | None = None) -> Layout:
    """Find out which dimension counts the examples.

    The candidates are the first three dimensions of each input. The right ones are those by which a
    batch of other rows gives the same logits row by row, without noise and with noise on some of
    them. Batch norm keeps its statistics meanwhile. As this can hold by chance
    (states that are still zero), it is tried out again at the 2nd, 4th, 8th, ... update.

    Args:
        noisy: Model and batch.
        split: Takes the inputs apart, if it is not to be found out.

    Returns:
        The layout.

    Raises:
        NotYetSupportedError: If the batch cannot be taken apart.
    """
    leaves, structure = _leaves(noisy.arguments)
    shapes = tuple(leaf.ndim if isinstance(leaf, Tensor) else type(leaf) for leaf in leaves)
    key = (structure, shapes, id(noisy.criterion), noisy.pick, split)
    known = _LAYOUTS.setdefault(noisy.model, {})
    uses, _, found = known.get(key, (0, None, None))
    if len(known) > _MOST_KNOWN:  # of losses that are made anew each time
        known.clear()
    uses += 1
    again = uses & (uses - 1) == 0
    if isinstance(found, Layout):
        examples = _examples(noisy, leaves, found, split)
        if examples is not None and (examples == 1 or not again):
            known[key] = (uses, noisy.criterion, found)
            return replace(found, examples=examples)
    elif found is not None and not again:
        known[key] = (uses, noisy.criterion, found)
        raise NotYetSupportedError(found)
    try:
        with float32_precision(), without_gradients():
            found = _Trial(noisy, split).search()
    except NotYetSupportedError as error:
        known[key] = (uses, noisy.criterion, str(error))
        raise
    known[key] = (uses, noisy.criterion, found)
    return found


def _examples(
    noisy: NoisyLoss, leaves: Sequence[Any], found: Layout, split: Split | None
) -> int | None:
    """How many examples a batch has by a known layout; None if it does not fit."""
    targets = noisy.require_targets()
    if any(site.name not in found.sites for site in noisy.sites) or targets.ndim <= found.logits:
        return None
    entries = targets.shape[found.logits]
    if split is None:
        pairs = zip(leaves, found.inputs, strict=True)
        numbers = {_count(leaf, dim) for leaf, dim in pairs if dim is not None}
    else:
        numbers = {entries // found.each}
    examples = numbers.pop()
    return examples if not numbers and examples * found.each == entries else None


def _leaves(tree: Any) -> tuple[list[Any], TreeSpec]:
    return tree_flatten(tree, is_leaf=lambda x: isinstance(x, PackedSequence))


def _numbers(leaf: Any) -> bool:
    """Whether a leaf may number the examples, as the edges of a graph do."""
    # Then it is not left whole where they are fewer: no process survives a wrong index on a GPU.
    if not isinstance(leaf, Tensor) or leaf.ndim == 0 or leaf.dtype is torch.bool:
        return False
    return not (leaf.is_floating_point() or leaf.is_complex())


def _count(leaf: Any, dim: int) -> int:
    """How many examples a leaf of the inputs has."""
    return int(leaf.batch_sizes[0]) if isinstance(leaf, PackedSequence) else leaf.shape[dim]


def take(x: Any, dim: int | None, rows: Tensor, examples: int) -> Any:
    """Some examples of a tensor, or of packed sequences.

    Args:
        x: The tensor. Where an example has several entries of the dimension, they lie together.
        dim: The dimension that counts the examples; None leaves `x` as it is.
        rows: Which of them, int64 of shape (rows,).
        examples: How many there are.

    Returns:
        The same kind of thing with these examples.
    """
    if dim is None:
        return x
    if isinstance(x, PackedSequence):
        padded, lengths = pad_packed_sequence(x, batch_first=True)
        rows_on_cpu = rows.cpu()
        return pack_padded_sequence(
            padded[rows.to(padded.device)], lengths[rows_on_cpu], True, enforce_sorted=False
        )
    rows = rows.to(x.device)
    if x.shape[dim] == examples:
        return x.index_select(dim, rows)
    apart = x.unflatten(dim, (examples, -1)).index_select(dim, rows)
    return apart.flatten(dim, dim + 1)


def _counting(first: Sequence[int], second: Sequence[int], rows: tuple[int, int]) -> int | None:
    """The dimension that is a multiple of the number of rows in both shapes; None if none is."""
    if len(first) != len(second):
        raise NotYetSupportedError("the number of dimensions depends on the number of examples")
    differing = [d for d, (a, b) in enumerate(zip(first, second, strict=True)) if a != b]
    if not differing:
        return None
    dim = differing[0]
    if len(differing) > 1 or first[dim] * rows[1] != second[dim] * rows[0]:
        raise NotYetSupportedError(
            f"for {rows[0]} and {rows[1]} examples a tensor has the shapes {tuple(first)} and "
            f"{tuple(second)}"
        )
    return dim


class _Trial:
    """Runs of a model on a few rows of its batch, to see what belongs to an example."""

    def __init__(self, noisy: NoisyLoss, split: Split | None) -> None:
        self._noisy, self._split = noisy, split

    def search(self) -> Layout:
        """The first layout that fits."""
        leaves, _ = _leaves(self._noisy.arguments)
        why: Exception | None = None
        for examples, dims in itertools.islice(self._candidates(leaves), _MOST_TRIALS):
            try:
                return self._try(examples, dims)
            except Exception as error:
                why = why or error
        self._noisy(clean)  # whoever has given wrong inputs or targets is told so
        reason = f" Of the first way that was tried: {why}." if why else ""
        if any(map(_numbers, leaves)):
            reason += " (An input of integers may number the examples, and is not left whole.)"
        raise NotYetSupportedError(
            "this batch cannot be taken apart into examples that do not see each other, which a "
            f"share of the batch needs.{reason} Use share=1, or say how to take some examples: "
            "split=lambda inputs, rows: …"
        ) from why

    def _candidates(self, leaves: Sequence[Any]) -> Iterator[tuple[int, tuple[int | None, ...]]]:
        if self._split is not None:
            for examples in self._noisy.require_targets().shape[:2]:
                yield examples, (None,) * len(leaves)
            return
        dims = [
            {0: _count(x, 0)} if isinstance(x, PackedSequence)
            else dict(enumerate(x.shape[:3])) if isinstance(x, Tensor) and not x.is_nested
            else {}
            for x in leaves
        ]  # fmt: skip
        sizes = dict.fromkeys(of[d] for d in range(3) for of in dims if d in of)
        for examples in [size for size in sizes if size > 1]:
            options = [
                [d for d, size in of.items() if size == examples] + [None] * (not _numbers(x))
                for x, of in zip(leaves, dims, strict=True)
            ]
            for chosen in itertools.product(*options):
                if any(dim is not None for dim in chosen):
                    yield examples, chosen

    def _try(self, examples: int, dims: tuple[int | None, ...]) -> Layout:
        """The layout, if the examples are counted by these dimensions of the inputs."""
        k = min(examples, _ROWS)
        few = self._few(dims, k)
        self._norms = _KeptStatistics()
        layout = Layout(examples, dims, 0, 1, {}, (), False, False)
        with self._norms:
            logits, sites, outputs = self._run(layout, few, clean)
        layout.normalizes = bool(self._norms)
        # Another order, and an example twice.
        other = torch.tensor([*reversed(range(k)), 0])
        logits_2, sites_2, outputs_2 = self._run(layout, few[other], clean)
        dim = _counting(logits.shape, logits_2.shape, (k, k + 1))
        if dim is None:
            raise NotYetSupportedError("the logits have no dimension that counts the examples")
        if [site.name for site in sites] != [site.name for site in sites_2]:
            raise NotYetSupportedError("the sites depend on the number of examples")
        layout.logits = dim
        for a, b in zip(sites, sites_2, strict=True):
            layout.sites[a.name] = _counting(a.mask_shape, b.mask_shape, (k, k + 1))
        if len(outputs) != len(outputs_2):
            raise NotYetSupportedError("what the model returns depends on the number of examples")
        layout.outputs = tuple(
            _counting(a.shape, b.shape, (k, k + 1)) if isinstance(a, Tensor) else None
            for a, b in zip(outputs, outputs_2, strict=True)
        )
        self._require_same(logits_2, take(logits, dim, other, k))
        targets = self._noisy.require_targets()
        layout.each = logits.shape[dim] // k
        if targets.ndim <= dim or targets.shape[dim] != layout.each * examples:
            raise NotYetSupportedError(
                f"targets of shape {tuple(targets.shape)} do not count {examples} examples as "
                f"logits of shape {tuple(logits.shape)} do {k}"
            )
        self._try_noise(layout, few, logits)
        labels = take(targets, dim, few, examples)
        layout.one_number = self._is_one_number(logits, labels, dim, k)
        part = rows_of(self._noisy, layout, few, self._split)
        part.targets = labels
        part.logits(clean)  # says so if the model's own loss is another one
        if layout.kinds[1] and (layout.one_number or layout.normalizes):
            what = "a loss that is one number" if layout.one_number else "batch norm"
            raise NotYetSupportedError(f"examples share noise, and meet in {what}")
        return layout

    def _few(self, dims: Sequence[int | None], k: int) -> Tensor:
        """Some rows: of packed sequences the longest, so that all are as long as they are."""
        leaves, _ = _leaves(self._noisy.arguments)
        for leaf, dim in zip(leaves, dims, strict=True):
            if isinstance(leaf, PackedSequence) and dim is not None:
                order = leaf.sorted_indices
                return torch.arange(k) if order is None else order[:k].cpu()
        return torch.arange(k)

    def _run(
        self, layout: Layout, rows: Tensor, noise: Noise
    ) -> tuple[Tensor, list[Site], list[Any]]:
        part = rows_of(self._noisy, layout, rows, self._split)
        with self._norms.replayed() if self._norms else nullcontext():
            logits, sites = part.logits(noise)
        return logits, list(sites), _leaves(part.output)[0]

    def _require_same(self, a: Tensor, b: Tensor) -> None:
        exact = a.dtype.itemsize >= 4 and not self._noisy.sites.uses_half_precision
        differ = a != b  # so that an infinite logit does not set the scale
        a, b = a[differ].double(), b[differ].double()
        if a.numel() and not (a - b).abs().max() <= (1e-4 if exact else 5e-2) * b.abs().max():
            raise NotYetSupportedError("the logits of an example depend on the others")

    def _try_noise(self, layout: Layout, few: Tensor, logits: Tensor) -> None:
        """See that noise on some rows reaches these rows, and those alone."""
        if not layout.kinds[0]:
            return
        k = len(few)
        some, others = few[:1], few[1:]
        probe = Probe(Law.RADEMACHER, torch.Generator().manual_seed(0))
        noise = _NoiseOfShare(probe.at(0.5), layout, (k - 1, 1, 1), own=True)
        mixed, *_ = self._run(layout, torch.cat([others, some, some]), noise)
        ends = [
            self._run(layout, some, _NoiseOfShare(probe.at(scale), layout, (0, 1, 0), own=True))[0]
            for scale in (0.5, -0.5)
        ]
        rest = take(logits, layout.logits, torch.arange(1, k), k)
        self._require_same(mixed, torch.cat([rest, *ends], layout.logits))

    def _is_one_number(self, logits: Tensor, targets: Tensor, dim: int, k: int) -> bool:
        """Whether the loss is no sum over rows; refuse it if their order matters to it."""
        criterion = self._noisy.criterion
        whole = criterion.mean(logits, targets)

        def of(loss: Loss, rows: Tensor) -> Tensor:
            return loss.mean(take(logits, dim, rows, k), take(targets, dim, rows, k))

        def is_whole(value: Tensor) -> bool:
            return bool(torch.isclose(value.double(), whole.double(), rtol=1e-4, equal_nan=True))

        first, last = torch.arange(1), torch.arange(1, k)
        try:
            total = sum_of(criterion)
            parts = of(total, first) + of(total, last)
            if is_whole(ratio(parts, criterion.count(logits, targets))):
                return False
        except InputError:
            pass  # it has no terms: then it is asked as it is
        if not is_whole(of(criterion, torch.cat([last, first]))):
            raise NotYetSupportedError("the loss depends on the order of the examples")
        return True


def sum_of(criterion: Loss) -> Loss:
    """A loss that adds up what another one divides by a number."""
    total = copy.copy(criterion)
    total.normalizer = None
    total.reduction = "sum"
    return total


class _KeptStatistics(TorchFunctionMode):
    """Within it batch norm's statistics are noted; `replayed` runs with them, for other rows."""

    def __init__(self) -> None:
        super().__init__()
        self._known: list[tuple[Tensor, Tensor]] = []
        self._next: int | None = None

    def __len__(self) -> int:
        return len(self._known)

    def replayed(self) -> _KeptStatistics:
        """The mode for another run."""
        self._next = 0
        return self

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.batch_norm:
            x, weight, bias, mean, var, training, momentum, eps, *_ = args
        elif func is F.batch_norm:
            x, mean, var = args
            weight, bias, training = kwargs["weight"], kwargs["bias"], kwargs["training"]
            momentum, eps = kwargs["momentum"], kwargs["eps"]
        if func not in (torch.batch_norm, F.batch_norm) or not training:
            return func(*args, **kwargs)
        if self._next is None:
            var, mean = torch.var_mean(x, [d for d in range(x.ndim) if d != 1], correction=0)
            self._known.append((mean, var))
            return func(*args, **kwargs)
        mean, var = self._known[self._next]
        self._next += 1
        return F.batch_norm(x, mean, var, weight, bias, False, momentum, eps)


class _NoiseOfShare:
    """A probe's noise for one pass: on some rows where each has its own, or where they share it."""

    def __init__(
        self, probe: Any, layout: Layout, rows: tuple[int, int, int], *, own: bool
    ) -> None:
        """Prepare a pass.

        Args:
            probe: A probe at a scale.
            layout: The layout.
            rows: How many rows have no noise, the probe's, and its mirror image, in this order.
            own: Whether sites have noise where each example has its own, or where they share it.
        """
        self._probe, self._layout, self._rows, self._own = probe, layout, rows, own

    def __call__(self, site: Site) -> Tensor | OnRows | None:
        """The noise of a site."""
        if site.name not in self._layout.sites:
            raise NotYetSupportedError(
                f"a pass met a dropout ({site.name}) that the batch was not looked at with: the "
                "noise changes the way through the model, or a probability has changed meanwhile."
            )
        dim = self._layout.sites[site.name]
        if (dim is None) == self._own:
            return None
        if dim is None:
            return self._probe(site)
        without, plus, minus = self._rows
        each = site.mask_shape[dim] // (without + plus + minus)
        shape, mask_shape = list(site.shape), list(site.mask_shape)
        mask_shape[dim] = plus * each
        shape[dim] = site.shape[dim] // (without + plus + minus) * plus
        eta = self._probe(replace(site, shape=tuple(shape), mask_shape=tuple(mask_shape)))
        if not (without or minus):
            return eta
        return OnRows(eta, dim, (without * each, plus * each, minus * each))

    @property
    def draws_globally(self) -> bool:
        """See `dropreg.probes`."""
        return self._probe.draws_globally

    def require_all_met(self) -> None:
        """See `dropreg.probes.require_all_met`."""
        self._probe.require_all_met()


def rows_of(
    noisy: NoisyLoss, layout: Layout, rows: Tensor, split: Split | None = None
) -> NoisyLoss:
    """The same model on some examples of its batch, without targets."""
    if split is not None:
        return noisy.on(call_arguments(split(noisy.inputs, rows)))
    leaves, structure = _leaves(noisy.arguments)
    taken = [
        take(leaf, dim, rows, layout.examples)
        for leaf, dim in zip(leaves, layout.inputs, strict=True)
    ]
    return noisy.on(tree_unflatten(taken, structure))


@dataclass
class Ends:
    """Both ends of an antithetic pair, on the rows of a share.

    Attributes:
        up: Logits under the probe.
        down: Logits under its mirror image.
        targets: Labels of these rows.
        explicit: Factor that the share gives to the explicit effect.
        implicit: Factor that it gives to the gradient noise.
        clean: Logits without noise, if they were asked for.
    """

    up: Tensor
    down: Tensor
    targets: Tensor
    explicit: float
    implicit: float
    clean: Tensor | None = None


@dataclass
class Taken:
    """A batch taken apart, after its passes.

    Attributes:
        rest: Logits and targets of the rows without noise; None if there are none.
        ends: The pairs: of noise that examples share, and of noise that each has of its own.
        criterion: The loss, of which rows can be added up.
        count: What the sum is divided by.
        output: Puts together what the model returned, in the batch's order: for an example with
            noise the mean of the pair.
    """

    rest: tuple[Tensor, Tensor] | None
    ends: list[Ends]
    criterion: Loss
    count: float | Tensor
    output: Callable[[], Any] = field(repr=False)


def size(found: Layout, share: float) -> int:
    """How many examples have noise; all where the share leaves nothing to save.

    Args:
        found: The layout of the batch.
        share: The share that is asked for.

    Returns:
        A number from 1 to that of the examples.
    """
    some = max(1, round(share * found.examples))
    return some if some * sum(found.kinds) <= found.examples else found.examples


def passes(
    noisy: NoisyLoss,
    found: Layout,
    some: int,
    sampling: Sampling,
    scale: float,
    *,
    split: Split | None = None,
    clean_too: bool = False,
    update_buffers: bool = False,
) -> Taken:
    """Run a model on its batch, with noise on a random share of it.

    Args:
        noisy: Model and batch.
        found: The layout of the batch.
        some: How many examples have noise, for each of the two kinds of sites; see `size`.
        sampling: Draws the share and the noise.
        scale: The scale of the noise.
        split: See `layout`.
        clean_too: Whether the share is run without noise, too.
        update_buffers: Whether batch-norm statistics and the like may change.

    Returns:
        Logits and targets by their rows, and the factors of the effects.
    """
    n, dim, targets, generator = (
        found.examples, found.logits, noisy.require_targets(), sampling.generator,
    )  # fmt: skip
    device = generator.device if generator is not None else "cpu"
    order = torch.randperm(n, generator=generator, device=device)
    own, shared = (some * kind for kind in found.kinds)
    first, second, rest = order.split([own, shared, n - own - shared])
    ends, returned = list[Ends](), list[Any]()
    if shared:
        probe, part = sampling.probe(), rows_of(noisy, found, second, split)
        pair = []
        for sign in (-1, 1):
            ours = _NoiseOfShare(probe.at(sign * scale), found, (0, shared, 0), own=False)
            pair.append(part.logits(ours)[0])
            returned.append(part.output)
        ends.append(Ends(pair[1], pair[0], take(targets, dim, second, n), n / shared, n / shared))
    quiet = [rest, second, first] if clean_too else [rest]
    lengths = [*map(len, quiet), own, own]
    part = rows_of(noisy, found, torch.cat([*quiet, first, first]), split)
    at = (sum(map(len, quiet)), own, own)
    own_noise = _NoiseOfShare(sampling.probe().at(scale), found, at, own=True)
    noise: Noise = own_noise if own else clean
    # Last: a pass may depend on the buffers, and all must start from the same.
    logits, _ = part.logits(noise, update_buffers=update_buffers)
    blocks = logits.split([found.each * length for length in lengths], dim)
    if own:
        labels = take(targets, dim, first, n)
        ends.append(Ends(blocks[-2], blocks[-1], labels, n / own, (n / own) ** 0.5))
    if clean_too:
        for these, without in zip(ends, blocks[1:] if shared else blocks[2:], strict=False):
            these.clean = without

    def output(main: Any = part.output) -> Any:
        return _together(found, order, lengths, shared, main, returned)

    others = take(targets, dim, rest, n)
    if found.one_number:
        (pair_of_rows,) = ends  # its layout has no other

        def whole(x: Tensor) -> Tensor:
            return torch.cat([blocks[0], x], dim)

        at_rest = pair_of_rows.clean
        of_all = Ends(
            whole(pair_of_rows.up),
            whole(pair_of_rows.down),
            torch.cat([others, pair_of_rows.targets], dim),
            pair_of_rows.explicit,
            pair_of_rows.implicit,
            None if at_rest is None else whole(at_rest),
        )
        return Taken(None, [of_all], noisy.criterion, 1, output)
    shape = [targets.shape[dim] if d == dim else size for d, size in enumerate(logits.shape)]
    like_all = logits.narrow(dim, 0, 1).expand(shape)  # its shape is looked at
    count = noisy.criterion.count(like_all, targets)
    return Taken(
        (blocks[0], others) if len(rest) else None, ends, sum_of(noisy.criterion), count, output
    )


def _together(
    found: Layout,
    order: Tensor,
    lengths: Sequence[int],
    shared: int,
    main: Any,
    returned: Sequence[Any],
) -> Any:
    """What the model returned, in the order of the batch."""
    mains, structure = _leaves(main)
    downs, ups = [_leaves(x)[0] for x in returned] if shared else [mains, mains]

    def whole(leaf: Any, dim: int | None, down: Any, up: Any) -> Any:
        if not isinstance(leaf, Tensor):
            if leaf is None or isinstance(leaf, (int, float, str)):
                return leaf
            raise NotYetSupportedError(
                f"the model returned a {type(leaf).__name__}, which cannot be put together from "
                "rows. To carry it on, take share=1."
            )
        if dim is None:
            return leaf
        each = leaf.shape[dim] // sum(lengths)
        blocks = leaf.split([each * length for length in lengths], dim)
        own = _middle(blocks[-2], blocks[-1])
        rows = [own, *([_middle(down, up)] if shared else []), blocks[0]]
        return take(torch.cat(rows, dim), dim, order.argsort(), found.examples)

    leaves = map(whole, mains, found.outputs, downs, ups)
    return tree_unflatten(list(leaves), structure)


def _middle(a: Tensor, b: Tensor) -> Tensor:
    return (a + b) / 2 if a.is_floating_point() else a
