"""Models that other packages publish, built by them; skipped where the package is not installed."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import jax

from published.common import Data, Model, both, normal, published, tokens

SIZES = {
    "vocab_size": 200,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "max_position_embeddings": 32,
}
PIXELS = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}
BART = {
    "vocab_size": 200,
    "d_model": 64,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 128,
    "decoder_ffn_dim": 128,
}
TEXT = tokens(200, (4, 12))
IMAGES = normal((4, 3, 32, 32))


def package(name: str) -> Any:
    """A package, or an ImportError that says why it is not to be had."""
    found = importlib.import_module(name)
    if name == "transformers" and not hasattr(found, "FlaxBertForMaskedLM"):
        reason = f"{name} {found.__version__} has no Flax models: install a version below 5"
        raise ImportError(reason, name=reason)
    return found


def transformers_model(
    model: str, config: str, names: tuple[str, ...], data: Data, size: dict[str, Any], **rest: Any
) -> Model:
    """A Flax model of transformers; its inputs are passed by name."""
    transformers = package("transformers")
    transformers.logging.set_verbosity_error()
    settings = getattr(transformers, config)(**size)
    net = getattr(transformers, model)(settings, _do_init=False, **rest)

    def init(key: jax.Array) -> Any:
        return net.init_weights(key, net.input_shape)

    def apply(params: Any, *inputs: Any) -> Any:
        out = net(params=params, train=False, **dict(zip(names, inputs, strict=True)))
        return out[0]

    return Model(init, apply, data)


def enter(
    name: str, kind: str, model: str, config: str, names: tuple[str, ...], data: Data, **size: Any
) -> Callable[[], Model]:
    rest = {key: size.pop(key) for key in ("input_shape",) if key in size}
    make = published(f"{name} (transformers)", kind, "transformers")
    return make(lambda: transformers_model(model, config, names, data, size, **rest))


IDS, PAIR, PICTURES = ("input_ids",), ("input_ids", "decoder_input_ids"), ("pixel_values",)
FEED = {"intermediate_size": 128}
LABELS = {"num_labels": 10}
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 3}

enter("BERT", "encoder", "FlaxBertForMaskedLM", "BertConfig", IDS, TEXT, **SIZES)
enter("RoBERTa", "encoder", "FlaxRobertaForMaskedLM", "RobertaConfig", IDS, TEXT, **SIZES)
enter("Electra", "encoder", "FlaxElectraForPreTraining", "ElectraConfig", IDS, TEXT, **SIZES)
enter(
    *("GPT-2", "decoder", "FlaxGPT2LMHeadModel", "GPT2Config", IDS, TEXT),
    **{"vocab_size": 200, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 32},
)
enter(
    *("GPT-Neo", "decoder", "FlaxGPTNeoForCausalLM", "GPTNeoConfig", IDS, TEXT),
    **{"vocab_size": 200, "hidden_size": 64, "num_layers": 2, "num_heads": 4},
    **{"max_position_embeddings": 32, "attention_types": [[["global", "local"], 1]]},
    **FEED,
)
enter("LLaMA", "decoder", "FlaxLlamaForCausalLM", "LlamaConfig", IDS, TEXT, **SIZES)
enter(
    *("Mistral", "decoder", "FlaxMistralForCausalLM", "MistralConfig", IDS, TEXT),
    **SIZES,
    num_key_value_heads=2,
)
enter(
    *("Gemma", "decoder", "FlaxGemmaForCausalLM", "GemmaConfig", IDS, TEXT),
    **SIZES,
    num_key_value_heads=2,
    head_dim=16,
)
enter(
    *("BART", "encoder and decoder", "FlaxBartForConditionalGeneration", "BartConfig"),
    *(PAIR, tokens(200, (4, 12), (4, 8))),
    **BART,
    max_position_embeddings=32,
)
SEES = ("vision transformer",)
enter(
    *("ViT", *SEES, "FlaxViTForImageClassification", "ViTConfig", PICTURES, IMAGES),
    **PIXELS,
    **FEED,
    **LABELS,
)
enter(
    *("BEiT", *SEES, "FlaxBeitForImageClassification", "BeitConfig", PICTURES, IMAGES),
    **PIXELS,
    **FEED,
    **LABELS,
)
enter(
    *("DINOv2", *SEES, "FlaxDinov2ForImageClassification", "Dinov2Config", PICTURES, IMAGES),
    **PIXELS,
    **LABELS,
)
STAGES = {"embedding_size": 16, "hidden_sizes": [32, 64]}
enter(
    *("ResNet", "residual", "FlaxResNetForImageClassification", "ResNetConfig", PICTURES, IMAGES),
    **STAGES,
    **LABELS,
    depths=[2, 2],
)
enter(
    *("RegNet", "residual", "FlaxRegNetForImageClassification", "RegNetConfig", PICTURES, IMAGES),
    **STAGES,
    **LABELS,
    depths=[1, 1],
    groups_width=16,
)
enter(
    *("Whisper", "speech", "FlaxWhisperForConditionalGeneration", "WhisperConfig"),
    ("input_features", "decoder_input_ids"),
    both(normal((2, 20, 32)), tokens(200, (2, 8))),
    **BART,
    **TOKENS,
    **{"num_mel_bins": 20, "max_source_positions": 16, "max_target_positions": 16},
    **{"suppress_tokens": None, "begin_suppress_tokens": None, "input_shape": (1, 20, 32)},
)
enter(
    *("wav2vec 2", "speech", "FlaxWav2Vec2ForCTC", "Wav2Vec2Config", ("input_values",)),
    normal((2, 2000)),
    **{name: size for name, size in SIZES.items() if name != "max_position_embeddings"},
    **{"conv_dim": [32, 32, 32], "conv_stride": [5, 2, 2], "conv_kernel": [10, 3, 3]},
    **{"num_feat_extract_layers": 3, "num_conv_pos_embeddings": 16},
    **{"num_conv_pos_embedding_groups": 4, "feat_extract_norm": "layer"},
    do_stable_layer_norm=True,
)


@published("CLIP (transformers)", "two towers", "transformers")
def clip() -> Model:
    transformers = package("transformers")
    text, image = (
        transformers.CLIPTextConfig(**SIZES),
        transformers.CLIPVisionConfig(**PIXELS, intermediate_size=128),
    )
    config = transformers.CLIPConfig.from_text_vision_configs(text, image, projection_dim=32)
    net = transformers.FlaxCLIPModel(config, _do_init=False)

    def apply(params: Any, ids: Any, images: Any) -> Any:
        return net(params=params, input_ids=ids, pixel_values=images, train=False)[0]

    return Model(lambda key: net.init_weights(key, net.input_shape), apply, both(TEXT, IMAGES))
