"""The experiment of the book's first half: digits with wrong labels, networks side by side.

A network that fits a wrong label fits nonsense, so that overfitting shows at once in the loss on
test digits, whose labels are all true. Networks this small leave a processor idle between two
operations: those of all seeds are trained as one model, whose layers have the seeds in front.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dropreg.book.data import load_digits
from dropreg.book.statistics import at_fit
from dropreg.errors import InputError

SEEDS = 8
WIDTH, CLASSES, PIXELS = 64, 10, 64
LEARNING_RATE = 0.2
LOOK_EVERY = 50
"""Steps from one look at the losses to the next."""


@dataclass(frozen=True)
class WrongLabels:
    """Digits of which some are labelled at random; each seed has a draw of its own.

    Attributes:
        x: Training images, (seeds, images, 64).
        y: Their labels, (seeds, images), some of them random.
        wrong: Which those are, (seeds, wrong): indices of images. One in ten of the random labels
            is the true one.
        test_x: Test images, (seeds, 797, 64), not among the seed's training images.
        test_y: Their true labels, (seeds, 797).
    """

    x: Tensor
    y: Tensor
    wrong: Tensor
    test_x: Tensor
    test_y: Tensor


def wrong_labels(seeds: int = SEEDS, *, images: int = 200, wrong: int = 60) -> WrongLabels:
    """Draw, for each seed, training and test digits, and which labels are random.

    Args:
        seeds: Seeds 0 to seeds - 1.
        images: Training images of a seed, from 1 to 1000.
        wrong: How many of them get a random label.

    Returns:
        The digits of all seeds.

    Raises:
        InputError: If a number is out of range.
        MissingPackageError: If scikit-learn is not installed.

    >>> wrong_labels(2).x.shape
    torch.Size([2, 200, 64])
    """
    if seeds < 1:
        raise InputError(f"seeds is {seeds}; it must be at least 1.")
    if not 0 <= wrong <= images:
        raise InputError(f"wrong is {wrong}; it must lie between 0 and images, {images}.")
    splits = [load_digits(images, seed) for seed in range(seeds)]
    labels, which = [], []
    for seed, split in enumerate(splits):
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randperm(images, generator=generator)[:wrong]
        y = split.train_y.clone()
        y[rows] = torch.randint(CLASSES, (wrong,), generator=generator)
        labels.append(y)
        which.append(rows)
    return WrongLabels(
        torch.stack([split.train_x for split in splits]),
        torch.stack(labels),
        torch.stack(which),
        torch.stack([split.test_x for split in splits]),
        torch.stack([split.test_y for split in splits]),
    )


class SideBySide(nn.Module):
    """The same linear layer of several networks as one, with the networks first.

    Args:
        layers: A linear layer of each network, all of one shape and with a bias.
    """

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.stack([each.weight.detach().T for each in layers]))
        self.bias = nn.Parameter(torch.stack([each.bias.detach()[None] for each in layers]))

    def forward(self, input: Tensor) -> Tensor:
        """Map (networks, examples, inputs) to (networks, examples, outputs)."""
        return torch.baddbmm(self.bias, input, self.weight)


def network(
    seed: int, q: float = 0.5, *, width: int = WIDTH, activation: type[nn.Module] = nn.Tanh
) -> nn.Sequential:
    """One network: two hidden layers, each with dropout behind it.

    Args:
        seed: Of its initial weights.
        q: Dropout probability.
        width: Units of a hidden layer.
        activation: Of the hidden layers. The weights are drawn with 5/3 as gain, which PyTorch
            recommends for tanh.

    Returns:
        Layers 0, 3 and 6 are linear; 2 and 5 are dropout.
    """
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(
        *(nn.Linear(PIXELS, width), activation(), nn.Dropout(q)),
        *(nn.Linear(width, width), activation(), nn.Dropout(q)),
        nn.Linear(width, CLASSES),
    )
    for layer in list(model)[::3]:
        assert isinstance(layer, nn.Linear)
        nn.init.normal_(layer.weight, std=5 / 3 / layer.in_features**0.5, generator=generator)
        nn.init.zeros_(layer.bias)
    return model


def side_by_side(models: Sequence[nn.Sequential]) -> nn.Sequential:
    """Put networks of one architecture together into one model.

    Args:
        models: Sequences of linear layers and of layers without parameters.

    Returns:
        A model from (networks, examples, inputs) to (networks, examples, outputs). Its dropout
        draws for each network alone.
    """
    return nn.Sequential(
        *(
            SideBySide(layers) if isinstance(layers[0], nn.Linear) else copy.deepcopy(layers[0])
            for layers in zip(*models, strict=True)
        )
    )


def one_of(together: nn.Sequential, seed: int) -> nn.Sequential:
    """Take one network out again.

    Args:
        together: What `side_by_side` made.
        seed: Which one.

    Returns:
        An ordinary model with a copy of its weights.
    """
    layers: list[nn.Module] = []
    for layer in together.children():
        if isinstance(layer, SideBySide):
            weight, bias = layer.weight.detach()[seed].T, layer.bias.detach()[seed, 0]
            # Contiguous, as a layer's own weights are: `view(-1)` works on them.
            weight = weight.clone(memory_format=torch.contiguous_format)
            linear = nn.Linear(weight.shape[1], weight.shape[0])
            linear.weight.data, linear.bias.data = weight, bias.clone()
            layers.append(linear)
        else:
            layers.append(copy.deepcopy(layer))
    return nn.Sequential(*layers)


def losses(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy of each network on its examples.

    Args:
        logits: (networks, examples, classes).
        y: Labels, (networks, examples).

    Returns:
        Nats, (networks,).
    """
    return each_loss(logits, y).mean(1)


def each_loss(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy of each network on each example.

    Args:
        logits: (networks, examples, classes).
        y: Labels, (networks, examples).

    Returns:
        Nats, (networks, examples).
    """
    return F.cross_entropy(logits.transpose(1, 2), y, reduction="none")


@dataclass(frozen=True)
class Layers:
    """What stands in the layers of networks side by side, (networks, examples, units) each.

    Attributes:
        h1: Activations of the first hidden layer, before its noise.
        z2: Input of the second activation.
        h2: Activations of the second hidden layer, before its noise.
        logits: What comes out.
    """

    h1: Tensor
    z2: Tensor
    h2: Tensor
    logits: Tensor


def forward(
    model: nn.Sequential, x: Tensor, eta1: Tensor | float = 0.0, eta2: Tensor | float = 0.0
) -> Layers:
    """Pass through a network layer by layer, with noise of one's own in the place of dropout.

    Args:
        model: What `side_by_side` made of `network`s.
        x: Images, (networks, examples, 64).
        eta1: Noise of the first hidden layer, which is multiplied by 1 + eta1.
        eta2: Noise of the second.

    Returns:
        All layers.
    """
    h1 = model[1](model[0](x))
    z2 = model[3](h1 * (1 + eta1))
    h2 = model[4](z2)
    return Layers(h1, z2, h2, model[6](h2 * (1 + eta2)))


@dataclass(frozen=True)
class SecondOrder:
    """What the second-order term of dropout is made of; both parts at q/(1-q) = 1.

    Attributes:
        p: Predicted probabilities, (networks, examples, classes).
        moved: h_j dF/dh_j by unit of both layers, (networks, examples, units, classes).
        bends: The sum over units of h_j^2 d2F/dh_j^2, (networks, examples, classes).
        gauss_newton: R_approx of each example, (networks, examples).
        dropped: What the residual times the bends adds, (networks, examples).
    """

    p: Tensor
    moved: Tensor
    bends: Tensor
    gauss_newton: Tensor
    dropped: Tensor


@torch.no_grad()
def second_order(model: nn.Sequential, x: Tensor, y: Tensor) -> SecondOrder:
    """Compute both parts of the second-order term example by example, without sampling.

    Args:
        model: What `side_by_side` made of `network`s with tanh units.
        x: Images, (networks, examples, 64).
        y: Labels, (networks, examples).

    Returns:
        All pieces.

    Raises:
        InputError: If the activation is not tanh, whose derivatives stand here.
    """
    if not isinstance(model[4], nn.Tanh):
        raise InputError(f"the activation is {type(model[4]).__name__}; it must be Tanh.")
    layers = forward(model, x)
    h1, h2, p = layers.h1, layers.h2, layers.logits.softmax(-1)
    w2, w3 = (layer.weight for layer in (model[3], model[6]))  # (networks, inputs, outputs)
    assert isinstance(w2, Tensor)
    assert isinstance(w3, Tensor)
    slope, bend = 1 - h2**2, -2 * h2 * (1 - h2**2)  # of tanh
    moved1 = h1[..., None] * torch.einsum("sjk,sbk,skc->sbjc", w2, slope, w3)
    moved = torch.cat([moved1, h2[..., None] * w3[:, None]], 2)
    bends = torch.einsum("sbk,skc->sbc", bend * (h1**2 @ w2**2), w3)
    mean = torch.einsum("sbc,sbuc->sbu", p, moved)
    variance = torch.einsum("sbc,sbuc->sbu", p, moved**2) - mean**2
    residual = p - F.one_hot(y, p.shape[-1])
    return SecondOrder(p, moved, bends, 0.5 * variance.sum(2), 0.5 * (residual * bends).sum(-1))


@dataclass(frozen=True)
class Training:
    """What a training went through.

    Attributes:
        steps: When it was looked at, (looks,).
        test: Test losses then, in nats, without dropout: (seeds, looks).
        fit: Losses on the training images, likewise.
        networks: Copies of the model, by step, where they were asked for.
    """

    steps: Tensor
    test: Tensor
    fit: Tensor
    networks: dict[int, nn.Sequential]


def train(
    model: nn.Sequential,
    data: WrongLabels,
    loss: Callable[[Tensor, Tensor], Tensor] | None = None,
    *,
    steps: int = 1600,
    batch: int = 20,
    keep: Sequence[int] = (),
) -> Training:
    """Train networks side by side by plain SGD, learning rate 0.2, in place.

    Batches are the same for each loss; masks come from PyTorch's generator, which is seeded.

    Args:
        model: What `side_by_side` made, one network for each seed of the data.
        data: Of `wrong_labels`.
        loss: From images (seeds, batch, 64) and labels (seeds, batch) to the mean loss over all of
            them; the cross-entropy in training mode if None.
        steps: Updates.
        batch: Images of a batch.
        keep: After which steps a copy of the model is kept.

    Returns:
        Losses at every 50th step, before and after all steps, too.
    """
    if loss is None:

        def loss(x: Tensor, y: Tensor) -> Tensor:
            return losses(model(x), y).mean()

    seeds, images = data.y.shape
    batches = torch.Generator().manual_seed(0)
    torch.manual_seed(1)
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    looks: list[int] = []
    test: list[Tensor] = []
    fit: list[Tensor] = []
    kept: dict[int, nn.Sequential] = {}
    for step in range(steps + 1):
        if step in keep:
            kept[step] = copy.deepcopy(model)
        if step % LOOK_EVERY == 0 or step == steps:
            model.eval()
            with torch.no_grad():
                test.append(losses(model(data.test_x), data.test_y))
                fit.append(losses(model(data.x), data.y))
            model.train()
            looks.append(step)
        if step == steps:
            break
        rows = torch.randint(images, (seeds, batch), generator=batches)
        x = data.x[torch.arange(seeds)[:, None], rows]
        optimizer.zero_grad()
        # The mean is over all networks; times their number, each gets the gradient of its own mean.
        (seeds * loss(x, data.y.gather(1, rows))).backward()
        optimizer.step()
    return Training(torch.tensor(looks), torch.stack(test, 1), torch.stack(fit, 1), kept)


def at_equal_fit(runs: Mapping[str, Training]) -> dict[str, list[float]]:
    """Test losses where all trainings have the same training loss, seed by seed.

    That is the training loss of the one that fits least at its lowest test loss: each has gone
    through it.

    Args:
        runs: Trainings on the same data.

    Returns:
        For each its test losses, in nats, (seeds,).
    """
    levels = torch.stack([
        run.fit.gather(1, run.test.argmin(1, keepdim=True))[:, 0] for run in runs.values()
    ]).amax(0).tolist()  # fmt: skip
    return {
        name: [
            at_fit(*of_seed)
            for of_seed in zip(run.fit.tolist(), run.test.tolist(), levels, strict=True)
        ]
        for name, run in runs.items()
    }
