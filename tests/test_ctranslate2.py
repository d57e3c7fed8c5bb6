"""CTranslate2's model.bin: read exactly, and nothing in it believed."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Mapping
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from checkpoint_files import (
    Quantization,
    ctranslate2_variables,
    model_bin,
    quantized,
    random_whisper,
    string,
    variable_bytes,
    weights,
    write_ctranslate2,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hooked_whisper.conversion import convert_transformers_state_dict
from hooked_whisper.ctranslate2 import MAX_VARIABLES, parse_model, whisper_from_ctranslate2
from hooked_whisper.errors import CheckpointError

U32 = 2**32 - 1


def load(content: bytes) -> dict[str, Tensor]:
    """Parsed and named, as far as a checkpoint goes before its tokenizer."""
    config, state = whisper_from_ctranslate2(parse_model([memoryview(content)]), "test")
    convert_transformers_state_dict(state, config)
    return state


def assert_same(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], tolerance: float) -> None:
    """Equal names and shapes; values within `tolerance` of the tensor's largest."""
    assert state.keys() == expected.keys()
    for name, tensor in expected.items():
        assert state[name].shape == tensor.shape, name
        error = (state[name].float() - tensor).abs().max().item()
        assert error <= tolerance * tensor.abs().max().item(), name


@pytest.fixture(scope="module")
def small() -> dict[str, Tensor]:
    """The variables of a small asymmetric Whisper."""
    torch.manual_seed(1)
    return ctranslate2_variables(random_whisper())


@pytest.fixture(scope="module")
def content(small: dict[str, Tensor]) -> bytes:
    return model_bin(small)


# --- what is written is what is read ---------------------------------------------------------------------------------

# Half of the last place that is kept: 11 bits; 8 bits; 10 bits of the largest entry of a stacked matrix, which may be
# twice that of its part; 127 steps.
TOLERANCE: dict[Quantization, float] = {
    "float32": 0.0,
    "float16": 2**-11,
    "bfloat16": 2**-8,
    "int16": 1.02 / 1024,
    "int8": 0.51 / 127,
    "int8_float16": 0.51 / 127,
    "int8_bfloat16": 0.51 / 127,
}


@pytest.mark.parametrize("quantization", list(TOLERANCE))
def test_each_quantization_gives_the_weights_back(quantization: Quantization) -> None:
    model = random_whisper()
    state = load(model_bin(quantized(ctranslate2_variables(model), quantization)))
    assert_same(state, weights(model), TOLERANCE[quantization])
    stored = {"float16": torch.float16, "bfloat16": torch.bfloat16}.get(quantization, torch.float32)
    assert state["encoder.layers.0.fc1.weight"].dtype == stored


def test_int8_is_divided_by_the_scale_of_its_row() -> None:
    variables = quantized(ctranslate2_variables(random_whisper()), "int8")
    weight = torch.arange(8 * 12, dtype=torch.int8).view(8, 12)
    scale = torch.arange(1, 9, dtype=torch.float32)
    name = "encoder/layer_0/ffn/linear_1/weight"
    state = load(model_bin({**variables, name: weight, f"{name}_scale": scale}))
    assert torch.equal(state["encoder.layers.0.fc2.weight"], weight.float() / scale[:, None])


def test_int16_without_a_scale_takes_the_default_of_old_files(small: dict[str, Tensor]) -> None:
    name = "encoder/layer_0/ffn/linear_1/weight"
    weight = torch.arange(8 * 12, dtype=torch.int16).view(8, 12)
    state = load(model_bin({**small, name: weight}, version=3))
    assert torch.equal(state["encoder.layers.0.fc2.weight"], weight.float() / 1000)


@pytest.mark.parametrize("version", [2, 3, 4, 5, 6])
def test_each_binary_version(version: int) -> None:
    model = random_whisper()
    variables = ctranslate2_variables(model)
    if version == 2:  # no aliases yet
        variables["decoder/projection/weight"] = variables["decoder/embeddings/weight"]
    parsed = parse_model([memoryview(model_bin(variables, version=version))])
    assert (parsed.binary_version, parsed.specification, parsed.revision) == (version, "WhisperSpec", 3)
    _, state = whisper_from_ctranslate2(parsed, "test")
    assert_same({name: state[name] for name in weights(model)}, weights(model), 0.0)


@settings(max_examples=15, deadline=None)
@given(
    heads=st.tuples(st.sampled_from([1, 2, 4]), st.sampled_from([1, 2, 4])),
    layers=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    ffn=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    n_mels=st.sampled_from([80, 128]),
    quantization=st.sampled_from(["float32", "int8"]),
)
def test_each_shape(
    heads: tuple[int, int], layers: tuple[int, int], ffn: tuple[int, int], n_mels: int, quantization: Quantization
) -> None:
    model = random_whisper(
        encoder_heads=heads[0],
        decoder_heads=heads[1],
        encoder_layers=layers[0],
        decoder_layers=layers[1],
        encoder_ffn=ffn[0],
        decoder_ffn=ffn[1],
        n_mels=n_mels,
    )
    content = model_bin(quantized(ctranslate2_variables(model), quantization))
    config, state = whisper_from_ctranslate2(parse_model([memoryview(content)]), "test")
    assert (config.encoder.n_layers, config.decoder.n_layers) == layers
    assert (config.encoder.n_heads, config.decoder.n_heads) == heads
    assert (config.encoder.d_mlp, config.decoder.d_mlp) == ffn
    assert (config.n_mels, config.n_frames, config.n_ctx, config.d_vocab) == (n_mels, 6, 10, 51)
    assert_same(state, weights(model), TOLERANCE[quantization])


def test_an_untied_unembedding_is_kept() -> None:
    model = random_whisper(tied=False)
    state = load(model_bin(ctranslate2_variables(model), aliases={}))
    assert torch.equal(state["proj_out.weight"], model.proj_out.weight)
    assert not torch.equal(state["proj_out.weight"], state["decoder.embed_tokens.weight"])


def test_equal_variables_may_be_aliases_and_carry_their_scales() -> None:
    model = random_whisper()
    with torch.no_grad():
        first, second = (model.get_parameter(f"model.encoder.layers.{i}.fc1.weight") for i in (0, 1))
        second.copy_(first)
    variables = quantized(ctranslate2_variables(model), "int8")
    alias, target = (f"encoder/layer_{i}/ffn/linear_0/weight" for i in (1, 0))
    for name in (alias, f"{alias}_scale"):
        del variables[name]
    state = load(
        model_bin(variables, aliases={alias: target, "decoder/projection/weight": "decoder/embeddings/weight"})
    )
    assert torch.equal(state["encoder.layers.1.fc1.weight"], state["encoder.layers.0.fc1.weight"])


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_file_in_pieces_reads_as_the_whole(content: bytes, data: st.DataObject) -> None:
    cuts = data.draw(st.lists(st.integers(0, len(content)), max_size=4).map(sorted))
    edges = [0, *cuts, len(content)]
    pieces = [memoryview(content[a:b]) for a, b in pairwise(edges)]
    whole = parse_model([memoryview(content)]).variables
    parsed = parse_model(pieces).variables
    assert parsed.keys() == whole.keys()
    assert all(torch.equal(parsed[name], whole[name]) for name in whole)


def test_a_mapped_file_is_not_changed_by_its_tensors(tmp_path: Path) -> None:
    folder = write_ctranslate2(random_whisper(), tmp_path / "ct2")
    before = (folder / "model.bin").read_bytes()
    model = parse_model(folder / "model.bin")
    model.variables["decoder/embeddings/weight"].zero_()
    assert (folder / "model.bin").read_bytes() == before


# --- truncated, flipped, hostile -------------------------------------------------------------------------------------


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_truncation_at_any_byte_is_refused(content: bytes, data: st.DataObject) -> None:
    length = data.draw(st.integers(0, len(content) - 1))
    with pytest.raises(CheckpointError, match=r"truncated or corrupt.*announces \d+ bytes.*\d+ are left"):
        load(content[:length])


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_changed_bytes_load_or_are_refused(small: dict[str, Tensor], content: bytes, data: st.DataObject) -> None:
    mutable = bytearray(content)
    # Most bytes are weights, where anything goes: aim at what lies around the names.
    names = [content.index(string(name)) for name in (*small, "decoder/projection/weight")]
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.sampled_from([0, *names])) + data.draw(st.integers(0, 60))
        mutable[min(position, len(content) - 1)] = data.draw(st.integers(0, 255))
    with suppress(CheckpointError):  # any other error fails
        load(bytes(mutable))


@settings(max_examples=200, deadline=None)
@given(junk=st.binary(max_size=300), head=st.sampled_from([0, 4, 18, 22, 26, 40]))
def test_junk_is_refused(content: bytes, junk: bytes, head: int) -> None:
    with pytest.raises(CheckpointError):
        load(content[:head] + junk)


def test_more_bytes_than_the_file_announces_are_refused(content: bytes) -> None:
    with pytest.raises(CheckpointError, match="7 bytes follow its end"):
        load(content + b"trailer")


def header(n_variables: int) -> bytes:
    return model_bin({}, aliases={})[:-8] + n_variables.to_bytes(4, "little")


NAME = string("decoder/embeddings/weight")
HOSTILE = {
    "four billion variables": (header(U32), "announces 4294967295 variables"),
    "as many variables as there may be": (header(MAX_VARIABLES), "truncated"),
    "a name longer than the file": (header(1) + b"\xff\xff" + b"a" * 50, "announces 65535 bytes of a variable's name"),
    "an empty name": (header(1) + b"\0\0" + bytes(50), "does not end with a zero byte"),
    "a name that is not UTF-8": (header(1) + b"\x03\0\xff\xfe\0" + bytes(50), "not UTF-8"),
    "rank 255": (header(1) + NAME + b"\xff" + bytes(2000), "rank 255"),
    "dimensions that overflow": (
        header(1) + NAME + b"\4" + b"\xff" * 16 + b"\0" + U32.to_bytes(4, "little"),
        "and the file announces 4294967295",
    ),
    "four gigabytes": (
        header(1) + NAME + b"\1" + (2**30 - 1).to_bytes(4, "little") + b"\0" + (2**32 - 4).to_bytes(4, "little"),
        "announces 4294967292 bytes of variable",
    ),
    "no elements": (header(1) + NAME + b"\2" + bytes(4) + b"\xff" * 4 + b"\0" + bytes(4), "takes 0 bytes"),
    "an unknown dtype": (header(1) + NAME + b"\1\1\0\0\0" + b"\x09\4\0\0\0" + bytes(8), "unknown dtype 9"),
    "four billion aliases": (header(0) + U32.to_bytes(4, "little"), "announces 4294967295 aliases"),
    "version 1": (b"\1\0\0\0" + bytes(40), "binary version 1, expected 2 to 6"),
    "version 7": (b"\7\0\0\0" + bytes(40), "binary version 7"),
    "nothing": (b"", "truncated"),
    "zeros": (bytes(10_000), "binary version 0"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files_are_refused(case: str) -> None:
    content, message = HOSTILE[case]
    with pytest.raises(CheckpointError, match=message):
        load(content)


def test_a_variable_given_twice_is_refused(small: dict[str, Tensor]) -> None:
    name = "decoder/alibi"
    twice = variable_bytes(name, small[name]) * 2
    with pytest.raises(CheckpointError, match="'decoder/alibi' twice"):
        load(header(2) + twice + bytes(4))


@pytest.mark.parametrize(
    ("aliases", "message"),
    [
        ({"a": "b", "b": "a"}, "'a' stands for 'b', which is not there"),
        ({"a": "a"}, "'a' stands for 'a', which is not there"),
        ({"decoder/alibi": "decoder/pre_norm"}, "'decoder/alibi' is already a variable"),
    ],
)
def test_aliases_that_lead_nowhere_are_refused(small: dict[str, Tensor], aliases: dict[str, str], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        load(model_bin(small, aliases=aliases))


def bomb(n_layers: int = 400) -> bytes:
    """A few megabytes whose aliases stand for gigabytes of layers."""
    variables = ctranslate2_variables(random_whisper(d_model=256, encoder_layers=1, encoder_ffn=256, decoder_ffn=8))
    first = [name for name in variables if name.startswith("encoder/layer_0/")]
    aliases = {name.replace("layer_0", f"layer_{i}"): name for name in first for i in range(1, n_layers)}
    return model_bin(variables, aliases={"decoder/projection/weight": "decoder/embeddings/weight", **aliases})


def test_aliases_that_multiply_the_memory_are_refused() -> None:
    with pytest.raises(CheckpointError, match=r"would grow from [\d,]+ bytes to [\d,]+ when loaded"):
        load(bomb())


def test_hostile_files_take_no_memory(tmp_path: Path) -> None:
    """All of the above in a process that may take 300 MB more than it has after its imports."""
    cases = {f"case{i}": content for i, (content, _) in enumerate(HOSTILE.values())}
    cases["bomb"] = bomb()
    for name, content in cases.items():
        (tmp_path / f"{name}.bin").write_bytes(content)
    script = f"""
        import re, resource
        from pathlib import Path
        import torch
        from hooked_whisper.conversion import convert_transformers_state_dict
        from hooked_whisper.ctranslate2 import parse_model, whisper_from_ctranslate2
        from hooked_whisper.errors import CheckpointError
        size = int(re.search(r"VmSize:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
        resource.setrlimit(resource.RLIMIT_AS, (size + 300 * 2**20,) * 2)
        for path in sorted(Path({str(tmp_path)!r}).glob("*.bin")):
            try:
                config, state = whisper_from_ctranslate2(parse_model(path), "test")
                convert_transformers_state_dict(state, config)
            except CheckpointError:
                print(path.stem)
    """
    if not sys.platform.startswith("linux"):
        pytest.skip("limits of address space are Linux's")
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == sorted(cases)


# --- files that are whole, and not a Whisper -------------------------------------------------------------------------


def test_another_architecture_is_refused(small: dict[str, Tensor]) -> None:
    with pytest.raises(CheckpointError, match="of kind 'TransformerSpec', revision 7; expected 'WhisperSpec'"):
        load(model_bin(small, specification="TransformerSpec", revision=7))
    with pytest.raises(CheckpointError, match="revision 4"):
        load(model_bin(small, revision=4))


@pytest.mark.parametrize(
    "name", ["encoder/conv1/weight", "decoder/layer_0/attention/linear_1/bias", "decoder/layer_norm/gamma"]
)
def test_a_missing_variable_is_named(small: dict[str, Tensor], name: str) -> None:
    with pytest.raises(CheckpointError, match=f"lacks the variable '{name}'"):
        load(model_bin({key: value for key, value in small.items() if key != name}))


def test_layers_must_be_numbered_without_gaps(small: dict[str, Tensor]) -> None:
    renamed = {name.replace("encoder/layer_1/", "encoder/layer_5/"): tensor for name, tensor in small.items()}
    with pytest.raises(CheckpointError, match="lacks layers of the encoder: it has 2, numbered up to 5"):
        load(model_bin(renamed))
    without = {name: tensor for name, tensor in small.items() if not name.startswith("decoder/layer_0/")}
    with pytest.raises(CheckpointError, match=r"decoder of model\.bin is impossible: n_layers must be a positive"):
        load(model_bin(without))


CHANGED = {
    "decoder/num_heads": [
        (torch.tensor(0, dtype=torch.int16), "n_heads must be a positive whole number, got 0"),
        (torch.tensor(-4, dtype=torch.int16), "n_heads must be a positive whole number, got -4"),
        (torch.tensor(3, dtype=torch.int16), "cannot be split over n_heads=3"),
        (torch.tensor(float("nan")), "no usable number 'decoder/num_heads'"),
        (torch.tensor(float("inf")), "no usable number 'decoder/num_heads'"),
        (torch.ones(3, dtype=torch.int16), "no usable number 'decoder/num_heads'"),
    ],
    "decoder/activation": [(torch.tensor(0, dtype=torch.int8), "sets decoder/activation = 0, expected 3")],
    "decoder/pre_norm": [(torch.tensor(0, dtype=torch.int8), "sets decoder/pre_norm = 0, expected 1")],
    "decoder/scale_embeddings": [(torch.tensor(1, dtype=torch.int8), "sets decoder/scale_embeddings = 1")],
    "decoder/layer_0/self_attention/queries_scale": [(torch.tensor(1.0), "queries_scale = 1, expected 0.707")],
    "encoder/layer_0/self_attention/linear_0/bias": [(torch.ones(24), "gives the keys a bias that is not zero")],
    "encoder/conv2/weight": [(torch.ones(8, 8, 5), r"has shape \(8, 8, 5\), expected \(8, 8, 3\)")],
    "encoder/conv1/weight": [(torch.ones(9, 80, 3), r"has shape \(9, 80, 3\), expected \(8, any, 3\)")],
    "decoder/layer_norm/gamma": [(torch.ones(7), r"has shape \(7,\), expected \(8\)")],
    "decoder/layer_0/ffn/linear_0/weight": [
        (torch.ones(16, 8, dtype=torch.int8), "int8 and no scale"),
        (torch.ones(16, 8, dtype=torch.int32), "int32 and no scale"),
    ],
    "decoder/extra/weight": [(torch.ones(2), "1 variables that Whisper does not have: decoder/extra/weight")],
    "lonely_scale": [(torch.ones(2), "1 variables that Whisper does not have: lonely_scale")],
}


@pytest.mark.parametrize(("name", "case"), [(name, i) for name, cases in CHANGED.items() for i in range(len(cases))])
def test_a_variable_that_cannot_be_whispers_is_refused(small: dict[str, Tensor], name: str, case: int) -> None:
    tensor, message = CHANGED[name][case]
    with pytest.raises(CheckpointError, match=message):
        load(model_bin({**small, name: tensor}))


@pytest.mark.parametrize(
    ("scale", "message"),
    [
        (torch.zeros(16), "holds zeros or numbers that are not finite"),
        (torch.full((16,), float("nan")), "holds zeros or numbers that are not finite"),
        (torch.ones(5), r"has shape \(5,\), expected one number, or one for each of the 16 rows"),
        (torch.ones(16, dtype=torch.int8), "unusable scale"),
    ],
)
def test_a_scale_that_cannot_be_is_refused(scale: Tensor, message: str) -> None:
    variables = quantized(ctranslate2_variables(random_whisper()), "int8")
    variables["decoder/layer_0/ffn/linear_0/weight_scale"] = scale
    with pytest.raises(CheckpointError, match=message):
        load(model_bin(variables))


def test_files_that_are_not_there_or_empty(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"Cannot read .*model\.bin: No such file"):
        parse_model(tmp_path / "model.bin")
    (tmp_path / "model.bin").touch()
    with pytest.raises(CheckpointError, match="is empty"):
        parse_model(tmp_path / "model.bin")
    with pytest.raises(CheckpointError, match="Cannot read"):
        parse_model(tmp_path)
