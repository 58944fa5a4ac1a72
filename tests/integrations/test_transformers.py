"""Gradients inside the real Trainer are those of one large batch, written out without it."""

import copy
import itertools
import random
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import dropreg
from dropreg.errors import InputError, MissingPackageError, NotYetSupportedError

pytest.importorskip("transformers", minversion="5.19")
import transformers as hf
from snippets import blocks
from transformers.utils import logging

from dropreg.integrations.transformers import ReplaceDropout

logging.set_verbosity_error()
logging.disable_progress_bar()

CLASSES, LENGTH = 11, 7


class Replaced(ReplaceDropout, hf.Trainer):
    """What a user writes."""


def sizes(seed):
    """Of a small random configuration: two heads or one, of four or eight units."""
    rng = random.Random(seed)
    heads = rng.choice([1, 2])
    return rng, heads, heads * rng.choice([4, 8]), rng.choice([1, 2])


def gpt2(seed):
    rng, heads, width, layers = sizes(seed)
    p = {f"{name}_pdrop": rng.choice([0.1, 0.2]) for name in ("resid", "embd", "attn")}
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    shape = {"n_embd": width, "n_layer": layers, "n_head": heads, "n_positions": LENGTH}
    return hf.GPT2LMHeadModel(hf.GPT2Config(vocab_size=CLASSES, **p, **shape, **ends))


def llama(seed):
    rng, heads, width, layers = sizes(seed)
    shape = {"hidden_size": width, "intermediate_size": 9, "num_hidden_layers": layers}
    heads = {"num_attention_heads": heads, "num_key_value_heads": 1}
    p = rng.choice([0.1, 0.3])
    config = hf.LlamaConfig(vocab_size=CLASSES, attention_dropout=p, **shape, **heads)
    return hf.LlamaForCausalLM(config)


def bert_config(seed, **more):
    rng, heads, width, layers = sizes(seed)
    shape = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
    p = {name: rng.choice([0.1, 0.2]) for name in ("hidden_dropout_prob", "classifier_dropout")}
    return hf.BertConfig(vocab_size=CLASSES, intermediate_size=9, **shape, **p, **more)


def bert(seed):
    return hf.BertForMaskedLM(bert_config(seed))


def tagger(seed):
    return hf.BertForTokenClassification(bert_config(seed, num_labels=CLASSES))


def classifier(seed, **more):
    more = {"num_labels": CLASSES} | more
    return hf.BertForSequenceClassification(bert_config(seed, **more))


def t5(seed):
    rng, heads, width, layers = sizes(seed)
    shape = {"d_model": width, "d_kv": 4, "d_ff": 9, "num_layers": layers, "num_heads": heads}
    p = {"dropout_rate": rng.choice([0.1, 0.2]), "decoder_start_token_id": 0}
    return hf.T5ForConditionalGeneration(hf.T5Config(vocab_size=CLASSES, **shape, **p))


FAMILIES = {each.__name__: each for each in (gpt2, llama, bert, tagger, classifier, t5)}
SHIFTED = ("gpt2", "llama")
MICRO, ACCUMULATED, UPDATES = 2, 3, 2


def examples(name, count=MICRO * ACCUMULATED * UPDATES):
    """Sequences of which each has another number of labels that count."""
    g = torch.Generator().manual_seed(5)
    found = []
    for index in range(count):
        ids = torch.randint(CLASSES, (LENGTH,), generator=g)
        labels = torch.randint(CLASSES, (LENGTH,), generator=g)
        labels[2 + index % 4 :] = -100
        labels[0] = -100 if index % 3 else labels[0]
        labels = labels[0] % CLASSES if name == "classifier" else labels
        found.append({"input_ids": ids, "labels": labels})
    return found


class Gradients(hf.TrainerCallback):
    """Keeps the gradient of each update."""

    def __init__(self):
        self.seen = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.seen.append([p.grad.clone() for p in model.parameters() if p.requires_grad])


def trainer(model, data, folder, *, options=None, kind=Replaced, more=None, **args):
    """A Trainer that takes the examples in their order."""
    args = {
        "per_device_train_batch_size": MICRO,
        "gradient_accumulation_steps": ACCUMULATED,
        "max_steps": UPDATES,
        "train_sampling_strategy": "sequential",
        "optim": "sgd",
        "max_grad_norm": 0.0,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
    } | args
    args = hf.TrainingArguments(output_dir=str(folder), **args)
    options = {} if kind is hf.Trainer else {"replace_dropout": options}
    return kind(model, args, train_dataset=data, **options, **(more or {}))


def gradients_in_training(model, data, folder, **options):
    keeps = Gradients()
    made = trainer(model, data, folder, more={"callbacks": [keeps]}, **options)
    made.train()
    return made, keeps.seen


def batch(rows):
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def logits_and_labels(name, model, rows):
    """Written out: the labels shifted, the decoder's inputs made of them."""
    inputs = batch(rows)
    labels = inputs.pop("labels")
    if name == "t5":
        before = F.pad(labels[:, :-1], (1, 0), value=0)
        inputs["decoder_input_ids"] = before.masked_fill(before == -100, 0)
    logits = model(**inputs).logits
    if name in SHIFTED:
        logits, labels = logits[:, :-1], labels[:, 1:]
    return logits.reshape(-1, logits.shape[-1]), labels.reshape(-1)


class Off(hf.TrainerCallback):
    """Switches the explicit effect off before the second update."""

    def on_step_end(self, args, state, control, **kwargs):
        self.replacement.explicit = 0.0


def test_the_page(tmp_path):
    made = trainer(tagger(0), examples("tagger"), tmp_path, logging_steps=1)
    names = {"model": made.model, "args": made.args, "data": made.train_dataset}
    names["weights"] = torch.rand(CLASSES) + 0.5
    for block in blocks("transformers"):
        exec(block, names)
        assert issubclass(names["MyTrainer"], hf.Trainer)
    callback = Off()
    callback.replacement = names["trainer"].replacement
    names["trainer"].add_callback(callback)
    names["trainer"].train()
    for log, strength in zip(names["trainer"].state.log_history, (1.0, 0.0), strict=False):
        rest = log["loss"] - log["loss_clean"] - log["loss_implicit"]
        explicit = log.get("loss_explicit", 0.0)
        assert rest == pytest.approx(strength * explicit, abs=1e-5)
        assert bool(explicit) == bool(strength)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("name", FAMILIES)
def test_the_clean_gradient_is_that_of_one_large_batch(name, smoothing, tmp_path):
    """In float64, against PyTorch's cross-entropy of all rows at once, in eval mode."""
    torch.manual_seed(0)
    model, data = FAMILIES[name](len(name)).double(), examples(name)
    half = len(data) // 2
    model.eval()
    expected = []
    for rows in (data[:half], data[half:]):
        logits, labels = logits_and_labels(name, model, rows)
        loss = F.cross_entropy(logits, labels, label_smoothing=smoothing)
        expected.append(torch.autograd.grad(loss, list(model.parameters())))
    _, seen = gradients_in_training(
        model,
        data,
        tmp_path,
        options={"explicit": 0.0, "implicit": 0.0},
        label_smoothing_factor=smoothing,
        learning_rate=0.0,
    )
    assert len(seen) == UPDATES
    for found, wanted in zip(seen, expected, strict=True):
        torch.testing.assert_close(found, list(wanted), rtol=1e-9, atol=1e-12)


# Of peft's own.
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing", "ignore:fan_in_fan_out")
@pytest.mark.parametrize("name", ["gpt2", "t5", "classifier"])
def test_lora(name, tmp_path):
    """The dropout of the adapters is replaced, too, and only they get a gradient."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    targets = {"gpt2": ["c_attn"], "t5": ["q", "v"], "classifier": ["query", "value"]}[name]
    config = peft.LoraConfig(r=2, lora_dropout=0.2, target_modules=targets, init_lora_weights=False)
    model, data = peft.get_peft_model(FAMILIES[name](1), config).double(), examples(name)
    trained = [p for p in model.parameters() if p.requires_grad]
    made, seen = gradients_in_training(
        model, data, tmp_path, options={"explicit": 0.0, "implicit": 0.0}, learning_rate=0.0
    )
    model.eval()
    rows = data[: MICRO * ACCUMULATED]
    loss = F.cross_entropy(*logits_and_labels(name, model, rows))
    wanted = torch.autograd.grad(loss, trained)
    torch.testing.assert_close(seen[0], list(wanted), rtol=1e-9, atol=1e-12)
    inputs = batch(rows)
    labels = inputs.pop("labels")
    if name == "t5":
        inputs["decoder_input_ids"] = labels.clamp(0)
    sites = dropreg.find_sites(made.model.train(), **inputs)
    assert any(site.p == 0.2 and "lora_dropout" in site.name for site in sites)


@pytest.mark.parametrize("name", ["gpt2", "t5", "classifier"])
def test_both_effects_are_sums_over_the_micro_batches(name, tmp_path):
    """Each micro-batch's loss with the update's number of terms, and with the noise of the seed."""
    torch.manual_seed(0)
    model, data = FAMILIES[name](3).double(), examples(name)
    made, seen = gradients_in_training(
        model, data, tmp_path, options={"explicit": 2.0}, learning_rate=0.0, seed=9, logging_steps=1
    )
    criterion = dropreg.CrossEntropy(shift=name in SHIFTED)
    noise = torch.Generator().manual_seed(9)
    objective = dropreg.replace_dropout(model, explicit=2.0, loss=criterion, generator=noise)
    batches = iter(batch(list(rows)) for rows in zip(*[iter(data)] * MICRO, strict=True))
    for found, log in zip(seen, made.state.log_history, strict=False):
        micro = list(itertools.islice(batches, ACCUMULATED))
        counted = [criterion.counted(each["labels"]).sum() for each in micro]
        model.zero_grad()
        parts = dict.fromkeys(("clean", "explicit", "implicit"), 0.0)
        for inputs in micro:
            criterion.normalizer = sum(counted)
            labels = inputs.pop("labels")
            if name == "t5":
                inputs["decoder_input_ids"] = model._shift_right(labels)
            objective.loss(inputs, labels).backward()
            parts = {part: parts[part] + float(objective.parts[part]) for part in parts}
        torch.testing.assert_close(found, [p.grad for p in model.parameters()])
        assert {part: log[f"loss_{part}"] for part in parts} == pytest.approx(parts, rel=1e-6)
        total = parts["clean"] + 2.0 * parts["explicit"] + parts["implicit"]
        assert log["loss"] == pytest.approx(total, rel=1e-6)


def test_parts_are_means_over_the_updates_since_the_last_log(tmp_path):
    model, data = gpt2(0), examples("gpt2", 4 * MICRO * ACCUMULATED)
    logs = []
    for every in (1, 2):
        torch.manual_seed(0)
        made = trainer(model, data, tmp_path, max_steps=4, logging_steps=every, learning_rate=0.0)
        made.train()
        logs.append([log for log in made.state.log_history if "loss" in log])
    for name in ("loss", "loss_clean", "loss_explicit", "loss_implicit"):
        one, two = ([log[name] for log in log] for log in logs)
        means = [(a + b) / 2 for a, b in zip(one[::2], one[1::2], strict=True)]
        assert two == pytest.approx(means, rel=1e-4), name


def test_parts_that_are_not_always_computed_are_means_over_where_they_are(tmp_path):
    """With every=2 and 3 micro-batches an update, the effects are in every other micro-batch."""
    torch.manual_seed(0)
    made = trainer(
        classifier(0), examples("classifier"), tmp_path, options={"every": 2}, logging_steps=2
    )
    seen = []
    one = made.replacement.loss

    def loss(*args):
        total = one(*args)
        seen.append(dict(made.replacement.parts))
        return total

    made.replacement.loss = loss
    made.train()
    log = made.state.log_history[0]
    explicit = [float(parts["explicit"]) for parts in seen if "explicit" in parts]
    assert len(explicit) == len(seen) / 2
    # Each is a third of an update's terms, as all micro-batches have as many.
    assert log["loss_explicit"] == pytest.approx(3 * sum(explicit) / len(explicit), rel=1e-5)


def test_class_weights(tmp_path):
    torch.manual_seed(0)
    model, data = tagger(1).double(), examples("tagger")
    weight = torch.rand(CLASSES, dtype=torch.float64) + 0.5
    given = dropreg.CrossEntropy(weight=weight, label_smoothing=0.2)
    options = {"explicit": 0.0, "implicit": 0.0, "loss": given}
    _, seen = gradients_in_training(model, data, tmp_path, options=options, learning_rate=0.0)
    assert given.normalizer is None
    model.eval()
    logits, labels = logits_and_labels("tagger", model, data[: MICRO * ACCUMULATED])
    loss = F.cross_entropy(logits, labels, weight, label_smoothing=0.2)
    wanted = torch.autograd.grad(loss, list(model.parameters()))
    torch.testing.assert_close(seen[0], list(wanted), rtol=1e-9, atol=1e-12)


def test_each_process_may_count_for_itself(tmp_path):
    torch.manual_seed(0)
    model, data = gpt2(1).double(), examples("gpt2")
    seen = []
    for everywhere in (True, False):
        args = {"average_tokens_across_devices": everywhere, "learning_rate": 0.0}
        seen.append(gradients_in_training(model, data, tmp_path, **args)[1])
    assert len(seen[0]) == UPDATES
    torch.testing.assert_close(*seen, rtol=0, atol=0)


class Stream(torch.utils.data.IterableDataset):
    """Ends before the Trainer, which does not know its length, expects it."""

    def __init__(self, rows):
        self.rows = rows

    def __iter__(self):
        return iter(self.rows)


def test_a_stream_that_ends_gives_no_update_without_a_batch(tmp_path):
    torch.manual_seed(0)
    model, rows = gpt2(1).double(), examples("gpt2")
    options = {"explicit": 0.0, "implicit": 0.0}
    _, seen = gradients_in_training(
        model, Stream(rows), tmp_path, options=options, learning_rate=0.0, max_steps=3
    )
    model.eval()
    half = len(rows) // 2
    for found, part in zip(seen, (rows[:half], rows[half:], rows[:half]), strict=True):
        loss = F.cross_entropy(*logits_and_labels("gpt2", model, part))
        wanted = torch.autograd.grad(loss, list(model.parameters()))
        torch.testing.assert_close(found, list(wanted), rtol=1e-9, atol=1e-12)


class Seq2Seq(ReplaceDropout, hf.Seq2SeqTrainer):
    """The other Trainer."""


def test_a_trainer_for_sequences_to_sequences(tmp_path):
    torch.manual_seed(0)
    model, rows = t5(1), examples("t5")
    args = hf.Seq2SeqTrainingArguments(
        str(tmp_path), max_steps=1, report_to=[], use_cpu=True, disable_tqdm=True, optim="sgd"
    )
    made = Seq2Seq(model, args, train_dataset=rows)
    made.train()
    assert set(made.replacement.parts) == {"clean", "explicit", "implicit"}


@pytest.mark.parametrize("kind", ["regression", "multi_label_classification"])
def test_other_losses_are_named(kind, tmp_path):
    torch.manual_seed(0)
    several = kind != "regression"
    model = classifier(2, num_labels=CLASSES if several else 1, problem_type=kind).double()
    data = examples("classifier")
    for row in data:
        row["labels"] = torch.rand(CLASSES if several else (), dtype=torch.float64).round()
    named = {"loss": "binary_cross_entropy" if several else "squared_error"}
    named |= {} if several else {"output": lambda returned: returned.logits[..., 0]}
    options = {"explicit": 0.0, "implicit": 0.0, **named}
    _, seen = gradients_in_training(model, data, tmp_path, options=options, learning_rate=0.0)
    model.eval()
    loss = model(**batch(data[: MICRO * ACCUMULATED])).loss
    wanted = torch.autograd.grad(loss, list(model.parameters()))
    torch.testing.assert_close(seen[0], list(wanted), rtol=1e-6, atol=1e-9)
    with pytest.raises(InputError, match=r"'loss': 'squared_error'"):
        trainer(model, data, tmp_path).train()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_evaluation_is_the_trainers(smoothing, tmp_path):
    torch.manual_seed(0)
    model, data = llama(0), examples("llama")
    rest = {"more": {"eval_dataset": data}, "label_smoothing_factor": smoothing}
    plain = trainer(model, data, tmp_path, kind=hf.Trainer, **rest).evaluate()
    assert trainer(model, data, tmp_path, **rest).evaluate()["eval_loss"] == plain["eval_loss"]


def test_the_trainer_divides_gpt2s_eval_loss_by_every_label(tmp_path):
    """As the page says; ours is divided by the labels that are predicted."""
    torch.manual_seed(0)
    model, data = gpt2(0), examples("gpt2")
    for row in data:
        row["labels"] = row["labels"].clamp(0)
    made = trainer(model, data, tmp_path, more={"eval_dataset": data})
    evaluated = made.evaluate()["eval_loss"]
    model.eval()
    plain = F.cross_entropy(*logits_and_labels("gpt2", model, data)).item()
    assert evaluated == pytest.approx(plain * (LENGTH - 1) / LENGTH, rel=1e-4)


def test_a_resumed_run_has_the_noise_that_it_would_have_had(tmp_path):
    data = examples("gpt2", 5 * MICRO * ACCUMULATED)
    ends = []
    for stop in (4, 2):
        torch.manual_seed(0)
        folder = tmp_path / str(stop)
        args = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4, "optim": "adamw_torch"}
        made = trainer(gpt2(1), data, folder, options={"every": 3}, **args)
        if stop == 2:

            class Stop(hf.TrainerCallback):
                def on_save(self, args, state, control, **kwargs):
                    control.should_training_stop = True

            made.add_callback(Stop)
            made.train()
            assert made.state.global_step == 2
            torch.manual_seed(1)
            made = trainer(gpt2(1), data, folder, options={"every": 3}, **args)
            made.train(resume_from_checkpoint=True)
        else:
            made.train()
        assert made.state.global_step == 4
        ends.append([p.detach() for p in made.model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_a_checkpoint_without_noise_is_told(tmp_path):
    data = examples("gpt2")
    args = {"save_strategy": "steps", "save_steps": 1}
    trainer(gpt2(1), data, tmp_path, kind=hf.Trainer, **args).train()
    made = trainer(gpt2(1), data, tmp_path, **args)
    made._load_rng_state(None)  # which a Trainer may be asked for
    with pytest.warns(UserWarning, match="has no dropreg_noise_0.pth.*The noise begins anew"):
        made.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


def test_each_process_has_noise_of_its_own_seed(tmp_path):
    data = examples("gpt2")
    state = trainer(gpt2(1), data, tmp_path, seed=3).replacement.state_dict()["generator"]
    assert torch.equal(state, torch.Generator().manual_seed(3).get_state())
    own = torch.Generator().manual_seed(8)
    made = trainer(gpt2(1), data, tmp_path, options={"generator": own})
    assert torch.equal(made.replacement.state_dict()["generator"], own.get_state())


@pytest.mark.parametrize("name", ["gpt2", "bert", "t5"])
def test_gradient_checkpointing_changes_nothing(name, tmp_path):
    torch.manual_seed(0)
    model, data = FAMILIES[name](4).double(), examples(name)
    seen = []
    for on in (False, True):
        args = {"activation_checkpointing": on, "learning_rate": 0.0}
        seen.append(gradients_in_training(model, data, tmp_path, **args)[1])
    assert model.is_activation_checkpointing
    torch.testing.assert_close(*seen, rtol=1e-9, atol=1e-12)


def test_bf16_takes_the_method_that_works_there(tmp_path):
    torch.manual_seed(0)
    model, data = gpt2(5), examples("gpt2")
    _, exact = gradients_in_training(
        copy.deepcopy(model), data, tmp_path, options={"method": "even_odd"}, learning_rate=0.0
    )
    with pytest.warns(UserWarning, match="even_odd"):
        made, seen = gradients_in_training(model, data, tmp_path, bf16=True, learning_rate=0.0)
    assert made.replacement.method == "even_odd"
    norm = sum(g.square().sum() for g in exact[0]).sqrt()
    error = sum((a - b).square().sum() for a, b in zip(seen[0], exact[0], strict=True)).sqrt()
    assert 0 < error < 0.05 * norm


def test_an_update_without_labels_does_no_harm(tmp_path):
    torch.manual_seed(0)
    model, data = gpt2(5), examples("gpt2")
    for row in data[: MICRO * ACCUMULATED]:
        row["labels"] = torch.full_like(row["labels"], -100)
    _, seen = gradients_in_training(model, data, tmp_path, learning_rate=0.0)
    assert all((g == 0).all() for g in seen[0])
    assert any((g != 0).any() for g in seen[1])


class Steeper(hf.GPT2LMHeadModel):
    """Twice the loss."""

    def forward(self, input_ids, labels=None, **kwargs):
        returned = super().forward(input_ids, labels=labels, **kwargs)
        if returned.loss is not None:
            returned.loss = 2 * returned.loss
        return returned


class Silent(hf.GPT2LMHeadModel):
    """No loss."""

    def forward(self, input_ids, labels=None, **kwargs):
        return super().forward(input_ids, **kwargs)


def mixtral(**more):
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 1, "num_key_value_heads": 1, "num_local_experts": 2}
    config = hf.MixtralConfig(vocab_size=CLASSES, attention_dropout=0.2, **shape, **heads, **more)
    return hf.MixtralForCausalLM(config)


@pytest.mark.parametrize("kind", [Steeper, Silent, "mixtral", "xlnet"])
def test_a_model_with_another_loss_is_refused(kind, tmp_path):
    torch.manual_seed(0)
    if kind == "mixtral":
        model = mixtral(output_router_logits=True, router_aux_loss_coef=1e-5)
    elif kind == "xlnet":  # a language model that does not shift its labels
        config = hf.XLNetConfig(vocab_size=CLASSES, d_model=8, n_layer=1, n_head=1, d_inner=9)
        model = hf.XLNetLMHeadModel(config)
    else:
        model = kind(gpt2(0).config)
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(InputError, match=r"model's own loss on the first batch.*'loss'"):
        trainer(model, examples("gpt2"), tmp_path).train()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    said = {"loss": dropreg.CrossEntropy(shift=kind != "xlnet")}
    trainer(model, examples("gpt2"), tmp_path, options=said).train()


@pytest.mark.parametrize("name", ["gpt2", "bert"])
def test_a_given_loss_must_shift_as_the_model_does(name, tmp_path):
    torch.manual_seed(0)
    model, data, shift = FAMILIES[name](0), examples(name), name in SHIFTED
    weight = torch.rand(CLASSES) + 0.5
    wrong = dropreg.CrossEntropy(weight=weight, shift=not shift)
    for loss in (wrong, *(["cross_entropy"] if shift else [])):
        with pytest.raises(InputError, match=rf"given has.*say CrossEntropy\(shift={shift}"):
            trainer(model, data, tmp_path, options={"loss": loss}).train()
    right = dropreg.CrossEntropy(weight=weight, shift=shift)
    trainer(model, data, tmp_path, options={"loss": right}).train()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"more": {"compute_loss_func": print}}, "too late"),
        ({"options": {"loss": F.cross_entropy}}, "is one number"),
        ({"options": {"loss": nn.CrossEntropyLoss(reduction="sum")}}, "reduction='mean'"),
        ({"options": {"loss": dropreg.CrossEntropy(normalizer=3.0)}}, "reduction='mean'"),
        (
            {"options": {"loss": dropreg.CrossEntropy()}, "label_smoothing_factor": 0.1},
            "label_smoothing_factor must be 0",
        ),
        ({"options": {"explicit": "much"}}, "explicit"),
    ],
)
def test_options_that_do_not_fit_are_refused_at_once(given, says, tmp_path):
    with pytest.raises(InputError, match=says):
        trainer(gpt2(0), examples("gpt2"), tmp_path, **given)


def test_an_unknown_option_is_refused_at_once(tmp_path):
    with pytest.raises(TypeError, match="explict"):
        trainer(gpt2(0), examples("gpt2"), tmp_path, options={"explict": 1.0})


def test_batches_without_labels_are_refused(tmp_path):
    data = [{"input_ids": row["input_ids"]} for row in examples("gpt2")]
    with pytest.raises(InputError, match=r"no tensor of labels.*\['input_ids'\]"):
        trainer(gpt2(0), data, tmp_path).train()


def test_what_the_library_cannot_control_is_refused_before_a_step(tmp_path):
    model = gpt2(0)
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(dropreg.errors.UnsupportedError):
        trainer(model, examples("gpt2"), tmp_path, neftune_noise_alpha=1.0).train()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    with pytest.raises(NotYetSupportedError, match="torch_compile=False"):
        trainer(model, examples("gpt2"), tmp_path, torch_compile=True)


def test_ways_of_splitting_a_model_are_refused(tmp_path, monkeypatch):
    from accelerate import Accelerator, ParallelismConfig
    from accelerate.utils import DistributedType

    monkeypatch.setattr(hf.TrainingArguments, "n_gpu", property(lambda args: 2))
    with pytest.raises(NotYetSupportedError, match="DataParallel"):
        trainer(gpt2(0), examples("gpt2"), tmp_path)
    monkeypatch.undo()
    for kind in (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        monkeypatch.setattr(Accelerator, "distributed_type", kind)
        with pytest.raises(NotYetSupportedError, match=kind.value):
            trainer(gpt2(0), examples("gpt2"), tmp_path)
    monkeypatch.undo()
    monkeypatch.setattr(Accelerator, "parallelism_config", ParallelismConfig())
    with pytest.raises(NotYetSupportedError, match="parallelism_config"):
        trainer(gpt2(0), examples("gpt2"), tmp_path)


def test_the_order_of_bases_and_an_old_trainer_are_told(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="before the Trainer"):
        type("Reversed", (hf.Trainer, ReplaceDropout), {})
    with pytest.raises(InputError, match="before the Trainer"):
        type("Reversed", (hf.Seq2SeqTrainer, ReplaceDropout), {})
    with pytest.raises(MissingPackageError, match=r"5\.19"):
        ReplaceDropout()
    monkeypatch.delattr(hf.Trainer, "loss_is_scaled_for_ga")
    with pytest.raises(MissingPackageError, match=r"5\.19"):
        trainer(gpt2(0), examples("gpt2"), tmp_path)


def test_no_import_brings_a_trainer():
    frameworks = {"transformers", "lightning", "accelerate", "keras"}
    code = f"""
import sys
import dropreg, dropreg.integrations, dropreg.integrations.transformers
assert not {frameworks} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
