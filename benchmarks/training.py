"""A training step against the same model and losses written plainly in PyTorch, on the same device.

    python benchmarks/training.py                       # a small UNet, on a CPU
    python benchmarks/training.py --full --dtype bfloat16 --batch-size 8 --compile   # MuseTalk's, on a GPU

Both train UnAvgLip's adapter (LoRA and identity keys and values) over a frozen UNet and a frozen VAE, with
2 L1 on the lower half of the decoded image and L1 on the latents, and AdamW. The PyTorch side is diffusers'
modules with the same weights, under autocast, with `torch.compile` if asked for. Data is made up and stays on
the device.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import jax
import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table

from unavglip_jax import assets, params, sharding
from unavglip_jax.data.pipeline import SampleOptions
from unavglip_jax.evaluation import torch_networks
from unavglip_jax.models.layers import audio_positions
from unavglip_jax.models.perceiver import Perceiver, PerceiverConfig
from unavglip_jax.models.unet import UNet, UNetConfig, init_identity
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
    new = lambda *network: params.init(*network, jax.random.key(0, impl="rbg"))
    adapted = unet.replace(lora_rank=128, identity="tokens")
    adapter, base = params.split("/processor/", init_identity(new(UNet, adapted)))
    made = {
        "unet": (unet, base),
        "adapter": (adapted, adapter),
        "vae": (vae, new(VAE, vae)),
        "perceiver": (perceiver, new(Perceiver, perceiver)),
    }
    networks = {name: (*network, "untrained", "none") for name, network in made.items()}
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


def theirs(options: Options, pack: Path, batch) -> tuple[float, float, float | None]:
    """Seconds a step, the last loss, and the peak of memory in GiB."""
    (_, unet), (vae_config, vae), (_, perceiver) = (
        torch_networks.load(pack, name) for name in ("unet", "vae", "perceiver")
    )
    dtype = getattr(torch, options.dtype)
    unet.to(DEVICE, dtype), vae.to(DEVICE, dtype), perceiver.to(DEVICE)
    trained = torch.nn.ModuleList([*unet.attn_processors.values(), perceiver]).float()
    trained.requires_grad_(True)
    if options.remat:
        unet.train().enable_gradient_checkpointing()
        vae.train().enable_gradient_checkpointing()
    optimizer = torch.optim.AdamW(trained.parameters(), lr=1e-4)
    tensor = lambda x: torch.tensor(x).to(DEVICE)
    image = lambda x: tensor(x[:, 0]).permute(0, 3, 1, 2).to(dtype) / 127.5 - 1
    target, reference = image(batch["target"]), image(batch["reference"])
    masked = image(np.where(batch["hidden"][..., None], 0, batch["target"]).astype(np.uint8))
    windows, people = tensor(batch["windows"][:, 0]).to(dtype), tensor(batch["identity"])
    windows = windows + tensor(np.array(audio_positions(*windows.shape[1:]))).to(dtype)
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
    return seconds, loss.item(), held


def main(options: Options) -> None:
    """Prints a table."""
    device = jax.devices()[0]
    with TemporaryDirectory() as scratch:
        pack = write_pack(Path(scratch) / "pack", options.full)
        batch = made_batch(
            options, shapes(options.full)[3], shapes(options.full)[0].cross_attention_dim
        )
        seconds, flops, loss, held = ours(options, pack, batch)
        torch_seconds, torch_loss, torch_held = theirs(options, pack, batch)
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
    table.add_row("loss after all steps", f"{loss:.6f}", f"{torch_loss:.6f}")
    Console(width=110).print(table)


if __name__ == "__main__":
    main(tyro.cli(Options))
