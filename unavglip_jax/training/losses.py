"""What is minimised: each loss a function of arrays, its mean a scalar; the weights are configuration.

Images are RGB in [-1, 1], (batch, height, width, 3); landmarks are iBUG's 68 points in pixels of these
images, (0, 0) the middle of the first pixel. Networks come in as callables, with their weights. "Published
weight" is what the named system multiplies a loss with. LPIPS has no function here: the network
(`models.lpips`) is the loss.

Sources: UnAvgLip as its published trainer computes it, corrected where that cannot work (see `identity` and
`expert_input`); MuseTalk 1.0 and 1.5, arXiv 2410.10122; Wav2Lip, arXiv 2008.10010.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.ndimage import map_coordinates
from jaxtyping import Array, Float, Int

from unavglip_jax.faces.identity import ALIGNED, FIVE, TEMPLATE
from unavglip_jax.models.layers import l2_normalize

LIPS = slice(48, 68)  # of iBUG's 68 points
CERTAIN = 1e-6  # no cosine is taken to be nearer to 0 or 1: the logarithm's gradient stays finite
PYRAMID_SIDE, PYRAMID_STRIDES = 224, (1, 2, 4, 8)
IMAGENET_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
IMAGENET_DEVIATION = np.array([0.229, 0.224, 0.225], np.float32)

Images = Float[Array, "B H W 3"]
Landmarks = Float[Array, "B 68 2"]
Weight = Float[Array, "#B H W 1"]
Scalar = Float[Array, ""]


# ---- pixels and latents ------------------------------------------------------------------------------


def pixel_l1(prediction: Images, target: Images, weight: Weight | None = None) -> Scalar:
    """Mean absolute difference, of a part of the image if a weight map says which.

    Published weights: 2 on the lower half (MuseTalk 1.0), 1 on the whole image (MuseTalk 1.5);
    UnAvgLip has no such loss.
    """
    return mean(jnp.abs(difference(prediction, target)), weight)


def gradient_l1(prediction: Images, target: Images, weight: Weight | None = None) -> Scalar:
    """Mean absolute difference of the images' horizontal and vertical gradients; the two means added.

    After the gradient difference loss of arXiv 1511.05440, with the gradients' signs. Between two
    pixels counts the mean of their weights. None of the published systems uses it.
    """
    wrong, total = difference(prediction, target), 0.0
    for axis in (1, 2):
        between = None if weight is None else neighbours(weight, axis, jnp.add) / 2
        total += mean(jnp.abs(neighbours(wrong, axis, jnp.subtract)), between)
    return total


def latent_l1(
    prediction: Float[Array, "B h w C"],
    target: Float[Array, "B h w C"],
    weight: Weight | None = None,
) -> Scalar:
    """Mean absolute difference of scaled latents. Published weight: 1 (MuseTalk 1.0).

    Args:
      prediction: the UNet's.
      target: the true image's.
      weight: a map in the image's size that says which part counts.
    """
    if weight is not None:
        weight = shrunk(weight, prediction.shape[1:3])
    return mean(jnp.abs(difference(prediction, target)), weight)


def shrunk(weight: Float[Array, "B H W 1"], size: tuple[int, int]) -> Float[Array, "B h w 1"]:
    """Means over the squares of a map that become one pixel each."""
    (batch, height, width, _), (rows, columns) = weight.shape, size
    squares = weight.reshape(batch, rows, height // rows, columns, width // columns, 1)
    return squares.mean(axis=(2, 4))


def psnr(prediction: Images, target: Images, weight: Float[Array, "B H W 1"]) -> Float[Array, " B"]:
    """Peak signal-to-noise ratio of each image in dB, at most 100; nothing is trained by it."""
    square = weight * (difference(prediction, target) / 2) ** 2
    error = square.sum(axis=(1, 2, 3)) / (square.shape[-1] * weight.sum(axis=(1, 2, 3)))
    return -10 * jnp.log10(jnp.maximum(error, 1e-10))


def lower_half(height: int, width: int) -> Float[np.ndarray, "1 H W 1"]:
    """The weight map that is 1 in the rows from height // 2 on, which the generator draws."""
    rows = np.arange(height)[:, None] >= height // 2
    return np.broadcast_to(rows, (height, width)).astype(np.float32)[None, ..., None]


def mouth_weight(
    landmarks: Landmarks, size: tuple[int, int], margin: float = 0.25
) -> Float[Array, "B H W 1"]:
    """The weight map that is 1 on the mouth and falls to 0 at `margin` mouth widths around it.

    Args:
      landmarks: of the target.
      size: height and width of the images.
      margin: in widths of the mouth.
    """
    centre, half, edge = mouth_box(landmarks, margin)
    pixels = np.stack(np.meshgrid(*(np.arange(n) for n in size[::-1])), axis=-1)  # x, y
    inside = half[:, None, None] - jnp.abs(pixels - centre[:, None, None])
    return jnp.clip(inside / edge[:, None, None], 0, 1).prod(axis=-1, keepdims=True)


def mouth_box(
    landmarks: Landmarks, margin: float
) -> tuple[Float[Array, "B 2"], Float[Array, "B 2"], Float[Array, "B 1"]]:
    """Centre and half the size (x, y) of a box around the lips, and the margin, all in pixels.

    MuseTalk 1.5's, at least half as high as wide, but an open mouth is not cut off.
    """
    lips = landmarks[:, LIPS, :2]
    low, high = lips.min(axis=1), lips.max(axis=1)
    edge = margin * (high - low)[:, :1]
    half = (high - low) / 2 + edge
    tall = jnp.maximum(half[:, 1], half[:, 0] / 2)
    return (low + high) / 2, jnp.stack([half[:, 0], tall], axis=-1), edge


def difference(prediction: Array, target: Array) -> Array:
    """prediction - target.

    Raises:
      ValueError: their shapes differ; they would be repeated to fit each other.
    """
    if prediction.shape != target.shape:
        raise ValueError(f"the prediction is {prediction.shape}, the target {target.shape}")
    return prediction - target


def mean(values: Float[Array, "B H W C"], weight: Weight | None = None) -> Scalar:
    """The weighted mean; 0 where all weights are 0."""
    if weight is None:
        return values.mean()
    weight = jnp.broadcast_to(weight, values.shape)
    return (weight * values).sum() / jnp.maximum(weight.sum(), 1e-9)


def neighbours(x: Float[Array, "B H W C"], axis: int, combine: Callable) -> Array:
    """`combine` of every pixel with the one before it."""
    after, before = (jax.lax.slice_in_dim(x, *ends, axis=axis) for ends in ((1, None), (0, -1)))
    return combine(after, before)


# ---- how it looks ------------------------------------------------------------------------------------


def perceptual(vgg: Callable, prediction: Images, target: Images) -> Scalar:
    """UnAvgLip's: mean absolute difference of VGG19's relu3_3 on the lower halves.

    VGG sees the images in [-1, 1] as they are, without ImageNet's normalisation. Published weight: 1.

    Args:
      vgg: a `models.vgg.VGG` of 19 layers.
      prediction: the generator's.
      target: of the same shape.
    """
    lower = prediction.shape[1] // 2
    maps = (vgg(images[:, lower:], ("relu3_3",))[0] for images in (prediction, target))
    return jnp.abs(difference(*maps)).mean()


def perceptual_pyramid(vgg: Callable, prediction: Images, target: Images) -> Scalar:
    """MuseTalk 1.5's: five maps of VGG19 at four scales; means over maps, added over scales.

    The images are resized to 224 pixels and blurred before they are made smaller. ImageNet's constants,
    meant for images in [0, 1], are applied to [-1, 1], as published. Published weight: 0.01.

    Args:
      vgg: a `models.vgg.VGG` of 19 layers.
      prediction: the generator's.
      target: of the same shape.
    """
    outputs, total = ("relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu5_1"), 0.0
    shape = (len(prediction), PYRAMID_SIDE, PYRAMID_SIDE, 3)
    resize = lambda images: jax.image.resize(images, shape, "linear", antialias=False)
    pair = resize(prediction), resize(target)
    for stride in PYRAMID_STRIDES:
        shrink, maps = shrinking(PYRAMID_SIDE, stride), []
        for images in pair:
            small = jnp.einsum("hi,bijc,wj->bhwc", shrink, images, shrink, precision="highest")
            maps.append(vgg((small - IMAGENET_MEAN) / IMAGENET_DEVIATION, outputs))
        total += sum(jnp.abs(a - b).mean() for a, b in zip(*maps, strict=True)) / len(outputs)
    return total


def shrinking(side: int, stride: int) -> Float[np.ndarray, "n side"]:
    """The matrix that blurs a row of pixels, zeros beyond its ends, and keeps every `stride`th.

    The Gaussian has the standard deviation (stride - 1) / 2 and ends at four of them.
    """
    if stride == 1:
        return np.eye(side, dtype=np.float32)
    deviation = (stride - 1) / 2
    reach = round(4 * deviation)
    gaussian = lambda x: np.exp(-((x / deviation) ** 2) / 2) * (np.abs(x) <= reach)
    offsets = np.arange(side) - np.arange(0, side, stride)[:, None]
    return (gaussian(offsets) / gaussian(np.arange(-reach, reach + 1)).sum()).astype(np.float32)


# ---- whether it speaks in time -----------------------------------------------------------------------


def sync(
    network: Callable, mel: Float[Array, "B M N 1"], frames: Float[Array, "B h w C"]
) -> Scalar:
    """-log of the cosine between sound and picture.

    Published weights: 1 (UnAvgLip), 0.05 (MuseTalk 1.5, LatentSync), 0.01 to 0.03 (Wav2Lip).

    Args:
      network: a `models.wav2lip_syncnet.Wav2LipSyncNet` or `models.stable_syncnet.StableSyncNet`.
      mel: as the network takes it.
      frames: the prediction through `expert_input` or `stable_input`.
    """
    sound, picture = network(mel, frames)
    return in_step((sound * picture).sum(axis=-1), 1.0)


def in_step(cosine: Float[Array, " B"], labels: Float[Array, " B"] | float) -> Scalar:
    """Binary cross-entropy of cosines as probabilities that sound and picture belong together.

    What Wav2Lip's expert and StableSyncNet are trained with. Both end in a ReLU, so that their cosines are
    in [0, 1]; one that rounding moved outside counts as 0 or 1.

    Args:
      cosine: of the embeddings.
      labels: 1 for pairs that belong together, 0 for others.
    """
    logarithm = lambda p: jnp.log(jnp.clip(p, CERTAIN, 1))
    return -(labels * logarithm(cosine) + (1 - labels) * logarithm(1 - cosine)).mean()


def expert_input(frames: Float[Array, "B 5 H W 3"]) -> Float[Array, "B 48 96 15"]:
    """Frames as Wav2Lip's expert was trained on them.

    Faces resized to 96x96 as OpenCV does it (bilinear, without anti-aliasing), of these the lower half; BGR
    in [0, 1]; channel 3 * frame + colour. UnAvgLip's published trainer gives the expert RGB, of the
    prediction in [-1, 1], at a size that it cannot take.
    """
    batch, count = frames.shape[:2]
    faces = jax.image.resize(frames, (batch, count, 96, 96, 3), "linear", antialias=False)
    return stacked((faces[:, :, 48:, :, ::-1] + 1) / 2)


def stable_input(
    frames: Float[Array, "B T H W 3"], size: tuple[int, int]
) -> Float[Array, "B h w 3*T"]:
    """Frames as a StableSyncNet of pictures takes them: lower halves, channel 3 * frame + colour.

    Args:
      frames: whole faces.
      size: height and width that the network sees; 128x256 for the published ones. Other faces than of
        256x256 pixels are resized, with anti-aliasing.
    """
    halves = frames[:, :, frames.shape[2] // 2 :]
    return stacked(jax.image.resize(halves, (*halves.shape[:2], *size, 3), "linear"))


def stacked(frames: Float[Array, "B T h w 3"]) -> Float[Array, "B h w 3*T"]:
    """The frames as channels of one image."""
    batch, count, height, width, colours = frames.shape
    return frames.transpose(0, 2, 3, 1, 4).reshape(batch, height, width, count * colours)


# ---- whether it is the same person -------------------------------------------------------------------


def identity(
    embed: Callable,
    images: Images,
    landmarks: Landmarks,
    aspect: Float[Array, " B"],
    reference: Float[Array, "B D"],
) -> Scalar:
    """1 - cosine between the embeddings of the faces in the images and those of the person.

    UnAvgLip's published trainer detects the face in bytes, outside of the graph, so that its identity
    loss is a constant for the parameters; here the gradient goes through the aligned face into the
    image. Published weight: 1.

    Args:
      embed: aligned faces (n, 112, 112, 3) to embeddings, such as a `models.iresnet.IResNet`.
      images: the generator's.
      landmarks: of the target, which has the face in the same place.
      aspect: of the images, as in `warp_faces`.
      reference: embeddings of the person by the same embedder, of any length.
    """
    found = l2_normalize(embed(warp_faces(images, landmarks, aspect)))
    return 1 - (found * l2_normalize(reference)).sum(axis=-1).mean()


def warp_faces(
    images: Images, landmarks: Landmarks, aspect: Float[Array, " B"]
) -> Float[Array, "B 112 112 3"]:
    """The faces as ArcFace sees them, black outside the images: `faces.identity.align`, differentiable.

    Landmarks whose five points are all the same give NaN.

    Args:
      images: of any size.
      landmarks: in pixels of these.
      aspect: width by height of what a pixel shows. A crop is square whatever its box was, and its faces are
        wider than they are by as much as the box was narrow; its aspect is the box's.
    """
    five = jnp.stack([landmarks[:, group, :2].mean(axis=1) for group in FIVE[68]], axis=1)
    five = five * jnp.stack([aspect, jnp.ones_like(aspect)], axis=-1)[:, None]
    # Points of the plane as complex numbers: a rotation with scaling is one factor.
    points, template = five[..., 0] + 1j * five[..., 1], TEMPLATE @ np.array([1, 1j])
    centre, middle = points.mean(axis=1, keepdims=True), template.mean()
    points, template = points - centre, template - middle
    turn = (points.conj() * template).sum(axis=1) / (jnp.abs(points) ** 2).sum(axis=1)
    x, y = np.meshgrid(np.arange(ALIGNED), np.arange(ALIGNED))
    source = centre[..., None] + (x + 1j * y - middle) / turn[:, None, None]
    columns = source.real / aspect[:, None, None]

    def sample(image, row, column):  # one colour of one image
        return map_coordinates(image, [row, column], order=1, mode="constant", cval=-1.0)

    colours = jax.vmap(sample, in_axes=(-1, None, None), out_axes=-1)
    return jax.vmap(colours)(images, source.imag, columns)


def arcface_margin(
    embeddings: Float[Array, "B D"],
    weights: Float[Array, "K D"],
    labels: Int[Array, " B"],
    scale: float = 64.0,
    margin: float = 0.5,
) -> Scalar:
    """Cross-entropy of who the faces are, with an angle added to that of the right answer.

    ArcFace, arXiv 1801.07698, to train an embedder. Where the angle would pass 180 degrees the cosine is
    lowered by margin * sin(margin) instead, which goes on falling.

    Args:
      embeddings: of any length.
      weights: a direction for each of K people, trained along.
      labels: numbers of the people.
      scale: of the cosines.
      margin: in radians.
    """
    directions = l2_normalize(weights)
    cosines = jnp.matmul(l2_normalize(embeddings), directions.T, precision="highest")
    right = jnp.take_along_axis(cosines, labels[:, None], axis=1)
    sine = jnp.sqrt(jnp.maximum(1 - right**2, CERTAIN))  # not of 0: its gradient is infinite
    further = jnp.where(
        right > -np.cos(margin),
        right * np.cos(margin) - sine * np.sin(margin),
        right - margin * np.sin(margin),
    )
    mine = jnp.arange(len(weights)) == labels[:, None]
    logits = scale * jnp.where(mine, further, cosines)
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1).mean()


# ---- whether it looks real ---------------------------------------------------------------------------


def discriminator_loss(real: Float[Array, "B h w 1"], fake: Float[Array, "B h w 1"]) -> Scalar:
    """Least squares (arXiv 1611.04076): scores of real images towards 1, of made ones towards 0."""
    return ((1 - real) ** 2).mean() + (fake**2).mean()


def generator_loss(fake: Float[Array, "B h w 1"]) -> Scalar:
    """Least squares: scores of made images towards 1. Published weight: 0.01, from step 1000 on."""
    return ((1 - fake) ** 2).mean()


def feature_matching(real: Sequence[Array], fake: Sequence[Array]) -> Scalar:
    """Mean absolute difference of what each block of the discriminator found, added over the blocks.

    Published weight: 1 (MuseTalk 1.5, from the first step on, before the discriminator learns).
    """
    return sum(jnp.abs(difference(b, a)).mean() for a, b in zip(real, fake, strict=True))


def mouth_crops(
    images: Images, landmarks: Landmarks, size: tuple[int, int], margin: float = 0.1
) -> Float[Array, "B h w 3"]:
    """The mouths, stretched to a size; MuseTalk 1.5's second discriminator sees them at 256x256.

    Args:
      images: the prediction, or the target.
      landmarks: of the target, for both.
      size: height and width of the crops. Smaller ones are anti-aliased.
      margin: in widths of the mouth. MuseTalk 1.5 has 10 pixels of 256, about as much.
    """
    centre, half, _ = mouth_box(landmarks, margin)
    scale = jnp.array(size) / (2 * half[:, ::-1])  # y, x
    # jax measures from the corner of the first pixel, landmarks from its middle
    shift = -scale * (centre - half + 0.5)[:, ::-1]

    def crop(image, scale, shift):
        shape = (*size, image.shape[-1])
        return jax.image.scale_and_translate(image, shape, (0, 1), scale, shift, "linear")

    return jax.vmap(crop)(images, scale, shift)
