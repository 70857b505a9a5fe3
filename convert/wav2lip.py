"""Wav2Lip's `lipsync_expert.pth`."""

from unavglip_jax import params
from unavglip_jax.convert.state_dict import StateDict, place
from unavglip_jax.models.wav2lip_syncnet import Wav2LipSyncNet, Wav2LipSyncNetConfig
from unavglip_jax.params import Params

MARKS = ("face_encoder.0.conv_block.0.weight", "audio_encoder.0.conv_block.0.weight")


def convert(source: StateDict, what: str = "the checkpoint") -> tuple[Wav2LipSyncNetConfig, Params]:
    """The colour expert of a state dict in Wav2Lip's names.

    Raises:
      ConversionError: a tensor is unknown, missing or misshapen.
    """
    config = Wav2LipSyncNetConfig()
    _, shapes = params.abstract(Wav2LipSyncNet, config)
    return config, place(source, shapes, what=what)
