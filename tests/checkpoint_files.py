"""Small random Whispers, and writers of the formats that checkpoints come in, made from the formats' descriptions."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import WhisperConfig, WhisperForConditionalGeneration

from hooked_whisper.bundled import find_bundled
from hooked_whisper.checkpoints import Checkpoint, to_transformers

Quantization = Literal["float32", "float16", "bfloat16", "int16", "int8", "int8_float16", "int8_bfloat16"]

TYPE_IDS = {
    torch.float32: 0,
    torch.int8: 1,
    torch.int16: 2,
    torch.int32: 3,
    torch.float16: 4,
    torch.bfloat16: 5,
}


def random_whisper(
    *,
    d_model: int = 8,
    encoder_layers: int = 2,
    decoder_layers: int = 1,
    encoder_heads: int = 2,
    decoder_heads: int = 4,
    encoder_ffn: int = 12,
    decoder_ffn: int = 16,
    n_mels: int = 80,
    n_frames: int = 6,
    n_ctx: int = 10,
    d_vocab: int = 51,
    tied: bool = True,
    dtype: torch.dtype = torch.float32,
) -> WhisperForConditionalGeneration:
    """A Whisper whose every parameter is random, layer norms and biases included."""
    last = d_vocab - 1
    config = WhisperConfig(
        d_model=d_model,
        encoder_layers=encoder_layers,
        decoder_layers=decoder_layers,
        encoder_attention_heads=encoder_heads,
        decoder_attention_heads=decoder_heads,
        encoder_ffn_dim=encoder_ffn,
        decoder_ffn_dim=decoder_ffn,
        num_mel_bins=n_mels,
        max_source_positions=n_frames,
        max_target_positions=n_ctx,
        vocab_size=d_vocab,
        eos_token_id=last - 1,
        pad_token_id=last - 1,
        bos_token_id=last - 1,
        decoder_start_token_id=last,
        begin_suppress_tokens=None,
        tie_word_embeddings=tied,
    )
    model = WhisperForConditionalGeneration._from_config(config, dtype=dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    return model.eval()


def weights(model: WhisperForConditionalGeneration) -> dict[str, Tensor]:
    """The model's tensors under transformers' names, without the leading `model.` and the tied unembedding."""
    state = {name.removeprefix("model."): tensor for name, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        del state["proj_out.weight"]
    return state


# --- OpenAI ----------------------------------------------------------------------------------------------------------


def openai_content(model: WhisperForConditionalGeneration) -> dict[str, Any]:
    """What OpenAI's `.pt` holds."""
    config, state = model.config, weights(model)
    theirs: dict[str, Tensor] = {}

    def take(name: str, openai: str) -> None:
        theirs[f"{openai}.weight"] = state[f"{name}.weight"]
        if f"{name}.bias" in state:
            theirs[f"{openai}.bias"] = state[f"{name}.bias"]

    take("encoder.conv1", "encoder.conv1")
    take("encoder.conv2", "encoder.conv2")
    take("encoder.layer_norm", "encoder.ln_post")
    take("decoder.embed_tokens", "decoder.token_embedding")
    take("decoder.layer_norm", "decoder.ln")
    for stack, n_layers in (("encoder", config.encoder_layers), ("decoder", config.decoder_layers)):
        theirs[f"{stack}.positional_embedding"] = state[f"{stack}.embed_positions.weight"]
        for i in range(n_layers):
            layer, block = f"{stack}.layers.{i}", f"{stack}.blocks.{i}"
            attentions = {"self_attn": "attn", "encoder_attn": "cross_attn"}
            for attention in list(attentions)[: 1 if stack == "encoder" else 2]:
                for part, openai in (("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value"), ("out_proj", "out")):
                    take(f"{layer}.{attention}.{part}", f"{block}.{attentions[attention]}.{openai}")
                take(f"{layer}.{attention}_layer_norm", f"{block}.{attentions[attention]}_ln")
            take(f"{layer}.fc1", f"{block}.mlp.0")
            take(f"{layer}.fc2", f"{block}.mlp.2")
            take(f"{layer}.final_layer_norm", f"{block}.mlp_ln")
    dims = {
        "n_mels": config.num_mel_bins,
        "n_audio_ctx": config.max_source_positions,
        "n_audio_state": config.d_model,
        "n_audio_head": config.encoder_attention_heads,
        "n_audio_layer": config.encoder_layers,
        "n_vocab": config.vocab_size,
        "n_text_ctx": config.max_target_positions,
        "n_text_state": config.d_model,
        "n_text_head": config.decoder_attention_heads,
        "n_text_layer": config.decoder_layers,
    }
    return {"dims": dims, "model_state_dict": theirs}


# --- CTranslate2 -----------------------------------------------------------------------------------------------------


def ctranslate2_variables(model: WhisperForConditionalGeneration) -> dict[str, Tensor]:
    """CTranslate2's variables of a Whisper, in float32."""
    config, state = model.config, weights(model)
    variables: dict[str, Tensor] = {
        "decoder/activation": torch.tensor(3, dtype=torch.int8),
        "decoder/alibi": torch.tensor(0, dtype=torch.int8),
        "decoder/alignment_heads": torch.tensor(1, dtype=torch.int16),
        "decoder/alignment_layer": torch.tensor(-1, dtype=torch.int16),
        "decoder/num_heads": torch.tensor(config.decoder_attention_heads, dtype=torch.int16),
        "decoder/pre_norm": torch.tensor(1, dtype=torch.int8),
        "decoder/scale_embeddings": torch.tensor(0, dtype=torch.int8),
        "decoder/start_from_zero_embedding": torch.tensor(0, dtype=torch.int8),
        "encoder/num_heads": torch.tensor(config.encoder_attention_heads, dtype=torch.int16),
        "decoder/embeddings/weight": state["decoder.embed_tokens.weight"],
    }
    if "proj_out.weight" in state:
        variables["decoder/projection/weight"] = state["proj_out.weight"]

    def linear(ours: str, theirs: str) -> None:
        variables[f"{theirs}/weight"] = state[f"{ours}.weight"]
        variables[f"{theirs}/bias"] = state[f"{ours}.bias"]

    def norm(ours: str, theirs: str) -> None:
        variables[f"{theirs}/gamma"] = state[f"{ours}.weight"]
        variables[f"{theirs}/beta"] = state[f"{ours}.bias"]

    def stacked(ours: str, theirs: str, parts: str) -> None:
        none = torch.zeros(config.d_model)
        variables[f"{theirs}/weight"] = torch.cat([state[f"{ours}.{part}_proj.weight"] for part in parts])
        variables[f"{theirs}/bias"] = torch.cat([state.get(f"{ours}.{part}_proj.bias", none) for part in parts])

    linear("encoder.conv1", "encoder/conv1")
    linear("encoder.conv2", "encoder/conv2")
    for stack, n_layers in (("encoder", config.encoder_layers), ("decoder", config.decoder_layers)):
        variables[f"{stack}/position_encodings/encodings"] = state[f"{stack}.embed_positions.weight"]
        norm(f"{stack}.layer_norm", f"{stack}/layer_norm")
        for i in range(n_layers):
            ours, theirs = f"{stack}.layers.{i}", f"{stack}/layer_{i}"
            norm(f"{ours}.self_attn_layer_norm", f"{theirs}/self_attention/layer_norm")
            stacked(f"{ours}.self_attn", f"{theirs}/self_attention/linear_0", "qkv")
            linear(f"{ours}.self_attn.out_proj", f"{theirs}/self_attention/linear_1")
            if stack == "decoder":
                norm(f"{ours}.encoder_attn_layer_norm", f"{theirs}/attention/layer_norm")
                stacked(f"{ours}.encoder_attn", f"{theirs}/attention/linear_0", "q")
                stacked(f"{ours}.encoder_attn", f"{theirs}/attention/linear_1", "kv")
                linear(f"{ours}.encoder_attn.out_proj", f"{theirs}/attention/linear_2")
            norm(f"{ours}.final_layer_norm", f"{theirs}/ffn/layer_norm")
            linear(f"{ours}.fc1", f"{theirs}/ffn/linear_0")
            linear(f"{ours}.fc2", f"{theirs}/ffn/linear_1")
    return variables


def quantized(variables: Mapping[str, Tensor], quantization: Quantization) -> dict[str, Tensor]:
    """The variables as CTranslate2 stores them under that quantization: weights, and all other floats."""
    kinds: dict[str, tuple[torch.dtype, torch.dtype]] = {
        "float32": (torch.float32, torch.float32),
        "float16": (torch.float16, torch.float16),
        "bfloat16": (torch.bfloat16, torch.bfloat16),
        "int16": (torch.int16, torch.float32),
        "int8": (torch.int8, torch.float32),
        "int8_float16": (torch.int8, torch.float16),
        "int8_bfloat16": (torch.int8, torch.bfloat16),
    }
    weight_dtype, other_dtype = kinds[quantization]
    stored: dict[str, Tensor] = {}
    for name, tensor in variables.items():
        if not tensor.is_floating_point():
            stored[name] = tensor
        elif not name.endswith("/weight") or weight_dtype.is_floating_point:
            stored[name] = tensor.to(weight_dtype if name.endswith("/weight") else other_dtype)
        elif weight_dtype == torch.int16:
            stored[f"{name}_scale"] = 1024 / tensor.abs().max()
            stored[name] = (tensor * stored[f"{name}_scale"]).round().to(torch.int16)
        else:
            scale = 127 / tensor.flatten(1).abs().amax(dim=1)
            stored[f"{name}_scale"] = scale
            stored[name] = (tensor * scale.view(-1, *[1] * (tensor.dim() - 1))).round().to(torch.int8)
    return stored


def string(text: str) -> bytes:
    raw = text.encode() + b"\0"
    return struct.pack("<H", len(raw)) + raw


def variable_bytes(name: str, tensor: Tensor, version: int = 6) -> bytes:
    """One variable as model.bin holds it."""
    content = tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    head = string(name) + struct.pack("<B", tensor.dim()) + b"".join(struct.pack("<I", n) for n in tensor.shape)
    if version >= 4:
        return head + struct.pack("<BI", TYPE_IDS[tensor.dtype], len(content)) + content
    return head + struct.pack("<BI", tensor.element_size(), tensor.numel()) + content


def model_bin(
    variables: Mapping[str, Tensor],
    *,
    aliases: Mapping[str, str] | None = None,
    version: int = 6,
    specification: str = "WhisperSpec",
    revision: int = 3,
) -> bytes:
    """A whole model.bin."""
    aliases = {"decoder/projection/weight": "decoder/embeddings/weight"} if aliases is None else aliases
    parts = [
        struct.pack("<I", version),
        string(specification),
        struct.pack("<II", revision, len(variables)),
        *(variable_bytes(name, tensor, version) for name, tensor in sorted(variables.items())),
    ]
    if version >= 3:
        parts.append(struct.pack("<I", len(aliases)))
        parts.extend(string(alias) + string(target) for alias, target in aliases.items())
    return b"".join(parts)


def write_ctranslate2(
    model: WhisperForConditionalGeneration, folder: Path, quantization: Quantization = "float32", **config: Any
) -> Path:
    """A CTranslate2 folder: model.bin and config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    variables = quantized(ctranslate2_variables(model), quantization)
    aliases = {} if "decoder/projection/weight" in variables else None
    (folder / "model.bin").write_bytes(model_bin(variables, aliases=aliases))
    (folder / "config.json").write_text(json.dumps(config))
    return folder


# --- transformers ----------------------------------------------------------------------------------------------------

IN_SHARDS = "5KB"


def logits(model: WhisperForConditionalGeneration) -> Tensor:
    """Of a fixed random input."""
    generator = torch.Generator().manual_seed(3)
    config = model.config
    mel = torch.randn(1, config.num_mel_bins, 2 * config.max_source_positions, generator=generator)
    tokens = torch.randint(0, config.vocab_size, (1, 5), generator=generator)
    with torch.no_grad():
        return model(input_features=mel, decoder_input_ids=tokens).logits


def assert_same_model(checkpoint: Checkpoint, model: WhisperForConditionalGeneration) -> None:
    assert torch.equal(logits(to_transformers(checkpoint)), logits(model))


def write_bin(model: WhisperForConditionalGeneration, folder: Path, *, sharded: bool) -> Path:
    """A folder as transformers wrote it before safetensors."""
    model.save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    state = dict(model.state_dict())
    if not sharded:
        torch.save(state, folder / "pytorch_model.bin")
        return folder
    names = sorted(state)
    halves = {"pytorch_model-1.bin": names[::2], "pytorch_model-2.bin": names[1::2]}
    for file, tensors in halves.items():
        torch.save({name: state[name].clone() for name in tensors}, folder / file)
    placed = {name: file for file, tensors in halves.items() for name in tensors}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": placed}))
    return folder


def change_json(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text())
    content.update(changes)
    path.write_text(json.dumps(content))


def hub_cache(cache: Path, repository: str, write: Any) -> Path:
    """A repository as the hub's cache holds it; `write` fills the snapshot."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    root = cache / f"models--{repository.replace('/', '--')}"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text(commit)
    write(root / "snapshots" / commit)
    return root / "snapshots" / commit


def bundled_folder() -> Path:
    files = find_bundled()
    assert files is not None
    return files.folder


def saved(content: Any, path: Path, **options: Any) -> Path:
    """A file of `torch.save`."""
    torch.save(content, path, **options)
    return path
