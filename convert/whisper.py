"""Whisper's encoder in any published size, from OpenAI's `tiny.pt` or from transformers' files."""

import re

from unavglip_jax import params
from unavglip_jax.convert.state_dict import ConversionError, StateDict, place
from unavglip_jax.models.whisper import Whisper, WhisperConfig
from unavglip_jax.params import Params

MARKS_OPENAI = ("encoder.positional_embedding", "encoder.blocks.0.attn.query.weight")
MARKS_TRANSFORMERS = ("encoder.embed_positions.weight", "encoder.layers.0.self_attn.q_proj.weight")
MARKS_TRANSFORMERS_MODEL = tuple(f"model.{key}" for key in MARKS_TRANSFORMERS)

HEAD_WIDTH = 64  # in every published size; no tensor shows it

TRANSFORMERS = {
    "embed_positions.weight": "positional_embedding",
    "layers": "blocks",
    "self_attn_layer_norm": "attn_ln",
    "self_attn.q_proj": "attn.query",
    "self_attn.k_proj": "attn.key",
    "self_attn.v_proj": "attn.value",
    "self_attn.out_proj": "attn.out",
    "fc1": "mlp.0",
    "fc2": "mlp.2",
    "final_layer_norm": "mlp_ln",
    "layer_norm": "ln_post",
}


def convert(source: StateDict, what: str = "the checkpoint") -> tuple[WhisperConfig, Params]:
    """The encoder of a Whisper checkpoint; its decoder, if it has one, is knowingly left out.

    Args:
      source: a state dict in OpenAI's names, or in transformers' with or without `model.` in front.
      what: names the checkpoint in errors.

    Raises:
      ConversionError: it is not Whisper's, or an encoder tensor is unknown, missing or misshapen.
    """
    config = config_of(source, what)
    _, shapes = params.abstract(Whisper, config)
    return config, place(source, shapes, rename=openai_name, what=what)


def config_of(source: StateDict, what: str) -> WhisperConfig:
    """The configuration that the tensors show."""
    shapes = {openai_name(key): tuple(tensor.shape) for key, tensor in source.items()}
    try:
        width, n_mels, _ = shapes["conv1.weight"]
        context, _ = shapes["positional_embedding"]
    except (KeyError, ValueError) as error:
        raise ConversionError(
            f"{what} is not a Whisper encoder, it lacks the first convolution or the positions; "
            "give OpenAI's .pt file or transformers' model.safetensors"
        ) from error
    blocks = [re.match(r"blocks\.(\d+)\.", name) for name in shapes if name]
    return WhisperConfig(
        n_mels=n_mels,
        n_audio_ctx=context,
        n_audio_state=width,
        n_audio_head=max(1, width // HEAD_WIDTH),
        n_audio_layer=1 + max((int(block[1]) for block in blocks if block), default=-1),
    )


def openai_name(key: str) -> str | None:
    """OpenAI's name, below `encoder.`, of an encoder tensor; `None` for a decoder's."""
    key = key.removeprefix("model.")
    if key.startswith("decoder.") or key == "proj_out.weight":
        return None
    names = "|".join(map(re.escape, TRANSFORMERS))
    return re.sub(
        rf"(?<![^.])({names})(?![^.])",
        lambda found: TRANSFORMERS[found[1]],
        key.removeprefix("encoder."),
    )
