"""A tiny pack made from the very torch modules that tests compare with."""

import json
from fractions import Fraction

import cv2
import jax
import numpy as np
import skimage.data
from diffusers import AutoencoderKL
from test_unet import CONTEXT, converted, torch_unet

from comparing import randomise
from unavglip_jax import assets, params
from unavglip_jax.convert import vae
from unavglip_jax.media import video
from unavglip_jax.models.iresnet import IResNet, IResNetConfig
from unavglip_jax.models.perceiver import Perceiver, PerceiverConfig
from unavglip_jax.models.whisper import Whisper, WhisperConfig

SIZE = 32  # side of a crop in pixels; the VAE halves it once, the UNet once more
EMBEDDING = 512

DESCRIPTION = {
    "system": "unavglip",
    "audio_front_end": "v10",
    "crop": "musetalk_v10",
    "mask": "lower_half",
    "image_size": SIZE,
    "identity": {"embedder": "identity", "normalisation": "unit"},
}


def torch_vae():
    model = AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        norm_num_groups=4,
    )
    return randomise(model, seed=1)


def write_pack(folder, **changes):
    """Writes the pack."""
    key = jax.random.key(0, impl="rbg")  # far quicker to compile than the default
    auto_encoder = torch_vae()
    config, _, weights = converted(torch_unet())
    adapter, base = params.split("/processor/", weights)
    whisper = WhisperConfig(n_mels=80, n_audio_state=CONTEXT, n_audio_head=2)
    perceiver = PerceiverConfig(
        dim=CONTEXT, depth=1, dim_head=8, heads=2, embedding_dim=EMBEDDING, output_dim=CONTEXT
    )
    embedder = IResNetConfig(blocks=(1, 1, 1, 1), widths=(4, 4, 4, 4))
    networks = {
        "identity": (embedder, params.init(IResNet, embedder, key)),
        "unet": (config.replace(lora_rank=0, identity="none"), base),
        "adapter": (config, adapter),
        "vae": vae.convert(auto_encoder.state_dict(), json.loads(auto_encoder.to_json_string())),
        "whisper": (whisper, params.init(Whisper, whisper, key)),
        "perceiver": (perceiver, params.init(Perceiver, perceiver, key)),
    }
    networks = {name: (*network, "random", "none") for name, network in networks.items()}
    assets.write_pack(folder, DESCRIPTION | changes, networks)


def talking_photo(path, seconds=2.0, fps=Fraction(25), size=(320, 240)) -> None:
    """A video of the astronaut's photograph, slowly moved and zoomed; without sound."""
    photo = skimage.data.astronaut()
    width, height = size
    with video.write_video(path, width, height, fps) as put:
        for i in range(round(seconds * fps)):
            zoom = 1.2 + 0.1 * np.sin(i / 20)
            shift = width / 2 - 225 * zoom + 4 * np.sin(i / 9), height / 2 - 130 * zoom
            matrix = np.array([[zoom, 0, shift[0]], [0, zoom, shift[1]]])
            put(cv2.warpAffine(photo, matrix, (width, height), flags=cv2.INTER_AREA))


def speech(seconds: float) -> np.ndarray:
    """Something with the loudness of speech, mono at 16 kHz."""
    t = np.arange(int(seconds * 16000)) / 16000
    loud = 0.5 - 0.5 * np.cos(2 * np.pi * 3 * t)
    return (0.3 * loud * np.sin(2 * np.pi * 220 * t)).astype(np.float32)
