"""One picture of a head."""

from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from unavglip_jax.config import InputError
from unavglip_jax.data.heads.canvas import WHOLE, Canvas, Values, Window, window_around
from unavglip_jax.data.heads.curves import Points, points, step
from unavglip_jax.data.heads.eyes import draw_eye
from unavglip_jax.data.heads.identity import Head
from unavglip_jax.data.heads.layers import Look, prepare
from unavglip_jax.data.heads.mouth import draw_mouth
from unavglip_jax.data.heads.shape import EYE_LINE, amounts, lips_of
from unavglip_jax.data.heads.truth import landmarks
from unavglip_jax.data.motion import Pose

LEAST_SIZE = 32
NECK = 0.95  # y of the point about which heads tilt


def draw(
    head: Head,
    mouth: Float[np.ndarray, "5"],
    pose: Pose,
    size: int,
    rng: np.random.Generator | None = None,
) -> tuple[UInt8[np.ndarray, "P P 3"], Float[np.ndarray, "68 2"]]:
    """One picture of a head, and where its landmarks are.

    Args:
      head: who.
      mouth: open, wide, round, press, tuck; see `visemes.MOUTH`.
      pose: of the head, eyes and brows.
      size: pixels a side.
      rng: of the camera's noise; without it there is none.

    Returns:
      RGB, and iBUG's 68 points in pixels, (0, 0) the middle of the first one. They are the geometry that
      was drawn, whether or not hair or glasses cover it.

    Raises:
      InputError: the size is too small, or mouth or pose is none.
    """
    mouth = np.asarray(mouth, np.float64)
    if size < LEAST_SIZE:
        raise InputError(f"a head of {size} pixels cannot be drawn; ask for {LEAST_SIZE} or more")
    if mouth.shape != (5,) or not ((mouth >= 0) & (mouth <= 1)).all():
        raise InputError(f"a mouth is {mouth.tolist()}; give five values in [0, 1]")
    if not np.isfinite(pose).all() or pose.scale <= 0:
        raise InputError(f"{pose} is no pose; give finite numbers and a positive scale")
    look, lips = prepare(head, size), lips_of(head, mouth)
    canvas, camera = look.canvas, Camera(head, pose, size, look)
    field = np.tensordot(amounts(head, lips, pose), look.moves, axes=1)
    x, y, x_body, y_body = camera.from_picture()
    picture = look.background.astype(np.float32)
    # the neck's skin follows the chin a little
    near = 1 - step(0.04, 0.20, np.abs(y_body - head.chin))
    near = near * (1 - step(0.20, 0.44, np.abs(x_body)))
    cover(picture, canvas, look.back, x_body, y_body - 0.4 * lips.drop * near)
    moved = look.grid.take(field, x, y)
    cover(picture, canvas, look.face, x - moved[..., 0], y - moved[..., 1])
    patches = [draw_mouth(head, look, lips)]
    patches += [draw_eye(head, canvas, pose, side) for side in (-1, 1)]
    for patch, window in patches:
        part = camera.around(window)
        cover(picture[part], canvas, patch, x[part], y[part], window)
    cover(picture, canvas, look.front, x, y)
    if rng is not None:
        picture += head.noise * rng.standard_normal((size, size, 1), np.float32)
        picture += 0.5 * head.noise * rng.standard_normal((size, size, 3), np.float32)
    np.clip(np.rint(picture, out=picture), 0, 255, out=picture)
    truth = camera.to_picture(landmarks(head, look, lips, pose.blink, field))
    return picture.astype(np.uint8), truth


def cover(
    picture: np.ndarray, canvas: Canvas, image: np.ndarray, x: Values, y: Values, window=WHOLE
) -> None:
    """Lay a layer, or the patch in a window, over the picture in place, taken at face coordinates."""
    found = canvas.take(image, x, y, cv2.BORDER_CONSTANT, window).astype(np.float32, copy=False)
    picture *= 1 - found[..., 3:] * np.float32(1 / 255)
    picture += found[..., :3]


class Camera(NamedTuple):
    """From the plane of a head to the picture and back.

    The head turns about its own axes first (yaw, pitch: points go aside by their depth), then tilts about
    the neck, is scaled and shifted in the picture. The body follows less.
    """

    head: Head
    pose: Pose
    size: int
    look: Look

    @property
    def unit(self) -> float:
        """Pixels a face width."""
        return self.head.framing * self.size * self.pose.scale

    @property
    def origin(self) -> Float[np.ndarray, " 2"]:
        """Where the point between the eyes is at rest."""
        return np.array([self.size * 0.5 - 0.5, self.size * EYE_LINE - 0.5])

    def from_picture(self) -> tuple[Values, Values, Values, Values]:
        """For every pixel: x and y on the head's plane, then x and y on that of body and back hair."""
        pose, pixels = self.pose, np.arange(self.size, dtype=np.float32)
        across = ((pixels - self.origin[0]) / self.unit)[None]
        down = ((pixels - self.origin[1]) / self.unit)[:, None]
        u, v = turned(across - pose.x, down - pose.y, -pose.roll)
        sideways, upwards = np.sin(pose.yaw), np.sin(pose.pitch)
        x, y = u, v
        for _ in range(3):
            z = self.look.grid.take(self.look.depth, x, y)
            x, y = u / np.cos(pose.yaw) - z * sideways, v / np.cos(pose.pitch) - z * upwards
        still_u, still_v = turned(across - 0.4 * pose.x, down - 0.25 * pose.y, -0.15 * pose.roll)
        steady = step(self.head.chin - 0.25, self.head.chin + 0.35, still_v)
        x_back, y_back = u - 0.22 * sideways, v - 0.22 * upwards
        return x, y, x_back + (still_u - x_back) * steady, y_back + (still_v - y_back) * steady

    def to_picture(self, where: Points) -> Points:
        """Pixels of points on the head's plane."""
        pose, (x, y) = self.pose, where.T
        z = self.look.grid.take(self.look.depth, x[None], y[None])[0].astype(np.float64)
        u = (x + z * np.sin(pose.yaw)) * np.cos(pose.yaw)
        v = (y + z * np.sin(pose.pitch)) * np.cos(pose.pitch)
        u, v = turned(u, v, pose.roll)
        return points(u + pose.x, v + pose.y) * self.unit + self.origin

    def around(self, window: Window) -> Window:
        """The part of the picture that holds a window of the canvas."""
        canvas, (rows, columns) = self.look.canvas, window
        corners = [(c, r) for c in (columns.start, columns.stop) for r in (rows.start, rows.stop)]
        corners = np.array(corners) / canvas.scale + (canvas.left, canvas.top)
        return window_around(self.to_picture(corners), 3, self.size)


def turned(x: np.ndarray, y: np.ndarray, angle: float) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates after a turn about the neck, clockwise in the picture."""
    c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    y = y - NECK
    return c * x - s * y, s * x + c * y + NECK
