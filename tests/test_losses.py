"""Every loss against torch, OpenCV or a closed form, and every gradient against the slope."""

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.test_util import check_grads
from skimage.metrics import peak_signal_noise_ratio
from test_perceptual import published, torch_vgg
from test_syncnets import TINY as TINY_SYNCNET
from test_syncnets import random_weights
from torch.nn import functional

from comparing import channels_last, relative_error
from unavglip_jax import params
from unavglip_jax.convert import vgg as vgg_converter
from unavglip_jax.data.footage import in_crops
from unavglip_jax.faces import identity as faces
from unavglip_jax.faces.crop import crop
from unavglip_jax.models.iresnet import IResNet, IResNetConfig
from unavglip_jax.models.stable_syncnet import StableSyncNet, StableSyncNetConfig
from unavglip_jax.models.vgg import VGG
from unavglip_jax.models.wav2lip_syncnet import Wav2LipSyncNet, Wav2LipSyncNetConfig
from unavglip_jax.training import losses
from unavglip_jax.training.embedder import surrounded


def uniform(*shape, seed=0, low=-1.0):
    return np.random.default_rng(seed).uniform(low, 1, shape).astype(np.float32)


def check_slope(f, *arrays):
    """The gradient against finite differences in float64, where they are exact to 1e-5."""
    with jax.enable_x64(True):
        arrays = [jnp.asarray(array, jnp.float64) for array in arrays]
        value = jax.jit(f)
        assert value(*arrays).dtype == jnp.float64
        check_grads(value, arrays, order=1, modes=["rev"], eps=1e-6, atol=1e-7, rtol=1e-5)


def check_slope_in_float32(value_and_gradient, x, step):
    """The same for networks, which compute in float32: along random directions and the gradient's own."""
    gradient = np.asarray(value_and_gradient(x)[1])
    value = lambda x: float(value_and_gradient(x)[0])
    for seed in range(3):
        direction = np.random.default_rng(seed).standard_normal(x.shape, "f4")
        direction += gradient / np.sqrt(np.mean(gradient**2))
        slope = (value(x + step * direction) - value(x - step * direction)) / (2 * step)
        expected = float((gradient.astype(np.float64) * direction).sum())
        print(f"slope {slope:.6f}, by the gradient {expected:.6f}")
        assert abs(slope - expected) < 0.01 * abs(expected)


def gradient_of(f, x):
    gradient = np.asarray(jax.jit(jax.grad(f))(x))
    assert np.all(np.isfinite(gradient))
    return gradient


def ones(count):
    return np.ones(count, np.float32)


def face_landmarks(height, width, side, count=2):
    """68 points whose five are an upright face, turned a little, of about `side` pixels."""
    rng = np.random.default_rng(5)
    found = np.empty((count, 68, 2), np.float32)
    for row in found:
        angle = rng.uniform(-0.4, 0.4)
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        place = (faces.TEMPLATE - 56) @ turn.T * side / 112 + np.array([width, height]) / 2
        place += rng.normal(scale=0.02 * side, size=place.shape)
        row[:] = place[rng.integers(3, 5, 68)] + rng.uniform(-0.06, 0.06, (68, 2)) * side
        for group, point in zip(faces.FIVE[68], place, strict=True):
            row[group] = point + rng.normal(scale=0.02 * side, size=(len(group), 2))
    return found


# ---- pixels and latents ------------------------------------------------------------------------------


def test_psnr():
    a, b = uniform(2, 20, 24, 3), uniform(2, 20, 24, 3, seed=1)
    weight = np.zeros((2, 20, 24, 1), np.float32)
    weight[:, 5:15, 3:20] = 1
    part = np.s_[:, 5:15, 3:20]
    wanted = [
        peak_signal_noise_ratio(*pair, data_range=2) for pair in zip(b[part], a[part], strict=True)
    ]
    np.testing.assert_allclose(losses.psnr(a, b, weight), wanted, rtol=1e-5)
    np.testing.assert_allclose(losses.psnr(a, a, weight), 100)


def test_pixel_l1_is_the_mean_of_what_the_weights_choose():
    a, b = uniform(2, 8, 6, 3), uniform(2, 8, 6, 3, seed=1)
    wrong = np.abs(a - b)
    assert losses.pixel_l1(a, b) == pytest.approx(wrong.mean(), rel=1e-6)
    lower = losses.lower_half(8, 6)
    assert lower.shape == (1, 8, 6, 1)
    assert losses.pixel_l1(a, b, lower) == pytest.approx(wrong[:, 4:].mean(), rel=1e-6)
    weight = uniform(2, 8, 6, 1, seed=2, low=0)
    weighted = (weight * wrong).sum() / (3 * weight.sum())
    assert losses.pixel_l1(a, b, weight) == pytest.approx(weighted, rel=1e-6)
    assert losses.pixel_l1(a, b, 7 * weight) == pytest.approx(weighted, rel=1e-6)
    assert losses.pixel_l1(b + 0.25, b, weight) == pytest.approx(0.25, rel=1e-5)
    assert losses.pixel_l1(a, b, 0 * weight) == 0
    assert losses.latent_l1(a, b) == pytest.approx(wrong.mean(), rel=1e-6)
    # A map four times as large: each latent counts by the share of its square that is marked.
    marked = np.zeros((len(a), 4 * a.shape[1], 4 * a.shape[2], 1), np.float32)
    marked[:, :2, :4] = 1  # half of the first square
    marked[:, 4:8, 4:8] = 1  # all of one
    expected = (0.5 * wrong[:, 0, 0] + wrong[:, 1, 1]).sum() / (1.5 * len(a) * a.shape[-1])
    assert losses.latent_l1(a, b, marked) == pytest.approx(expected, rel=1e-6)


def test_lower_half_of_an_odd_height_is_the_longer_one():
    np.testing.assert_array_equal(losses.lower_half(5, 1).ravel(), [0, 0, 1, 1, 1])


def test_gradient_l1_is_what_numpy_differences_give():
    a, b = uniform(2, 7, 6, 3), uniform(2, 7, 6, 3, seed=1)
    down, right = (np.abs(np.diff(a, axis=i) - np.diff(b, axis=i)) for i in (1, 2))
    assert losses.gradient_l1(a, b) == pytest.approx(down.mean() + right.mean(), rel=1e-5)
    assert losses.gradient_l1(a + 0.5, a) == pytest.approx(0, abs=1e-6)  # brightness does not count

    # a step of 1 at the lower half's edge, which alone is inside with a weight of one half
    step = np.zeros((1, 6, 4, 3), np.float32)
    step[:, 3:] = 1
    weight = losses.lower_half(6, 4)
    assert losses.gradient_l1(step, 0 * step, weight) == pytest.approx(0.5 / (0.5 + 2), rel=1e-6)
    assert losses.gradient_l1(step, 0 * step, 0 * weight) == 0


def test_mouth_weight_is_one_on_the_lips_and_falls_linearly():
    landmarks = np.zeros((2, 68, 2), np.float32)
    landmarks[:, 48:] = [20, 30]
    landmarks[0, 48:50] = [[10, 26], [30, 34]]  # lips from 10 to 30 and from 26 to 34
    landmarks[1, 48:50] = [[15, 22], [25, 38]]  # an open mouth, higher than wide
    weight = np.asarray(losses.mouth_weight(landmarks, (64, 48), margin=0.25))
    assert weight.shape == (2, 64, 48, 1)
    # across: 0 five pixels to the left of the lips, 1 on them
    ramp = np.interp(np.arange(48), [5, 10, 30, 35], [0, 1, 1, 0])
    np.testing.assert_allclose(weight[0, 30, :, 0], ramp, atol=1e-6)
    # down: half of 20 + 2 * 5 is more than 8, less than 8 + 2 * 5
    ramp = np.interp(np.arange(64), [21, 26, 34, 39], [0, 1, 1, 0])
    np.testing.assert_allclose(weight[0, :, 20, 0], ramp, atol=1e-6)
    assert weight[1, 22:39, 15:26].min() == 1
    assert weight[1, :, 28:].max() == 0
    # lips pressed together: the box is half as high as wide
    landmarks[0, 48:50] = [[10, 30], [30, 30]]
    closed = np.asarray(losses.mouth_weight(landmarks, (64, 48), margin=0.25))
    assert np.flatnonzero(closed[0, :, 20, 0]).tolist() == list(range(23, 38))


@pytest.mark.parametrize(
    "loss", [losses.pixel_l1, losses.gradient_l1, losses.latent_l1, losses.perceptual]
)
def test_shapes_that_differ_are_refused_not_repeated(loss):
    vgg = (lambda x, _: [x],) if loss is losses.perceptual else ()
    with pytest.raises(ValueError, match=r"prediction is \(2, .*, the target \(1, "):
        loss(*vgg, uniform(2, 4, 4, 3), uniform(1, 4, 4, 3))


def test_slopes_of_pixel_losses():
    a, b = uniform(2, 6, 5, 3), uniform(2, 6, 5, 3, seed=1)
    weight = uniform(2, 6, 5, 1, seed=2, low=0).astype(np.float64)
    check_slope(lambda a: losses.pixel_l1(a, jnp.asarray(b, a.dtype)), a)
    check_slope(lambda a: losses.pixel_l1(a, jnp.asarray(b, a.dtype), weight), a)
    check_slope(lambda a: losses.gradient_l1(a, jnp.asarray(b, a.dtype)), a)
    check_slope(lambda a: losses.gradient_l1(a, jnp.asarray(b, a.dtype), weight), a)
    check_slope(lambda a: losses.latent_l1(a, jnp.asarray(b, a.dtype)), a)


# ---- how it looks ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vgg():
    theirs = torch_vgg(19)
    config, weights = vgg_converter.convert(published(theirs))
    graphdef, _ = params.abstract(VGG, config)
    return theirs, params.bind(graphdef, weights)


def torch_pyramid(features, prediction, target):
    """MuseTalk 1.5's perceptual loss from its description, blurred first and subsampled after."""
    average, deviation = (
        torch.tensor(x)[:, None, None] for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    pair = [functional.interpolate(x, (224, 224), mode="bilinear") for x in (prediction, target)]
    total = 0
    for scale, size in ((1, None), (0.5, 5), (0.25, 13), (0.125, 29)):
        maps = []
        for x in pair:
            if size:
                offsets = torch.arange(size) - size // 2
                gaussian = torch.exp(-(offsets**2) / (2 * ((1 / scale - 1) / 2) ** 2))
                kernel = gaussian[:, None] * gaussian / gaussian.sum() ** 2
                x = functional.conv2d(x, kernel.expand(3, 1, -1, -1), padding=size // 2, groups=3)
                x = x[:, :, :: int(1 / scale), :: int(1 / scale)]
            x = (x - average) / deviation
            maps.append([features[:end](x) for end in (2, 7, 12, 21, 30)])
        total += sum((a - b).abs().mean() for a, b in zip(*maps, strict=True)) / 5
    return total


def torch_perceptual(features, prediction, target):
    ours, theirs = (features[:16](x[:, :, x.shape[2] // 2 :]) for x in (prediction, target))
    return functional.l1_loss(ours, theirs)


@pytest.mark.parametrize(
    ("loss", "definition", "side", "tolerance"),
    [
        (losses.perceptual, torch_perceptual, 32, 1e-5),
        # Of the deep maps, rounding turns a few ReLUs and maxima: torch in float32 differs from torch in
        # float64 by 0.01 to 0.02.
        (losses.perceptual_pyramid, torch_pyramid, 256, 0.03),
    ],
)
def test_perceptual_losses_are_the_published_ones(loss, definition, side, tolerance, vgg):
    features, network = vgg
    x, y = uniform(1, 3, side, side), uniform(1, 3, side, side, seed=1)
    tensor = torch.tensor(x, requires_grad=True)
    wanted = definition(features, tensor, torch.tensor(y))
    wanted.backward()
    f = jax.jit(jax.value_and_grad(lambda x, y: loss(network, x, y)))
    found, gradient = f(channels_last(x), channels_last(y))
    error = abs(float(found) / wanted.item() - 1)
    theirs = channels_last(tensor.grad)
    of_gradient = np.linalg.norm(gradient - theirs) / np.linalg.norm(theirs)
    print(
        f"{loss.__name__} {float(found):.4f}, error {error:.1e}, of its gradient {of_gradient:.1e}"
    )
    assert error < 1e-5
    assert of_gradient < tolerance
    # so small a step that few ReLUs change sides
    check_slope_in_float32(lambda x: f(x, channels_last(y)), channels_last(x), 5e-6)
    value, gradient = f(channels_last(x), channels_last(x))
    assert value < 1e-6
    assert np.all(np.isfinite(gradient))


def test_perceptual_sees_the_lower_half_only(vgg):
    x, y = uniform(1, 32, 32, 3), uniform(1, 32, 32, 3, seed=1)
    gradient = gradient_of(lambda x: losses.perceptual(vgg[1], x, y), x)
    assert not gradient[:, :16].any()
    assert np.all(np.abs(gradient[:, 16:]).max(axis=-1) > 0)


# ---- whether it speaks in time -----------------------------------------------------------------------


@pytest.mark.parametrize("size", [(256, 256), (224, 180), (96, 96), (64, 80)])
def test_expert_input_is_opencvs(size):
    """Faces through `cv2.resize` as Wav2Lip's own loader prepares them, which reads BGR."""
    frames = np.random.default_rng(0).integers(0, 256, (2, 5, *size, 3)).astype(np.uint8)
    found = np.asarray(jax.jit(losses.expert_input)(frames.astype(np.float32) / 127.5 - 1))
    assert found.shape == (2, 48, 96, 15)

    def prepared(kind):
        windows = []
        for window in frames.astype(kind):
            images = [cv2.resize(frame[..., ::-1], (96, 96)) for frame in window]
            images = np.asarray(images) / 255.0
            channels = np.concatenate(images.transpose(0, 3, 1, 2), axis=0)  # 3 * frame + colour
            windows.append(channels[:, 48:].transpose(1, 2, 0))
        return np.array(windows)

    exact = np.abs(found - prepared(np.float32)).max()
    rounded = np.abs(found - prepared(np.uint8)).max() * 255
    print(f"{size}: {exact:.1e} of 1; {rounded:.2f} of 255 levels where OpenCV rounds to bytes")
    assert exact < 1e-4
    assert rounded < 1


def test_sync_networks_take_what_is_made_for_them():
    halves = lambda frames: losses.stable_input(frames, (128, 256))
    for network, config, prepare, frames, mel in (
        (Wav2LipSyncNet, Wav2LipSyncNetConfig(), losses.expert_input, (5, 256, 256), (80, 16)),
        (StableSyncNet, StableSyncNetConfig(), halves, (16, 256, 256), (80, 52)),
    ):
        graphdef, shapes = params.abstract(network, config)
        loss = jax.eval_shape(
            lambda p, mel, x: losses.sync(params.bind(graphdef, p), mel, prepare(x)),  # noqa: B023
            shapes,
            jax.ShapeDtypeStruct((2, *mel, 1), jnp.float32),
            jax.ShapeDtypeStruct((2, *frames, 3), jnp.float32),
        )
        assert loss.shape == ()


def test_stable_input_is_lower_halves_frame_after_frame():
    frames = uniform(2, 4, 6, 5, 3)
    found = losses.stable_input(frames, (3, 5))
    assert found.shape == (2, 3, 5, 12)
    for frame in range(4):
        np.testing.assert_array_equal(found[..., 3 * frame : 3 * frame + 3], frames[:, frame, 3:])


@pytest.mark.parametrize("size", [(8, 16), (24, 48)])
def test_stable_input_is_resized_as_torch_does_it(size):
    frames = uniform(2, 3, 32, 32, 3)
    found = losses.stable_input(frames, size)
    halves = torch.tensor(frames[:, :, 16:]).permute(0, 1, 4, 2, 3).flatten(0, 1)
    wanted = functional.interpolate(halves, size, mode="bilinear", antialias=True)
    wanted = wanted.unflatten(0, (2, 3)).flatten(1, 2).permute(0, 2, 3, 1)
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_in_step_is_torchs_cross_entropy():
    cosine = uniform(9, low=0)
    labels = (np.arange(9) % 2).astype(np.float32)
    for target in (labels, np.ones(9, np.float32), np.zeros(9, np.float32)):
        tensor = torch.tensor(cosine, requires_grad=True)
        wanted = functional.binary_cross_entropy(tensor, torch.tensor(target))
        wanted.backward()
        found, gradient = jax.value_and_grad(losses.in_step)(cosine, target)
        assert float(found) == pytest.approx(wanted.item(), rel=1e-5)
        assert relative_error(gradient, tensor.grad) < 1e-5
    assert float(losses.in_step(cosine, 1.0)) == pytest.approx(-np.log(cosine).mean(), rel=1e-5)


def test_in_step_at_the_ends_is_finite():
    beyond = np.nextafter(np.float32(1), np.float32(2))
    cosine = np.array([0, 1, beyond, -1e-8, 0, 1, beyond, -1e-8], np.float32)
    labels = np.repeat(np.float32([1, 0]), 4)
    each = jax.vmap(lambda c, y: losses.in_step(c[None], y[None]))(cosine, labels)
    worst = -np.log(losses.CERTAIN)
    np.testing.assert_allclose(each, [worst, 0, 0, worst, 0, worst, worst, 0], rtol=1e-4, atol=1e-6)
    gradient = gradient_of(lambda cosine: losses.in_step(cosine, labels), cosine)
    assert np.abs(gradient).max() <= 1 / losses.CERTAIN


@pytest.fixture(scope="module")
def syncnet():
    graphdef, shapes = params.abstract(StableSyncNet, TINY_SYNCNET)
    weights = random_weights(shapes)
    for name in ("audio_encoder/norm_out/bias", "visual_encoder/norm_out/bias"):
        weights[name] += 0.5  # positive for most inputs, so that the vectors overlap
    return params.bind(graphdef, weights)


def test_slope_of_sync_through_a_network(syncnet):
    mel, frames = uniform(2, 4, 3, 1), uniform(2, 2, 8, 8, 3, seed=1)
    halves = lambda x: losses.stable_input(x, (4, 8))
    f = jax.jit(jax.value_and_grad(lambda x: losses.sync(syncnet, mel, halves(x))))
    check_slope_in_float32(f, frames, 1e-3)
    gradient = np.asarray(f(frames)[1])
    assert not gradient[:, :, :4].any()
    assert np.all(np.abs(gradient[:, :, 4:]).max(axis=(2, 3, 4)) > 0)


def test_slope_of_sync_through_the_experts_input():
    weights = uniform(48 * 96 * 15, 4, seed=2, low=0)

    def expert(mel, frames):
        picture = jnp.tanh(frames.reshape(len(frames), -1) @ weights / 3e4)
        unit = lambda x: x / jnp.linalg.norm(x, axis=-1, keepdims=True)
        return unit(mel), unit(picture)

    mel, frames = uniform(1, 4, low=0), uniform(1, 5, 20, 24, 3)
    check_slope(lambda x: losses.sync(expert, mel, losses.expert_input(x)), frames)


def test_slope_of_in_step():
    labels = np.array([0.0, 1, 1, 0, 1])
    check_slope(lambda cosine: losses.in_step(cosine, labels), uniform(5, low=0.05))


# ---- whether it is the same person -------------------------------------------------------------------


def smooth_frames(count, height, width):
    """Pictures whose neighbouring pixels are alike, as those of a camera are."""
    noise = np.random.default_rng(3).uniform(0, 255, (count, height, width, 3)).astype(np.float32)
    smooth = np.stack([cv2.GaussianBlur(frame, (0, 0), 3) for frame in noise])
    low, high = smooth.min(), smooth.max()
    return ((smooth - low) / (high - low) * 255).astype(np.uint8)


@pytest.mark.parametrize(("size", "side"), [((256, 256), 230), ((64, 90), 70), ((120, 100), 180)])
def test_warped_faces_are_aligned_ones(size, side):
    """What OpenCV makes of bytes, also where the face is larger than the picture."""
    frames, landmarks = smooth_frames(3, *size), face_landmarks(*size, side, 3)
    wanted = np.stack([faces.align(*pair) for pair in zip(frames, landmarks, strict=True)])
    found = jax.jit(losses.warp_faces)(frames.astype(np.float32) / 127.5 - 1, landmarks, ones(3))
    error = np.abs(np.asarray(found) * 127.5 + 127.5 - wanted)
    black = (wanted == 0).all(axis=-1).mean()
    print(
        f"{size}: {error.max():.2f} levels at most, {error.mean():.2f} on average, {black:.0%} black"
    )
    assert found.shape == (3, 112, 112, 3)
    assert error.max() < 1.1
    assert (black > 0.05) == (side > min(size))


def test_a_face_warped_out_of_a_crop_is_the_one_in_the_frame():
    """A crop is square and its box is not; a face that is wider than it is would be another person's."""
    frames, landmarks = smooth_frames(3, 200, 180), face_landmarks(200, 180, 100, 3)
    boxes = np.array([[20, 5, 140, 195], [10, 20, 170, 180], [5, 45, 178, 165]])
    crops = np.stack([crop(*pair, 160) for pair in zip(frames, boxes.tolist(), strict=True)])
    images, points = crops.astype(np.float32) / 127.5 - 1, in_crops(landmarks, boxes, 160)
    aspect = (boxes[:, 2] - boxes[:, 0]) / (boxes[:, 3] - boxes[:, 1])
    for frame, place, found, bare in zip(
        frames, landmarks,
        np.asarray(losses.warp_faces(images, points, aspect)) * 127.5 + 127.5,
        np.asarray(losses.warp_faces(np.ones_like(images), points, aspect)),
        strict=True,
    ):  # fmt: skip
        wanted, inside = faces.align(frame, place), bare.min(axis=-1) > 0.999
        assert inside.mean() > 0.5
        assert np.abs(found - wanted)[inside].mean() < 1  # of 255, after two interpolations


def test_an_embedder_learns_faces_with_and_without_surroundings():
    """Pictures of one brightness each: in the crop it stays, around it is black or another's, by the face."""
    count = 32
    brightness = np.linspace(-0.5, 1, count, dtype=np.float32)[:, None, None, None]
    frames = np.broadcast_to(brightness, (count, 30, 34, 3))
    landmarks = face_landmarks(30, 34, 45, count)
    aligned = np.asarray(losses.warp_faces(frames, landmarks, ones(count)))
    made = np.asarray(surrounded(frames, landmarks, ones(count), jax.random.key(0)))
    inside, outside = abs(aligned - brightness) < 1e-5, aligned == -1
    assert inside.mean() > 0.3 and outside.mean() > 0.1
    assert np.array_equal(made[inside], aligned[inside])
    others = np.broadcast_to(np.roll(brightness, 1, axis=0), made.shape)
    black = [(made[i][outside[i]] == -1).all() for i in range(count)]
    filled = [np.allclose(made[i][outside[i]], others[i][outside[i]]) for i in range(count)]
    assert np.array_equal(black, np.logical_not(filled))
    assert 8 <= sum(black) <= 24


def test_slope_of_warped_faces():
    frames, landmarks = uniform(2, 30, 34, 3), face_landmarks(30, 34, 25)
    weights, aspect = uniform(2, 112, 112, 3, seed=4), np.array([0.7, 1.2])
    check_slope(lambda x: (weights * losses.warp_faces(x, landmarks, aspect)).mean(), frames)


@pytest.fixture(scope="module")
def embedder():
    config = IResNetConfig(blocks=(1, 1, 1, 1), widths=(4, 4, 6, 6), embedding=16)
    graphdef, shapes = params.abstract(IResNet, config)
    weights = random_weights(shapes)
    weights |= {name: leaf / 4 for name, leaf in weights.items() if "prelu" in name}
    return params.bind(graphdef, weights)


def test_slope_of_identity(embedder):
    frames, landmarks = uniform(2, 40, 40, 3), face_landmarks(40, 40, 38)
    reference = uniform(2, 16, seed=2)
    f = jax.value_and_grad(lambda x: losses.identity(embedder, x, landmarks, ones(2), reference))
    check_slope_in_float32(jax.jit(f), frames, 1e-3)


def test_identity_is_one_minus_the_cosine(embedder):
    frames, landmarks = smooth_frames(2, 60, 60), face_landmarks(60, 60, 55)
    images = frames.astype(np.float32) / 127.5 - 1
    reference = uniform(2, 16, seed=2)
    embed = jax.jit(embedder)
    loss = jax.jit(lambda x, reference: losses.identity(embedder, x, landmarks, ones(2), reference))
    exact = np.asarray(embed(losses.warp_faces(images, landmarks, ones(2))))
    cosines = np.diag(faces.cosine(exact, reference))
    assert float(loss(images, reference)) == pytest.approx(1 - cosines.mean(), abs=1e-6)
    assert float(loss(images, 7 * exact)) == pytest.approx(0, abs=1e-6)  # at another length
    assert float(loss(images, -exact)) == pytest.approx(2, abs=1e-6)
    # the aligned bytes that the embedder sees elsewhere, which are rounded
    aligned = np.stack([faces.align(*pair) for pair in zip(frames, landmarks, strict=True)])
    assert float(loss(images, embed(aligned / np.float32(127.5) - 1))) < 1e-3


def test_identity_has_a_gradient_where_upstreams_has_none(embedder):
    """UnAvgLip casts the prediction to bytes before it looks at the face."""
    images, landmarks = uniform(1, 40, 40, 3), face_landmarks(40, 40, 38, 1)
    reference = uniform(1, 16, seed=2)

    def upstream(images):
        seen = (images * 255).astype(jnp.uint8).astype(jnp.float32) / 127.5 - 1
        return losses.identity(embedder, seen, landmarks, ones(1), reference)

    ours = jax.jit(lambda images: losses.identity(embedder, images, landmarks, ones(1), reference))
    assert not gradient_of(upstream, images).any()
    gradient = gradient_of(ours, images)
    assert np.mean(gradient != 0) > 0.5
    step = gradient / np.linalg.norm(gradient)
    values = [float(ours(images - size * step)) for size in (0, 0.25, 0.5)]
    print(f"identity along its gradient: {values}")
    assert values[0] > values[1] > values[2]


def test_identity_of_an_embedding_that_is_zero_is_finite():
    nothing = lambda aligned: 0 * aligned.reshape(len(aligned), -1)
    images, landmarks = uniform(1, 40, 40, 3), face_landmarks(40, 40, 38, 1)
    f = lambda x: losses.identity(
        nothing, x, landmarks, ones(1), np.ones((1, 112 * 112 * 3), np.float32)
    )
    assert f(images) == 1
    assert not gradient_of(f, images).any()


def torch_arcface(embeddings, weights, labels, scale, margin):
    """By the angle itself."""
    cosines = functional.normalize(embeddings) @ functional.normalize(weights).T
    angles = torch.arccos(cosines.clamp(-1 + 1e-7, 1 - 1e-7))
    mine = functional.one_hot(labels, len(weights)).bool()
    further = torch.where(
        angles + margin < torch.pi, torch.cos(angles + margin), cosines - margin * np.sin(margin)
    )
    return functional.cross_entropy(scale * torch.where(mine, further, cosines), labels)


@pytest.mark.parametrize(("scale", "margin"), [(64.0, 0.5), (16.0, 0.3), (8.0, 0.0)])
def test_arcface_margin_adds_an_angle(scale, margin):
    given = [uniform(6, 5), uniform(4, 5, seed=1)]
    labels = np.array([0, 3, 1, 2, 2, 0])
    given[0][0] = -given[1][0] + 0.01 * given[0][0]  # almost the opposite of the right answer
    tensors = [torch.tensor(x, requires_grad=True) for x in given]
    wanted = torch_arcface(*tensors, torch.tensor(labels), scale, margin)
    wanted.backward()
    f = lambda *x: losses.arcface_margin(*x, labels, scale, margin)
    found, gradients = jax.value_and_grad(f, argnums=(0, 1))(*given)
    assert float(found) == pytest.approx(wanted.item(), rel=1e-5)
    for gradient, tensor in zip(gradients, tensors, strict=True):
        assert relative_error(gradient, tensor.grad) < 1e-4


def test_arcface_margin_of_exact_matches_is_finite():
    people = np.eye(4, 5, dtype=np.float32)
    labels = np.arange(4)
    for embeddings in (people, -people):
        gradient = gradient_of(lambda x: losses.arcface_margin(x, people, labels), embeddings)
        assert np.abs(gradient).max() < 1e3
    assert losses.arcface_margin(people, people, labels) < 1e-6


def test_slope_of_arcface_margin():
    given, labels = (uniform(5, 6), uniform(3, 6, seed=1)), np.array([0, 2, 1, 1, 0])
    margin = lambda *pair: losses.arcface_margin(*pair, labels, scale=4.0, margin=0.3)
    for number, x in enumerate(given):
        value_and_gradient = jax.value_and_grad(margin, argnums=number)
        one = lambda x: value_and_gradient(*given[:number], x, *given[number + 1 :])  # noqa: B023
        check_slope_in_float32(one, x, 1e-3)


# ---- whether it looks real ---------------------------------------------------------------------------


def test_adversarial_losses_are_least_squares():
    real, fake = uniform(2, 5, 5, 1), uniform(2, 5, 5, 1, seed=1)
    a, b = torch.tensor(real), torch.tensor(fake)
    towards = lambda x, value: functional.mse_loss(x, torch.full_like(x, value)).item()
    wanted = towards(a, 1.0) + towards(b, 0.0)
    assert float(losses.discriminator_loss(real, fake)) == pytest.approx(wanted, rel=1e-6)
    assert float(losses.generator_loss(fake)) == pytest.approx(towards(b, 1.0), rel=1e-6)
    one = np.ones((2, 3, 3, 1), np.float32)
    assert losses.discriminator_loss(one, 0 * one) == 0 == losses.generator_loss(one)
    assert losses.discriminator_loss(0 * one, one) == 2
    check_slope(losses.discriminator_loss, real, fake)
    check_slope(losses.generator_loss, fake)


def test_feature_matching_adds_the_blocks():
    real = [uniform(2, n, n, 3, seed=n) for n in (7, 5, 3)]
    fake = [uniform(2, n, n, 3, seed=9 + n) for n in (7, 5, 3)]
    pairs = list(zip(real, fake, strict=True))
    wanted = sum(functional.l1_loss(*(torch.tensor(x) for x in pair)).item() for pair in pairs)
    assert float(losses.feature_matching(real, fake)) == pytest.approx(wanted, rel=1e-5)
    assert losses.feature_matching(real, real) == 0
    check_slope(lambda *fake: losses.feature_matching([*map(jnp.asarray, real)], fake), *fake)
    with pytest.raises(ValueError, match="shorter"):
        losses.feature_matching(real, fake[:2])


def lips(boxes):
    """Landmarks whose lips fill boxes (left, top, right, bottom); all other points are far away."""
    landmarks = np.full((len(boxes), 68, 2), -1000, np.float32)
    for row, (left, top, right, bottom) in zip(landmarks, boxes, strict=True):
        row[48:] = [left, top]
        row[54] = [right, bottom]
    return landmarks


def test_mouth_crops_are_torchs_sampling_of_the_box():
    images, boxes = uniform(2, 3, 48, 56), [(20, 22, 40, 30), (15.5, 12, 25.5, 28)]
    found = jax.jit(losses.mouth_crops, static_argnums=2)(
        channels_last(images), lips(boxes), (40, 64)
    )
    assert found.shape == (2, 40, 64, 3)
    # by hand: 20 wide, 2 more on each side; 10 wide, 16 high, 1 more on each side
    for number, (left, top, right, bottom) in enumerate([(18, 20, 42, 32), (14.5, 11, 26.5, 29)]):
        x = left + (np.arange(64) + 0.5) / 64 * (right - left)
        y = top + (np.arange(40) + 0.5) / 40 * (bottom - top)
        points = np.stack(np.meshgrid(x, y), axis=-1).astype(np.float32)
        grid = (2 * points + 1) / np.float32([56, 48]) - 1  # torch's -1 and 1 are the corners
        wanted = functional.grid_sample(
            torch.tensor(images[number : number + 1]),
            torch.tensor(grid[None]),
            align_corners=False,
        )[0]
        error = np.abs(np.moveaxis(np.asarray(found[number]), -1, 0) - wanted.numpy()).max()
        print(f"mouth {number}: {error:.1e}")
        assert error < 2e-5


def test_mouth_crops_that_shrink_see_every_pixel():
    images, landmarks = uniform(1, 48, 56, 3), lips([(10, 12, 42, 36)])
    gradient = gradient_of(lambda x: losses.mouth_crops(x, landmarks, (8, 8)).sum(), images)
    assert gradient[:, 13:36, 11:42].min() > 0
    assert not gradient[:, :, 52:].any()


@pytest.mark.parametrize("size", [(20, 30), (4, 6)])
def test_slope_of_mouth_crops(size):
    landmarks, weights = lips([(10, 12, 26, 20)]), uniform(1, *size, 3, seed=2)
    f = lambda x: (weights * losses.mouth_crops(x, landmarks, size) ** 2).mean()
    check_slope(f, uniform(1, 32, 36, 3))
