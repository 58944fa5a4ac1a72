"""Where the logits are found, the model's own loss, and schedules that begin at p = 0."""

import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dropreg
from dropreg import errors, find_sites

X = torch.randn((6, 4), generator=torch.Generator().manual_seed(1))
Y = torch.tensor([0, 1, 2, 0, 1, 2])


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


class Spans(nn.Module):
    """Answers where an answer begins and ends, as question answering does."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(0.3))
        self.start, self.end = nn.Linear(8, 3), nn.Linear(8, 3)
        self.passes: SimpleNamespace = SimpleNamespace(count=0)

    def forward(self, x: Tensor) -> Any:
        self.passes.count += 1
        h = self.body(x)
        return SimpleNamespace(start_logits=self.start(h), end_logits=self.end(h))


def test_logits_are_where_output_says() -> None:
    model = Spans()
    alone = nn.Sequential(model.body, model.end)
    expected = dropreg.explicit_regularizer(alone, X)
    value = dropreg.explicit_regularizer(model, X, output=lambda o: o.end_logits)
    torch.testing.assert_close(value, expected)
    losses = [
        dropreg.replace_dropout(model, output=lambda o: o.end_logits, generator=seeded()),
        dropreg.replace_dropout(alone, generator=seeded()),
    ]
    torch.testing.assert_close(*(each.loss(X, Y) for each in losses))
    k = [
        dropreg.dropout_k_loss(model, X, Y, 2, output=lambda o: o.end_logits, generator=seeded()),
        dropreg.dropout_k_loss(alone, X, Y, 2, generator=seeded()),
    ]
    torch.testing.assert_close(*k)
    both = dropreg.explicit_regularizer(
        model, X, output=lambda o: torch.stack([o.start_logits, o.end_logits], 1)
    )
    start = dropreg.explicit_regularizer(nn.Sequential(model.body, model.start), X)
    torch.testing.assert_close(both, (expected + start) / 2)


def test_a_function_made_anew_is_not_audited_anew() -> None:
    model = Spans()
    for _ in range(3):
        before = model.passes.count
        dropreg.explicit_regularizer(model, X, output=lambda o: o.end_logits)
    assert model.passes.count == before + 1


def test_an_output_that_is_not_said_or_wrong() -> None:
    with pytest.raises(errors.LogitsError, match="output=lambda"):
        dropreg.explicit_regularizer(Spans(), X)
    with pytest.raises(errors.LogitsError, match="returned SimpleNamespace"):
        dropreg.explicit_regularizer(Spans(), X, output=lambda o: o)


class OwnLoss(nn.Module):
    """Returns a loss beside its logits, of labels moved by one position, or not."""

    def __init__(self, *, shift: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.drop, self.head = nn.Embedding(7, 4), nn.Dropout(0.3), nn.Linear(4, 7)
        self.shift = shift

    def forward(self, tokens: Tensor, labels: Tensor) -> Any:
        logits = self.head(self.drop(self.embed(tokens)))
        moved = (logits[:, :-1], labels[:, 1:]) if self.shift else (logits, labels)
        loss = F.cross_entropy(moved[0].flatten(0, 1), moved[1].flatten())
        return SimpleNamespace(logits=logits, loss=loss)


TOKENS = torch.randint(7, (3, 5), generator=torch.Generator().manual_seed(2))
BATCH = {"tokens": TOKENS, "labels": TOKENS}


def test_a_model_whose_own_loss_is_another_one() -> None:
    objective = dropreg.replace_dropout(OwnLoss(shift=True))
    with pytest.warns(UserWarning, match=r"a loss of its own.*CrossEntropy\(shift=True\)"):
        objective.loss(BATCH, TOKENS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        objective.loss(BATCH, TOKENS)  # once is enough
        dropreg.replace_dropout(OwnLoss(shift=False)).loss(BATCH, TOKENS)
        shifted = dropreg.CrossEntropy(shift=True)
        dropreg.replace_dropout(OwnLoss(shift=True), loss=shifted).loss(BATCH, TOKENS)


def test_a_model_that_takes_one_dict() -> None:
    class OneDict(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(4, 5), nn.Dropout(0.3), nn.Linear(5, 3))

        def forward(self, batch: dict[str, Tensor]) -> Tensor:
            return self.net(batch["x"])

    model = OneDict()
    with pytest.raises(errors.InputError, match=r"does not take these inputs.*pass \(batch,\)"):
        dropreg.explicit_regularizer(model, {"x": X})
    value = dropreg.explicit_regularizer(model, ({"x": X},))
    torch.testing.assert_close(value, dropreg.explicit_regularizer(model.net, X))


@pytest.mark.parametrize("method", ["central", "even_odd", "exact", "jvp"])
def test_a_schedule_that_begins_at_zero(method: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(0.0), nn.Linear(8, 3))
    objective = dropreg.replace_dropout(model, method=method, generator=seeded())
    torch.testing.assert_close(objective.loss(X, Y), F.cross_entropy(model(X), Y))
    model[2].p = 0.3  # the very next loss has both effects
    fresh = nn.Sequential(*(m for m in model))
    expected = dropreg.replace_dropout(fresh, method=method, generator=seeded())
    torch.testing.assert_close(objective.loss(X, Y), expected.loss(X, Y))


def test_sites_by_hand() -> None:
    assert [s.name for s in find_sites(Spans(), X)] == ["body.2"]
