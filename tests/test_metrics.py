"""Metrics of picture, identity and behaviour against other libraries, closed forms and known movements."""

import json
from fractions import Fraction

import jax
import numpy as np
import pytest
import pytorch_msssim
import scipy.linalg
import scipy.stats
import skimage.data
import skimage.metrics
import torch

from unavglip_jax import assets, params
from unavglip_jax.config import InputError
from unavglip_jax.evaluation import behaviour, identity, picture
from unavglip_jax.evaluation.statistics import interval
from unavglip_jax.faces.crop import Box
from unavglip_jax.models.iresnet import IResNet, IResNetConfig
from unavglip_jax.models.lpips import LPIPS, LPIPSConfig
from unavglip_jax.training import losses


def pair(height=181, width=203, noise=12.0):
    """A photograph and a noisy, brighter copy."""
    photo = skimage.data.astronaut()[:height, 100 : 100 + width]
    rng = np.random.default_rng(0)
    other = 0.9 * photo + 20 + rng.normal(0, noise, photo.shape)
    return photo, other.clip(0, 255).astype(np.uint8)


def channels_first(image):
    return torch.from_numpy(image.transpose(2, 0, 1)[None].astype(np.float64))


def window():
    """pytorch_msssim's own is rounded to float32, which shows in the sixth digit."""
    weights = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    return torch.from_numpy(weights / weights.sum()).expand(3, 1, 1, 11)


# ---- pictures, pair by pair --------------------------------------------------------------------------


def test_ssim_is_that_of_two_libraries():
    a, b = pair()
    found = picture.ssim(a, b)
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    theirs = skimage.metrics.structural_similarity(a, b, channel_axis=2, data_range=255, **options)
    assert 0.3 < found < 0.95
    assert found == pytest.approx(theirs, abs=1e-9)
    theirs = pytorch_msssim.ssim(*map(channels_first, (a, b)), 255, win=window())
    assert found == pytest.approx(theirs.item(), abs=1e-9)


@pytest.mark.parametrize("size", [(181, 203), (256, 256), (161, 170)])
def test_ms_ssim_is_pytorch_msssims(size):
    """Also where sides are odd on the way down."""
    a, b = pair(*size)
    theirs = pytorch_msssim.ms_ssim(*map(channels_first, (a, b)), 255, win=window())
    assert picture.ms_ssim(a, b) == pytest.approx(theirs.item(), abs=1e-9)


def test_ms_ssim_of_a_negative_is_not_negative():
    a, _ = pair()
    theirs = pytorch_msssim.ms_ssim(*map(channels_first, (a, 255 - a)), 255, win=window())
    assert picture.ms_ssim(a, 255 - a) == pytest.approx(theirs.item(), abs=1e-9)


def test_psnr():
    a, b = pair()
    assert picture.psnr(a, b) == pytest.approx(
        skimage.metrics.peak_signal_noise_ratio(a, b, data_range=255), abs=1e-9
    )
    one, other = np.zeros((2, 2, 3), np.uint8), np.full((2, 2, 3), 255, np.uint8)
    assert picture.psnr(one, other) == picture.psnr(other, one) == 0


def test_equal_pictures_are_perfect():
    a, _ = pair()
    assert picture.psnr(a, a) == float("inf")
    assert picture.ssim(a, a) == picture.ms_ssim(a, a) == 1


def test_pairs_that_cannot_be_compared_are_refused():
    a, b = pair()
    for metric in (picture.psnr, picture.ssim, picture.ms_ssim):
        with pytest.raises(InputError, match=r"203x181 cannot be compared with one of 100x181"):
            metric(a, b[:, :100])
        with pytest.raises(InputError, match="float32"):
            metric(a, b.astype(np.float32))
    with pytest.raises(InputError, match="needs 11x11"):
        picture.ssim(a[:10], b[:10])
    with pytest.raises(InputError, match="needs 161x161"):
        picture.ms_ssim(a[:160], b[:160])


def lips(width, height, middle=(100.0, 120.0)):
    """68 points whose lips span a box."""
    angle = np.linspace(0, 2 * np.pi, 20, endpoint=False)
    points = np.zeros((68, 2))
    points[48:] = middle + np.stack([np.cos(angle), np.sin(angle)], 1) * (width / 2, height / 2)
    return points


@pytest.mark.parametrize(("width", "height"), [(40, 30), (60, 10), (30, 70)])
def test_mouth_box(width, height):
    """The region that the mouth losses weigh, for usual, flat and wide open mouths."""
    points = lips(width, height)
    found = picture.mouth_box(points, (256, 256))
    centre, half, _ = losses.mouth_box(points[None], picture.MOUTH_MARGIN)
    expected = np.concatenate([centre[0] - half[0], centre[0] + half[0]])
    assert (
        np.abs(np.array(found) - np.trunc(expected)).max() <= 1
    )  # 0.25 * 10 is rounded in float32
    assert found.width == pytest.approx(1.5 * width, abs=1)
    assert found.height >= found.width / 2 - 1


def test_mouth_box_stays_inside():
    assert picture.mouth_box(lips(40, 30, (5, 120)), (200, 200)).x1 == 0
    assert picture.mouth_box(lips(40, 30, (195, 195)), (200, 200))[2:] == (200, 200)
    assert picture.mouth_box(lips(40, 30, (300, 120)), (200, 200)) is None


# ---- pictures, as a crowd ----------------------------------------------------------------------------


def test_frechet_distance_of_one_dimension():
    """(m1 - m2)² + (s1 - s2)²."""
    one = lambda x: np.array([x])
    found = picture.frechet(one(1.0), one([4.0]), one(3.5), one([0.25]))
    assert found == pytest.approx(2.5**2 + 1.5**2, abs=1e-9)


def test_frechet_distance_of_covariances_that_commute():
    """‖m1 - m2‖² + Σ (√a - √b)² over the common axes, one of which is flat."""
    rng = np.random.default_rng(0)
    axes, _ = np.linalg.qr(rng.standard_normal((6, 6)))
    a, b = np.array([4.0, 1, 9, 0, 2, 3]), np.array([1.0, 1, 4, 5, 0, 7])
    mean_a, mean_b = rng.standard_normal((2, 6))
    found = picture.frechet(mean_a, axes * a @ axes.T, mean_b, axes * b @ axes.T)
    expected = ((mean_a - mean_b) ** 2).sum() + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    assert found == pytest.approx(expected, abs=1e-6)


def test_frechet_distance_in_general():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((40, 8)), 1.5 * rng.standard_normal((50, 8)) + 0.3
    of = lambda x: (x.mean(axis=0), np.cov(x.T))
    product = scipy.linalg.sqrtm(of(a)[1] @ of(b)[1])
    expected = ((of(a)[0] - of(b)[0]) ** 2).sum() + np.trace(of(a)[1] + of(b)[1] - 2 * product.real)
    assert picture.frechet(*of(a), *of(b)) == pytest.approx(expected, rel=1e-9)
    assert picture.frechet(*of(b), *of(a)) == pytest.approx(expected, rel=1e-9)
    assert picture.frechet(*of(a), *of(a)) == pytest.approx(0, abs=1e-9)


def test_moments_in_parts_are_numpys():
    rows = 100 + np.random.default_rng(0).standard_normal((50, 5)).astype(np.float32)
    found = picture.moments(rows[:0])
    for part in (rows[:1], rows[1:30], rows[30:30], rows[30:]):
        found = picture.merged(found, picture.moments(part))
    exact = rows.astype(np.float64)
    assert found.count == 50
    np.testing.assert_allclose(found.mean, exact.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(picture.covariance(found), np.cov(exact.T), rtol=1e-9)
    with pytest.raises(InputError, match="there are 1"):
        picture.covariance(picture.moments(rows[:1]))


FIELDS = {
    "system": "unavglip",
    "audio_front_end": "v10",
    "crop": "musetalk_v10",
    "mask": "lower_half",
}


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    """A pack with small networks to judge by."""
    folder = tmp_path_factory.mktemp("judge") / "pack"
    key = jax.random.key(0, impl="rbg")
    small = LPIPSConfig(widths=(4, 4, 4, 4, 4))
    weights = params.init(LPIPS, small, key)
    weights = {k: abs(v) if k.startswith("lin") else v for k, v in weights.items()}  # as trained
    embedder = IResNetConfig(blocks=(1, 1, 1, 1), widths=(4, 4, 4, 4))
    networks = {
        "lpips": (small, weights, "random", "none"),
        "identity": (embedder, params.init(IResNet, embedder, key), "random", "none"),
    }
    assets.write_pack(folder, FIELDS, networks)
    return folder


def test_lpips_of_a_pack(pack):
    a, b = (image[:64, :64] for image in pair())
    distance = picture.lpips(pack)
    found = distance(np.stack([a, a, b]), np.stack([a, b, a]))
    assert found[0] < 1e-9 < 1e-6 < found[1]
    assert found[1] == pytest.approx(found[2], rel=1e-5)
    network = assets.load_network(pack, "lpips")
    bound = params.bind(network.graphdef, network.weights)
    scaled = lambda x: (x[None].astype(np.float32) - 127.5) / 127.5
    assert found[1] == pytest.approx(float(bound(scaled(a), scaled(b))[0]), rel=1e-4)


class Detector(torch.nn.Module):
    """Stands in for Inception: refuses what the published file would not take."""

    def forward(self, x: torch.Tensor, return_features: bool = False):
        assert return_features and x.dtype == torch.uint8
        return x.to(torch.float32).mean(dim=[2, 3])


class VideoDetector(torch.nn.Module):
    """Stands in for I3D."""

    def forward(
        self,
        x: torch.Tensor,
        rescale: bool = True,
        resize: bool = True,
        return_features: bool = False,
    ):
        assert return_features and not rescale and not resize
        assert x.shape[3] == 224 and x.shape[4] == 224
        return torch.cat(
            [x.mean(dim=[3, 4]).flatten(1), x.flatten(1).min(dim=1, keepdim=True)[0]], 1
        )


def test_features_of_torchscript_files(tmp_path):
    torch.jit.script(Detector()).save(str(tmp_path / "inception.pt"))
    torch.jit.script(VideoDetector()).save(str(tmp_path / "i3d.pt"))
    pictures = np.random.default_rng(0).integers(0, 256, (16, 448, 448, 3), np.uint8)
    pictures[:, :2, :2] = 0
    found = picture.inception(tmp_path / "inception.pt")(pictures)
    np.testing.assert_allclose(found, pictures.mean(axis=(1, 2)), rtol=1e-4)
    found = picture.i3d(tmp_path / "i3d.pt")(pictures[None])
    assert found.shape == (1, 49) and found[0, -1] == -1
    means = found[0, :-1].reshape(3, 16) * 127.5 + 127.5  # channels first, then time
    np.testing.assert_allclose(means, pictures.mean(axis=(1, 2)).T, atol=1e-3)


def test_torchscript_files_that_are_none(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        picture.inception(tmp_path / "inception.pt")
    (tmp_path / "i3d.pt").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"i3d\.pt is not TorchScript"):
        picture.i3d(tmp_path / "i3d.pt")


# ---- identity ----------------------------------------------------------------------------------------


def colour_embedder(faces):
    """Mean colours as an embedding; the sizes that it was called with."""
    colour_embedder.sizes.append(len(faces))
    out = np.zeros((len(faces), 512), np.float32)
    out[:, :3] = 7 * faces.mean(axis=(1, 2))
    return out


def test_likeness_of_pairs():
    plain = lambda *colour: np.full((112, 112, 3), np.uint8(colour))
    red, green, both = plain(255, 127, 127), plain(127, 255, 127), plain(255, 255, 127)
    colour_embedder.sizes = []
    pairs = [(red, red), (red, None), (red, green), (None, None), (red, both), (None, red)]
    cosine, distance = identity.likeness(colour_embedder, iter(pairs), batch=4)
    none = np.nan
    np.testing.assert_allclose(cosine, [1, none, 0, none, 0.5**0.5, none], atol=0.01)
    # at unit length d² = 2 - 2 cos
    np.testing.assert_allclose(distance**2, 2 - 2 * cosine, atol=1e-5)
    assert set(colour_embedder.sizes) == {8}  # compiled once
    cosine, distance = identity.likeness(colour_embedder, iter([]))
    assert cosine.shape == distance.shape == (0,)


def test_the_embedder_is_the_packs(pack):
    face = skimage.data.astronaut()[50:162, 170:282]
    found = identity.likeness(identity.embedder(pack), [(face, face), (face, face[:, ::-1])])
    assert found.cosine[0] == pytest.approx(1, abs=1e-5) and found.distance[0] < 1e-3
    assert found.cosine[1] < found.cosine[0]
    with pytest.raises(InputError, match="insightface folder or a pack"):
        identity.embedder()
    with pytest.raises(InputError, match="no such folder"):
        identity.embedder(pack, pack / "buffalo_l")


# ---- behaviour ---------------------------------------------------------------------------------------


def test_silent_frames():
    """Two seconds of tone around one of nothing; 100 ms at its ends belong to the speech."""
    tone = 0.3 * np.sin(2 * np.pi * 200 * np.arange(16000) / 16000)
    samples = np.concatenate([tone, np.zeros(16000), tone]).astype(np.float32)
    found = np.flatnonzero(behaviour.silent_frames(samples, 80, Fraction(25)))
    # no frame beyond the recording
    assert abs(found[0] - 27.5) <= 1 and abs(found[-1] - 47) <= 1
    assert len(found) == found[-1] - found[0] + 1
    found = behaviour.silent_frames(samples, 180, Fraction(60))
    assert abs(found.sum() - 0.8 * 60) <= 3


def test_mouth_motion():
    """Speech opens by 0.1 a frame, silence by 0.01; the change between the two counts nowhere."""
    silent = np.repeat([False, True, False], [10, 10, 10])
    zigzag = np.arange(30) % 2
    gaps = np.where(silent, 0.045 + 0.01 * zigzag, 0.2 + 0.1 * zigzag)
    found = behaviour.mouth_motion(gaps, silent, Fraction(25))
    assert found.silent == pytest.approx(0.25) and found.speaking == pytest.approx(2.5)
    assert found.open == 0.5 and found.frames == 10
    gaps[12] = np.nan
    found = behaviour.mouth_motion(gaps, silent, Fraction(25))
    assert found.silent == pytest.approx(0.25) and found.frames == 9
    never = behaviour.mouth_motion(gaps, np.zeros(30, bool), Fraction(25))
    assert np.isnan(never.silent) and np.isnan(never.open) and never.frames == 0


def test_leak_is_the_partial_correlation():
    """By the textbook formula from the three correlations; NaN rows are left out."""
    rng = np.random.default_rng(0)
    source, driving = rng.random((2, 200))
    driving = 0.5 * driving + 0.5 * source  # the two videos are alike by accident
    found = 0.3 * source + 0.6 * driving + 0.05 * rng.random(200)
    fs, fd, sd = (
        np.corrcoef(x, y)[0, 1] for x, y in ((found, source), (found, driving), (source, driving))
    )
    expected = (fs - fd * sd) / np.sqrt((1 - fd**2) * (1 - sd**2))
    found[[3, 90]] = np.nan
    source_, driving_ = source.copy(), driving.copy()
    got = behaviour.leak(found, source_, driving_)
    assert got.source == pytest.approx(expected, abs=0.02)
    assert got.frames == 198
    known = np.isfinite(found)
    exact = np.corrcoef(
        *(
            x[known] - np.polyval(np.polyfit(driving[known], x[known], 1), driving[known])
            for x in (found, source)
        )
    )[0, 1]
    assert got.source == pytest.approx(exact, abs=1e-9)


def test_leak_tells_whom_the_mouth_follows():
    rng = np.random.default_rng(0)
    source, driving = rng.random((2, 400))
    noise = 0.1 * rng.random(400)
    follows = behaviour.leak(driving + noise, source, driving)
    assert abs(follows.source) < 0.12 and follows.driving > 0.9
    leaks = behaviour.leak(source + noise, source, driving)
    assert leaks.source > 0.9 and abs(leaks.driving) < 0.12
    assert behaviour.leak(driving, source, driving).source == 0
    assert np.isnan(behaviour.leak(driving, source, source).source)
    assert np.isnan(behaviour.leak(np.full(400, 0.2), source, driving).source)
    assert np.isnan(behaviour.leak(driving[:3], source[:3], driving[:3]).source)


def head():
    """68 points of which those that are looked at are spread; eyes 60 pixels apart."""
    points = np.random.default_rng(5).uniform(0, 200, (68, 2))
    points[36:42] += (70, 80) - points[36:42].mean(axis=0)
    points[42:48] += (130, 80) - points[42:48].mean(axis=0)
    return points


def moving(count):
    """The head, turning, growing and shifting quickly."""
    frames = []
    for i in range(count):
        angle, scale = 0.3 * np.sin(i), 1 + 0.2 * np.sin(1.7 * i)
        turn = scale * np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        frames.append(head() @ turn + (9 * np.sin(2.3 * i), 5 * i))
    return np.stack(frames)


def test_movements_of_the_head_are_steady():
    assert behaviour.steadiness(moving(40)) < 1e-6


def test_noise_counts_with_its_deviation():
    rng = np.random.default_rng(0)
    noisy = head() + rng.normal(0, 1.2, (400, 68, 2))
    assert behaviour.steadiness(noisy) == pytest.approx(2.0, rel=0.05)
    mouth = np.repeat(head()[None], 50, axis=0)
    mouth[:, 48:] += rng.normal(0, 9, (50, 20, 2))  # the mouth may do what it likes
    mouth[:, :17] += rng.normal(0, 9, (50, 17, 2))
    assert behaviour.steadiness(mouth) < 1e-6


def test_steadiness_where_the_face_comes_and_goes():
    noisy = head() + np.random.default_rng(0).normal(0, 1.2, (60, 68, 2))
    noisy[::2] = np.nan
    assert np.isnan(behaviour.steadiness(noisy))
    noisy[31:] += 500  # elsewhere, after a gap
    noisy[30:33:2] = noisy[31]
    assert np.isfinite(behaviour.steadiness(noisy))
    assert np.isnan(behaviour.steadiness(noisy[:2]))


def test_flicker():
    rng = np.random.default_rng(0)
    noise = np.rint(128 + rng.normal(0, 6, (9, 40, 50, 3))).astype(np.uint8)
    assert behaviour.flicker(noise) == pytest.approx(6, rel=0.03)
    fade = np.broadcast_to(10 * np.arange(9)[:, None, None, None], (9, 40, 50, 3)).astype(np.uint8)
    assert behaviour.flicker(fade) == 0
    part = fade.copy()
    part[:, 10:20, 30:40] = noise[:, 10:20, 30:40]
    assert behaviour.flicker(part, Box(30, 10, 40, 20)) == pytest.approx(6, rel=0.1)
    assert behaviour.flicker(part, Box(0, 0, 30, 10)) == 0
    with pytest.raises(InputError, match="these are 2"):
        behaviour.flicker(noise[:2])
    with pytest.raises(InputError, match="not inside"):
        behaviour.flicker(noise, Box(30, 10, 60, 20))


def test_passed_through(tmp_path):
    report = {"frames_passed_through": [0, 1, 7], "source_frames": 12, "frames": 40}
    assert behaviour.passed_through(report) == 0.25
    path = tmp_path / "dubbed.json"
    path.write_text(json.dumps(report))
    assert behaviour.passed_through(path) == 0.25
    path.write_text("[]")
    with pytest.raises(InputError, match=r"dubbed\.json does not say"):
        behaviour.passed_through(path)
    path.write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        behaviour.passed_through(path)
    with pytest.raises(InputError, match="cannot be read"):
        behaviour.passed_through(tmp_path / "missing.json")


# ---- over clips --------------------------------------------------------------------------------------


def test_the_interval_is_students():
    values = np.random.default_rng(0).normal(3, 2, 12)
    found = interval(values)
    expected = scipy.stats.t.interval(0.95, 11, values.mean(), scipy.stats.sem(values))
    assert found.mean == pytest.approx(values.mean()) and found.count == 12
    assert (found.low, found.high) == pytest.approx(expected)


def test_the_interval_holds_the_truth_19_times_of_20():
    draws = np.random.default_rng(0).normal(1, 3, (2000, 4))
    held = [low <= 1 <= high for _, low, high, _ in map(interval, draws)]
    assert np.mean(held) == pytest.approx(0.95, abs=0.015)


def test_intervals_of_few_or_unusual_values():
    assert interval([np.nan, 2.0, np.nan, 4.0]).count == 2
    one = interval([2.5])
    assert one.mean == 2.5 and np.isnan(one.low) and np.isnan(one.high) and one.count == 1
    assert np.isnan(interval([]).mean) and interval([]).count == 0
    perfect = interval([30.0, np.inf])
    assert perfect.mean == np.inf and np.isnan(perfect.low) and perfect.count == 2
    assert interval([1.0, 1.0, 1.0])[:3] == (1, 1, 1)
