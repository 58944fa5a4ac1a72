"""The model families, each as small as its configuration allows, with random weights."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from compare import Case, InFloat64
from torch import Tensor, nn


@dataclass(frozen=True)
class Family:
    """A family.

    Attributes:
        name: Its name on the page.
        package: The distribution that it comes from.
        build: Makes the model and a batch.
        expected: "works", or "refused" where nothing else can be right.
    """

    name: str
    package: str
    build: Callable[[], Case]
    expected: str = "works"


FAMILIES: list[Family] = []


def family(
    name: str, package: str = "torch", expected: str = "works"
) -> Callable[[Callable[[], Case]], Callable[[], Case]]:
    """Put a builder into the list."""

    def add(build: Callable[[], Case]) -> Callable[[], Case]:
        FAMILIES.append(Family(name, package, build, expected))
        return build

    return add


def ready(model: nn.Module, inputs: Any, *, spread: float = 0.2, **options: Any) -> Case:
    """The model in float64 and train mode, its weights moved so far that curvature matters.

    Args:
        model: The model.
        inputs: A batch.
        spread: Standard deviation of what is added to each parameter; 0 leaves gates at zero.
        **options: Of the case.

    Returns:
        The case.
    """
    model = model.double().train()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(
                torch.randn(parameter.shape, generator=generator, dtype=torch.float64),
                alpha=spread,
            )
    return Case(model, inputs, **options)


def tokens(vocabulary: int = 11, batch: int = 2, time: int = 4) -> Tensor:
    return torch.randint(1, vocabulary, (batch, time), generator=torch.Generator().manual_seed(2))


def numbers(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


# --- PyTorch's own --------------------------------------------------------------------------------


class Decoded(nn.Module):
    """A body that returns a tensor, or a tuple that begins with one, and three logits."""

    def __init__(self, body: nn.Module, width: int) -> None:
        super().__init__()
        self.body, self.head = body, nn.Linear(width, 3)

    def forward(self, *inputs: Tensor) -> Tensor:
        output = self.body(*inputs)
        return self.head(output[0] if isinstance(output, tuple) else output)


@family("nn.LSTM, two layers")
def lstm() -> Case:
    return ready(Decoded(nn.LSTM(3, 4, 2, dropout=0.3), 4), numbers(3, 2, 3))


@family("nn.GRU, two layers, both directions")
def gru() -> Case:
    return ready(Decoded(nn.GRU(3, 4, 2, dropout=0.3, bidirectional=True), 8), numbers(3, 2, 3))


@family("nn.MultiheadAttention")
def multihead_attention() -> Case:
    x = numbers(2, 4, 4)
    body = nn.MultiheadAttention(4, 2, dropout=0.2, batch_first=True)
    return ready(Decoded(body, 4), (x, x, x))


@family("nn.Transformer")
def transformer() -> Case:
    body = nn.Transformer(4, 2, 1, 1, 8, dropout=0.2, batch_first=True)
    return ready(Decoded(body, 4), (numbers(2, 3, 4), numbers(2, 2, 4)))


@family("nn.TransformerEncoder, norm first, GELU")
def transformer_encoder() -> Case:
    layer = nn.TransformerEncoderLayer(
        4, 2, 8, 0.2, activation="gelu", batch_first=True, norm_first=True
    )
    body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    return ready(Decoded(body, 4), numbers(2, 4, 4))


@family("ResNet block with batch norm and nn.Dropout2d")
def convolutional() -> Case:
    body = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout2d(0.2), nn.Flatten()
    )
    return ready(Decoded(body, 36), numbers(3, 2, 5, 5))


class Checkpointed(nn.Module):
    """A block under `torch.utils.checkpoint`."""

    def __init__(self, use_reentrant: bool | None) -> None:
        super().__init__()
        self.use_reentrant = use_reentrant
        self.first = nn.Linear(3, 4)
        self.block = nn.Sequential(nn.Dropout(0.3), nn.Linear(4, 4), nn.Tanh(), nn.Dropout(0.2))
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        if self.use_reentrant is None:
            return self.head(self.block(h))
        return self.head(
            torch.utils.checkpoint.checkpoint(self.block, h, use_reentrant=self.use_reentrant)
        )


def _checkpointed(use_reentrant: bool) -> Case:
    case = ready(Checkpointed(use_reentrant), numbers(4, 3))
    plain = copy.deepcopy(case.model)
    plain.use_reentrant = None
    return Case(case.model, case.inputs, plain)


@family("torch.utils.checkpoint")
def checkpoint() -> Case:
    return _checkpointed(False)


@family("torch.utils.checkpoint, reentrant")
def reentrant_checkpoint() -> Case:
    return _checkpointed(True)


class WeightDrop(nn.Module):
    """AWD-LSTM's: the recurrent weights are dropped, and set as an attribute in each pass."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(3, 4), nn.Linear(4, 3)
        self.raw = nn.Parameter(self.rnn.weight_hh_l0.detach().clone())
        del self.rnn._parameters["weight_hh_l0"]

    def forward(self, x: Tensor) -> Tensor:
        self.rnn.weight_hh_l0 = F.dropout(self.raw, 0.4, self.training)
        return self.head(self.rnn(x)[0])


@family("AWD-LSTM's WeightDrop by setattr")
def weight_drop() -> Case:
    return ready(WeightDrop(), numbers(3, 2, 3))


@family("locked dropout by bernoulli_ (AWD-LSTM)")
def locked_dropout() -> Case:
    class Locked(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            mask = x.new_empty(1, x.shape[1], x.shape[2]).bernoulli_(0.7)
            return x * (mask / 0.7)

    return ready(nn.Sequential(Locked(), nn.Linear(3, 3)), numbers(3, 2, 3))


class Quantized(nn.Module):
    """Dropout before a linear layer that computes in 8 bits."""

    def __init__(self) -> None:
        super().__init__()
        body = nn.Sequential(nn.Linear(4, 8), nn.ReLU())
        self.first = nn.Linear(4, 4)
        self.body = torch.ao.quantization.quantize_dynamic(body, {nn.Linear}, dtype=torch.qint8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(F.dropout(self.first(x), 0.3, self.training)))


@family("dynamic quantization after dropout", expected="refused")
def quantized() -> Case:
    torch.manual_seed(0)
    return Case(Quantized().train(), numbers(4, 4).float())


# --- transformers ---------------------------------------------------------------------------------

SMALL = {
    "vocab_size": 11,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "max_position_embeddings": 16,
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.2,
    "num_labels": 3,
}


def bert(**options: Any) -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    return BertForSequenceClassification(BertConfig(**SMALL | options))


MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])


def words(**more: Any) -> dict[str, Any]:
    return {"input_ids": tokens(), **more}


@family("BERT, classification, SDPA", "transformers")
def bert_sdpa() -> Case:
    return ready(bert(attn_implementation="sdpa"), words(attention_mask=MASK))


@family("BERT, classification, eager attention", "transformers")
def bert_eager() -> Case:
    return ready(bert(attn_implementation="eager"), words(attention_mask=MASK))


def recomputed(case: Case, **options: Any) -> Case:
    """A case of transformers with its activation checkpoints on; the reference goes without."""
    plain = copy.deepcopy(case.model)
    case.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options or None)
    return Case(case.model, case.inputs, plain, case.float64)


@family("BERT, gradient checkpointing", "transformers")
def bert_checkpointed() -> Case:
    return recomputed(bert_sdpa(), use_reentrant=False)


@family("BERT, gradient checkpointing, reentrant", "transformers")
def bert_reentrant() -> Case:
    return recomputed(bert_sdpa(), use_reentrant=True)


@family("RoBERTa, masked words", "transformers")
def roberta() -> Case:
    from transformers import RobertaConfig, RobertaForMaskedLM

    return ready(RobertaForMaskedLM(RobertaConfig(**SMALL)), words())


@family("DistilBERT, classification", "transformers")
def distilbert() -> Case:
    from transformers import DistilBertConfig, DistilBertForSequenceClassification

    config = DistilBertConfig(
        vocab_size=11, dim=8, n_layers=1, n_heads=2, hidden_dim=12, num_labels=3,
        max_position_embeddings=16, attention_dropout=0.2, dropout=0.1, seq_classif_dropout=0.2,
    )  # fmt: skip
    return ready(DistilBertForSequenceClassification(config), words())


@family("ALBERT, shared layers", "transformers")
def albert() -> Case:
    from transformers import AlbertConfig, AlbertForSequenceClassification

    config = AlbertConfig(**SMALL | {"num_hidden_layers": 2, "embedding_size": 4})
    return ready(AlbertForSequenceClassification(config), words())


@family("DeBERTa", "transformers")
def deberta() -> Case:
    from transformers import DebertaV2Config, DebertaV2ForSequenceClassification

    config = DebertaV2Config(**SMALL, relative_attention=True, pos_att_type=["c2p", "p2c"])
    return ready(DebertaV2ForSequenceClassification(config), words())


@family("Llama, attention dropout", "transformers")
def llama() -> Case:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=11, hidden_size=8, intermediate_size=12, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, attention_dropout=0.2, use_cache=False,
        bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return ready(LlamaForCausalLM(config), words(), float64=True)


def gpt2_model() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=11,
            n_positions=16,
            n_embd=8,
            n_layer=1,
            n_head=2,
            use_cache=False,
            bos_token_id=1,
            eos_token_id=2,
        )
    )


@family("GPT-2, language model", "transformers")
def gpt2() -> Case:
    return ready(gpt2_model(), words())


@family("GPT-2, gradient checkpointing", "transformers")
def gpt2_checkpointed() -> Case:
    return recomputed(gpt2())


@family("T5, gated GELU", "transformers")
def t5() -> Case:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=11, d_model=8, d_kv=4, d_ff=12, num_layers=1, num_heads=2,
        feed_forward_proj="gated-gelu", decoder_start_token_id=0, use_cache=False,
    )  # fmt: skip
    inputs = words(decoder_input_ids=tokens(time=3))
    return ready(T5ForConditionalGeneration(config), inputs, float64=True)


@family("T5, gradient checkpointing", "transformers")
def t5_checkpointed() -> Case:
    # A mode is off within torch.autograd.grad, and so in what that computes again.
    contexts = {"context_fn": lambda: (nullcontext(), InFloat64())}
    return recomputed(t5(), use_reentrant=False, **contexts)


def bart_model(layerdrop: float) -> nn.Module:
    from transformers import BartConfig, BartForConditionalGeneration

    return BartForConditionalGeneration(
        BartConfig(
            vocab_size=11, d_model=8, encoder_layers=1, decoder_layers=1,
            max_position_embeddings=16,
            encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=12,
            decoder_ffn_dim=12, attention_dropout=0.1, activation_dropout=0.1, use_cache=False,
            encoder_layerdrop=layerdrop, pad_token_id=0, bos_token_id=1, eos_token_id=2,
            decoder_start_token_id=2, forced_eos_token_id=2,
        )
    )  # fmt: skip


@family("BART", "transformers")
def bart() -> Case:
    return ready(bart_model(0.0), words(decoder_input_ids=tokens(time=3)))


@family("BART, gradient checkpointing", "transformers")
def bart_checkpointed() -> Case:
    return recomputed(bart())


@family("BART, LayerDrop 0.3", "transformers", expected="refused")
def bart_layerdrop() -> Case:
    return ready(bart_model(0.3), words(decoder_input_ids=tokens(time=3)))


def vit_model() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    config = {k: v for k, v in SMALL.items() if k not in ("vocab_size", "max_position_embeddings")}
    return ViTForImageClassification(ViTConfig(**config, image_size=8, patch_size=4))


@family("ViT", "transformers")
def vit() -> Case:
    return ready(vit_model(), {"pixel_values": numbers(2, 3, 8, 8)})


@family("ViT, gradient checkpointing", "transformers")
def vit_checkpointed() -> Case:
    return recomputed(vit())


def wav2vec2_model(**options: Any) -> nn.Module:
    from transformers import Wav2Vec2Config, Wav2Vec2ForCTC

    defaults = {"apply_spec_augment": False, "layerdrop": 0.0}
    return Wav2Vec2ForCTC(
        Wav2Vec2Config(
            vocab_size=5, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=12, conv_dim=(4, 4), conv_stride=(4, 2), conv_kernel=(4, 2),
            num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2, final_dropout=0.1,
            activation_dropout=0.1, feat_proj_dropout=0.1, **defaults | options,
        )
    )  # fmt: skip


@family("Wav2Vec2", "transformers")
def wav2vec2() -> Case:
    # Six positions, as the library refuses to guess which of two equal dimensions are classes.
    return ready(wav2vec2_model(), {"input_values": numbers(2, 48)})


@family("Wav2Vec2, SpecAugment", "transformers", expected="refused")
def wav2vec2_spec_augment() -> Case:
    model = wav2vec2_model(
        apply_spec_augment=True, mask_time_prob=0.5, mask_time_length=2, mask_time_min_masks=1
    )
    return ready(model, {"input_values": numbers(2, 40)})


@family("Wav2Vec2, LayerDrop 0.3", "transformers", expected="refused")
def wav2vec2_layerdrop() -> Case:
    return ready(wav2vec2_model(layerdrop=0.3), {"input_values": numbers(2, 40)})


@family("Whisper", "transformers")
def whisper() -> Case:
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    config = WhisperConfig(
        vocab_size=11, num_mel_bins=4, d_model=8, encoder_layers=1, decoder_layers=1,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=12,
        decoder_ffn_dim=12, max_source_positions=4, max_target_positions=8, dropout=0.1,
        attention_dropout=0.2, activation_dropout=0.1, pad_token_id=0, bos_token_id=1,
        eos_token_id=2, decoder_start_token_id=1, use_cache=False,
    )  # fmt: skip
    inputs = {"input_features": numbers(2, 4, 8), "decoder_input_ids": tokens(time=3)}
    return ready(WhisperForConditionalGeneration(config), inputs)


def switch_model(jitter: float) -> nn.Module:
    from transformers import SwitchTransformersConfig, SwitchTransformersForConditionalGeneration

    return SwitchTransformersForConditionalGeneration(
        SwitchTransformersConfig(
            vocab_size=11, d_model=8, d_kv=4, d_ff=12, num_layers=2, num_sparse_encoder_layers=1,
            num_decoder_layers=2, num_sparse_decoder_layers=1, num_heads=2, num_experts=2,
            expert_capacity=8, router_jitter_noise=jitter, decoder_start_token_id=0,
            use_cache=False,
        )
    )  # fmt: skip


@family("Switch (mixture of experts)", "transformers")
def switch() -> Case:
    return ready(switch_model(0.0), words(decoder_input_ids=tokens(time=3)), float64=True)


@family("Switch, router jitter", "transformers", expected="refused")
def switch_jitter() -> Case:
    return ready(switch_model(0.3), words(decoder_input_ids=tokens(time=3)), float64=True)


class DropPath(nn.Module):
    """The mask of transformers' own, drawn as all others are; that draws floor(keep + rand)."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return x * (x.new_empty(len(x), *(1,) * (x.ndim - 1)).bernoulli_(1 - self.p) / (1 - self.p))


@family("ConvNeXt, drop_path", "transformers")
def convnext() -> Case:
    from transformers import ConvNextConfig, ConvNextForImageClassification

    config = ConvNextConfig(
        hidden_sizes=[4, 8], depths=[1, 2], num_stages=2, drop_path_rate=0.3, num_labels=3
    )
    case = ready(ConvNextForImageClassification(config), {"pixel_values": numbers(2, 3, 16, 16)})
    plain = copy.deepcopy(case.model)
    for layer in plain.modules():
        if type(getattr(layer, "drop_path", None)).__name__ == "ConvNextDropPath":
            layer.drop_path = DropPath(layer.drop_path.drop_prob)
    return Case(case.model, case.inputs, plain)


# --- timm -----------------------------------------------------------------------------------------


def timm_resnet() -> nn.Module:
    from timm.models.resnet import BasicBlock, ResNet

    return ResNet(
        BasicBlock, (1, 1, 1, 1), num_classes=3, channels=(4, 4, 8, 8), stem_width=4, drop_rate=0.1,
        drop_path_rate=0.3,
    )  # fmt: skip


@family("ResNet, drop_path, zero-init gates", "timm")
def timm_resnet_zero() -> Case:
    return ready(timm_resnet(), numbers(3, 3, 32, 32), spread=0.0)


@family("ResNet, drop_path, trained gates", "timm")
def timm_resnet_trained() -> Case:
    return ready(timm_resnet(), numbers(3, 3, 32, 32))


def timm_vit(**options: Any) -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(
        img_size=8, patch_size=4, embed_dim=8, depth=2, num_heads=2, num_classes=3, drop_rate=0.1,
        pos_drop_rate=0.1, proj_drop_rate=0.1, attn_drop_rate=0.2, **options,
    )  # fmt: skip


@family("ViT", "timm")
def timm_vit_plain() -> Case:
    return ready(timm_vit(), numbers(2, 3, 8, 8))


@family("ViT, drop_path", "timm")
def timm_vit_drop_path() -> Case:
    return ready(timm_vit(drop_path_rate=0.3), numbers(2, 3, 8, 8))


@family("ViT, drop_path, layer scale 1e-6", "timm")
def timm_vit_layer_scale() -> Case:
    model = timm_vit(drop_path_rate=0.3, init_values=1e-6)
    return ready(model, numbers(2, 3, 8, 8), spread=0.0)


@family("ViT, patch dropout", "timm", expected="refused")
def timm_vit_patch_dropout() -> Case:
    return ready(timm_vit(patch_drop_rate=0.5), numbers(2, 3, 8, 8))


@family("ConvNeXt, drop_path", "timm")
def timm_convnext() -> Case:
    from timm.models.convnext import ConvNeXt

    model = ConvNeXt(
        num_classes=3, depths=(1, 1, 1, 1), dims=(4, 4, 8, 8), drop_rate=0.1, drop_path_rate=0.3
    )
    return ready(model, numbers(2, 3, 32, 32))


@family("EfficientNet, drop_path", "timm")
def timm_efficientnet() -> Case:
    import timm

    model = timm.create_model("efficientnet_b0", num_classes=3, drop_rate=0.2, drop_path_rate=0.2)
    # Not smaller: batch norm of three numbers makes a function too wild for finite differences, as
    # all the weights together are.
    model.requires_grad_(False)
    for part in (model.conv_head, model.classifier):
        part.requires_grad_(True)
    return ready(model, numbers(3, 3, 64, 64), spread=0.0)


@family("ResNet, DropBlock", "timm", expected="refused")
def timm_drop_block() -> Case:
    import timm

    model = timm.create_model("resnet18", num_classes=3, drop_rate=0.1, drop_block_rate=0.1)
    return ready(model, numbers(2, 3, 64, 64), spread=0.01)


# --- torchvision ----------------------------------------------------------------------------------


@family("EfficientNet, StochasticDepth", "torchvision")
def efficientnet() -> Case:
    from torchvision.models.efficientnet import EfficientNet, MBConvConfig

    settings = [MBConvConfig(e, 3, 1, 8, 8, n, 0.25, 1.0) for e, n in ((1, 1), (2, 2))]
    model = EfficientNet(settings, 0.2, stochastic_depth_prob=0.4, num_classes=3, last_channel=8)
    return ready(model, numbers(3, 3, 12, 12))


@family("ConvNeXt, StochasticDepth", "torchvision")
def torchvision_convnext() -> Case:
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    settings = [CNBlockConfig(4, 8, 1), CNBlockConfig(8, None, 1)]
    model = ConvNeXt(settings, stochastic_depth_prob=0.4, num_classes=3)
    return ready(model, numbers(2, 3, 16, 16))


@family("Swin, StochasticDepth, attention dropout", "torchvision")
def swin() -> Case:
    from torchvision.models import SwinTransformer

    model = SwinTransformer(
        [4, 4], 8, [2], [2], [2, 2], dropout=0.1, attention_dropout=0.2,
        stochastic_depth_prob=0.3, num_classes=3,
    )  # fmt: skip
    return ready(model, numbers(2, 3, 16, 16))


@family("VisionTransformer", "torchvision")
def torchvision_vit() -> Case:
    from torchvision.models import VisionTransformer

    model = VisionTransformer(8, 4, 1, 2, 8, 12, dropout=0.1, attention_dropout=0.2, num_classes=3)
    return ready(model, numbers(2, 3, 8, 8))


@family("GoogLeNet, auxiliary heads", "torchvision")
def googlenet() -> Case:
    from torchvision.models import googlenet

    model = googlenet(weights=None, num_classes=3, aux_logits=True, init_weights=False)
    # Of its 1e5 ReLUs some lie between the ends of any central difference in all the weights.
    model.requires_grad_(False)
    for part in (model.inception5b, model.fc):
        part.requires_grad_(True)
    return ready(model, numbers(2, 3, 32, 32), spread=0.0)


# --- peft -----------------------------------------------------------------------------------------


def lora(model: nn.Module, targets: list[str]) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    return get_peft_model(
        model, LoraConfig(r=2, lora_alpha=4, lora_dropout=0.2, target_modules=targets)
    )


@family("LoRA on BERT, lora_dropout", "peft")
def lora_bert() -> Case:
    return ready(lora(bert(), ["query", "value"]), words())


@family("LoRA on BERT, as it starts (B = 0)", "peft")
def lora_bert_zero() -> Case:
    case = bert_sdpa()
    return Case(lora(case.model, ["query", "value"]).double().train(), case.inputs)


@family("LoRA on GPT-2, gradient checkpointing", "peft")
def lora_gpt2() -> Case:
    case = ready(lora(gpt2_model(), ["c_attn"]), words())
    plain = copy.deepcopy(case.model)
    case.model.gradient_checkpointing_enable()
    case.model.enable_input_require_grads()
    return Case(case.model, case.inputs, plain)


# --- torch_geometric ------------------------------------------------------------------------------

EDGES = torch.tensor([[0, 1, 2, 3, 4, 0, 2], [1, 2, 3, 4, 0, 2, 0]])


@family("GAT, feature and attention dropout", "torch_geometric")
def gat() -> Case:
    from torch_geometric.nn import GATConv

    class GAT(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = GATConv(3, 4, heads=2, dropout=0.3)
            self.second = GATConv(8, 3, dropout=0.3)

        def forward(self, x: Tensor, edges: Tensor) -> Tensor:
            x = F.elu(self.first(F.dropout(x, 0.3, self.training), edges))
            return self.second(F.dropout(x, 0.3, self.training), edges)

    return ready(GAT(), (numbers(5, 3), EDGES))


class GCN(nn.Module):
    """Two graph convolutions, with edges left out at random or not."""

    def __init__(self, edge: float) -> None:
        from torch_geometric.nn import GCNConv

        super().__init__()
        self.first, self.second, self.edge = GCNConv(3, 4), GCNConv(4, 3), edge

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        from torch_geometric.utils import dropout_edge

        edges, _ = dropout_edge(edges, self.edge, training=self.training)
        x = self.first(F.dropout(x, 0.3, self.training), edges).tanh()
        return self.second(F.dropout(x, 0.3, self.training), edges)


@family("GCN", "torch_geometric")
def gcn() -> Case:
    return ready(GCN(0.0), (numbers(5, 3), EDGES))


@family("GCN, dropout_edge", "torch_geometric", expected="refused")
def gcn_edges() -> Case:
    return ready(GCN(0.4), (numbers(5, 3), EDGES))


# --- opacus, fairscale ----------------------------------------------------------------------------


@family("DPLSTM", "opacus")
def dp_lstm() -> Case:
    from opacus.layers import DPLSTM

    return ready(Decoded(DPLSTM(3, 4, num_layers=2, dropout=0.3), 4), numbers(3, 2, 3))


@family("GradSampleModule", "opacus", expected="refused")
def grad_sample() -> Case:
    from opacus import GradSampleModule

    case = ready(
        nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Dropout(0.3), nn.Linear(4, 3)), numbers(4, 3)
    )
    plain = copy.deepcopy(case.model)
    return Case(GradSampleModule(case.model), case.inputs, plain)


@family("checkpoint_wrapper", "fairscale", expected="refused")
def fairscale_checkpoint() -> Case:
    from fairscale.nn.checkpoint import checkpoint_wrapper

    def build(wrap: Callable[[nn.Module], nn.Module]) -> nn.Module:
        torch.manual_seed(0)
        block = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Dropout(0.3), nn.Linear(4, 3))
        return nn.Sequential(nn.Linear(3, 3), wrap(block)).double().train()

    return Case(build(checkpoint_wrapper), numbers(4, 3), build(lambda block: block))
