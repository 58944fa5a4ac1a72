"""The page's Lightning module under the real `lightning.Trainer`."""

import copy

import pytest
import torch
import torch.nn.functional as F
from snippets import blocks
from torch import nn

import dropreg

L = pytest.importorskip("lightning", minversion="2.6")
callbacks = L.pytorch.callbacks

# Of Lightning's own: about workers of data loaders, loggers and PyTorch's pytrees.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:lightning", "ignore:.*LeafSpec")

INPUTS = torch.randn(24, 4, generator=torch.Generator().manual_seed(0))
TARGETS = torch.randint(3, (24,), generator=torch.Generator().manual_seed(1))
SIZE = 4


class Classifier(L.LightningModule):
    """What the page takes for granted."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def validation_step(self, batch, index):
        inputs, targets = batch
        self.log("val_loss", F.cross_entropy(self.net(inputs), targets))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def page():
    """The two classes of the page."""
    names = {"Classifier": Classifier}
    for block in blocks("Lightning"):
        exec(block, names)
    return names["Replaced"]


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3))


def loader():
    data = torch.utils.data.TensorDataset(INPUTS, TARGETS)
    return torch.utils.data.DataLoader(data, SIZE)


class Watch(callbacks.Callback):
    """Keeps gradients and what was logged."""

    def __init__(self):
        self.gradients, self.logged = [], []

    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.gradients.append([p.grad.clone() for p in module.parameters()])

    def on_train_batch_end(self, trainer, module, *args):
        self.logged.append({k: float(v) for k, v in trainer.callback_metrics.items()})


def fit(module, folder, *, path=None, more=(), epochs=2, **options):
    options = {"accelerator": "cpu", "devices": 1} | options
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
    watch = Watch()
    trainer = L.Trainer(
        max_epochs=epochs,
        default_root_dir=folder,
        callbacks=[watch, *more],
        **quiet,
        **options,
    )
    trainer.fit(module, loader(), loader(), ckpt_path=path)
    return trainer, watch


def by_hand(net, epochs, *, accumulated=1, **options):
    """The same training in a plain loop: gradients, and the parts of each loss."""
    noise = torch.Generator()
    objective = dropreg.replace_dropout(net, generator=noise, **options)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    gradients, logged = [], []
    for epoch in range(epochs):
        noise.manual_seed(1000 * epoch)
        for index, (inputs, targets) in enumerate(loader()):
            loss = objective.loss(inputs, targets)
            (loss / accumulated).backward()
            parts = {name: float(part) for name, part in objective.parts.items()}
            logged.append({"train_loss": float(loss.detach()), **parts})
            if (index + 1) % accumulated == 0:
                gradients.append([p.grad.clone() for p in net.parameters()])
                optimizer.step()
                optimizer.zero_grad()
    return gradients, logged


@pytest.mark.parametrize("accumulated", [1, 2])
def test_training_is_that_of_a_plain_loop(accumulated, tmp_path):
    _, watch = fit(page()(network()), tmp_path, accumulate_grad_batches=accumulated)
    gradients, logged = by_hand(network(), 2, accumulated=accumulated)
    torch.testing.assert_close(watch.gradients, gradients)
    for found, wanted in zip(watch.logged, logged, strict=True):
        assert {name: found[name] for name in wanted} == pytest.approx(wanted, rel=1e-5)


def test_validation_is_the_plain_loss(tmp_path):
    trainer, _ = fit(page()(network()), tmp_path)
    net = trainer.lightning_module.net.eval()
    plain = F.cross_entropy(net(INPUTS), TARGETS).item()
    assert float(trainer.callback_metrics["val_loss"]) == pytest.approx(plain, rel=1e-5)


def test_a_run_resumed_after_an_epoch_ends_in_the_same_weights(tmp_path):
    whole, _ = fit(page()(network()), tmp_path / "whole", epochs=3)
    first, _ = fit(page()(network()), tmp_path / "parts", epochs=1)
    path = tmp_path / "parts.ckpt"
    first.save_checkpoint(path)
    second, _ = fit(page()(network()), tmp_path / "parts", epochs=3, path=path)
    ends = [list(t.lightning_module.net.parameters()) for t in (whole, second)]
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


class Trajectory(callbacks.Callback):
    """The weights after each step."""

    def __init__(self):
        self.weights = []

    def on_train_batch_end(self, trainer, module, *args):
        self.weights.append([p.detach().clone() for p in module.net.parameters()])


def test_averages_of_weights(tmp_path):
    """EMA by its recurrence; SWA as the mean of the weights at the begin of each epoch."""
    steps = len(INPUTS) // SIZE
    seen = Trajectory()
    ema, _ = fit(
        page()(network()), tmp_path, more=[seen, callbacks.EMAWeightAveraging(decay=0.5)], epochs=1
    )
    expected = seen.weights[0]
    for weights in seen.weights[1:]:
        expected = [0.5 * a + 0.5 * b for a, b in zip(expected, weights, strict=True)]
    found = list(ema.lightning_module.net.parameters())
    torch.testing.assert_close([p.detach() for p in found], expected)
    seen = Trajectory()
    swa = callbacks.StochasticWeightAveraging(0.1, swa_epoch_start=2, annealing_epochs=1)
    trainer, _ = fit(page()(network()), tmp_path, more=[seen, swa], epochs=4)
    ends = seen.weights[steps - 1 :: steps][:3]  # of the epochs before the second, third, fourth
    found = [p.detach() for p in trainer.lightning_module.net.parameters()]
    expected = [torch.stack(each).mean(0) for each in zip(*ends, strict=True)]
    torch.testing.assert_close(found, expected)


def test_bf16_mixed(tmp_path):
    with pytest.warns(UserWarning, match="say method='even_odd'"):
        trainer, watch = fit(page()(network()), tmp_path, precision="bf16-mixed", epochs=1)
    assert trainer.lightning_module.objective.method == "even_odd"
    gradients, _ = by_hand(network(), 1, method="even_odd")
    difference = [a - b for a, b in zip(watch.gradients[0], gradients[0], strict=True)]
    norm = nn.utils.get_total_norm
    assert 0 < norm(difference) < 0.03 * norm(gradients[0])


def test_a_module_can_be_copied_while_it_trains(tmp_path):
    trainer, _ = fit(page()(network()), tmp_path, epochs=1)
    module = trainer.lightning_module
    twin = copy.deepcopy(module)
    losses = [m.objective.loss(INPUTS, TARGETS) for m in (module, twin)]
    assert twin.objective.model is twin.net
    assert losses[0] == losses[1]
