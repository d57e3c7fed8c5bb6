"""Names and shapes of Whisper's weights: transformers' state dict to ours, and back.

Every checkpoint format is first brought to transformers' names (`encoder.layers.0.self_attn.q_proj.weight`,
without the leading `model.`), checked there against the configuration, and then converted once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import GenerationConfig, WhisperConfig

from hooked_whisper.config import HookedWhisperConfig, StackConfig
from hooked_whisper.errors import CheckpointError, ConfigError
from hooked_whisper.special_tokens import eot_of_vocabulary

STACKS = ("encoder", "decoder")

# Layer norms and MLPs of one block: transformers' name -> ours.
_BLOCK_NAMES = {
    "encoder": {
        "self_attn_layer_norm": "ln1",
        "final_layer_norm": "ln2",
        "fc1": "mlp.fc_in",
        "fc2": "mlp.fc_out",
    },
    "decoder": {
        "self_attn_layer_norm": "ln1",
        "encoder_attn_layer_norm": "ln2",
        "final_layer_norm": "ln3",
        "fc1": "mlp.fc_in",
        "fc2": "mlp.fc_out",
    },
}
_ATTENTIONS = {
    "encoder": {"self_attn": "attn"},
    "decoder": {"self_attn": "attn", "encoder_attn": "cross_attn"},
}
_FINAL_NORM = {"encoder": "ln_post", "decoder": "ln_final"}


@dataclass
class RawCheckpoint:
    """What a reader of one format hands on.

    Args:
        config: the model's sizes.
        state: tensors under transformers' names, with or without the leading `model.`; may be views of a file.
        generation_config: what the checkpoint and its vocabulary say about generation.
        folder: where to look for a tokenizer, if anywhere.
        source: one line for people: what was read.
    """

    config: HookedWhisperConfig
    state: Mapping[str, Tensor]
    generation_config: GenerationConfig
    folder: Path | None
    source: str


# How many of a list of names an error message spells out.
_NAMES_SHOWN = 5


def config_from_transformers(config: WhisperConfig, name: str) -> HookedWhisperConfig:
    """Our configuration of a transformers Whisper.

    Args:
        config: transformers' configuration.
        name: what the model shall be called (`model_name`).

    Raises:
        CheckpointError: not a Whisper, or one that computes something else than OpenAI's Whisper does
            (another activation, scaled embeddings), or sizes that contradict each other.
    """
    if getattr(config, "model_type", None) != "whisper":
        raise CheckpointError(
            f"{name!r} is a model of type {getattr(config, 'model_type', None)!r}, expected 'whisper'. "
            "Only Whisper checkpoints can be loaded."
        )
    if config.activation_function != "gelu":
        raise CheckpointError(
            f"{name!r} uses the activation {config.activation_function!r}, expected 'gelu': "
            "every Whisper uses the exact GELU, and the hooks are defined on it."
        )
    if config.scale_embedding:
        raise CheckpointError(
            f"{name!r} sets scale_embedding=True, expected False: Whisper does not scale its token embeddings."
        )
    try:
        return HookedWhisperConfig(
            encoder=StackConfig(
                n_layers=config.encoder_layers,
                n_heads=config.encoder_attention_heads,
                d_model=config.d_model,
                d_mlp=config.encoder_ffn_dim,
                n_ctx=config.max_source_positions,
            ),
            decoder=StackConfig(
                n_layers=config.decoder_layers,
                n_heads=config.decoder_attention_heads,
                d_model=config.d_model,
                d_mlp=config.decoder_ffn_dim,
                n_ctx=config.max_target_positions,
            ),
            n_mels=config.num_mel_bins,
            d_vocab=config.vocab_size,
            model_name=name,
        )
    except ConfigError as error:
        raise CheckpointError(f"The configuration of {name!r} contradicts itself: {error}") from error


def config_to_transformers(config: HookedWhisperConfig, *, tied: bool = True) -> WhisperConfig:
    """Transformers' configuration of our model; special tokens are left to the generation configuration.

    `tied` says whether the unembedding is the token embedding, as in every published Whisper.
    """
    # Transformers checks that these lie inside the vocabulary.
    eot = eot_of_vocabulary(config.d_vocab)
    return WhisperConfig(
        encoder_layers=config.encoder.n_layers,
        encoder_attention_heads=config.encoder.n_heads,
        encoder_ffn_dim=config.encoder.d_mlp,
        max_source_positions=config.encoder.n_ctx,
        decoder_layers=config.decoder.n_layers,
        decoder_attention_heads=config.decoder.n_heads,
        decoder_ffn_dim=config.decoder.d_mlp,
        max_target_positions=config.decoder.n_ctx,
        d_model=config.d_model,
        num_mel_bins=config.n_mels,
        vocab_size=config.d_vocab,
        pad_token_id=eot,
        bos_token_id=eot,
        eos_token_id=eot,
        decoder_start_token_id=min(eot + 1, config.d_vocab - 1),
        begin_suppress_tokens=None,
        tie_word_embeddings=tied,
    )


def transformers_shapes(config: HookedWhisperConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of the transformers checkpoint, without the leading `model.`.

    `proj_out.weight` is not among them: it is tied to `decoder.embed_tokens.weight` unless a file has its own.
    """
    d = config.d_model
    shapes: dict[str, tuple[int, ...]] = {
        "encoder.conv1.weight": (d, config.n_mels, 3),
        "encoder.conv1.bias": (d,),
        "encoder.conv2.weight": (d, d, 3),
        "encoder.conv2.bias": (d,),
        "decoder.embed_tokens.weight": (config.d_vocab, d),
    }
    for stack in STACKS:
        sizes = config.stack(stack)
        shapes[f"{stack}.embed_positions.weight"] = (sizes.n_ctx, d)
        for i in range(sizes.n_layers):
            block = f"{stack}.layers.{i}"
            for attention in _ATTENTIONS[stack]:
                for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
                    shapes[f"{block}.{attention}.{projection}.weight"] = (d, d)
                    if projection != "k_proj":  # Whisper's keys have no bias
                        shapes[f"{block}.{attention}.{projection}.bias"] = (d,)
            for layer in _BLOCK_NAMES[stack]:
                n_out, n_in = {"fc1": (sizes.d_mlp, d), "fc2": (d, sizes.d_mlp)}.get(layer, (d, None))
                shapes[f"{block}.{layer}.weight"] = (n_out,) if n_in is None else (n_out, n_in)
                shapes[f"{block}.{layer}.bias"] = (n_out,)
        shapes[f"{stack}.layer_norm.weight"] = (d,)
        shapes[f"{stack}.layer_norm.bias"] = (d,)
    return shapes


def _some(names: list[str]) -> str:
    """The first few of many names, and how many more there are."""
    shown = ", ".join(names[:_NAMES_SHOWN])
    return shown if len(names) <= _NAMES_SHOWN else f"{shown} and {len(names) - _NAMES_SHOWN} more"


def canonical_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors under transformers' names without the leading `model.`."""
    return {name.removeprefix("model."): tensor for name, tensor in state.items()}


def check_state_dict(state: Mapping[str, Tensor], config: HookedWhisperConfig) -> None:
    """Compares canonical transformers names, shapes and dtypes with what `config` demands.

    Raises:
        CheckpointError: missing or unexpected tensors, wrong shapes, tensors that are not floating point or hold no
            values.
    """
    name = config.model_name
    n_layers = config.encoder.n_layers + config.decoder.n_layers
    if n_layers > len(state):  # before a hostile number of layers is written out
        raise CheckpointError(
            f"Checkpoint {name!r} is configured for {n_layers} layers and holds {len(state)} tensors: "
            "its weights are incomplete, or its configuration belongs to another model."
        )
    expected = transformers_shapes(config)
    missing = [tensor for tensor in expected if tensor not in state]
    if missing:
        raise CheckpointError(
            f"Checkpoint {name!r} lacks {len(missing)} of {len(expected)} tensors: {_some(missing)}. "
            "It is incomplete, or it is not a whole Whisper (encoder and decoder)."
        )
    unexpected = [tensor for tensor in state if tensor not in expected and tensor != "proj_out.weight"]
    if unexpected:
        raise CheckpointError(
            f"Checkpoint {name!r} holds {len(unexpected)} tensors that Whisper does not have: {_some(unexpected)}. "
            "Adapters must be merged before loading; other architectures cannot be loaded."
        )
    optional = {"proj_out.weight": expected["decoder.embed_tokens.weight"]} if "proj_out.weight" in state else {}
    for tensor, shape in {**expected, **optional}.items():
        given = state[tensor]
        if tuple(given.shape) != shape:
            raise CheckpointError(
                f"Tensor {tensor!r} of checkpoint {name!r} has shape {tuple(given.shape)}, expected {shape} "
                "from its configuration."
            )
        if given.is_meta:
            raise CheckpointError(
                f"Tensor {tensor!r} of {name!r} is on the meta device, so it has no values: load the model without "
                "offloading (no device_map) first."
            )
        if not given.is_floating_point():
            raise CheckpointError(
                f"Tensor {tensor!r} of checkpoint {name!r} has dtype {given.dtype}, expected a floating dtype. "
                "Load the checkpoint from before it was quantised."
            )


def convert_transformers_state_dict(state: Mapping[str, Tensor], config: HookedWhisperConfig) -> dict[str, Tensor]:
    """Our parameters, from a transformers state dict.

    Query, key and value are stacked into one matrix ([3 d_model, d_model], torch's [out, in] layout); the key's
    part of the bias is zero. The unembedding is the very tensor of the embedding unless the checkpoint holds a
    different one. Everything else is copied, so that the result shares no memory with a mapped file.

    Args:
        state: tensors under transformers' names, with or without the leading `model.`.
        config: the sizes they must have.

    Raises:
        CheckpointError: missing or unexpected tensors, wrong shapes or dtypes.
    """
    state = canonical_names(state)
    check_state_dict(state, config)
    ours: dict[str, Tensor] = {}

    def copied(name: str) -> Tensor:
        return state[name].detach().to("cpu", copy=True, memory_format=torch.contiguous_format)

    def take_linear(theirs: str, name: str) -> None:
        ours[f"{name}.weight"] = copied(f"{theirs}.weight")
        ours[f"{name}.bias"] = copied(f"{theirs}.bias")

    def take_norm(theirs: str, name: str) -> None:
        ours[f"{name}.w"] = copied(f"{theirs}.weight")
        ours[f"{name}.b"] = copied(f"{theirs}.bias")

    take_linear("encoder.conv1", "encoder.conv1")
    take_linear("encoder.conv2", "encoder.conv2")
    embedding = ours["decoder.W_E"] = copied("decoder.embed_tokens.weight")
    for stack in STACKS:
        ours[f"{stack}.W_pos"] = copied(f"{stack}.embed_positions.weight")
        for i in range(config.stack(stack).n_layers):
            theirs, block = f"{stack}.layers.{i}", f"{stack}.blocks.{i}"
            for their_attention, attention in _ATTENTIONS[stack].items():
                parts = f"{theirs}.{their_attention}"
                q, k, v = (state[f"{parts}.{p}_proj.weight"].detach().cpu() for p in "qkv")
                q_bias, v_bias = (state[f"{parts}.{p}_proj.bias"].detach().cpu() for p in "qv")
                ours[f"{block}.{attention}.qkv.weight"] = torch.cat([q, k, v])
                ours[f"{block}.{attention}.qkv.bias"] = torch.cat([q_bias, torch.zeros_like(q_bias), v_bias])
                take_linear(f"{parts}.out_proj", f"{block}.{attention}.out")
            for layer, name in _BLOCK_NAMES[stack].items():
                take = take_norm if name.startswith("ln") else take_linear
                take(f"{theirs}.{layer}", f"{block}.{name}")
        take_norm(f"{stack}.layer_norm", f"{stack}.{_FINAL_NORM[stack]}")
    unembedding = state.get("proj_out.weight")
    tied = unembedding is None or torch.equal(unembedding.detach().cpu(), embedding)
    ours["decoder.unembed.weight"] = embedding if tied else copied("proj_out.weight")
    ours["decoder.unembed.bias"] = torch.zeros(config.d_vocab, dtype=embedding.dtype)
    return ours


def to_transformers_state_dict(state: Mapping[str, Tensor], config: HookedWhisperConfig) -> dict[str, Tensor]:
    """The inverse of `convert_transformers_state_dict`: our parameters under transformers' full names.

    `proj_out.weight` is given; it is the embedding's tensor where the two are tied in `state`.

    Raises:
        CheckpointError: a bias of the keys or of the unembedding that is not zero: transformers' Whisper
            has no place for it (weights that were processed cannot go back).
    """
    theirs: dict[str, Tensor] = {}

    def give(name: str, ours: str, weight: str = "weight", bias: str = "bias") -> None:
        theirs[f"model.{name}.weight"] = state[f"{ours}.{weight}"]
        theirs[f"model.{name}.bias"] = state[f"{ours}.{bias}"]

    def refuse_unless_zero(name: str, tensor: Tensor) -> None:
        if torch.count_nonzero(tensor):
            raise CheckpointError(
                f"{name} is not zero, and transformers' Whisper has no such bias. "
                "Take the weights from before they were processed (folded or centred)."
            )

    give("encoder.conv1", "encoder.conv1")
    give("encoder.conv2", "encoder.conv2")
    theirs["model.decoder.embed_tokens.weight"] = state["decoder.W_E"]
    for stack in STACKS:
        theirs[f"model.{stack}.embed_positions.weight"] = state[f"{stack}.W_pos"]
        for i in range(config.stack(stack).n_layers):
            block, their_block = f"{stack}.blocks.{i}", f"{stack}.layers.{i}"
            for their_attention, attention in _ATTENTIONS[stack].items():
                weights = state[f"{block}.{attention}.qkv.weight"].chunk(3)
                biases = state[f"{block}.{attention}.qkv.bias"].chunk(3)
                refuse_unless_zero(f"The key part of {block}.{attention}.qkv.bias", biases[1])
                for part, weight, bias in zip("qkv", weights, biases, strict=True):
                    projection = f"model.{their_block}.{their_attention}.{part}_proj"
                    theirs[f"{projection}.weight"] = weight
                    if part != "k":
                        theirs[f"{projection}.bias"] = bias
                give(f"{their_block}.{their_attention}.out_proj", f"{block}.{attention}.out")
            for layer, name in _BLOCK_NAMES[stack].items():
                give(f"{their_block}.{layer}", f"{block}.{name}", *(("w", "b") if name.startswith("ln") else ()))
        give(f"{stack}.layer_norm", f"{stack}.{_FINAL_NORM[stack]}", "w", "b")
    if "decoder.unembed.bias" in state:  # a model's own state dict has none unless it was processed
        refuse_unless_zero("decoder.unembed.bias", state["decoder.unembed.bias"])
    theirs["proj_out.weight"] = state["decoder.unembed.weight"]
    return theirs


_OPENAI_RENAMES: list[tuple[re.Pattern[str], str]] = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^(encoder|decoder)\.positional_embedding$", r"\1.embed_positions.weight"),
        (r"^decoder\.token_embedding\.", "decoder.embed_tokens."),
        (r"^encoder\.ln_post\.", "encoder.layer_norm."),
        (r"^decoder\.ln\.", "decoder.layer_norm."),
        (r"^(encoder|decoder)\.blocks\.", r"\1.layers."),
        (r"\.mlp\.0\.", ".fc1."),
        (r"\.mlp\.2\.", ".fc2."),
        (r"\.mlp_ln\.", ".final_layer_norm."),
        (r"\.cross_attn_ln\.", ".encoder_attn_layer_norm."),
        (r"\.attn_ln\.", ".self_attn_layer_norm."),
        (r"\.cross_attn\.", ".encoder_attn."),
        (r"\.attn\.", ".self_attn."),
        (r"\.query\.", ".q_proj."),
        (r"\.key\.", ".k_proj."),
        (r"\.value\.", ".v_proj."),
        (r"\.out\.(weight|bias)$", r".out_proj.\1"),
    )
]


def openai_to_transformers_names(state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Pairs of transformers' name (without `model.`) and tensor, from OpenAI's names."""
    for name, tensor in state.items():
        for pattern, replacement in _OPENAI_RENAMES:
            name = pattern.sub(replacement, name)
        yield name, tensor
