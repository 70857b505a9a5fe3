"""How near generated pictures are to true ones, one by one and as a crowd.

Pictures are RGB, uint8. Networks whose weights are downloaded come from a pack (LPIPS) or from the
TorchScript files of the StyleGAN authors, by path (FID, FVD).
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

from unavglip_jax import assets, params
from unavglip_jax.config import InputError
from unavglip_jax.faces.crop import Box, checked_frame, checked_landmarks, pixel_box

LIPS = slice(48, 68)  # of iBUG's 68 points
MOUTH_MARGIN = 0.25  # of the mouth's width, on every side

# SSIM: Wang et al., Image quality assessment: from error visibility to structural similarity (2004).
WINDOW = cv2.getGaussianKernel(11, 1.5, cv2.CV_64F)
C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
# MS-SSIM: Wang et al., Multi-scale structural similarity for image quality assessment (2003).
SCALE_WEIGHTS = np.array([0.0448, 0.2856, 0.3001, 0.2363, 0.1333])
LEAST_SIDE = len(WINDOW)
LEAST_MS_SIDE = (len(WINDOW) - 1) * 2 ** (len(SCALE_WEIGHTS) - 1) + 1

I3D_SIDE, I3D_FRAMES = 224, 16

Picture = UInt8[np.ndarray, "H W 3"]


# ---- pair by pair ------------------------------------------------------------------------------------


def psnr(a: Picture, b: Picture) -> float:
    """Peak signal-to-noise ratio in dB, over all pixels and colours; infinite for equal pictures."""
    check_pair(a, b, 1)
    error = np.mean((a.astype(np.float64) - b) ** 2)
    return float(10 * np.log10(255**2 / error)) if error else float("inf")


def ssim(a: Picture, b: Picture) -> float:
    """Structural similarity, 1 for equal pictures.

    The variant of Wang et al. that pytorch_msssim computes too: a Gaussian window of 11x11 with sigma 1.5,
    only where it lies wholly inside the picture, population covariances, mean over the colours.

    Raises:
      InputError: the pictures differ in size or have a side below 11.
    """
    check_pair(a, b, LEAST_SIDE)
    similarity, _ = structure(a.astype(np.float64), b.astype(np.float64))
    return float(similarity.mean())


def ms_ssim(a: Picture, b: Picture) -> float:
    """Multi-scale structural similarity over five scales, 1 for equal pictures; the variant of `ssim`.

    Raises:
      InputError: the pictures differ in size or have a side below 161.
    """
    return both_ssim(a, b)[1]


def both_ssim(a: Picture, b: Picture) -> tuple[float, float]:
    """`ssim` and `ms_ssim` in less time than one after the other."""
    check_pair(a, b, LEAST_MS_SIDE)
    a, b = a.astype(np.float64), b.astype(np.float64)
    similarity, contrast = structure(a, b)
    single, factors = float(similarity.mean()), [contrast]
    for _ in SCALE_WEIGHTS[1:]:
        a, b = halved(a), halved(b)
        similarity, contrast = structure(a, b)
        factors.append(contrast)
    factors[-1] = similarity
    product = np.prod(np.maximum(factors, 0) ** SCALE_WEIGHTS[:, None], axis=0)
    return single, float(product.mean())


def structure(
    a: Float[np.ndarray, "H W 3"], b: Float[np.ndarray, "H W 3"]
) -> tuple[Float[np.ndarray, " 3"], Float[np.ndarray, " 3"]]:
    """Means over the picture, for each colour, of SSIM and of its factor for contrast and structure."""
    reach = len(WINDOW) // 2
    blurred = lambda x: cv2.sepFilter2D(x, -1, WINDOW, WINDOW)[reach:-reach, reach:-reach]
    mean_a, mean_b = blurred(a), blurred(b)
    variances = blurred(a * a + b * b) - mean_a**2 - mean_b**2
    contrast = (2 * (blurred(a * b) - mean_a * mean_b) + C2) / (variances + C2)
    light = (2 * mean_a * mean_b + C1) / (mean_a**2 + mean_b**2 + C1)
    return (light * contrast).mean(axis=(0, 1)), contrast.mean(axis=(0, 1))


def halved(image: Float[np.ndarray, "H W 3"]) -> Float[np.ndarray, "h w 3"]:
    """Means of 2x2 pixels; before a side of odd length comes a line of zeros, as in pytorch_msssim."""
    height, width = image.shape[:2]
    image = np.pad(image, [(height % 2, 0), (width % 2, 0), (0, 0)])
    return (image[::2, ::2] + image[1::2, ::2] + image[::2, 1::2] + image[1::2, 1::2]) / 4


def check_pair(a: Picture, b: Picture, least: int) -> None:
    """Raises InputError unless both are pictures of the same size whose sides are at least `least`."""
    checked_frame(a)
    checked_frame(b)
    if a.shape != b.shape:
        (h, w), (height, width) = a.shape[:2], b.shape[:2]
        raise InputError(
            f"a picture of {w}x{h} cannot be compared with one of {width}x{height}; resize one of them"
        )
    if min(a.shape[:2]) < least:
        height, width = a.shape[:2]
        raise InputError(
            f"a picture of {width}x{height} is too small for this metric, which needs {least}x{least}"
        )


def mouth_box(landmarks: Float[np.ndarray, "68 2"], size: tuple[int, int]) -> Box | None:
    """The box around the lips with a margin, at least half as high as wide, inside the picture.

    As `training.losses.mouth_box`, MuseTalk 1.5's region.

    Args:
      landmarks: iBUG's 68 points of the true picture, in its pixels.
      size: height and width of the picture.

    Returns:
      The box; None if nothing of it is inside the picture.
    """
    lips = checked_landmarks(landmarks, "68 2")[LIPS]
    low, high = lips.min(axis=0), lips.max(axis=0)
    half = (high - low) / 2 + MOUTH_MARGIN * (high - low)[0]
    half[1] = max(half[1], half[0] / 2)
    middle = (low + high) / 2
    return pixel_box(np.concatenate([middle - half, middle + half]), size)


# ---- as a crowd --------------------------------------------------------------------------------------


class Moments(NamedTuple):
    """Of a set of feature vectors, so that sets can be put together.

    Attributes:
      count: of the vectors.
      mean: of the vectors.
      scatter: sum of the outer products of their differences from the mean.
    """

    count: int
    mean: Float[np.ndarray, " D"]
    scatter: Float[np.ndarray, "D D"]


def moments(features: Float[np.ndarray, "N D"]) -> Moments:
    """The moments of some vectors, float64. No vectors at all are allowed: a beginning."""
    features = np.asarray(features, np.float64)
    if not len(features):
        width = features.shape[1]
        return Moments(0, np.zeros(width), np.zeros((width, width)))
    mean = features.mean(axis=0)
    away = features - mean
    return Moments(len(features), mean, away.T @ away)


def merged(a: Moments, b: Moments) -> Moments:
    """The moments of two sets together, by Chan, Golub and LeVeque (1983)."""
    count = a.count + b.count
    if not count:
        return a
    apart = b.mean - a.mean
    mean = a.mean + apart * (b.count / count)
    between = np.outer(apart, apart) * (a.count * b.count / count)
    return Moments(count, mean, a.scatter + b.scatter + between)


def covariance(found: Moments) -> Float[np.ndarray, "D D"]:
    """The unbiased covariance, as `numpy.cov`.

    Raises:
      InputError: there are fewer than two vectors.
    """
    if found.count < 2:
        raise InputError(
            f"a covariance needs two feature vectors or more, and there are {found.count}; evaluate "
            "more frames or clips"
        )
    return found.scatter / (found.count - 1)


def frechet(
    mean_a: Float[np.ndarray, " D"],
    cov_a: Float[np.ndarray, "D D"],
    mean_b: Float[np.ndarray, " D"],
    cov_b: Float[np.ndarray, "D D"],
) -> float:
    """The Fréchet distance of two normal distributions: FID of Inception's features, FVD of I3D's."""
    # Of the product, which is not symmetric, only the trace of the root is needed; a similar matrix is.
    values, vectors = np.linalg.eigh(cov_a)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    shared = np.sqrt(np.linalg.eigvalsh(root @ cov_b @ root).clip(0)).sum()
    apart = np.sum((np.asarray(mean_a, np.float64) - mean_b) ** 2)
    return float(max(apart + np.trace(cov_a) + np.trace(cov_b) - 2 * shared, 0))


# ---- networks ----------------------------------------------------------------------------------------


def lpips(
    folder: str | Path,
) -> Callable[
    [UInt8[np.ndarray, "B H W 3"], UInt8[np.ndarray, "B H W 3"]], Float[np.ndarray, " B"]
]:
    """LPIPS (version 0.1 on VGG16) of a pack: a distance for each of B pairs.

    Raises:
      InputError: the pack has no `lpips`.
    """
    network = assets.load_network(folder, "lpips")
    return lambda a, b: np.asarray(
        lpips_distances(network.graphdef, network.weights, jnp.asarray(a), jnp.asarray(b))
    )


def inception(
    file: str | Path,
) -> Callable[[UInt8[np.ndarray, "B H W 3"]], Float[np.ndarray, "B 2048"]]:
    """The features of FID: `inception-2015-12-05.pt` of the StyleGAN authors.

    Raises:
      InputError: torch or the file is missing, or the file is not TorchScript.
    """
    torch, network, device = torchscript(file)

    def features(pictures):
        pictures = torch.from_numpy(np.ascontiguousarray(pictures.transpose(0, 3, 1, 2)))
        with torch.inference_mode():
            return network(pictures.to(device), return_features=True).cpu().numpy()

    return features


def i3d(
    file: str | Path,
) -> Callable[[UInt8[np.ndarray, "B 16 H W 3"]], Float[np.ndarray, "B 400"]]:
    """The features of FVD: `i3d_torchscript.pt` of the StyleGAN authors, of 16 frames in a row.

    Frames are resized to 224x224 (area) and are in [-1, 1], as I3D was trained; LatentSync's own script
    gives it [0, 1], and its numbers compare with nobody else's.

    Raises:
      InputError: torch or the file is missing, or the file is not TorchScript.
    """
    torch, network, device = torchscript(file)
    small = partial(cv2.resize, dsize=(I3D_SIDE, I3D_SIDE), interpolation=cv2.INTER_AREA)

    def features(clips):
        frames = np.stack([[small(frame.astype(np.float32)) for frame in clip] for clip in clips])
        frames = frames.transpose(0, 4, 1, 2, 3) / 127.5 - 1
        options = {"rescale": False, "resize": False, "return_features": True}
        with torch.inference_mode():
            return network(torch.from_numpy(frames).to(device), **options).cpu().numpy()

    return features


@partial(jax.jit, static_argnums=0)
def lpips_distances(graphdef, weights, a, b):
    """The arithmetic of `lpips`."""
    with jax.default_matmul_precision("highest"):
        return params.bind(graphdef, weights)(a / 127.5 - 1, b / 127.5 - 1)


def torchscript(file: str | Path):
    """The torch module, the network of a TorchScript file, and the device that it is on."""
    try:
        import torch
    except ImportError as error:
        raise InputError(f"{file} needs torch; install unavglip-jax[eval]") from error
    if not Path(file).is_file():
        raise InputError(f"{file}: no such file; give the TorchScript file of the StyleGAN authors")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch, torch.jit.load(str(file), map_location=device).eval(), device
    except RuntimeError as error:
        raise InputError(f"{file} is not TorchScript, or damaged; fetch it again") from error
