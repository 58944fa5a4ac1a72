"""What ruff's docstring rules leave open: that `Args` is there and complete, and an example too."""

import inspect
import re

import pytest

import dropreg

PUBLIC = {name: getattr(dropreg, name) for name in dropreg.__all__}
CLASSES = {name: each for name, each in PUBLIC.items() if inspect.isclass(each)}
FUNCTIONS = {name: each for name, each in PUBLIC.items() if inspect.isfunction(each)}
METHODS = {
    f"{name}.{method.__name__}": method
    for name, each in CLASSES.items()
    for method in vars(each).values()
    if inspect.isfunction(method)
    and not method.__name__.startswith("_")
    # What overrides is documented where it is first defined.
    and not any(hasattr(base, method.__name__) for base in each.__bases__)
}


@pytest.mark.parametrize("name", FUNCTIONS | METHODS)
def test_every_argument_is_documented(name):
    function = (FUNCTIONS | METHODS)[name]
    documented = re.findall(r"^ +\*{0,2}(\w+):", inspect.getdoc(function), re.MULTILINE)
    if name in METHODS:  # what all methods of a class share stands with the class
        for base in CLASSES[name.partition(".")[0]].__mro__:
            documented += re.findall(r"`(\w+)`", base.__doc__ or "")
    arguments = [
        argument for argument in inspect.signature(function).parameters if argument != "self"
    ]
    assert set(arguments) <= set(documented)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_function_has_an_example(name):
    assert ">>>" in inspect.getdoc(FUNCTIONS[name])
