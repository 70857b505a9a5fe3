"""JAX against PyTorch on one device: the networks of a dub at full size, with random weights.

    python benchmarks/networks.py                          # what the device has time for
    python benchmarks/networks.py --networks unet decode --batches 4 --json figures.json

float32 on a CPU, bfloat16 on a GPU. Both frameworks do the same work on the same shapes and are timed in
turns; a figure is the median of the rounds after a warm-up. FLOPs are XLA's count on the unoptimised
program of the network as inference runs it (LoRA merged, time step folded, identity cached) and serve both
frameworks and both forms, so a slower formulation gets no credit for work that it adds.
"""

import gc
import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # torch needs room on the GPU too

import jax
import jax.numpy as jnp
import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch import nn

from unavglip_jax import params as P
from unavglip_jax.evaluation import torch_networks
from unavglip_jax.models.unet import UNet, UNetConfig, cache_identity, fold_timestep, merge_lora
from unavglip_jax.models.vae import VAE, VAEConfig
from unavglip_jax.models.whisper import Whisper, WhisperConfig
from unavglip_jax.params import compiler_options

ON_GPU = jax.default_backend() == "gpu"
DTYPE = "bfloat16" if ON_GPU else "float32"
DEVICE = "cuda" if ON_GPU else "cpu"
OPTIONS = compiler_options()  # as dubbing compiles
LATENTS, PIXELS, AUDIO, IDENTITY = (32, 32, 8), (256, 256, 3), (50, 384), (4, 384)

Name = Literal["whisper", "encode", "decode", "unet", "frame"]


@dataclass(frozen=True)
class Options:
    """What to measure.

    Attributes:
      networks: "frame" is UNet and VAE decoder in one program, reported as frames per second.
      batches: images (windows of 30 s for Whisper) in a call.
      repeats: timed rounds at most.
      seconds: no further round of a row begins after this long; the first round always runs.
      largest_frame: the largest batch of "frame", which repeats work already timed; none on a GPU.
      json: where to write the figures as well.
    """

    networks: tuple[Name, ...] = ("whisper", "encode", "decode", "unet", "frame")
    batches: tuple[int, ...] = (1, 4, 16)
    repeats: int = 30 if ON_GPU else 5
    seconds: float = 40.0
    largest_frame: int = 1024 if ON_GPU else 4
    json: Path | None = None


@dataclass
class Row:
    """One line of the table; times in milliseconds, rates in GFLOP/s."""

    network: str
    batch: int
    rounds: int
    gflop: float
    ms: dict[str, float]

    @property
    def jax(self) -> str:
        """The faster way of running JAX: as inference does, where that differs."""
        return "jax folded" if "jax folded" in self.ms else "jax"

    def rate(self, form: str) -> float:
        return self.gflop / self.ms[form] * 1e3


# ---- the networks in JAX: {form: function of nothing} and FLOPs ---------------------------------------


def compiled(call: Callable, parameters: P.Params, *inputs) -> Callable:
    """`call(parameters, *inputs)` as a function of nothing, compiled and finished when it returns."""
    program = jax.jit(call, compiler_options=OPTIONS).lower(parameters, *inputs).compile()
    return lambda: program(parameters, *inputs)


def gflop(call: Callable, *shapes) -> float:
    """XLA's count for the unoptimised program, as a GPU would be given it."""
    traced = jax.jit(call).trace(*shapes)
    return traced.lower(lowering_platforms=("cuda",)).cost_analysis()["flops"] / 1e9


def inputs(batch: int, *shapes: tuple[int, ...]) -> list[jax.Array]:
    keys = jax.random.split(jax.random.key(1), len(shapes))
    return [jax.random.normal(k, (batch, *s), DTYPE) for k, s in zip(keys, shapes, strict=True)]


@dataclass
class JaxNetwork:
    """Forms of one network: the function, its parameters and the shapes of its inputs."""

    forms: dict[str, tuple[Callable, P.Params]]
    shapes: list[tuple[int, ...]]

    def programs(self, batch: int) -> tuple[dict[str, Callable], float]:
        """Compiled forms, and GFLOPs of the last, which is the one with the least work."""
        arrays = inputs(batch, *self.shapes)
        call, parameters = list(self.forms.values())[-1]
        work = gflop(call, parameters, *arrays)
        return {k: compiled(f, p, *arrays) for k, (f, p) in self.forms.items()}, work


def jax_unet() -> dict[str, tuple[Callable, P.Params]]:
    """The UNet with its adapter, as trained and as inference runs it."""
    config = UNetConfig(lora_rank=128, identity="tokens", dtype=DTYPE, param_dtype=DTYPE)
    parameters = P.init(UNet, config, jax.random.key(0))
    plain_graph, _ = P.abstract(UNet, config)
    tokens = jax.random.normal(jax.random.key(2), (1, *IDENTITY), DTYPE)

    def plain(parameters, latents, audio):
        identity = jnp.broadcast_to(tokens, (len(latents), *IDENTITY))
        return P.bind(plain_graph, parameters)(latents, 0, audio, identity)

    folded, config = fold_timestep(*merge_lora(parameters, config))
    folded, config = cache_identity(folded, config, tokens)
    graph, shapes = P.abstract(UNet, config)
    call = lambda parameters, *inputs: P.bind(graph, parameters)(inputs[0], 0, inputs[1])
    return {"jax": (plain, parameters), "jax folded": (call, P.cast(folded, shapes))}


def jax_vae(method: str) -> tuple[Callable, P.Params]:
    """`VAE.encode` or `VAE.decode`; XLA drops the weights of the other half."""
    config = VAEConfig(dtype=DTYPE, param_dtype=DTYPE)
    graph, _ = P.abstract(VAE, config)
    parameters = P.init(VAE, config, jax.random.key(0))
    return lambda parameters, x: getattr(P.bind(graph, parameters), method)(x), parameters


def jax_network(name: Name) -> JaxNetwork:
    if name == "whisper":
        config = WhisperConfig(dtype=DTYPE, param_dtype=DTYPE)
        graph, _ = P.abstract(Whisper, config)
        call = lambda parameters, mel: P.bind(graph, parameters)(mel, "v15")
        forms = {"jax": (call, P.init(Whisper, config, jax.random.key(0)))}
        return JaxNetwork(forms, [(3000, 80)])
    if name in ("encode", "decode"):
        shape = PIXELS if name == "encode" else (*LATENTS[:2], 4)
        return JaxNetwork({"jax": jax_vae(name)}, [shape])
    if name == "unet":
        return JaxNetwork(jax_unet(), [LATENTS, AUDIO])
    unet, unet_parameters = jax_unet()["jax folded"]
    decode, vae_parameters = jax_vae("decode")

    def frame(parameters, latents, audio):
        return decode(parameters["vae"], unet(parameters["unet"], latents, audio))

    both = {"unet": unet_parameters, "vae": vae_parameters}
    return JaxNetwork({"jax folded": (frame, both)}, [LATENTS, AUDIO])


# ---- the same networks in PyTorch --------------------------------------------------------------------


class TorchNetwork(nn.Module):
    """One of the benchmark's networks, called as the JAX one is, channels first."""

    def __init__(self, name: Name):
        super().__init__()
        self.name, self.scale = name, VAEConfig().scaling_factor
        if name == "whisper":
            self.whisper = torch_networks.whisper(WhisperConfig())
        if name in ("unet", "frame"):
            config = UNetConfig(lora_rank=128, identity="tokens")
            self.unet = torch_networks.unet(config, IDENTITY[0])
        if name in ("encode", "decode", "frame"):
            self.vae = torch_networks.vae(VAEConfig())
        self.to(device=DEVICE, dtype=getattr(torch, DTYPE)).eval().requires_grad_(False)
        if ON_GPU:
            self.to(memory_format=torch.channels_last)

    def inputs(self, batch: int) -> list[torch.Tensor]:
        latents, audio = (8, 32, 32), (AUDIO[0] + IDENTITY[0], AUDIO[1])
        shapes = {"whisper": [(80, 3000)], "encode": [(3, 256, 256)], "decode": [(4, 32, 32)]}
        made = [
            torch.randn(batch, *shape, device=DEVICE, dtype=getattr(torch, DTYPE))
            for shape in shapes.get(self.name, [latents, audio])
        ]
        if ON_GPU:
            made = [
                x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x for x in made
            ]
        return made

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        if self.name == "whisper":
            states = self.whisper(*inputs, output_hidden_states=True).hidden_states
            return torch.stack(states, dim=2)
        if self.name == "encode":
            return self.vae.encode(*inputs).latent_dist.mode() * self.scale
        latents = inputs[0]
        if self.name in ("unet", "frame"):
            latents = self.unet(latents, 0, inputs[1], return_dict=False)[0]
        if self.name == "unet":
            return latents
        return self.vae.decode(latents / self.scale, return_dict=False)[0]

    def programs(self, batch: int) -> dict[str, Callable]:
        """The eager network and, on a GPU, the compiled one."""
        arrays = self.inputs(batch)
        forms = {"torch": self}
        if ON_GPU:
            forms["torch compiled"] = torch.compile(self, mode="max-autotune", dynamic=False)
        return {k: lambda call=call: call(*arrays) for k, call in forms.items()}


# ---- measuring ---------------------------------------------------------------------------------------


def finish(result) -> None:
    """Waits until the device has computed `result`."""
    if isinstance(result, torch.Tensor):
        if ON_GPU:
            torch.cuda.synchronize()
    else:
        jax.block_until_ready(result)


def once(call: Callable, calls: int = 1) -> float:
    """Seconds a call, of `calls` queued one after the other."""
    start = time.perf_counter()
    for _ in range(calls):
        result = call()
    finish(result)
    return (time.perf_counter() - start) / calls


def measure(forms: dict[str, Callable], repeats: int, seconds: float) -> tuple[dict, int]:
    """Median milliseconds of each form, taken in turns, and the number of rounds behind it.

    A GPU gets as many calls in the queue as fill 50 ms, so that launching them is hidden as it is in a
    dub. The warm-up round is kept when there was no time for another.
    """
    start = time.perf_counter()
    first = {name: once(call) for name, call in forms.items()}
    if ON_GPU:  # the first call of a compiled torch network compiles it, two more record its graph
        first = {name: min(once(call) for _ in range(3)) for name, call in forms.items()}
        start = time.perf_counter()
    calls = {k: max(1, math.ceil(0.05 / s)) if ON_GPU else 1 for k, s in first.items()}
    times = {name: [] for name in forms}
    rounds = 0
    while rounds < repeats and time.perf_counter() - start < seconds:
        for name, call in forms.items():
            times[name].append(once(call, calls[name]))
        rounds += 1
    medians = {k: 1e3 * statistics.median(times[k] or [first[k]]) for k in forms}
    return medians, rounds


def matrix_rate() -> float:
    """GFLOP/s of the fastest product of large square matrices seen, in either framework."""
    n = 8192 if ON_GPU else 2048
    a = jax.random.normal(jax.random.key(0), (n, n), DTYPE)
    b = torch.randn((n, n), dtype=getattr(torch, DTYPE), device=DEVICE)
    ours = jax.jit(jnp.matmul, compiler_options=OPTIONS).lower(a, a).compile()
    calls = 20 if ON_GPU else 1
    seconds = [once(call, calls) for _ in range(20) for call in (lambda: ours(a, a), lambda: b @ b)]
    return 2e-9 * n**3 / min(seconds)


def device() -> str:
    """Name of the processor."""
    if ON_GPU:
        return jax.devices()[0].device_kind
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def rows(options: Options, console: Console) -> Iterator[Row]:
    """Times what was asked for, one network in memory at a time."""
    for name in options.networks:
        ours, theirs = jax_network(name), TorchNetwork(name)
        for batch in options.batches:
            if name == "frame" and batch > options.largest_frame:
                continue
            forms, gflop = ours.programs(batch)
            forms |= theirs.programs(batch)
            ms, rounds = measure(forms, options.repeats, options.seconds)
            console.print(f"{name} {batch}:", ", ".join(f"{k} {v:.1f} ms" for k, v in ms.items()))
            yield Row(name, batch, rounds, gflop, ms)
            del forms
        del ours, theirs
        gc.collect()


def show(rows: list[Row], matrix: float) -> Table:
    """The figures as a table; shares are of `matrix` GFLOP/s."""
    present = {form for row in rows for form in row.ms}
    forms = [f for f in ("jax", "jax folded", "torch", "torch compiled") if f in present]
    rates = ["jax GFLOP/s", "share", "torch GFLOP/s", "share", "jax frames/s", "torch frames/s"]
    table = Table()
    for column in [
        "network",
        "batch",
        "rounds",
        *[f"{f} ms" for f in forms],
        "ratio",
        "GFLOP",
        *rates,
    ]:
        table.add_column(column, justify="left" if column == "network" else "right")
    for row in rows:
        torch_best = min((f for f in row.ms if f.startswith("torch")), key=row.ms.get)
        best = (row.jax, torch_best)
        cells = [row.network, str(row.batch), str(row.rounds or "first")]
        cells += [f"{row.ms[f]:.1f}" if f in row.ms else "" for f in forms]
        cells += [f"{row.ms[row.jax] / row.ms[torch_best]:.2f}", f"{row.gflop:.0f}"]
        for form in best:
            cells += [f"{row.rate(form):.0f}", f"{row.rate(form) / matrix:.0%}"]
        if row.network == "frame":
            cells += [f"{row.batch / row.ms[form] * 1e3:.2f}" for form in best]
        table.add_row(*cells)
    return table


def main(options: Options) -> None:
    """Times every network at every batch size and prints one table."""
    console = Console(width=150)
    about = {
        "device": device(),
        "dtype": DTYPE,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }
    console.print(", ".join(f"{k} {v}" for k, v in about.items()))
    with torch.inference_mode():
        matrix = matrix_rate()
        found = list(rows(options, console))
        matrix = max(matrix, matrix_rate())
    console.print(
        f"matrix product: {matrix:.0f} GFLOP/s; ratio: jax / torch, the faster form of each"
    )
    console.print(show(found, matrix))
    if options.json:
        figures = {**about, "matrix_gflops": matrix, "rows": [asdict(row) for row in found]}
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Options))
