"""The page's loop under the real `accelerate.Accelerator`."""

import copy

import pytest
import torch
import torch.nn.functional as F
from snippets import blocks
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import dropreg

accelerate = pytest.importorskip("accelerate")

INPUTS = torch.randn(24, 4, generator=torch.Generator().manual_seed(0))
TARGETS = torch.randint(3, (24,), generator=torch.Generator().manual_seed(1))
PREPARE, LOOP, SAVE, LOAD = blocks("Accelerate")


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3))


class Tracker(accelerate.tracking.GeneralTracker):
    """Keeps what is logged."""

    name, requires_logging_directory, tracker = "ours", False, None

    def __init__(self):
        super().__init__()
        self.logged = []

    def store_init_configuration(self, values):
        pass

    def log(self, values, step=None, **kwargs):
        self.logged.append(values)


def prepared(**options):
    """The names of the page, after its first block."""
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    model = network()
    data = torch.utils.data.TensorDataset(INPUTS, TARGETS)
    names = {
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "loader": torch.utils.data.DataLoader(data, 4),
    }
    code = PREPARE.replace("Accelerator()", "Accelerator(cpu=True, **options)")
    assert code != PREPARE
    exec(code, names | {"options": options}, found := {})
    return names | found | {"torch": torch}


def by_hand(*, accumulated=1, **options):
    """One epoch in a plain loop."""
    net = network()
    noise = torch.Generator().manual_seed(42)
    objective = dropreg.replace_dropout(net, generator=noise, **options)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    logged = []
    for index in range(6):
        rows = slice(4 * index, 4 * index + 4)
        (objective.loss(INPUTS[rows], TARGETS[rows]) / accumulated).backward()
        logged.append({name: float(part) for name, part in objective.parts.items()})
        if (index + 1) % accumulated == 0:
            optimizer.step()
            optimizer.zero_grad()
    return net, logged


@pytest.mark.parametrize("accumulated", [1, 2])
def test_training_is_that_of_a_plain_loop(accumulated):
    tracker = Tracker()
    names = prepared(gradient_accumulation_steps=accumulated, log_with=[tracker])
    names["accelerator"].init_trackers("ours")
    exec(LOOP, names)
    net, logged = by_hand(accumulated=accumulated)
    torch.testing.assert_close(list(names["model"].parameters()), list(net.parameters()))
    for found, wanted in zip(tracker.logged, logged, strict=True):
        assert found == pytest.approx(wanted, rel=1e-5)


def test_batches_of_unequal_size_by_a_normalizer():
    """As the page says: the mean number of terms of the update's batches."""
    names = prepared(gradient_accumulation_steps=2)
    labels = TARGETS.clone()
    labels[[1, 2, 3, 9, 10, 12]] = -100
    criterion = dropreg.CrossEntropy()
    off = {"explicit": 0.0, "implicit": 0.0}
    objective = dropreg.replace_dropout(names["model"], loss=criterion, **off)
    for index in range(2):
        rows = slice(4 * index, 4 * index + 4)
        criterion.normalizer = (labels[:8] != -100).sum() / 2
        names["accelerator"].backward(objective.loss(INPUTS[rows], labels[rows]))
    net = network().eval()
    F.cross_entropy(net(INPUTS[:8]), labels[:8]).backward()
    for found, wanted in zip(names["model"].parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(found.grad, wanted.grad)


def test_saved_and_loaded_it_goes_on_with_the_same_noise(tmp_path):
    names = prepared() | {"folder": str(tmp_path)}
    exec(LOOP, names)
    exec(SAVE, names)
    exec(LOOP, names)
    wanted = copy.deepcopy([p.detach() for p in names["model"].parameters()])
    again = prepared() | {"folder": str(tmp_path), "path": names["path"]}
    again["accelerator"].load_state(str(tmp_path))
    exec(LOAD, again)
    exec(LOOP, again)
    assert all(torch.equal(a, b) for a, b in zip(wanted, again["model"].parameters(), strict=True))


def test_bf16():
    names = prepared(mixed_precision="bf16")
    with pytest.warns(UserWarning, match="say method='even_odd'"):
        exec(LOOP, names)
    assert names["objective"].method == "even_odd"
    net, _ = by_hand(method="even_odd")
    for a, b, before in zip(
        names["model"].parameters(), net.parameters(), network().parameters(), strict=True
    ):
        assert 0 < (a - b).norm() < 0.05 * (b - before).norm()


def test_an_exponential_average_sees_weights_only():
    names = prepared()
    plain = names["accelerator"].unwrap_model(names["model"])
    names["average"] = AveragedModel(plain, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    names["average"].update_parameters(plain)
    seen = [copy.deepcopy(plain)]
    names["optimizer"].optimizer.register_step_post_hook(
        lambda *_: (names["average"].update_parameters(plain), seen.append(copy.deepcopy(plain)))
    )
    exec(LOOP, names)
    expected = [p.detach() for p in seen[0].parameters()]
    for model in seen[1:]:
        pairs = zip(expected, model.parameters(), strict=True)
        expected = [(a + b.detach()) / 2 for a, b in pairs]
    average = names["average"].eval()
    torch.testing.assert_close([p.detach() for p in average.module.parameters()], expected)
    assert F.cross_entropy(average(INPUTS), TARGETS).isfinite()
