"""What became of the first ledger's verdicts is what the two ledgers say."""

import nbformat
import pytest
from nbformat import v4

from tools import ROOT, first_verdicts

FIRST = """\
**1. Dropout helps.** (Figure 1) The paper's number: 120.

*Dropout_1* is to be lower than *none*.

- best epoch: -9.7 % (-11.0 to -8.4), n = 3. **✔ reproduced**
- last epoch: +1.0 % (-2.0 to +4.0), n = 3. **? undecided**
- again: `dropreg run dropout-k --size small`

**2. With more text there is no noise.** (Table 2)

- best epoch: -5.8 % (-8.9 to -2.6), n = 3. **✘ contradicted**
- last epoch: -5.8 % (-8.9 to -2.6), n = 3. **✘ contradicted**
"""
SECOND = """\
**1. Dropout helps.** (Figure 1) *none* is to be higher than *Dropout_1*.

- best: no share of +0.3 % (-0.1 to +0.7), n = 8. **– no gap**
- last: 1.00 (0.88 to 1.14) of +5.6 %, n = 8. **✔ reproduced** (*p* = 4.3e-12; could have seen 0.66)
- equal fit: +0.3 % (-0.1 to +0.7), n = 8. **? undecided** (*p* = 0.41)
- best, weights of the moment: +1.7 % (+0.9 to +2.5), n = 8. **✘ contradicted** (*p* = 0.00055)

**2. With more text there is little.** (Table 2) *a* is to be higher than *b*.

- 2 of 5 seeds. **– under way**

**24. Ours.** (ours)

- 0 of 5 seeds. **– not yet run**
"""


def ledger(title, text):
    output = v4.new_output("execute_result", {"text/markdown": text})
    return v4.new_notebook(cells=[v4.new_code_cell(f"{title}\nshow()", outputs=[output])])


def page(first=FIRST, second=SECOND):
    (one, judge), (two, claims) = first_verdicts.FIRST, first_verdicts.SECOND
    return first_verdicts.index({one: ledger(judge, first), two: ledger(claims, second)})


def test_each_claim_has_its_verdicts_then_and_now():
    rows = page().splitlines()[-2:]
    assert rows == [
        "| 1 | Dropout helps. | ✔ · ? | no gap · ✔ · ? |",
        "| 2 | With more text there is no noise. *Asked now:* With more text there is little. "
        "| ✘ · ✘ | under way |",
    ]


def test_a_ledger_of_another_form_is_no_ledger():
    with pytest.raises(ValueError, match="1 outputs with 0 claims of '# @title Judge the claims'"):
        page(first="Nothing was judged.")


def test_the_ledgers_in_the_book_have_all_that_is_read():
    paths = [path for path, _ in (first_verdicts.FIRST, first_verdicts.SECOND)]
    text = first_verdicts.index({p: nbformat.read(ROOT / p, as_version=4) for p in paths})
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if " · " in line]
    assert [number for number, *_ in rows] == [str(number) for number in range(1, 24)]
    then = "".join(then for _, _, then, _ in rows)
    # As the first page and the ledger count them: best and last epoch together.
    assert [then.count(sign) for sign in "✔✘?"] == [6 + 13, 4 + 5, 13 + 5]
