"""What of a frame is replaced, and putting it there.

Every mask here is the opacity of the generated face over its crop box: uint8, (box height, box width), 0
for the frame itself. Where it is 0 `paste` leaves the frame's bytes alone, and nothing outside the box ever
changes. That holds for the published blends too: they composite a wider context, but it equals the frame
outside the box.

- `mesh_mask`: from the landmarks of the 468-point mesh; the default.
- `parsing_mask`: from the classes that BiSeNet finds in the context, as MuseTalk and UnAvgLip make it.
- `half_mask`: the lower half of the box, for want of either.

MuseTalk is TMElyralab/MuseTalk (arXiv 2410.10122), UnAvgLip arXiv 2503.06397. They resize and composite
with Pillow; `resized` and `composite` compute what Pillow does.
"""

import functools
from collections.abc import Sequence
from typing import Literal

import cv2
import numpy as np
from jaxtyping import Float, Int, UInt8

from unavglip_jax.config import Config, InputError
from unavglip_jax.faces.crop import Box, checked_frame, inside_frame

MeshRegion = Literal["mouth_and_jaw", "lower_half"]
ParsedRegion = Literal["face", "raw", "neck", "jaw"]

# Outlines in the mesh of 468 points. Hulls are taken of them, so their order does not matter.
FACE = [10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377]
FACE += [152, 148, 176, 149, 150, 136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109]
JAW = [132, 58, 172, 136, 150, 149, 176, 148, 152, 377, 400, 378, 379, 365, 397, 288, 361]
LIPS = [61, 185, 40, 39, 37, 0, 267, 269, 270, 409, 291, 375, 321, 405, 314, 17, 84, 181, 91, 146]
CHIN = [18, 83, 313, 182, 406, 194, 418, 201, 421, 200, 199, 175, 208, 428, 32, 262, 171, 396]
NOSE = [6, 197, 195, 5, 4, 1, 19, 2, 97, 326, 98, 327, 129, 358, 64, 294, 48, 278, 49, 279]
UNDER_NOSE = [98, 97, 2, 326, 327]
FOREHEAD, CHIN_TIP, BRIDGE, SUBNASALE = 10, 152, 168, 2
INNER_LIPS = [13, 14]  # upper and lower
# All that `mesh_mask` looks at.
OUTLINES = FACE + JAW + LIPS + CHIN + NOSE + UNDER_NOSE + INNER_LIPS + [BRIDGE]

# Measured on drawn heads: the chin goes down by this share of the gap between the lips, and the widest gap of
# speech is this many noses (from bridge to underside).
CHIN_FOLLOWS, WIDEST_GAP = 0.43, 0.5

GRID = 128  # rows and columns at which a mesh mask is computed before it is scaled to the box

CLASSES = 512  # pixels a side of what BiSeNet sees
NOSE_CLASS = 10
LIP_CLASSES = (11, 12, 13)  # with the mouth's inside
REGION_CLASSES = {
    "face": tuple(range(1, 14)),
    "raw": (1, *LIP_CLASSES),
    "neck": (1, *LIP_CLASSES, 14),
}
CHEEKS = (90, 90)  # columns of 512 left and right of the middle that "jaw" leaves as dilated
MEAN = np.array([0.485, 0.456, 0.406], np.float32)  # of ImageNet
DEVIATION = np.array([0.229, 0.224, 0.225], np.float32)


class Blend(Config):
    """How a published program makes the opacity from the classes.

    Attributes:
      expand: side of the square context, in longer sides of the box.
      inside_box: whether classes outside the box are dropped before the blur.
      upper: fraction of the context, from its top, that stays the frame's; 0 for none.
      blur: size of the blur kernel, in widths of the context.
      region: the classes that are replaced.
    """

    expand: float
    inside_box: bool
    upper: float
    blur: float
    region: ParsedRegion


BLENDS = {
    "musetalk_v10": Blend(expand=1.2, inside_box=True, upper=0.5, blur=0.1, region="face"),
    "musetalk_v15": Blend(expand=1.5, inside_box=True, upper=0.5, blur=0.05, region="jaw"),
    "musetalk_v15_avatar": Blend(expand=1.5, inside_box=True, upper=0.5, blur=0.1, region="jaw"),
    "unavglip": Blend(expand=1.5, inside_box=True, upper=0, blur=0.1, region="face"),
    "unavglip_avatar": Blend(expand=1.2, inside_box=False, upper=0, blur=0.1, region="face"),
}


def paste(
    frame: UInt8[np.ndarray, "H W 3"],
    generated: UInt8[np.ndarray, "S S 3"],
    box: Sequence[int],
    mask: UInt8[np.ndarray, "h w"],
    interpolation: int = cv2.INTER_LINEAR,
) -> UInt8[np.ndarray, "H W 3"]:
    """A copy of the frame with the generated face in its box, at the opacity of the mask.

    Args:
      frame: what the face goes into.
      generated: the face, a square.
      box: where it goes.
      mask: how much of it shows, 255 for nothing else.
      interpolation: by which the square is stretched to the box, as OpenCV numbers it. The published
        programs take bilinear interpolation, which blurs; Lanczos, by which `crop` cut the face out, does
        not.

    Raises:
      InputError: the box is not inside the frame, or the mask is not as large as the box.
    """
    checked_frame(frame)
    checked_frame(generated)
    box = inside_frame(box, frame)
    if mask.shape != (box.height, box.width) or mask.dtype != np.uint8:
        raise InputError(
            f"the mask is {mask.dtype} of the shape {mask.shape}; the box of {box.width}x{box.height} "
            f"pixels needs uint8 of the shape {(box.height, box.width)}"
        )
    face = cv2.resize(generated, (box.width, box.height), interpolation=interpolation)
    out = frame.copy()
    x, y, width, height = cv2.boundingRect(mask)  # of what is not 0
    if width:
        inner = slice(y, y + height), slice(x, x + width)
        part = out[box.y1 : box.y2, box.x1 : box.x2][inner]
        part[:] = composite(part, face[inner], mask[inner])
    return out


def composite(
    below: UInt8[np.ndarray, "H W 3"],
    above: UInt8[np.ndarray, "H W 3"],
    opacity: UInt8[np.ndarray, "H W"],
) -> UInt8[np.ndarray, "H W 3"]:
    """One picture over another in whole numbers, as Pillow does; `below` exactly where opacity is 0."""
    alpha = cv2.merge([opacity] * 3)
    # (255 x 255 + 128) x 257 / 256 is below 65536: 16 bits hold it.
    sum_ = cv2.multiply(below, 255 - alpha, dtype=cv2.CV_16U)
    sum_ += cv2.multiply(above, alpha, dtype=cv2.CV_16U)
    sum_ += 128
    sum_ += sum_ >> 8
    sum_ >>= 8
    return sum_.astype(np.uint8)


def half_paste(
    generated: UInt8[np.ndarray, "S S 3"], source: UInt8[np.ndarray, "S S 3"]
) -> UInt8[np.ndarray, "S S 3"]:
    """The generated crop with the upper half of the source's, as UnAvgLip's decoder returns it."""
    if generated.shape != source.shape:
        raise InputError(
            f"the generated crop has the shape {generated.shape} and the source's {source.shape}; "
            "they must be the same"
        )
    half = len(source) // 2
    return np.concatenate([source[:half], generated[half:]])


def mesh_mask(
    points: Float[np.ndarray, "468 C"],
    box: Sequence[int],
    size: tuple[int, int],
    region: MeshRegion = "mouth_and_jaw",
    feather: float = 0.07,
    grow: float = 0.04,
) -> UInt8[np.ndarray, "h w"]:
    """Opacity of the lower face, from the mesh.

    The opacity rises from 0 at the region's outline inwards, so that nothing outside it changes. Where
    the lips are near the outline it rises faster, to be full over them. It is 0 at the box's sides
    too, except at those where the frame ends, which need no transition.

    Args:
      points: landmarks of the mesh, x and y in pixels first; more than 468 is allowed.
      box: the crop box.
      size: height and width of the frame.
      region: "mouth_and_jaw" is bounded by the jaw, as when the mouth is wide open (`opened`), and the
        underside of the nose and never contains the nose; "lower_half" is the face below the box's
        mid-line. They are a pack's `mask`.
      feather: width of the transition, in sides of the box.
      grow: how far the outline lies outside the face, in sides of the box; it leaves most of the jaw's
        own edge to the generated face.
    """
    points = np.asarray(points, np.float64)
    if points.ndim != 2 or len(points) < 468 or not np.isfinite(points).all():
        raise InputError(f"the mesh has the shape {points.shape}; give 468 finite points")
    if region not in ("mouth_and_jaw", "lower_half"):
        raise InputError(f"there is no region {region!r}; choose mouth_and_jaw or lower_half")
    box, points = Box(*box), points[:, :2]
    side = float(max(box.width, box.height))
    rows, columns = min(box.height, GRID), min(box.width, GRID)
    x = np.float32(box.x1 - 0.5 + (np.arange(columns) + 0.5) * box.width / columns)
    y = np.float32(box.y1 - 0.5 + (np.arange(rows)[:, None] + 0.5) * box.height / rows)

    lips, under_nose = points[LIPS], points[UNDER_NOSE]
    if region == "mouth_and_jaw":
        # Chin and lips are inside the jaw's hull, but in a face turned to the side they are its edge.
        gap = np.linalg.norm(np.subtract(*points[INNER_LIPS]))
        jaw = opened(points[JAW + CHIN], points[BRIDGE], points[SUBNASALE], points[CHIN_TIP], gap)
        depth = -outside(np.concatenate([jaw, lips]), x, y) + grow * side
        depth = np.minimum(depth, outside(points[NOSE], x, y))
        # In a bowed head the jaw's ends are as high as the eyes.
        up = points[FOREHEAD] - points[CHIN_TIP]
        up = up / max(np.linalg.norm(up), 1e-6)
        highest = (np.concatenate([lips, under_nose]) @ up).max() + grow * side
        across, down = np.float32(up)
        depth = np.minimum(depth, np.float32(highest) - (x * across + y * down))
    else:
        depth = -outside(points[FACE], x, y) + grow * side
    # Distances are almost linear: scaled up they are right, where a mask would leak over its outline.
    distances = np.stack([depth, outside(lips, x, y)], axis=-1)
    distances = cv2.resize(distances, (box.width, box.height), interpolation=cv2.INTER_LINEAR)
    depth = np.minimum(distances[..., 0], from_sides(box, size))
    if region == "lower_half":
        depth = np.minimum(depth, below_middle(box))
    # Between lips and outline the transition is as narrow as the place, but never a hard edge.
    reach = np.maximum(depth, 0) + np.maximum(distances[..., 1], 0)
    return opacity(depth, np.clip(reach, feather * side / 5, feather * side))


def opened(
    jaw: Float[np.ndarray, "N 2"],
    bridge: Float[np.ndarray, " 2"],
    subnasale: Float[np.ndarray, " 2"],
    chin: Float[np.ndarray, " 2"],
    gap: float,
) -> Float[np.ndarray, "N 2"]:
    """Points of the jaw as they would be if the mouth were wide open.

    A mask around the jaw as it is tells how far the mouth is open, and so does a chin that is seen below
    it: a generator learns to look there instead of listening, and when dubbing it sees the old speech
    there. It must have room to open the mouth, too.

    Args:
      jaw: the points, in pixels.
      bridge: of the nose, between the eyes.
      subnasale: where nose and upper lip meet.
      chin: the lowest point of the jaw.
      gap: between the inner lips, in pixels.
    """
    up = bridge - chin
    up = up / max(np.linalg.norm(up), 1e-6)
    drop = CHIN_FOLLOWS * max(WIDEST_GAP * np.linalg.norm(bridge - subnasale) - gap, 0)
    # The jaw turns about its joints: the chin moves most, what is as high as the lower lip hardly.
    hinge = (subnasale + chin) / 2
    share = np.clip((hinge - jaw) @ up / max((hinge - chin) @ up, 1e-6), 0, 1)
    return jaw - share[:, None] * drop * up


def outside(
    points: Float[np.ndarray, "N 2"], x: Float[np.ndarray, " W"], y: Float[np.ndarray, "H 1"]
) -> Float[np.ndarray, "H W"]:
    """How far each place of a grid is outside the convex hull of some points; negative inside.

    Exact inside and beside an edge; beside a corner it is less than the distance. Not drawn in pixels,
    so that a mask moves with its landmarks by less than a pixel.
    """
    hull = cv2.convexHull(points.astype(np.float32))[:, 0].astype(np.float64)
    edges = np.roll(hull, -1, axis=0) - hull
    length = np.linalg.norm(edges, axis=1)
    hull, edges = hull[length > 1e-6], edges[length > 1e-6] / length[length > 1e-6, None]
    if len(hull) < 3:
        return np.full((len(y), len(x)), np.inf, x.dtype)  # points on one line bound nothing
    normals = np.stack([edges[:, 1], -edges[:, 0]], axis=1)
    middle = hull.mean(axis=0)
    normals *= np.sign(((hull - middle) * normals).sum(axis=1, keepdims=True))
    # Edge by edge: a maximum over a short last axis takes several times as long, and one matrix product for
    # all edges is so large that BLAS takes the generator's cores for it.
    out = np.full((len(y), len(x)), -np.inf, x.dtype)
    offsets = (hull * normals).sum(axis=1)
    for across, down, offset in np.column_stack([normals, offsets]).astype(x.dtype):
        np.maximum(out, x * across + (y * down - offset), out=out)
    return out


def half_mask(
    box: Sequence[int], size: tuple[int, int], feather: float = 0.07
) -> UInt8[np.ndarray, "h w"]:
    """Opacity of the box's lower half, from 0 at its mid-line and sides (but those of the frame).

    Args:
      box: the crop box.
      size: height and width of the frame.
      feather: width of the transition, in sides of the box.
    """
    box = Box(*box)
    depth = np.minimum(from_sides(box, size), below_middle(box))
    return opacity(depth, feather * max(box.width, box.height))


def from_sides(box: Box, size: tuple[int, int]) -> Float[np.ndarray, "h w"]:
    """How far each pixel of a box is from its sides. Sides where the frame ends do not count."""
    height, width = size
    x, y = (np.arange(n, dtype=np.float32) + 0.5 for n in (box.width, box.height))
    far = np.float32(np.inf)
    across = np.minimum(
        x if box.x1 > 0 else far, box.width - x if box.x2 < width else np.full_like(x, far)
    )
    down = np.minimum(
        y if box.y1 > 0 else far, box.height - y if box.y2 < height else np.full_like(y, far)
    )
    return np.minimum(across, down[:, None])


def below_middle(box: Box) -> Float[np.ndarray, "h 1"]:
    """How far each row of a box is below its mid-line."""
    return (np.arange(box.height, dtype=np.float32) + 0.5 - box.height / 2)[:, None]


def opacity(
    depth: Float[np.ndarray, "h w"], reach: Float[np.ndarray, "h w"] | float
) -> UInt8[np.ndarray, "h w"]:
    """0 where the depth is negative, 255 from `reach` on, smooth between them."""
    share = np.clip(depth / np.maximum(reach, 1e-6), 0, 1)
    return np.rint(share * share * (3 - 2 * share) * 255).astype(np.uint8)


def context_box(box: Sequence[int], expand: float) -> Box:
    """The square around a box that is parsed and blended; it may reach over the frame's edge."""
    box = Box(*box)
    x, y = (box.x1 + box.x2) // 2, (box.y1 + box.y2) // 2
    half = int(max(box.width, box.height) // 2 * expand)
    return Box(x - half, y - half, x + half, y + half)


def cut(image: UInt8[np.ndarray, "H W ..."], box: Sequence[int]) -> UInt8[np.ndarray, "h w ..."]:
    """A rectangle of a picture, 0 where it reaches over the edge."""
    box, (height, width) = Box(*box), image.shape[:2]
    out = np.zeros((box.height, box.width, *image.shape[2:]), image.dtype)
    x1, x2 = max(box.x1, 0), min(box.x2, width)
    y1, y2 = max(box.y1, 0), min(box.y2, height)
    if x1 < x2 and y1 < y2:
        out[y1 - box.y1 : y2 - box.y1, x1 - box.x1 : x2 - box.x1] = image[y1:y2, x1:x2]
    return out


def parsing_input(
    frame: UInt8[np.ndarray, "H W 3"], box: Sequence[int], blend: Blend
) -> Float[np.ndarray, "512 512 3"]:
    """What BiSeNet sees of a frame: the context of the box, RGB normalised as ImageNet is, float32."""
    checked_frame(frame)
    context = context_box(box, blend.expand)
    if context.width == 0:
        raise InputError(
            f"the box {tuple(box)} (left, top, right, bottom) is too small to be parsed; choose "
            "another mask, or leave such faces out"
        )
    crop = resized(cut(frame, context), (CLASSES, CLASSES), "bilinear")
    return (crop.astype(np.float32) / 255 - MEAN) / DEVIATION


def parsing_mask(
    classes: Int[np.ndarray, "512 512"],
    box: Sequence[int],
    blend: Blend,
    cheeks: tuple[int, int] = CHEEKS,
) -> UInt8[np.ndarray, "h w"]:
    """Opacity as a published program makes it.

    Args:
      classes: what BiSeNet found in `parsing_input`.
      box: the crop box.
      blend: of `BLENDS`; `blend.replace(region=...)` chooses other classes.
      cheeks: see `class_mask`.
    """
    box, context = Box(*box), context_box(box, blend.expand)
    side = context.width
    mask = resized(class_mask(classes, blend.region, cheeks), (side, side), "bicubic")
    # the box in the context's own pixels
    inner = Box(*(edge - context[i % 2] for i, edge in enumerate(box)))
    if blend.inside_box:
        kept = np.zeros_like(mask)
        rows = slice(max(inner.y1, 0), max(inner.y2, 0))
        columns = slice(max(inner.x1, 0), max(inner.x2, 0))
        kept[rows, columns] = mask[rows, columns]
        mask = kept
    mask[: int(side * blend.upper)] = 0
    kernel = blur_kernel(side, blend.blur)
    return cut(cv2.GaussianBlur(mask, (kernel, kernel), 0), inner)


def blur_kernel(width: int, blur: float) -> int:
    """Pixels a side of the Gaussian kernel for a context of some width."""
    return int(blur * width // 2 * 2) + 1


def class_mask(
    classes: Int[np.ndarray, "512 512"], region: ParsedRegion, cheeks: tuple[int, int] = CHEEKS
) -> UInt8[np.ndarray, "512 512"]:
    """255 in the region to replace, 0 elsewhere.

    "face" is all of the face (MuseTalk 1.0, UnAvgLip). MuseTalk 1.5 has "raw" (skin and mouth), "neck" (with
    the neck), and "jaw": the skin grown upwards and a little below the chin, without the nose; on the
    cheeks it is shrunk again, sideways, which leaves their outline alone.

    Args:
      classes: of each pixel, as BiSeNet numbers them.
      region: which.
      cheeks: columns left and right of the middle where "jaw" stays grown.
    """
    if classes.shape != (CLASSES, CLASSES):
        raise InputError(
            f"the class map has the shape {classes.shape}; give ({CLASSES}, {CLASSES})"
        )
    if region in REGION_CLASSES:
        return np.isin(classes, REGION_CLASSES[region]).astype(np.uint8) * 255
    if region != "jaw":
        raise InputError(f"there is no region {region!r}; choose face, raw, neck or jaw")
    left, right = cheeks
    if not (0 <= left <= CLASSES // 2 and 0 <= right <= CLASSES // 2):
        raise InputError(f"the cheek widths are {left} and {right}; give 0 to {CLASSES // 2}")
    skin = (classes == 1).astype(np.uint8) * 255
    grown = cv2.dilate(skin, jaw_kernel())
    mask = cv2.erode(grown, cheek_kernel(), iterations=2)
    middle = slice(CLASSES // 2 - left + 1, CLASSES // 2 + right)
    mask[:, middle] = grown[:, middle]
    mask[classes == NOSE_CLASS] = 0
    mask[np.isin(classes, LIP_CLASSES)] = 255
    return mask


@functools.cache
def jaw_kernel() -> UInt8[np.ndarray, "33 33"]:
    """The kernel that grows the skin 16 rows up, 6 rows down, and 10 columns to each side."""
    half_width = np.concatenate([np.full(10, -1), np.arange(11), np.full(12, 10)])
    columns = np.abs(np.arange(33) - 16)
    return (columns <= half_width[:, None]).astype(np.uint8)


@functools.cache
def cheek_kernel() -> UInt8[np.ndarray, "3 35"]:
    """OpenCV's ellipse of 35x3, written out: its versions do not agree on ellipses."""
    kernel = np.zeros((3, 35), np.uint8)
    kernel[1] = 1
    kernel[:, 17] = 1
    return kernel


def resized(
    image: UInt8[np.ndarray, "H W ..."],
    size: tuple[int, int],
    kernel: Literal["bilinear", "bicubic"],
) -> UInt8[np.ndarray, "h w ..."]:
    """The picture at another size (height, width), as Pillow computes it.

    The kernel is widened when the picture shrinks. Columns first, then rows, rounded to 8 bits after
    each, with weights of 22 bits.
    """
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or 0 in image.shape or min(size) < 1:
        raise InputError(
            f"{image.dtype} of the shape {image.shape} cannot be resized to {size}; give a picture "
            "as uint8, and a size of at least one pixel"
        )
    image = resampled(image, 1, size[1], kernel)
    return resampled(image, 0, size[0], kernel)


def resampled(image: np.ndarray, axis: int, count: int, kernel: str) -> np.ndarray:
    """`resized` along one axis."""
    if image.shape[axis] == count:
        return image
    first, weights = taps(image.shape[axis], count, kernel)
    last = image.shape[axis] - 1
    shape = [1] * image.ndim
    shape[axis] = count
    sum_ = np.int32(1 << 21)  # a half
    for k in range(weights.shape[1]):
        rows = np.take(image, np.minimum(first + k, last), axis).astype(np.int32)
        sum_ = sum_ + rows * weights[:, k].reshape(shape)
    return np.clip(sum_ >> 22, 0, 255).astype(np.uint8)


@functools.lru_cache(maxsize=64)
def taps(
    before: int, after: int, kernel: str
) -> tuple[Int[np.ndarray, " after"], Int[np.ndarray, "after K"]]:
    """For each new pixel the first old one that counts, and the weights of it and those after it."""
    half, curve = KERNELS[kernel]
    scale = before / after
    wide = max(scale, 1.0)
    centre = (np.arange(after) + 0.5) * scale
    first = np.maximum((centre - half * wide + 0.5).astype(int), 0)
    last = np.minimum((centre + half * wide + 0.5).astype(int), before)
    k = np.arange((last - first).max())
    old = first[:, None] + k
    weights = np.where(old < last[:, None], curve((old - centre[:, None] + 0.5) / wide), 0)
    weights = weights / weights.sum(axis=1, keepdims=True)
    away_from_zero = np.trunc(weights * (1 << 22) + np.copysign(0.5, weights))
    return first, away_from_zero.astype(np.int32)


def triangle(x: Float[np.ndarray, "*N"]) -> Float[np.ndarray, "*N"]:
    """The bilinear kernel."""
    return np.maximum(1 - np.abs(x), 0)


def cubic(x: Float[np.ndarray, "*N"]) -> Float[np.ndarray, "*N"]:
    """Keys's cubic kernel with a = -1/2."""
    x = np.abs(x)
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0))


KERNELS = {"bilinear": (1.0, triangle), "bicubic": (2.0, cubic)}  # half width, curve
