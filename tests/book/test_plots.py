"""The figures' style, and curves with the intervals of their seeds."""

import sys

import matplotlib.pyplot as plt
import numpy as np
import pytest

from dropreg.book.plots import fit_curves, learning_curves, use_style
from dropreg.book.statistics import interval
from dropreg.errors import MissingPackageError


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "seaborn", None)
    with pytest.raises(MissingPackageError, match="use_style needs seaborn"):
        use_style()


def test_learning_curves_show_the_means_and_say_where_one_that_leaves_the_figure_ends():
    curves = {
        "low": ([2, 4], np.array([[50.0, 41.0], [51.0, 42.0], [52.0, 43.0]])),
        "high": ([2, 4], np.array([[60.0, 90.0], [61.0, 91.0], [62.0, 92.0]])),
    }
    figure, axes = plt.subplots()
    learning_curves(axes, curves, {"low": "dropout", "high": "dropout"}, top=70)
    for line, (epochs, perplexities) in zip(axes.lines, curves.values(), strict=True):
        np.testing.assert_allclose(line.get_xdata(), epochs)
        np.testing.assert_allclose(line.get_ydata(), interval(perplexities)[0])
    assert {text.get_text() for text in axes.texts} == {"low", "high (to 91)"}
    plt.close(figure)


def test_fit_curves_have_their_dots_at_the_lowest_test_loss():
    curves = {
        "one": ([5.0, 4.0, 3.0], [4.5, 3.9, 4.0]),
        "other": ([5.0, 4.5, 4.0], [4.6, 4.2, 4.1]),
    }
    figure, axes = plt.subplots()
    fit_curves(axes, curves, {"one": "dropout", "other": "dropout"})
    lines = {line.get_label(): line for line in axes.lines if line.get_label() in curves}
    for label, (train, test) in curves.items():
        np.testing.assert_allclose(lines[label].get_xydata(), np.transpose([train, test]))
    assert lines["one"].get_linestyle() != lines["other"].get_linestyle()
    dots = [line.get_xydata()[0].tolist() for line in axes.lines if line.get_marker() == "o"]
    assert dots == [[4.0, 3.9], [4.0, 4.1]]
    low, high = axes.get_ylim()
    assert low < 3.9 < high
    plt.close(figure)
