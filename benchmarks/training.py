"""A training step against the same model and losses written plainly in PyTorch, on the same device.

    python benchmarks/training.py                       # a small UNet, on a CPU
    python benchmarks/training.py --full --dtype bfloat16 --batch-size 8 --compile   # MuseTalk's, on a GPU

Both train UnAvgLip's adapter (LoRA and identity keys and values) over a frozen UNet and a frozen VAE, with
2 L1 on the lower half of the decoded image and L1 on the latents, and AdamW. The PyTorch side is diffusers'
modules under autocast, with `torch.compile` if asked for. Data is made up and stays on the device.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import jax
import numpy as np
import torch
import tyro
from diffusers import AutoencoderKL, UNet2DConditionModel
from rich.console import Console
from rich.table import Table
from torch.nn.functional import scaled_dot_product_attention

from unavglip_jax import assets, params, sharding
from unavglip_jax.data.pipeline import SampleOptions
from unavglip_jax.models.perceiver import Perceiver, PerceiverConfig
from unavglip_jax.models.unet import UNet, UNetConfig
from unavglip_jax.models.vae import VAE, VAEConfig
from unavglip_jax.training import dubbing, settings, watch
from unavglip_jax.training import step as steps

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@dataclass(frozen=True)
class Options:
    """What to measure.

    Attributes:
      full: MuseTalk's UNet and VAE at 256 pixels, instead of small ones at 64.
      batch_size: frames a step.
      dtype: float32 or bfloat16.
      remat: compute activations again, in both.
      compile: use `torch.compile`.
      rounds: measured steps, after some that are not.
    """

    full: bool = False
    batch_size: int = 4
    dtype: str = "float32"
    remat: bool = False
    compile: bool = False
    rounds: int = 10


def shapes(full: bool) -> tuple[UNetConfig, VAEConfig, PerceiverConfig, int]:
    """The networks and the side of the image."""
    if full:
        return UNetConfig(), VAEConfig(), PerceiverConfig(), 256
    unet = UNetConfig(block_out_channels=(64, 128, 128, 128), norm_num_groups=16)
    vae = VAEConfig(block_out_channels=(32, 64, 64, 64), norm_num_groups=16)
    return unet, vae, PerceiverConfig(depth=2, heads=8), 64


def write_pack(folder: Path, full: bool) -> Path:
    """A pack of untrained networks."""
    unet, vae, perceiver, size = shapes(full)
    key = jax.random.key(0, impl="rbg")
    made = {"unet": (UNet, unet), "vae": (VAE, vae), "perceiver": (Perceiver, perceiver)}
    networks = {
        name: (config, params.init(network, config, key), "untrained", "none")
        for name, (network, config) in made.items()
    }
    description = {
        "system": "musetalk", "audio_front_end": "v10", "crop": "musetalk_v10", "mask": "lower_half",
        "image_size": size, "identity": {"embedder": "buffalo_l", "normalisation": "unit"},
    }  # fmt: skip
    assets.write_pack(folder, description, networks)
    return folder


def made_batch(options: Options, size: int, context: int) -> dict[str, np.ndarray]:
    """Noise, in the shapes that the pipeline gives."""
    rng = np.random.default_rng(0)
    rows = options.batch_size
    pictures = lambda: rng.integers(0, 256, (rows, 1, size, size, 3)).astype(np.uint8)
    hidden = np.zeros((rows, 1, size, size), bool)
    hidden[:, :, size // 2 :] = True
    return {
        "target": pictures(),
        "reference": pictures(),
        "hidden": hidden,
        "landmarks": rng.uniform(0, size, (rows, 1, 68, 2)).astype(np.float32),
        "windows": rng.normal(size=(rows, 1, 50, context)).astype(np.float16),
        "identity": rng.normal(size=(rows, 4, 512)).astype(np.float32),
    }


def ours(options: Options, pack: Path, batch) -> tuple[float, float, float, float | None]:
    """Seconds a step, its FLOPs, the last loss, and the peak of memory in GiB."""
    found = settings.Settings(
        objective={
            "kind": "unavglip",
            "pack": pack,
            "losses": {"pixel_lower_half": 2.0, "latent": 1.0},
        },
        data={"path": ".", "batch_size": options.batch_size, "sample": SampleOptions(frames=1)},
        output="unused", steps=1000, dtype=options.dtype, remat=options.remat,
        optimizer={"learning_rate": 1e-4, "schedule": "constant"},
    )  # fmt: skip
    mesh = sharding.make_mesh(sharding.MeshConfig(), jax.devices()[:1])
    objective = dubbing.build(found)
    state, frozen = steps.initial(objective, found, mesh)
    batch = sharding.put_batch(batch, mesh)
    update = steps.compiled(objective, found, mesh, state, frozen, batch)
    for i in range(options.rounds + 3):
        if i == 3:
            jax.block_until_ready(state)
            began = time.perf_counter()
        state, metrics = update(state, frozen, batch)
    jax.block_until_ready(state)
    seconds = (time.perf_counter() - began) / options.rounds
    flops = (update.cost_analysis() or {}).get("flops", float("nan"))
    return seconds, flops, float(metrics["loss"]), watch.memory(jax.devices()[0])


# ---- PyTorch -----------------------------------------------------------------------------------------


class Lora(torch.nn.Module):
    """x -> up(down(x))."""

    def __init__(self, inputs: int, outputs: int, rank: int = 128):
        super().__init__()
        self.down = torch.nn.Linear(inputs, rank, bias=False)
        self.up = torch.nn.Linear(rank, outputs, bias=False)
        torch.nn.init.normal_(self.down.weight, std=1 / rank)
        torch.nn.init.zeros_(self.up.weight)

    def forward(self, x):
        return self.up(self.down(x))


class Processor(torch.nn.Module):
    """LoRA on the four projections and, in cross-attention, the identity tokens beside the audio."""

    def __init__(self, attention, cross: bool):
        super().__init__()
        features, context = attention.to_q.out_features, attention.to_k.in_features
        self.query, self.out = Lora(features, features), Lora(features, features)
        self.key, self.value = Lora(context, features), Lora(context, features)
        if cross:
            self.identity_key = torch.nn.Linear(context, features, bias=False)
            self.identity_value = torch.nn.Linear(context, features, bias=False)

    def __call__(self, attention, hidden_states, encoder_hidden_states=None, **_):
        heads = lambda x: x.unflatten(-1, (attention.heads, -1)).transpose(1, 2)
        context, tokens = hidden_states, None
        if encoder_hidden_states is not None:
            context, tokens = encoder_hidden_states[:, :-4], encoder_hidden_states[:, -4:]
        query = heads(attention.to_q(hidden_states) + self.query(hidden_states))
        key = heads(attention.to_k(context) + self.key(context))
        value = heads(attention.to_v(context) + self.value(context))
        out = scaled_dot_product_attention(query, key, value)
        if tokens is not None:
            key, value = heads(self.identity_key(tokens)), heads(self.identity_value(tokens))
            out = out + scaled_dot_product_attention(query, key, value)
        out = out.transpose(1, 2).flatten(2)
        return attention.to_out[0](out) + self.out(out)


def theirs(options: Options, batch) -> tuple[float, float, float | None]:
    """Seconds a step, the last loss, and the peak of memory in GiB."""
    config, vae_config, perceiver_config, _ = shapes(options.full)
    unet = UNet2DConditionModel(
        in_channels=config.in_channels,
        block_out_channels=config.block_out_channels,
        cross_attention_dim=config.cross_attention_dim,
        attention_head_dim=config.heads,
        norm_num_groups=config.norm_num_groups,
    )
    count = len(vae_config.block_out_channels)
    vae = AutoencoderKL(
        block_out_channels=vae_config.block_out_channels,
        down_block_types=("DownEncoderBlock2D",) * count,
        up_block_types=("UpDecoderBlock2D",) * count,
        layers_per_block=vae_config.layers_per_block,
        norm_num_groups=vae_config.norm_num_groups,
    )
    # As large as our Perceiver, and far smaller than the rest of the step.
    width = perceiver_config.dim
    layers = [torch.nn.Linear(512, 4 * width), torch.nn.GELU(), torch.nn.Linear(4 * width, width)]
    perceiver = torch.nn.Sequential(*layers)
    dtype = getattr(torch, options.dtype)
    unet.requires_grad_(False).to(DEVICE, dtype)
    vae.requires_grad_(False).to(DEVICE, dtype)
    processors = {
        name: Processor(unet.get_submodule(name.removesuffix(".processor")), "attn2" in name)
        for name in unet.attn_processors
    }
    unet.set_attn_processor(processors)
    trained = torch.nn.ModuleList([*processors.values(), perceiver]).to(DEVICE, torch.float32)
    if options.remat:
        unet.enable_gradient_checkpointing()
        vae.enable_gradient_checkpointing()
        vae.decoder.train()
    optimizer = torch.optim.AdamW(trained.parameters(), lr=1e-4)
    tensor = lambda x: torch.tensor(x).to(DEVICE)
    image = lambda x: tensor(x[:, 0]).permute(0, 3, 1, 2).to(dtype) / 127.5 - 1
    target, reference = image(batch["target"]), image(batch["reference"])
    masked = image(np.where(batch["hidden"][..., None], 0, batch["target"]).astype(np.uint8))
    windows, people = tensor(batch["windows"][:, 0]).to(dtype), tensor(batch["identity"])
    half, scale = target.shape[2] // 2, vae_config.scaling_factor

    def loss_of(target, masked, reference, windows, people):
        with torch.no_grad():
            encode = lambda x: vae.encode(x).latent_dist.mode() * scale
            wanted = encode(target)
            latents = torch.cat([encode(masked), encode(reference)], dim=1)
        context = torch.cat([windows, perceiver(people).to(windows.dtype)], dim=1)
        out = unet(latents, 0, context).sample
        prediction = vae.decode(out / scale).sample
        lower = (prediction[:, :, half:].float() - target[:, :, half:].float()).abs().mean()
        return 2 * lower + (out.float() - wanted.float()).abs().mean()

    run = torch.compile(loss_of) if options.compile else loss_of
    wait = torch.cuda.synchronize if DEVICE == "cuda" else lambda: None
    for i in range(options.rounds + 3):
        if i == 3:
            wait()
            began = time.perf_counter()
        with torch.autocast(DEVICE, dtype=dtype, enabled=options.dtype != "float32"):
            loss = run(target, masked, reference, windows, people)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
        optimizer.step()
    wait()
    seconds = (time.perf_counter() - began) / options.rounds
    held = torch.cuda.max_memory_allocated() / 2**30 if DEVICE == "cuda" else None
    return seconds, float(loss), held


def main(options: Options) -> None:
    """Prints a table."""
    device = jax.devices()[0]
    with TemporaryDirectory() as scratch:
        pack = write_pack(Path(scratch) / "pack", options.full)
        batch = made_batch(
            options, shapes(options.full)[3], shapes(options.full)[0].cross_attention_dim
        )
        seconds, flops, loss, held = ours(options, pack, batch)
    torch_seconds, torch_loss, torch_held = theirs(options, batch)
    how = "compiled" if options.compile else "eager"
    title = (
        f"adapter step, {options.batch_size} frames, {options.dtype}, {device.device_kind}; "
        f"jax {jax.__version__}, torch {torch.__version__} {how}"
    )
    table = Table("", "jax", "PyTorch", title=title)
    gib = lambda x: "-" if x is None else f"{x:.2f}"
    table.add_row("seconds a step", f"{seconds:.4f}", f"{torch_seconds:.4f}")
    table.add_row("steps a second, ratio", f"{torch_seconds / seconds:.2f}", "1")
    table.add_row("FLOPs a step (XLA's count)", f"{flops:.3g}", "")
    if peak := watch.peak_flops(device):
        mfu = lambda s: f"{flops / s / peak:.1%}"
        table.add_row("MFU", mfu(seconds), mfu(torch_seconds))
    table.add_row("peak memory (GiB)", gib(held), gib(torch_held))
    table.add_row("loss after all steps", f"{loss:.3f}", f"{torch_loss:.3f}")
    Console(width=110).print(table)


if __name__ == "__main__":
    main(tyro.cli(Options))
