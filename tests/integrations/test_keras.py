"""The page's note on Keras 3, on its torch backend."""

import os

import pytest
import torch
from snippets import blocks
from torch import nn

import dropreg

os.environ.setdefault("KERAS_BACKEND", "torch")
keras = pytest.importorskip("keras", minversion="3")

INPUTS = torch.randn(24, 4, generator=torch.Generator().manual_seed(0)).numpy()
TARGETS = torch.randint(3, (24,), generator=torch.Generator().manual_seed(1)).numpy()


def dense(*dropout):
    hidden = keras.layers.Dense(8, activation="relu")
    return [keras.layers.Input((4,)), hidden, *dropout, keras.layers.Dense(3)]


class Trained(nn.Module):
    """A Keras model that listens to its mode."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, inputs):
        return self.model(inputs, training=self.training)


def test_the_page():
    keras.utils.set_random_seed(0)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    given = {"inputs": INPUTS, "targets": TARGETS, "loss": loss}
    names = given | {"layers": dense(keras.layers.Dropout(0.3))}
    for block in blocks("Keras 3"):
        exec(block, names)
    assert set(names["history"]) == {"clean", "explicit", "implicit"}
    assert all(len(values) == 2 for values in names["history"].values())
    model = names["model"]
    before = model.evaluate(INPUTS, TARGETS, verbose=0)
    model.fit(INPUTS, TARGETS, epochs=30, verbose=0)
    assert model.evaluate(INPUTS, TARGETS, verbose=0) < before


def test_the_gradient_is_that_of_the_same_network_in_torch():
    """Weights copied, noise alike; with a product after the dropout that has them both."""
    keras.utils.set_random_seed(0)
    model = Trained(keras.Sequential(dense(keras.layers.Dropout(0.3))))
    first, second = (layer for layer in model.model.layers if layer.weights)
    twin = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3))
    with torch.no_grad():
        for ours, theirs in ((twin[0], first), (twin[3], second)):
            ours.weight.copy_(theirs.kernel.value.T)
            ours.bias.copy_(theirs.bias.value)
    for net in (model, twin):
        noise = torch.Generator().manual_seed(7)
        objective = dropreg.replace_dropout(net, generator=noise)
        objective.loss(torch.tensor(INPUTS), torch.tensor(TARGETS)).backward()
    torch.testing.assert_close(first.kernel.value.grad.T, twin[0].weight.grad)
    torch.testing.assert_close(second.bias.value.grad, twin[3].bias.grad)


def test_recurrent_layers_and_attention_have_sites():
    lstm = keras.layers.LSTM(8, dropout=0.3, recurrent_dropout=0.2)
    model = keras.Sequential([keras.layers.Input((5, 4)), lstm, keras.layers.Dense(3)])
    sites = dropreg.find_sites(Trained(model), torch.randn(3, 5, 4))
    assert {site.p for site in sites} == {0.3, 0.2}
    x = keras.layers.Input((5, 4))
    attended = keras.layers.MultiHeadAttention(2, 4, dropout=0.2)(x, x)
    sites = dropreg.find_sites(Trained(keras.Model(x, attended)), torch.randn(3, 5, 4))
    assert [site.p for site in sites] == [0.2]


@pytest.mark.parametrize(
    "layer",
    [
        lambda: keras.layers.Dropout(0.3, seed=1),
        lambda: keras.layers.Dropout(0.3, noise_shape=(None, 1)),
        lambda: keras.layers.GaussianDropout(0.3),
        lambda: keras.layers.AlphaDropout(0.3),
    ],
)
def test_layers_that_draw_their_own_masks_are_refused(layer):
    model = Trained(keras.Sequential(dense(layer())))
    with pytest.raises(dropreg.errors.UnsupportedError):
        dropreg.find_sites(model, torch.tensor(INPUTS))


def test_spatial_dropout_is_refused():
    spatial = keras.layers.SpatialDropout1D(0.3)
    layers = [keras.layers.Input((5, 4)), spatial, keras.layers.Flatten(), keras.layers.Dense(3)]
    with pytest.raises(dropreg.errors.UnsupportedError):
        dropreg.find_sites(Trained(keras.Sequential(layers)), torch.randn(3, 5, 4))


def test_without_training_there_is_no_dropout():
    model = keras.Sequential(dense(keras.layers.Dropout(0.3)))
    with pytest.raises(dropreg.errors.NoSitesError):
        dropreg.find_sites(model, torch.tensor(INPUTS))
