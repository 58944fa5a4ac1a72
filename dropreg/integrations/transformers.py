r"""Dropout replaced by its two effects in ``transformers.Trainer``: a mixin, `ReplaceDropout`."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dropreg import updates
from dropreg.control.kernels import temporarily
from dropreg.control.passes import find_logits
from dropreg.errors import InputError, MissingPackageError, NotYetSupportedError
from dropreg.losses import CrossEntropy, FunctionLoss, Loss, resolve

if TYPE_CHECKING:  # what super() is; where transformers is missing this file is imported too
    from transformers import Trainer as _Trainer
else:
    _Trainer = object


class ReplaceDropout(_Trainer):
    r"""Trains without dropout, with its two effects in its place: a mixin for a Trainer.

    It stands before the Trainer among the bases, ``class MyTrainer(ReplaceDropout, Trainer)``, and
    its options are a dict in the Trainer's constructor, ``replace_dropout={"explicit": 0.5}``.
    Every training loss is that of `dropreg.replace_dropout`; in eval mode, so in ``evaluate`` and
    ``predict``, it is the Trainer's own.

    The loss is cross-entropy, shifted where the model's class is a causal language model's, with
    ``args.label_smoothing_factor``. On a run's first batch it is held against the loss that the
    model computes itself, and refused if that is another one. Then say which loss is meant, for
    instance ``replace_dropout={"loss": CrossEntropy(weight=..., shift=True)}``; that one is refused
    only if it does not shift as the model's does.

    The loss of an update is the sum over the terms that count (no -100) in all its micro-batches on
    all processes, over their number: gradients that are accumulated are those of one large batch,
    whatever the model does with ``num_items_in_batch``. With
    ``args.average_tokens_across_devices=False`` each process divides by its own number.

    Each process draws noise of its own, from a generator seeded with ``args.seed`` plus its rank.
    The state of the noise is saved in each checkpoint, and a run that is resumed goes on with the
    noise that it would have had.

    In the log, the parts of the loss stand beside it, as "loss_clean", "loss_explicit" and so on:
    those of `dropreg.DropoutReplacement`, before their strengths, each a mean over the updates
    since the last log.

    Attributes:
        replacement: The `dropreg.DropoutReplacement`; a callback may change its strengths.
    """

    replacement: updates.DropoutReplacement
    # The Trainer reads it: the losses are divided by the number of terms of the whole update.
    loss_is_scaled_for_ga: bool | None = True

    def __init__(
        self, *args: Any, replace_dropout: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Make a Trainer.

        Args:
            *args: Arguments of the Trainer.
            replace_dropout: Options of `dropreg.replace_dropout` by name. A "loss" must be a sum of
                terms: a `dropreg.Loss`, its name, or a loss module of PyTorch's.
            **kwargs: Keyword arguments of the Trainer.

        Raises:
            InputError: If an option cannot be, or does not go with those of the Trainer.
            MissingPackageError: If transformers is older than 5.19.
            NotYetSupportedError: If the model is to be compiled, or wrapped by anything but
                DistributedDataParallel.
        """
        if not hasattr(super(), "loss_is_scaled_for_ga"):
            raise MissingPackageError(
                "ReplaceDropout stands before a Trainer of transformers 5.19 or newer, as in "
                'class MyTrainer(ReplaceDropout, Trainer): pip install "dropreg[trainers]"'
            )
        super().__init__(*args, **kwargs)
        options = dict(replace_dropout or {})
        self._require_what_works()
        usual, self._is_told_the_loss = self._usual(), "loss" in options
        self._shifts = usual.shift
        self._criterion = self._given(options) if self._is_told_the_loss else usual
        self._pick = options.get("output") or find_logits
        if options.get("generator") is None:
            # The default one the Trainer seeds alike on every rank: huggingface/transformers#31412.
            generator = torch.Generator(self.args.device)
            options["generator"] = generator.manual_seed(self.args.seed + self.args.process_index)
        options["loss"] = self._criterion
        self.replacement = updates.replace_dropout(self.model, **options)
        self._has_seen_the_loss = False
        self._parts: dict[str, tuple[Tensor, float]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Refuse bases in the wrong order, in which the Trainer would train with dropout."""
        super().__init_subclass__(**kwargs)
        before = cls.__mro__[: cls.__mro__.index(ReplaceDropout)]
        if any(base.__name__ == "Trainer" for base in before):
            raise InputError("ReplaceDropout must stand before the Trainer among the bases.")

    def _require_what_works(self) -> None:
        if self.compute_loss_func is not None:
            raise InputError(
                "compute_loss_func is given logits that are computed already, too late to control "
                "their noise. Say what is trained as replace_dropout={'loss': ...}."
            )
        if self.args.torch_compile:
            raise NotYetSupportedError(
                "dropout inside a compiled model cannot be controlled: set torch_compile=False."
            )
        if self.args.n_gpu > 1:
            raise NotYetSupportedError(
                "nn.DataParallel runs copies of the model in threads, whose noise would not be one "
                "batch's. Start one process a GPU, torchrun --nproc-per-node=..., or let "
                "CUDA_VISIBLE_DEVICES name one GPU."
            )
        kind = self.accelerator.distributed_type.value
        if getattr(self.accelerator, "parallelism_config", None) is not None:
            kind = "a parallelism_config"
        elif kind == "NO" or kind.startswith("MULTI_"):  # alone, or DistributedDataParallel
            return
        raise NotYetSupportedError(
            f"the Trainer splits its model or its sequences ({kind}), with which two passes under "
            "one noise have not been tried. Train with DistributedDataParallel, or in one process."
        )

    def _usual(self) -> CrossEntropy:
        """Cross-entropy as the Trainer's arguments and the model's class have it."""
        from transformers.loss.loss_utils import LOSS_MAPPING, ForCausalLMLoss
        from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

        model = self.model.get_base_model() if hasattr(self.model, "peft_config") else self.model
        own = LOSS_MAPPING.get(getattr(model, "loss_type", None))
        aligned = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
        named = type(model).__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
        shift = named or (own is ForCausalLMLoss and not aligned)
        return CrossEntropy(label_smoothing=self.args.label_smoothing_factor, shift=shift)

    def _given(self, options: Mapping[str, Any]) -> Loss:
        """A copy of the loss that was asked for, to set its normalizer."""
        loss = resolve(options["loss"])
        if isinstance(loss, FunctionLoss) or not loss._has_terms:
            raise InputError(
                f"the loss {loss._name} is one number, and micro-batches add up to one large batch "
                "if it is a sum of terms: write `per_term` in a subclass of dropreg.Loss."
            )
        if loss.reduction != "mean" or loss.normalizer is not None:
            raise InputError(
                "the Trainer's loss is a mean over all micro-batches: give a loss with "
                "reduction='mean', whose normalizer is set for each update."
            )
        if self.args.label_smoothing_factor:
            raise InputError(
                "with a loss of your own, label_smoothing_factor must be 0: say "
                "CrossEntropy(label_smoothing=...)."
            )
        return copy.copy(loss)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train, as the Trainer does.

        Args:
            *args: Arguments of the Trainer's method.
            **kwargs: Keyword arguments of the Trainer's method.

        Returns:
            What the Trainer returns.
        """
        self._has_seen_the_loss, self._parts = False, {}
        return super().train(*args, **kwargs)

    def get_batch_samples(
        self, epoch_iterator: Any, num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """The micro-batches of an update, and what the sum of their terms is divided by.

        Args:
            epoch_iterator: Gives the batches.
            num_batches: How many micro-batches an update has.
            device: Where the model is.

        Returns:
            The batches, and the number of their terms that count (for cross-entropy with class
            weights the sum of these), a process; None if no term counts.
        """
        samples, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if not samples:
            return samples, None
        terms = torch.stack([self._terms(_labels_of(batch)) for batch in samples]).sum().to(device)
        if self.args.average_tokens_across_devices:
            total = self.accelerator.reduce(terms, reduction="sum")
            # DistributedDataParallel takes the mean of the gradients.
            return samples, total.item() / self.accelerator.num_processes or None
        return samples, terms.item() or None

    def _terms(self, labels: Tensor) -> Tensor:
        """What a mean over these labels is divided by."""
        criterion = self._criterion
        if criterion.classes_last and labels.is_floating_point():
            raise InputError(
                f"the labels are {labels.dtype}, and cross-entropy in a Trainer needs classes. For "
                "several labels an example give replace_dropout={'loss': 'binary_cross_entropy'}, "
                "for a regression {'loss': 'squared_error', 'output': lambda o: o.logits[..., 0]}."
            )
        counted = criterion.counted(labels)
        if isinstance(criterion, CrossEntropy) and criterion.weight is not None:
            weight = criterion.weight.to(labels.device)
            return weight[criterion.labels(labels)[counted]].sum()
        return torch.tensor(labels.numel()) if counted is None else counted.sum()

    def compute_loss(
        self,
        model: Any,
        inputs: Mapping[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
        **kwargs: Any,
    ) -> Any:
        """The loss of `dropreg.replace_dropout` in train mode, and in eval mode the Trainer's.

        Args:
            model: The model, as the Trainer has wrapped it.
            inputs: Keyword arguments of the model, and "labels".
            return_outputs: Whether to return what the model returned, too: in the loss's last pass.
            num_items_in_batch: What the sum of the terms is divided by; if None, by their number.
            **kwargs: Keyword arguments of the Trainer's method.

        Returns:
            The loss, or the loss and the model's output.

        Raises:
            InputError: If there are no labels, or the model is trained on another loss by itself.
        """
        if not model.training:
            return super().compute_loss(
                model, inputs, return_outputs, num_items_in_batch=num_items_in_batch, **kwargs
            )
        labels, inner = _labels_of(inputs), self.accelerator.unwrap_model(model)
        inputs = {name: value for name, value in inputs.items() if name != "labels"}
        shifted = getattr(inner, "prepare_decoder_input_ids_from_labels", None)
        if shifted and not {"decoder_input_ids", "decoder_inputs_embeds"} & inputs.keys():
            inputs["decoder_input_ids"] = shifted(labels=labels)
        if not self._has_seen_the_loss:
            self._compare_losses(inner, inputs, labels)
        self._criterion.normalizer = num_items_in_batch
        self.replacement.model = model
        loss = self.replacement.loss(inputs, labels)
        of_an_update = 1 / getattr(self, "current_gradient_accumulation_steps", 1)
        for name, part in self.replacement.parts.items():
            total, count = self._parts.get(name, (part.new_zeros(()), 0.0))
            self._parts[name] = total + part, count + of_an_update
        return (loss, self.replacement.output) if return_outputs else loss

    def _compare_losses(self, model: Any, inputs: Mapping[str, Any], labels: Tensor) -> None:
        """Refuse a model whose own loss is not the one that is about to be trained."""
        told = self._is_told_the_loss
        if told and getattr(self._criterion, "shift", self._shifts) == self._shifts:
            self._has_seen_the_loss = True
            return
        with torch.no_grad(), temporarily(list(model.modules()), "training", False):
            returned = model(**inputs, labels=labels)
            ours = CrossEntropy(shift=self._shifts).mean(self._pick(returned), labels)
        own = getattr(returned, "loss", None)
        if ours.isnan():  # every label is -100: the next batch will tell
            return
        low = own is not None and own.dtype.itemsize < 4
        near = own is not None and torch.isclose(own.to(ours), ours, rtol=1e-2 if low else 1e-4)
        if told and near:
            raise InputError(
                f"the model's own loss on the first batch is cross-entropy with shift="
                f"{self._shifts}, and the loss that was given has shift={not self._shifts}: say "
                f"CrossEntropy(shift={self._shifts}, ...)."
            )
        if not told and (not near or getattr(returned, "aux_loss", None) is not None):
            kind = "cross-entropy" + (" of shifted labels" if self._shifts else "")
            raise InputError(
                f"the model's own loss on the first batch is {own}, and {kind} is {ours}. If that "
                "is what you want to train, or the model has another loss, say so, for instance "
                "replace_dropout={'loss': CrossEntropy(shift=...)}."
            )
        self._has_seen_the_loss = True

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log, and the parts of the training loss beside it.

        Args:
            logs: What the Trainer logs.
            *args: Further arguments of the Trainer's method.
            **kwargs: Keyword arguments of the Trainer's method.
        """
        if "loss" in logs:
            for name, (total, count) in self._parts.items():
                mean = self.accelerator.reduce(total / count, reduction="mean")
                logs[f"loss_{name}"] = mean.item()
            self._parts = {}
        super().log(logs, *args, **kwargs)

    # The noise goes where the Trainer keeps the states of the generators that it knows.

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        torch.save(self.replacement.state_dict(), self._noise_in(output_dir))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)
        if checkpoint is None:
            return
        path = self._noise_in(checkpoint)
        if path.is_file():
            self.replacement.load_state_dict(torch.load(path, weights_only=True))
        else:
            warnings.warn(
                f"the checkpoint {checkpoint} has no {path.name}: its run had dropout, or another "
                "number of processes. The noise begins anew.",
                stacklevel=2,
            )

    def _noise_in(self, folder: str) -> Path:
        return Path(folder, f"dropreg_noise_{self.args.process_index}.pth")


def _labels_of(inputs: Mapping[str, Any]) -> Tensor:
    labels = inputs.get("labels")
    if isinstance(labels, Tensor):
        return labels
    raise InputError(
        "the batch has no tensor of labels under the name 'labels', which the loss needs beside "
        f"the model's inputs; it has {sorted(inputs)}."
    )
