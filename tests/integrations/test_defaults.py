"""The table of defaults in the last chapter is what transformers and PEFT have."""

import ast
import json
from pathlib import Path

import pytest

transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

PAGE = Path(__file__).parents[2] / "book" / "replace" / "worth.ipynb"
# For each row of the table the configurations that it speaks for; None for PEFT's own.
SPEAKS_FOR = {
    "BERT (2018), RoBERTa": ("bert", "roberta"),
    "GPT-2 (2019)": ("gpt2",),
    "T5 (2019)": ("t5",),
    "ViT (2020)": ("vit",),
    "Llama, Mistral, Qwen 2 and 3": ("llama", "mistral", "qwen2", "qwen3"),
    "Gemma 1 to 3": ("gemma", "gemma2", "gemma3_text"),
    "ModernBERT (2024)": ("modernbert",),
}
# Of a head that is put on top for classifying.
OF_A_HEAD = ("classifier_dropout", "summary_first_dropout")


def table():
    sources = ("".join(cell["source"]) for cell in json.loads(PAGE.read_text("utf-8"))["cells"])
    (source,) = (each for each in sources if "DEFAULTS = {" in each)
    (assigned,) = (n for n in ast.parse(source).body if isinstance(n, ast.Assign))
    return ast.literal_eval(assigned.value)


def test_every_row_is_looked_up():
    assert table().keys() == {*SPEAKS_FOR, "LoRA in PEFT"}


@pytest.mark.parametrize("row", SPEAKS_FOR)
def test_the_defaults_are_those_of_the_configurations(row):
    where, q = table()[row]
    for name in SPEAKS_FOR[row]:
        values = {
            key: value
            for key, value in transformers.AutoConfig.for_model(name).to_dict().items()
            if ("dropout" in key or "pdrop" in key) and key not in OF_A_HEAD
        }
        assert values, name
        assert set(values.values()) == {q}, name
        if where == "attention":
            assert list(values) == ["attention_dropout"], name


def test_lora_has_none():
    assert peft.LoraConfig().lora_dropout == table()["LoRA in PEFT"][1]
