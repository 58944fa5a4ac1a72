"""The two regularization effects of dropout, measured, derived and put in dropout's place.

Start with `find_sites` to see where a model drops, `replace_dropout` to train it without, and
`explicit_regularizer` and `implicit_noise` for the two effects by themselves; `check` says whether
all of them agree on your model.
"""

from dropreg import errors
from dropreg.check import Report, Row, Verdict, check
from dropreg.control import register_adapter
from dropreg.control.audit import find_sites
from dropreg.explicit import ExplicitMethod, explicit_regularizer
from dropreg.implicit import ImplicitMethod, implicit_noise
from dropreg.layers import DropPath, LockedDropout, shared_dropout
from dropreg.losses import BinaryCrossEntropy, CrossEntropy, Elementwise, Loss, SquaredError
from dropreg.measure import Estimate, gradient_noise, measure_explicit
from dropreg.noise import Law, sample
from dropreg.noisy_loss import NoisyLoss
from dropreg.predict import Prediction, predict
from dropreg.probes import Probe
from dropreg.sites import Site, Sites
from dropreg.updates import (
    DropoutReplacement,
    GradientNoise,
    Objective,
    Rule,
    Update,
    dropout_k_loss,
    replace_dropout,
)

__all__ = [
    "BinaryCrossEntropy",
    "CrossEntropy",
    "DropPath",
    "DropoutReplacement",
    "Elementwise",
    "Estimate",
    "ExplicitMethod",
    "GradientNoise",
    "ImplicitMethod",
    "Law",
    "LockedDropout",
    "Loss",
    "NoisyLoss",
    "Objective",
    "Prediction",
    "Probe",
    "Report",
    "Row",
    "Rule",
    "Site",
    "Sites",
    "SquaredError",
    "Update",
    "Verdict",
    "check",
    "dropout_k_loss",
    "errors",
    "explicit_regularizer",
    "find_sites",
    "gradient_noise",
    "implicit_noise",
    "measure_explicit",
    "predict",
    "register_adapter",
    "replace_dropout",
    "sample",
    "shared_dropout",
]
__version__ = "0.1.0"
