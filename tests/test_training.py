"""The training loop: what it computes, and that no step is lost, repeated or different after an accident."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
import yaml
from jax.sharding import PartitionSpec as P

import tiny
import tiny_data
import tiny_run
from unavglip_jax import assets, params, sharding
from unavglip_jax.config import InputError
from unavglip_jax.convert.state_dict import to_torch
from unavglip_jax.data import pipeline
from unavglip_jax.evaluation import torch_networks
from unavglip_jax.faces.identity import FIVE, align
from unavglip_jax.models.layers import audio_positions
from unavglip_jax.models.perceiver import Perceiver, PerceiverConfig
from unavglip_jax.models.unet import UNet, UNetConfig
from unavglip_jax.training import dubbing, export, loop, settings, watch
from unavglip_jax.training import step as steps

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A folder with a pack, a data set and a run of four steps that nobody disturbed."""
    folder = tmp_path_factory.mktemp("training")
    run(tiny_run.write_settings(folder))
    return folder


def run(path, *changes):
    loop.train(settings.read(path, ("mesh.data=1", "mesh.fsdp=4", *changes)))


def losses(folder) -> dict[int, float]:
    lines = watch.read(folder / "log.jsonl")
    return {line["step"]: line["train/loss"] for line in lines if "train/loss" in line}


def same(ours: dict, others: dict, tolerance=1e-5):
    assert ours.keys() == others.keys()
    np.testing.assert_allclose([*ours.values()], [others[k] for k in ours], rtol=tolerance)


# ---- what a step computes ----------------------------------------------------------------------------


def test_the_rules_cover_every_parameter_at_full_size():
    config = UNetConfig(lora_rank=128, identity="tokens")
    _, shapes = params.abstract(UNet, config)
    mesh = jax.sharding.AbstractMesh((1, 2, 2), sharding.AXES)
    placed = sharding.place(mesh, shapes)
    whole = lambda name: placed[name].spec == P() or not any(placed[name].spec)
    left = [k for k, v in shapes.items() if v.size > 1e5 and whole(k)]
    assert all("_lora/" in k or "_ip/" in k for k in left)
    share = lambda k: np.prod([{None: 1, "fsdp": 2, "tensor": 2}[axis] for axis in placed[k].spec])
    held = sum(v.size / share(k) for k, v in shapes.items())
    assert held < 0.5 * params.count(shapes)

    adapter, _ = params.split("/processor/", shapes)
    _, perceiver = params.abstract(Perceiver, PerceiverConfig())
    assert round((params.count(adapter) + params.count(perceiver)) / 1e6, 1) == 46.5


def test_a_mesh_must_make_up_the_devices():
    assert sharding.make_mesh(sharding.MeshConfig(fsdp=2)).shape["data"] == 2
    for axes in ({"fsdp": 3}, {"data": 3}, {"data": 0}, {"fsdp": 0}):
        with pytest.raises(InputError, match="does not make up 4 devices"):
            sharding.make_mesh(sharding.MeshConfig(**axes))


FULL = pytest.mark.full


@pytest.mark.parametrize(
    "changes",
    [
        ("mesh.data=2", "mesh.fsdp=1", "mesh.tensor=2", "accumulate=2", "remat=true"),
        pytest.param(("mesh.data=2", "mesh.fsdp=2"), marks=FULL),
        pytest.param(("mesh.data=1", "mesh.fsdp=2", "mesh.tensor=2"), marks=FULL),
        pytest.param(("mesh.data=1", "mesh.fsdp=1", "mesh.tensor=4"), marks=FULL),
    ],
    ids=lambda changes: " ".join(changes),
)
def test_losses_do_not_depend_on_how_they_are_computed(base, tmp_path, changes):
    run(base / "train.yaml", f"output={tmp_path}", "checkpoint_every=100", *changes)
    same(losses(tmp_path), losses(base / "run"))


def test_only_what_is_trained_changes(base):
    found = settings.read(base / "train.yaml")
    mesh = sharding.make_mesh(found.mesh)
    _, description = loop.open_data_set(found.data.path, "train")
    objective = loop.build(found, description)
    train, adversary, rest, frozen = steps.split(objective)
    assert not adversary and not rest
    assert all(re.search("^perceiver/|/processor/", name) for name in train)
    assert all(v.dtype == np.float32 for v in train.values())
    assert train.keys().isdisjoint(frozen) and len(train) + len(frozen) == len(objective.weights)
    state, _ = steps.initial(objective, found, mesh)
    moments = jax.tree.leaves(state.optimizer)
    assert len(moments) <= 2 * len(train) + 3  # nothing is kept for frozen weights


def test_identity_is_judged_in_the_picture_as_it_will_be_seen():
    """A generator that paints white everywhere, and an embedder that tells nothing but the mean colour."""
    found = settings.Settings(
        objective={"kind": "unavglip", "pack": "pack", "losses": {"identity": 1}},
        data={"path": "data", "batch_size": 1}, output="run", steps=1,
    )  # fmt: skip
    white = SimpleNamespace(encode=lambda x: x, decode=jnp.ones_like)
    nothing = lambda latents, timestep, windows: latents[..., :3]
    colour = lambda faces: faces.mean(axis=(1, 2))
    target = np.zeros((1, 1, 64, 64, 3), np.uint8)
    target[..., 0] = 255
    batch = {
        "target": target, "reference": target, "windows": np.zeros((1, 1, 4, 8)),
        "hidden": np.arange(64)[:, None] >= np.full((1, 1, 64, 64), 40),
        "landmarks": tiny_data.tiny_clip(0, "a").landmarks[None, :1], "aspect": np.ones((1, 1)),
    }  # fmt: skip
    five = np.array([[20, 24], [44, 24], [32, 34], [23, 48], [41, 48]])
    for group, point in zip(FIVE[68], five, strict=True):
        batch["landmarks"][0, 0, group] = point
    shown = np.where(batch["hidden"][0, 0, ..., None], 255, target[0, 0]).astype(np.uint8)
    who = colour(align(shown, five)[None] / np.float32(127.5) - 1)
    models = {"vae": white, "unet": nothing, "identity": colour}
    loss, _, _ = dubbing.loss(found, models, batch | {"identity": who[:, None]}, 0, None)
    assert abs(float(loss)) < 1e-4
    other = colour(np.ones((1, 112, 112, 3)))
    loss, _, _ = dubbing.loss(found, models, batch | {"identity": other[:, None]}, 0, None)
    assert float(loss) > 0.1


def test_updates_are_those_of_pytorch(base):
    """Losses and weights of four steps, with clipping, a schedule, and AdamW, against torch's."""
    changes = ("losses.pixel_lower_half=2", "losses.latent=1", "guide_scale=0.5")
    optimizer = ("learning_rate=1e-2", "epsilon=1e-3", "clip=0.1", "weight_decay=0.1")
    found = settings.read(
        base / "train.yaml",
        [*(f"objective.{c}" for c in changes), *(f"optimizer.{c}" for c in optimizer)],
    )
    mesh = sharding.make_mesh(sharding.MeshConfig(), jax.devices()[:1])
    clips, description = loop.open_data_set(found.data.path, "train")
    objective = loop.build(found, description)
    samples = pipeline.train_dataset(clips, description, objective.sample, 4, 0)
    batches = list(islice(samples, found.steps))
    state, frozen = steps.initial(objective, found, mesh)
    batch = sharding.put_batch(batches[0], mesh)
    update = steps.compiled(objective, found, mesh, state, frozen, batch)
    ours = []
    for batch in batches:
        state, metrics = update(state, frozen, sharding.put_batch(batch, mesh))
        ours.append(float(metrics["loss"]))

    theirs, weights = torch_updates(base / "pack", found, batches)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    trained = to_torch(dict(state.train))
    assert trained.keys() == weights.keys()
    for name, value in trained.items():
        # A step moves a weight by up to the learning rate; a thousandth of it is rounding.
        np.testing.assert_allclose(value, weights[name], rtol=1e-4, atol=1e-5, err_msg=name)


def test_muon_is_that_of_pytorch_and_leaves_vectors_to_adam():
    """PyTorch's orthogonalises in bfloat16, hence the tolerance; a matrix laid out otherwise is far off.

    One gradient for all steps: optax corrects its momentum's bias, PyTorch does not.
    """
    random = np.random.default_rng(0)
    draw = lambda: {
        "conv/kernel": random.standard_normal((3, 3, 4, 16), np.float32),
        "linear/kernel": random.standard_normal((12, 5), np.float32),
        "linear/bias": random.standard_normal(5, np.float32),
    }
    chosen = settings.Optimizer(kind="muon", learning_rate=1e-2, clip=1e9, weight_decay=0.1)
    begin, gradient = draw(), draw()
    ours, transformation = dict(begin), steps.optimizer(chosen, 4)
    state = transformation.init(ours)
    for _ in range(4):
        updates, state = transformation.update(gradient, state, ours)
        ours = optax.apply_updates(ours, updates)

    flat = lambda x: torch.tensor(x.reshape(-1, x.shape[-1]).T.copy())
    theirs = {name: torch.nn.Parameter(flat(begin[name])) for name in begin if "kernel" in name}
    rest = {"lr": chosen.learning_rate, "weight_decay": chosen.weight_decay}
    muon = torch.optim.Muon(theirs.values(), **rest, adjust_lr_fn="match_rms_adamw")
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(muon, 4)
    for name, parameter in theirs.items():
        parameter.grad = flat(gradient[name])
    for _ in range(4):
        muon.step()
        schedule.step()
    for name, parameter in theirs.items():
        moved = flat(np.asarray(ours[name])) - flat(begin[name])
        expected = parameter.detach() - flat(begin[name])
        assert (moved - expected).norm() < 0.08 * expected.norm(), name
    moved, bias = ours["linear/bias"] - begin["linear/bias"], gradient["linear/bias"]
    assert np.array_equal(np.sign(moved), -np.sign(bias))  # by the rate, whatever the gradient
    assert np.ptp(abs(moved)) < 0.1 * abs(moved).mean()


def torch_updates(pack, found, batches):
    """Losses, and the weights at the end, of PyTorch training the same adapter."""
    _, unet = torch_networks.load(pack, "unet", guide_scale=found.objective.guide_scale)
    (config, vae), (_, perceiver) = (torch_networks.load(pack, n) for n in ("vae", "perceiver"))
    trained = {f"perceiver.{name}": p for name, p in perceiver.named_parameters()}
    trained |= {f"unet.{k}": p for k, p in unet.named_parameters() if ".processor." in k}
    for parameter in trained.values():
        parameter.requires_grad_(True)
    chosen = found.optimizer
    optimizer = torch.optim.AdamW(
        trained.values(), chosen.learning_rate, chosen.betas, chosen.epsilon, chosen.weight_decay
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, found.steps)
    image = lambda x: torch.tensor(x[:, 0]).permute(0, 3, 1, 2) / 127.5 - 1
    encode = lambda x: vae.encode(x).latent_dist.mode() * config.scaling_factor
    losses = []
    for batch in batches:
        target = image(batch["target"])
        masked = image(np.where(batch["hidden"][..., None], 0, batch["target"]))
        windows = batch["windows"][:, 0].astype(np.float32)
        windows += np.array(audio_positions(*windows.shape[1:]))
        states = [torch.tensor(windows), perceiver(torch.tensor(batch["identity"]))]
        with torch.no_grad():
            latents = torch.cat([encode(masked), encode(image(batch["reference"]))], dim=1)
            wanted = encode(target)
        out = unet(latents, 0, torch.cat(states, dim=1)).sample
        off = (vae.decode(out / config.scaling_factor).sample - target).abs()
        lower = off[:, :, off.shape[2] // 2 :].mean()
        loss = off.mean() + 2 * lower + (out - wanted).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained.values(), chosen.clip)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return losses, {name: p.detach().numpy() for name, p in trained.items()}


SYNCNET = {
    "audio_encoder": {
        "in_channels": 1, "size": [80, 52], "block_out_channels": [4, 4, 8], "attention_levels": [],
        "downsample_factors": [[5, 4], [4, 4], [4, 4]],
    },
    "visual_encoder": {
        "in_channels": 48, "size": [16, 32], "block_out_channels": [4, 4, 8], "attention_levels": [],
        "downsample_factors": [[2, 2], [2, 4], [4, 4]],
    },
    "norm_num_groups": 2,
}  # fmt: skip


ADVERSARIAL = {
    "losses": {"pixel": 1, "adversarial": 0.1, "matching": 0.1},
    "adversary": {"start": 1, "size": 53},
    "networks": {"discriminator": {"widths": [4, 4, 4, 4], "norm": False, "differences": 4.0}},
}


@pytest.mark.parametrize(
    ("kind", "objective", "frames", "measured"),
    [
        ("identity", {}, 2, "nearest"),
        ("stable_syncnet", {"networks": {"stable_syncnet": SYNCNET}}, 16, "accuracy"),
        ("vae", ADVERSARIAL, 2, "psnr_mouth"),
        pytest.param("musetalk_v10", ADVERSARIAL, 1, "psnr_mouth", marks=FULL),
        pytest.param(
            "wav2lip_syncnet", {"networks": {"wav2lip_syncnet": {}}}, 5, "ordered", marks=FULL
        ),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_every_kind_trains_and_becomes_a_pack(base, tmp_path, kind, objective, frames, measured):
    shutil.copytree(base / "pack", tmp_path / "pack")
    pack = assets.read_pack(tmp_path / "pack")
    if kind == "musetalk_v10":  # an adapter would not fit another UNet
        kept = {name: pack.components[name] for name in pack.components.keys() - {"adapter"}}
        assets.write_description(tmp_path / "pack", pack.replace(components=kept))
    values = yaml.safe_load((base / "train.yaml").read_text())
    values["objective"] = {"kind": kind, "pack": str(tmp_path / "pack"), **objective}
    values["data"] |= {"sample": {"frames": frames}}
    values |= {"output": str(tmp_path / "run"), "validate_every": 2, "steps": 2}
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(values))
    run(tmp_path / "train.yaml")
    lines = watch.read(tmp_path / "run/log.jsonl")
    [found] = [line[f"validation/{measured}"] for line in lines if "validation/" in str(line)]
    assert np.isfinite(found)
    pictures = cv2.imread(str(tmp_path / "run/validation/0000002.png"))
    assert (pictures is None) == (kind in ("identity", "stable_syncnet", "wav2lip_syncnet"))

    export.export(tmp_path / "run", tmp_path / "result")
    name = "unet" if kind == "musetalk_v10" else kind
    config, weights = assets.load_component(tmp_path / "result", name)
    assert all(np.isfinite(value).all() for value in weights.values())
    if name in pack.components:
        before, old = assets.load_component(base / "pack", name)
        assert config == before and weights.keys() == old.keys()
        assert any(not np.array_equal(weights[k], old[k]) for k in weights)


# ---- going on ----------------------------------------------------------------------------------------


def start(path, *changes, **environment) -> subprocess.Popen:
    """The command, in a process of its own with four devices."""
    flags = {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "4",
        "JAX_DEFAULT_MATMUL_PRECISION": "highest",
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5",
        **environment,
    }
    command = [sys.executable, "train.py", "--config", str(path), "mesh.data=1", "mesh.fsdp=4"]
    return subprocess.Popen(
        [*command, *changes], cwd=ROOT, env=os.environ | flags, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def finished(process):
    output = process.communicate(timeout=300)
    assert process.returncode == 0, output[1][-3000:]


def wait_for(condition, process, seconds=240):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[1][-2000:]
        assert time.monotonic() < end
        time.sleep(0.02)


LONG = ("steps=21", "optimizer.schedule=constant", "checkpoint_every=7")


def test_killed_and_started_again_it_is_the_same_run(base, tmp_path):
    """SIGKILL somewhere behind the first checkpoint, SIGTERM somewhere later, and once more to the end."""
    path, whole, broken = base / "train.yaml", tmp_path / "whole", tmp_path / "broken"
    run(path, f"output={whole}", *LONG)
    begin = lambda: start(path, f"output={broken}", *LONG)
    reached = lambda step: max(losses(broken), default=0) >= step

    process = begin()
    wait_for(lambda: (broken / "checkpoints/7").is_dir() and reached(8), process)
    process.kill()
    process.communicate()
    killed = max(losses(broken))
    assert killed < 21

    process = begin()
    wait_for(lambda: reached(killed + 2), process)
    process.send_signal(signal.SIGTERM)
    finished(process)
    asked = max(losses(broken))
    assert (broken / f"checkpoints/{asked}").is_dir()

    run(path, f"output={broken}", *LONG)
    same(losses(broken), losses(whole))
    kept = sorted(int(p.name) for p in (broken / "checkpoints").iterdir() if p.name.isdigit())
    assert kept == sorted({7, 14, 21, asked})[-3:]
    header, *rows = (broken / "curves.csv").read_text().splitlines()
    assert "train/loss" in header and len(rows) == 21
    assert (broken / "curves.png").stat().st_size > 10_000


def test_it_goes_on_in_another_arrangement_of_the_devices(base, tmp_path):
    shutil.copytree(base / "run", tmp_path / "run")
    shutil.rmtree(tmp_path / "run/checkpoints/4")
    run(base / "train.yaml", f"output={tmp_path}/run", "mesh.data=4", "mesh.fsdp=1")
    same(losses(tmp_path / "run"), losses(base / "run"))


@FULL
def test_muon_goes_on_in_another_arrangement_of_the_devices(base, tmp_path):
    muon = ("optimizer.kind=muon", "checkpoint_every=2", "keep=4", "validate_every=100")
    run(base / "train.yaml", f"output={tmp_path}", *muon)
    expected = losses(tmp_path)
    shutil.rmtree(tmp_path / "checkpoints/4")
    run(base / "train.yaml", f"output={tmp_path}", *muon, "mesh.data=4", "mesh.fsdp=1")
    same(losses(tmp_path), expected)
    with pytest.raises(AssertionError):
        same(expected, losses(base / "run"))


@FULL
def test_two_processes_are_one(base, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    coordinator = {"UNAVGLIP_COORDINATOR": address, "UNAVGLIP_NUM_PROCESSES": "2"}
    both = [
        start(
            base / "train.yaml", f"output={tmp_path}", "mesh.data=2", "mesh.fsdp=2",
            **coordinator, UNAVGLIP_PROCESS_ID=str(i), JAX_NUM_CPU_DEVICES="2",
        )
        for i in range(2)
    ]  # fmt: skip
    try:
        for process in both:
            finished(process)
    finally:
        for process in both:
            process.kill()
            process.communicate()
    same(losses(tmp_path), losses(base / "run"))
    # Another number of processes goes on from there.
    shutil.rmtree(tmp_path / "checkpoints/4")
    run(base / "train.yaml", f"output={tmp_path}")
    same(losses(tmp_path), losses(base / "run"))


def test_a_damaged_checkpoint_is_an_error_that_names_the_one_before(base, tmp_path):
    shutil.copytree(base / "run", tmp_path / "run")
    path, output = base / "train.yaml", f"output={tmp_path}/run"
    newest = tmp_path / "run/checkpoints/4"
    for file in (newest / "train").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(InputError, match=r"checkpoints/4 is damaged .*go on from step 2"):
        run(path, output, "steps=6")
    shutil.rmtree(newest)
    run(path, output)
    same(losses(tmp_path / "run"), losses(base / "run"))


def test_it_goes_on_only_with_what_it_began_with(base, tmp_path):
    path, output = base / "train.yaml", f"output={base}/run"
    with pytest.raises(InputError, match="another output"):
        run(path, output, "steps=9", "data.batch_size=8")
    shutil.copytree(base / "pack", tmp_path / "pack")
    config, weights = assets.load_component(base / "pack", "vae")
    weights |= {name: leaf + 1e-3 for name, leaf in weights.items() if name.endswith("bias")}
    pack = assets.read_pack(tmp_path / "pack")
    changed = assets.write_component(tmp_path / "pack", "vae", config, weights, "x", "y")
    components = pack.components | {"vae": changed}
    assets.write_description(tmp_path / "pack", pack.replace(components=components))
    with pytest.raises(InputError, match="other frozen weights"):
        run(path, output, "steps=9", f"objective.pack={tmp_path}/pack")
    with pytest.raises(InputError, match="other seed"):
        run(path, output, "steps=9", "seed=1")


def test_what_is_not_a_number_stops_the_run_and_is_kept(base, tmp_path):
    shutil.copytree(base / "run", tmp_path / "run")
    path, output = base / "train.yaml", tmp_path / "run"
    with pytest.raises(InputError, match=r"step 5: the loss is .*lower optimizer.learning_rate"):
        run(path, f"output={output}", "steps=8", "objective.losses.pixel=1.0e39", "log_every=100")
    [dump] = output.glob("bad_batch_5_*.npz")
    assert np.load(dump)["target"].shape == (4, 1, tiny.SIZE, tiny.SIZE, 3)
    kept = sorted(int(p.name) for p in (output / "checkpoints").iterdir() if p.name.isdigit())
    assert kept == [2, 4]


# ---- bad configurations ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("speed=1", "speed"),
        ("steps=many", "steps"),
        ("data.batch_size=0", r"data.batch_size"),
        ("steps", "write it as"),
        ("mesh.fsdp=3", "does not make up 4 devices"),
        ("data.batch_size=6", "choose a multiple of 4"),
        ("accumulate=3", "choose a multiple of 12"),
        ("data.path=nowhere", "nowhere is not a data set"),
        ("objective.pack=nowhere", "nowhere is not a pack"),
        ("objective.losses.sync=1", "needs samples of 5 frames"),
        ("objective.losses.perceptual=1", "has no vgg19, which losses.perceptual needs"),
        ("objective.losses.colour=1", "colour"),
        ("objective.kind=wav2lip_syncnet", "sees 5 frames"),
        ("objective.kind=gan", "objective.kind"),
        ("objective.adversary.size=52", "objective.adversary.size"),
        ("objective.networks={perceiver: {}}", "leave one out"),
        ("data.sample.frames=40", "preprocess the videos again for longer clips"),
    ],
)
def test_a_bad_configuration_is_one_sentence(base, change, message):
    with pytest.raises(InputError, match=message) as error:
        run(base / "train.yaml", f"output={base}/never", change)
    assert "\n" not in str(error.value)
    assert not (base / "never").exists()


def test_a_data_set_of_another_crop_rule_is_refused(base, tmp_path):
    shutil.copytree(base / "pack", tmp_path / "pack")
    description = tmp_path / "pack/pack.yaml"
    description.write_text(
        description.read_text().replace("crop: musetalk_v10", "crop: musetalk_v15")
    )
    with pytest.raises(InputError, match="crop rule musetalk_v10, and the pack has musetalk_v15"):
        run(base / "train.yaml", f"objective.pack={tmp_path}/pack")


def test_the_command_says_it_in_one_line(base):
    process = start(base / "train.yaml", "mesh.fsdp=3")
    _, error = process.communicate(timeout=120)
    assert process.returncode == 1
    assert error.strip().splitlines()[-1].startswith("error: mesh: data=")


def test_files_can_include_others(tmp_path):
    (tmp_path / "a.yaml").write_text("steps: 5\nmesh: {fsdp: 2, data: 1}\noutput: here\n")
    objective = {"objective": {"kind": "vae", "pack": "p"}, "data": {"path": "d"}}
    (tmp_path / "b.yaml").write_text(yaml.safe_dump({"include": "a.yaml", "steps": 7, **objective}))
    found = settings.read(tmp_path / "b.yaml", ["mesh.data=3", "optimizer.betas=[0.5, 0.9]"])
    assert (found.steps, found.mesh.fsdp, found.mesh.data) == (7, 2, 3)
    assert found.optimizer.betas == (0.5, 0.9)


def test_the_configurations_in_the_repository_are_valid():
    for path in sorted((ROOT / "configs/train").glob("*.yaml")):
        settings.read(path)


# ---- what comes out ----------------------------------------------------------------------------------


def test_dry_run_says_what_a_step_takes(base, capsys):
    loop.train(settings.read(base / "train.yaml", ["mesh.fsdp=4"]), dry_run=True)
    printed = capsys.readouterr().out
    for part in ("trained", "frozen", "perceiver", "MiB", "FLOPs of a step"):
        assert part in printed


def test_a_checkpoint_becomes_a_pack(base, tmp_path):
    pack = export.export(base / "run", tmp_path / "pack")
    assert pack.components.keys() == assets.read_pack(base / "pack").components.keys()
    config, weights = assets.load_generator(tmp_path / "pack")
    _, before = assets.load_generator(base / "pack")
    assert config.identity == "tokens" and config.time_embedding
    changed = {k for k in weights if not np.array_equal(weights[k], before[k])}
    assert changed and all("/processor/" in k for k in changed)
    _, perceiver = assets.load_component(tmp_path / "pack", "perceiver")
    assert perceiver.keys() == assets.load_component(base / "pack", "perceiver")[1].keys()
    with pytest.raises(InputError, match="exists"):
        export.export(base / "run", tmp_path / "pack")
    with pytest.raises(InputError, match=r"no checkpoint of step 3; it has 2, 4"):
        export.export(base / "run", tmp_path / "other", step=3)


def test_log_lines_are_json_and_have_what_is_watched(base):
    line = json.loads((base / "run/log.jsonl").read_text().splitlines()[-1])
    wanted = ("loss", "pixel", "gradient_norm", "learning_rate", "step_seconds", "data_wait")
    assert all(f"train/{name}" in line for name in wanted)
    assert list((base / "run/tensorboard").glob("events*"))
