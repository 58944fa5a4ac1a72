"""The figures' style, and curves with the intervals of their seeds."""

import itertools
import sys

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.text import Text

from dropreg.book.plots import differences, fit_curves, label_ends, learning_curves, use_style
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
    means = [line for line in axes.lines if line.get_label() in curves]
    for line, (epochs, perplexities) in zip(means, curves.values(), strict=True):
        np.testing.assert_allclose(line.get_xdata(), epochs)
        np.testing.assert_allclose(line.get_ydata(), interval(perplexities)[0])
    seeds = [line.get_ydata() for line in axes.lines if line not in means]
    np.testing.assert_allclose(seeds, np.concatenate([runs for _, runs in curves.values()]))
    assert {text.get_text() for text in axes.texts} == {"low", "high (to 91)"}
    plt.close(figure)


@pytest.mark.parametrize("turned", [False, True])
def test_labels_stand_in_the_order_of_the_ends_and_apart(turned):
    figure, axes = plt.subplots()
    ends = {"c": 1.02, "a": 1.0, "d": 1.03, "b": 1.01, "far": 9.0}
    for name, end in ends.items():
        axes.plot([0, 1], [5, end], label=name)
    axes.plot([0, 1], [2, 2])  # has no label
    axes.set_yscale("log")
    if turned:
        axes.invert_yaxis()
    label_ends(axes)
    figure.canvas.draw()
    boxes = {text.get_text(): Text.get_window_extent(text) for text in axes.texts}
    order = sorted(boxes, key=lambda name: boxes[name].y0, reverse=turned)
    assert order == sorted(ends, key=ends.get)
    stacked = sorted(boxes.values(), key=lambda box: box.y0)
    for lower, upper in itertools.pairwise(stacked):
        assert upper.y0 > lower.y1 - 2
    plt.close(figure)


def test_differences_show_each_run_and_the_interval_of_their_mean():
    runs = {"up": [0.2, 0.3, 0.4], "none": [-0.1, 0.1, 0.3]}
    figure, axes = plt.subplots()
    differences(axes, runs, "nats", {"up": "dropout"})
    for row, values in enumerate(runs.values()):
        zero, *rest = axes.lines
        dots, bar, mean = rest[3 * row : 3 * row + 3]
        assert zero.get_xdata()[0] == 0
        np.testing.assert_allclose(dots.get_xdata(), values)
        middle, half = interval(values)
        np.testing.assert_allclose(bar.get_xdata(), [middle - half, middle + half])
        np.testing.assert_allclose(mean.get_xdata(), middle)
    assert [label.get_text() for label in axes.get_yticklabels()] == list(runs)
    plt.close(figure)


def test_differences_take_an_interval_that_is_not_theirs_alone():
    _, axes = plt.subplots()
    differences(axes, {"up": [0.2, 0.4]}, "nats", halves={"up": 0.05})
    np.testing.assert_allclose(axes.lines[2].get_xdata(), [0.25, 0.35])
    plt.close()


def test_fit_curves_have_seeds_means_and_dots_at_the_lowest_mean_test_loss():
    curves = {
        "one": ([[5.0, 4.0, 3.0], [5.0, 4.0, 3.0]], [[4.5, 3.8, 4.0], [4.5, 4.0, 4.0]]),
        "other": ([[5.0, 4.5, 4.0]], [[4.6, 4.2, 4.1]]),
    }
    figure, axes = plt.subplots()
    fit_curves(axes, curves, {"one": "dropout", "other": "dropout"})
    lines = {line.get_label(): line for line in axes.lines if line.get_label() in curves}
    for label, way in curves.items():
        np.testing.assert_allclose(lines[label].get_xydata().T, np.mean(way, axis=1))
    seeds = [line.get_ydata().tolist() for line in axes.lines if line.get_linewidth() < 1]
    assert seeds == [*curves["one"][1], *curves["other"][1]]
    assert lines["one"].get_linestyle() != lines["other"].get_linestyle()
    dots = [line.get_xydata()[0].tolist() for line in axes.lines if line.get_marker() == "o"]
    assert dots == [[4.0, 3.9], [4.0, 4.1]]
    low, high = axes.get_ylim()
    assert low < 3.9 < high
    plt.close(figure)
