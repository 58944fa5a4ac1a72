"""The paper's experiments: declared once, run at several sizes, recorded with their provenance.

`EXPERIMENTS` are the declarations, of update rules (`dropreg.Rule`) and tasks, which the command
line ``dropreg`` runs. `dropreg.book.experiments.claims` says what the paper says of them,
`dropreg.book.experiments.ledger` what was measured. Size "tiny" needs torch and nothing else, the
other sizes a text (see `dropreg.book.data`), the ledger the extra `dropreg[book]`.
"""

from dropreg.book.experiments.catalog import EXPERIMENTS, experiment
from dropreg.book.experiments.declarations import Arm, Experiment, Run
from dropreg.book.experiments.records import Record, RecordError
from dropreg.book.experiments.runner import Store
from dropreg.book.experiments.tasks import TASKS, Setting, Size, Task
from dropreg.book.experiments.training import Progress, evaluate, train

__all__ = [
    "EXPERIMENTS",
    "TASKS",
    "Arm",
    "Experiment",
    "Progress",
    "Record",
    "RecordError",
    "Run",
    "Setting",
    "Size",
    "Store",
    "Task",
    "evaluate",
    "experiment",
    "train",
]
