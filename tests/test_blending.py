"""Masks and pasting, against Pillow and OpenCV programs written from the specification alone."""

import cv2
import numpy as np
import pytest
from PIL import Image
from skimage.data import astronaut

from unavglip_jax.config import InputError
from unavglip_jax.faces import blending
from unavglip_jax.faces.crop import Box, crop

BOX = Box(100, 80, 221, 250)
SIZE = (320, 360)
BORDERS = [
    Box(0, 90, 121, 260),
    Box(240, 90, 360, 260),
    Box(120, 0, 241, 150),
    Box(90, 160, 221, 320),
]


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def mesh(box=BOX, turned=0.0):
    """A face of 468 points in a box: ellipses for face and lips, a triangle for the nose."""
    points = np.zeros((468, 3), np.float32)

    def ring(indices, x, y, rx, ry, first=-np.pi, last=np.pi):
        angle = np.linspace(first, last, len(indices), endpoint=last - first < 6)
        points[indices, 0], points[indices, 1] = x + rx * np.cos(angle), y + ry * np.sin(angle)

    ring(blending.FACE, 0, 0, 0.5, 0.5, -np.pi / 2, 3 * np.pi / 2)
    ring(blending.JAW, 0, 0, 0.5, 0.5, np.pi - 0.25, 0.25)
    ring(blending.LIPS, 0.2 * turned, 0.28, 0.17, 0.06)
    ring(blending.CHIN, 0.1 * turned, 0.4, 0.15, 0.05)
    ring(blending.NOSE, 0.3 * turned, 0.0, 0.09, 0.15)
    points[blending.UNDER_NOSE, 0] = np.linspace(-0.06, 0.06, 5) + 0.3 * turned
    points[blending.UNDER_NOSE, 1] = 0.14
    points[:, 0] = (box.x1 + box.x2 - 1) / 2 + points[:, 0] * box.width
    points[:, 1] = (box.y1 + box.y2 - 1) / 2 + points[:, 1] * box.height
    return points


def filled(points, size=SIZE):
    """The convex hull of some points, drawn."""
    image = np.zeros(size, np.uint8)
    hull = cv2.convexHull(np.rint(points[:, :2]).astype(np.int32))
    return cv2.fillConvexPoly(image, hull, 1).astype(bool)


def in_frame(mask, box, size=SIZE):
    full = np.zeros(size, np.uint8)
    full[box.y1 : box.y2, box.x1 : box.x2] = mask
    return full


# --- the mask of the mesh


def test_mouth_mask_covers_lips_and_jaw_and_no_nose():
    points = mesh()
    mask = in_frame(blending.mesh_mask(points, BOX, SIZE), BOX)
    lips, nose = filled(points[blending.LIPS]), filled(points[blending.NOSE])
    core = cv2.erode(lips.astype(np.uint8), np.ones((3, 3))).astype(bool)
    assert mask[core].min() >= 254
    assert mask[cv2.erode(nose.astype(np.uint8), np.ones((3, 3))).astype(bool)].max() == 0
    under_nose = int(points[blending.UNDER_NOSE, 1].mean())
    assert mask[: under_nose - 8].max() == 0
    below_lips = int(points[blending.LIPS, 1].max()) + 8
    assert mask[below_lips, 160] == 255


def test_mouth_mask_of_a_bowed_head_does_not_reach_the_eyes():
    points = mesh()
    points[[132, 361], 1] = BOX.y1 + 0.25 * BOX.height  # the jaw's ends are as high as the eyes
    mask = in_frame(blending.mesh_mask(points, BOX, SIZE), BOX)
    assert mask[: int(points[blending.UNDER_NOSE, 1].mean()) - 8].max() == 0


def test_lower_half_mask_stays_in_the_face_below_the_middle():
    points = mesh()
    mask = in_frame(blending.mesh_mask(points, BOX, SIZE, "lower_half"), BOX)
    middle = (BOX.y1 + BOX.y2) // 2
    assert mask[:middle].max() == 0 and mask[middle + 40, 160] == 255
    grown = cv2.dilate(filled(points[blending.FACE]).astype(np.uint8), np.ones((31, 31)))
    assert mask[grown == 0].max() == 0


@pytest.mark.parametrize("region", ["mouth_and_jaw", "lower_half"])
@pytest.mark.parametrize("turned", [-0.6, 0.0, 0.6])
def test_opacity_fades_smoothly(region, turned):
    mask = blending.mesh_mask(mesh(turned=turned), BOX, SIZE, region).astype(int)
    # a smoothstep over 0.07 sides of 170 pixels rises by 255 * 1.5 / 12 a pixel; faster only where lips
    # and nose leave less room than that
    steep = np.maximum(np.abs(np.diff(mask, axis=0))[:, 1:], np.abs(np.diff(mask, axis=1))[1:])
    assert np.quantile(steep, 0.99) < 40
    assert max(mask[0].max(), mask[-1].max(), mask[:, 0].max(), mask[:, -1].max()) <= 4


@pytest.mark.parametrize("shift", [0.1, 0.3])
def test_mesh_mask_moves_by_less_than_a_pixel(shift):
    """Landmarks tremble; a mask drawn in whole pixels would flicker with them."""
    still = blending.mesh_mask(mesh(), BOX, SIZE).astype(int)
    moved = blending.mesh_mask(mesh() + np.float32([shift, 0, 0]), BOX, SIZE).astype(int)
    assert 0 < np.abs(moved - still).max() < 60 * shift + 2


@pytest.mark.parametrize("scale", [0.2, 1, 3])
def test_mesh_mask_scales_with_the_face(scale):
    """Large masks are computed on a coarser grid and scaled up."""
    box = Box(*(int(edge * scale) for edge in BOX))
    size = tuple(int(edge * scale) + 1 for edge in SIZE)
    mask = blending.mesh_mask(mesh(box), box, size)
    usual = blending.mesh_mask(mesh(), BOX, SIZE)
    assert mask.shape == (box.height, box.width)
    assert abs(mask.mean() - usual.mean()) < 3
    assert mask.max() >= 254


@pytest.mark.parametrize("box", BORDERS, ids=str)
@pytest.mark.parametrize("kind", ["mouth_and_jaw", "lower_half", "half"])
def test_a_face_at_the_frames_border_does_not_fade_there(box, kind):
    """Half of the face is outside: no transition where the frame ends, one at the other sides."""
    whole = Box(
        box.x1 - 60 * (box.x1 == 0),
        box.y1 - 40 * (box.y1 == 0),
        box.x2 + 60 * (box.x2 == SIZE[1]),
        box.y2 + 40 * (box.y2 == SIZE[0]),
    )
    if kind == "half":
        mask = blending.half_mask(box, SIZE)
    else:
        mask = blending.mesh_mask(mesh(whole), box, SIZE, kind)
    assert mask.shape == (box.height, box.width)
    sides = [
        (mask[:, 0], box.x1 == 0),
        (mask[:, -1], box.x2 == SIZE[1]),
        (mask[-1], box.y2 == SIZE[0]),
    ]
    for side, at_border in sides:
        assert side.max() == 255 if at_border else side.max() <= 4
    frame, generated = noise(*SIZE, 3), noise(256, 256, 3, seed=1)
    assert blending.paste(frame, generated, box, mask).shape == frame.shape


def test_half_mask():
    mask = blending.half_mask(BOX, SIZE)
    assert mask[: BOX.height // 2].max() == 0
    assert mask[BOX.height * 3 // 4, BOX.width // 2] == 255


# --- pasting


MASKS = {
    "mouth_and_jaw": lambda: blending.mesh_mask(mesh(), BOX, SIZE),
    "lower_half": lambda: blending.mesh_mask(mesh(), BOX, SIZE, "lower_half"),
    "half": lambda: blending.half_mask(BOX, SIZE),
    "published": lambda: blending.parsing_mask(parsed(), BOX, blending.BLENDS["musetalk_v15"]),
}


@pytest.mark.parametrize("kind", MASKS)
def test_outside_the_mask_not_a_bit_changes(kind):
    frame, generated, mask = noise(*SIZE, 3), noise(256, 256, 3, seed=1), MASKS[kind]()
    before = frame.copy()
    out = blending.paste(frame, generated, BOX, mask)
    full = in_frame(mask, BOX)
    np.testing.assert_array_equal(out[full == 0], frame[full == 0])
    np.testing.assert_array_equal(frame, before)
    assert (full > 0).mean() > 0.03 and (out != frame)[full > 128].mean() > 0.9
    face = cv2.resize(generated, (BOX.width, BOX.height), interpolation=cv2.INTER_LINEAR)
    whole = full == 255
    np.testing.assert_array_equal(out[whole], in_frame_rgb(face, BOX)[whole])


def in_frame_rgb(face, box):
    full = np.zeros((*SIZE, 3), np.uint8)
    full[box.y1 : box.y2, box.x1 : box.x2] = face
    return full


def test_composite_is_pillows():
    below, above = (np.repeat(np.arange(256, dtype=np.uint8), 256).reshape(256, 256, 1),) * 2
    below, above = (np.tile(a, 3) for a in (below, above.transpose(1, 0, 2)))
    for opacity in range(256):
        mask = np.full((256, 256), opacity, np.uint8)
        theirs = Image.composite(*map(Image.fromarray, (above, below, mask)))
        np.testing.assert_array_equal(blending.composite(below, above, mask), np.asarray(theirs))


def test_half_paste_keeps_the_upper_half_of_the_source():
    generated, source = noise(256, 256, 3), noise(256, 256, 3, seed=1)
    pasted = blending.half_paste(generated, source)
    np.testing.assert_array_equal(pasted[:128], source[:128])
    np.testing.assert_array_equal(pasted[128:], generated[128:])


@pytest.mark.parametrize(
    ("interpolation", "kept"), [(cv2.INTER_LINEAR, 0.6), (cv2.INTER_LANCZOS4, 0.9)]
)
def test_pasting_a_crop_back_is_nearly_the_frame(interpolation, kept):
    frame = astronaut()[:320, 60:420].copy()
    box = Box(100, 70, 225, 200)
    whole = np.full((130, 125), 255, np.uint8)
    out = blending.paste(frame, crop(frame, box, 128), box, whole, interpolation)
    assert np.abs(out.astype(int) - frame).mean() < 1.5

    def energy(image):  # of what is finer than three pixels
        inside = image[80:190, 110:215].astype(float)
        return np.square(np.diff(inside, axis=1)).mean()

    assert kept < energy(out) / energy(frame) < kept + 0.1


# --- the published blends


def parsed(seed=0):
    """A class map like BiSeNet's: a face with hair, neck, nose and mouth, ragged at its edges."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:512, :512] + rng.integers(-2, 3, (2, 512, 512))
    inside = lambda cx, cy, rx, ry: ((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 < 1
    classes = np.zeros((512, 512), np.int64)
    classes[inside(256, 230, 200, 210)] = 17
    classes[(np.abs(x - 256) < 90) & (y > 300)] = 14
    classes[inside(256, 260, 140, 180)] = 1
    classes[inside(200, 210, 25, 10)] = 4
    classes[inside(312, 210, 25, 10)] = 5
    classes[inside(256, 270, 30, 45)] = 10
    classes[inside(256, 350, 50, 25)] = 12
    classes[inside(256, 352, 35, 10)] = 11
    classes[inside(256, 365, 40, 10) & (classes == 12)] = 13
    return classes


TABLE = {  # section 2.4: expand, keep inside the box, upper ratio, blur, mode
    "musetalk_v10": (1.2, True, 0.5, 0.1, "face"),
    "musetalk_v15": (1.5, True, 0.5, 0.05, "jaw"),
    "musetalk_v15_avatar": (1.5, True, 0.5, 0.1, "jaw"),
    "unavglip": (1.5, True, None, 0.1, "face"),
    "unavglip_avatar": (1.2, False, None, 0.1, "face"),
}


def published(frame, generated, box, classes, variant):
    """The blend in Pillow and OpenCV, step by step as the specification has it."""
    expand, inside, upper, blur, mode = TABLE[variant]
    x, y, x1, y1 = box
    cx, cy, s = (x + x1) // 2, (y + y1) // 2, int(max(x1 - x, y1 - y) // 2 * expand)
    face = cv2.resize(generated, (x1 - x, y1 - y))
    body = Image.fromarray(frame)
    context = body.crop((cx - s, cy - s, cx + s, cy + s))
    mask = Image.fromarray(blending.class_mask(classes, mode)).resize(context.size)
    if inside:
        local = (x - cx + s, y - cy + s, x1 - cx + s, y1 - cy + s)
        kept = Image.new("L", context.size, 0)
        kept.paste(mask.crop(local), local)
        mask = kept
    mask = np.array(mask)
    if upper:
        mask[: int(mask.shape[0] * upper)] = 0
    k = int(blur * mask.shape[1] // 2 * 2) + 1
    mask = Image.fromarray(cv2.GaussianBlur(mask, (k, k), 0))
    context.paste(Image.fromarray(face), (x - cx + s, y - cy + s, x1 - cx + s, y1 - cy + s))
    body.paste(context, (cx - s, cy - s), mask)
    return np.asarray(body)


@pytest.mark.parametrize("box", [BOX, *BORDERS, Box(10, 10, 40, 60)], ids=str)
@pytest.mark.parametrize("variant", TABLE)
def test_published_blends(variant, box):
    frame, generated, classes = noise(*SIZE, 3), noise(256, 256, 3, seed=1), parsed()
    mask = blending.parsing_mask(classes, box, blending.BLENDS[variant])
    out = blending.paste(frame, generated, box, mask)
    np.testing.assert_array_equal(out, published(frame, generated, box, classes, variant))
    assert mask.any()


def test_published_constants():
    assert blending.BLENDS.keys() == TABLE.keys()
    for name, (expand, inside, upper, blur, mode) in TABLE.items():
        expected = dict(expand=expand, inside_box=inside, upper=upper or 0, blur=blur, region=mode)
        assert blending.BLENDS[name].model_dump() == expected


def test_context_box_and_blur_kernels():
    assert blending.context_box(BOX, 1.2) == (58, 63, 262, 267)
    assert blending.context_box(BOX, 1.5) == (33, 38, 287, 292)
    widths = (204, 254, 300, 512)
    assert [blending.blur_kernel(w, 0.1) for w in widths] == [21, 25, 31, 51]
    assert [blending.blur_kernel(w, 0.05) for w in widths] == [11, 13, 15, 25]


def test_a_box_too_small_for_its_context():
    box = Box(5, 5, 8, 8)  # its context is smaller than it is
    blend = blending.BLENDS["musetalk_v10"]
    assert blending.context_box(box, 1.2).width == 2
    assert blending.parsing_mask(parsed(), box, blend).shape == (3, 3)
    with pytest.raises(InputError, match="too small"):
        blending.parsing_input(noise(*SIZE, 3), Box(5, 5, 6, 6), blend)


def test_parsing_input_is_pillows():
    frame = astronaut()
    for box, name in [(Box(170, 80, 275, 178), "unavglip"), (Box(0, 20, 400, 420), "musetalk_v15")]:
        blend = blending.BLENDS[name]
        found = blending.parsing_input(frame, box, blend)
        image = Image.fromarray(frame).crop(blending.context_box(box, blend.expand))
        image = np.asarray(image.resize((512, 512), Image.BILINEAR), np.float64) / 255
        theirs = (image - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
        assert found.dtype == np.float32 and found.shape == (512, 512, 3)
        np.testing.assert_allclose(found, theirs, atol=1e-5)


@pytest.mark.parametrize("kernel", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    "before, after", [(204, 512), (900, 512), (512, 207), (512, 900), (5, 512)]
)
def test_resizing_is_pillows(before, after, kernel):
    """Of squares, the only pictures that the published programs resize."""
    how = {"bilinear": Image.BILINEAR, "bicubic": Image.BICUBIC}[kernel]
    for image in (noise(before, before, 3), (noise(before, before, seed=1) > 127) * np.uint8(255)):
        theirs = np.asarray(Image.fromarray(image).resize((after, after), how))
        found = blending.resized(image, (after, after), kernel)
        np.testing.assert_array_equal(found, theirs)  # within one level is asked; it is exact


@pytest.mark.parametrize("kernel", ["bilinear", "bicubic"])
def test_resizing_one_side(kernel):
    how = {"bilinear": Image.BILINEAR, "bicubic": Image.BICUBIC}[kernel]
    image = noise(60, 90, 3)
    for height, width in [(60, 200), (25, 90), (120, 180), (30, 45)]:
        theirs = np.asarray(Image.fromarray(image).resize((width, height), how))
        found = blending.resized(image, (height, width), kernel)
        assert np.abs(found.astype(int) - theirs).max() <= 1


# --- classes


def test_class_sets():
    classes = np.zeros((512, 512), np.int64)
    classes.flat[:19] = range(19)
    members = lambda mode: set(np.flatnonzero(blending.class_mask(classes, mode)))
    assert members("face") == set(range(1, 14))
    assert members("raw") == {1, 11, 12, 13}
    assert members("neck") == {1, 11, 12, 13, 14}


def test_jaw_kernel_on_a_single_pixel():
    """16 rows up and 6 down, 10 columns to each side, tapering at both ends."""
    assert blending.jaw_kernel().sum() == 373
    point = np.zeros((101, 101), np.uint8)
    point[50, 50] = 1
    grown = cv2.dilate(point, blending.jaw_kernel())
    rows, columns = np.nonzero(grown)
    assert (rows.min(), rows.max()) == (50 - 16, 50 + 6)
    assert (columns.min(), columns.max()) == (40, 60)
    widths = grown.sum(axis=1)
    assert (widths[50 - 16 : 50 - 3] == 21).all()  # rows -16 to -4
    assert widths[50 - 3 : 50 + 7].tolist() == list(range(19, 0, -2))


def test_jaw_mask_at_cheeks_and_nose():
    kernel, ellipse = np.zeros((33, 33), np.uint8), np.zeros((3, 35), np.uint8)
    for row in range(33):
        half = {True: row - 10, False: 10}[row <= 20]
        if row >= 10:
            kernel[row, 16 - half : 16 + half + 1] = 1
    ellipse[[0, 2], 17] = ellipse[1] = 1
    classes = parsed()
    grown = cv2.dilate(np.where(classes == 1, 255, 0).astype(np.uint8), kernel)
    eroded = cv2.erode(cv2.erode(grown, ellipse), ellipse)
    for cheeks, centre in [((90, 90), slice(167, 346)), ((20, 160), slice(237, 416))]:
        theirs = eroded.copy()
        theirs[:, centre] = grown[:, centre]
        theirs[classes == 10] = 0
        theirs[(classes >= 11) & (classes <= 13)] = 255
        found = blending.class_mask(classes, "jaw", cheeks)
        np.testing.assert_array_equal(found, theirs)
        assert (grown != eroded)[:, : centre.start].any()


@pytest.mark.parametrize(
    "call, message",
    [
        (
            lambda: blending.paste(noise(9, 9, 3), noise(4, 4, 3), (0, 0, 5, 5), noise(5, 4)),
            "(5, 5)",
        ),
        (
            lambda: blending.paste(noise(9, 9, 3), noise(4, 4, 3), (0, 0, 5, 10), noise(10, 5)),
            "9x9",
        ),
        (
            lambda: blending.paste(noise(9, 9), noise(4, 4, 3), (0, 0, 5, 5), noise(5, 5)),
            "give RGB",
        ),
        (lambda: blending.half_paste(noise(8, 8, 3), noise(4, 4, 3)), "must be the same"),
        (lambda: blending.mesh_mask(np.zeros((68, 2)), BOX, SIZE), "(68, 2)"),
        (lambda: blending.mesh_mask(np.full((468, 3), np.nan), BOX, SIZE), "finite"),
        (lambda: blending.mesh_mask(mesh(), BOX, SIZE, "mouth"), "'mouth'"),
        (lambda: blending.class_mask(np.zeros((64, 64)), "raw"), "(64, 64)"),
        (lambda: blending.class_mask(parsed(), "chin"), "'chin'"),
        (lambda: blending.class_mask(parsed(), "jaw", (300, 90)), "300"),
        (lambda: blending.resized(np.zeros((4, 4)), (8, 8), "bilinear"), "float64"),
    ],
)
def test_bad_input_is_one_clear_sentence(call, message):
    with pytest.raises(InputError) as error:
        call()
    assert message in str(error.value) and "\n" not in str(error.value)
