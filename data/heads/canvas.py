"""Painting: a square of pixels over a head's plane, texture, and light."""

from collections.abc import Iterable
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from unavglip_jax.data.heads.curves import Points, bell, points
from unavglip_jax.data.heads.identity import Head

Image = Float[np.ndarray, "C C 3"]
Map = Float[np.ndarray, "C C"]
Layer = UInt8[np.ndarray, "C C 4"]  # RGB times alpha, and alpha
Values = Float[np.ndarray, "H W"]  # of the pixels of a picture, or of a window
Row = Float[np.ndarray, " W"]
Column = Float[np.ndarray, "H 1"]
Window = tuple[slice, slice]  # rows and columns
Patch = tuple[Float[np.ndarray, "H W 4"], Window]  # as a layer, for a part of the canvas

WHOLE = slice(0, None), slice(0, None)


class Canvas(NamedTuple):
    """A square of pixels over a head's plane."""

    side: int
    scale: float  # pixels a face width
    left: float  # x of the first column's middle
    top: float  # y of the first row's middle

    @property
    def x(self) -> Float[np.ndarray, "1 C"]:
        """Of each column."""
        return (self.left + np.arange(self.side, dtype=np.float32) / self.scale)[None]

    @property
    def y(self) -> Float[np.ndarray, "C 1"]:
        """Of each row."""
        return (self.top + np.arange(self.side, dtype=np.float32) / self.scale)[:, None]

    @property
    def zeros(self) -> Map:
        """Nothing painted."""
        return np.zeros((self.side, self.side), np.float32)

    def pixels(self, where: Points) -> Points:
        """Of points in face widths."""
        return (where - (self.left, self.top)) * self.scale

    def window(self, x: tuple[float, float], y: tuple[float, float]) -> Window:
        """The pixels between two x and two y."""
        return window_around(self.pixels(points(x, y)), 0, self.side)

    def bump(self, x: float, y: float, across: float, down: float) -> Map:
        """A bell in both directions."""
        return bell(self.x - x, across) * bell(self.y - y, down)

    def pair(self, x: float, y: float, across: float, down: float) -> Map:
        """A bump and its mirror image."""
        return (bell(self.x - x, across) + bell(self.x + x, across)) * bell(self.y - y, down)

    def below(self, y: Column, curve: Row, soft: float = 0.0) -> Values:
        """How much of each pixel of a window is below a curve, in [0, 1]."""
        slope = np.clip(np.gradient(curve) * self.scale, -3, 3)
        sharp = self.scale / np.sqrt(1 + slope**2) / (1 + soft * self.scale)
        return np.clip((y - curve) * sharp + 0.5, 0, 1)

    def blur(self, image: np.ndarray, radius: float) -> np.ndarray:
        """A Gaussian blur; wide ones are computed on a smaller copy."""
        sigma = radius * self.scale
        if sigma < 0.3:
            return image
        shrink = int(sigma // 4)
        if shrink < 2:
            return cv2.GaussianBlur(image, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)
        size = max(8, self.side // shrink)
        sigma = sigma * size / self.side
        small = cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)
        small = cv2.GaussianBlur(small, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)
        return cv2.resize(small, (self.side, self.side), interpolation=cv2.INTER_LINEAR)

    def mask(self, outline: Points, blur: float = 0.0) -> Map:
        """The inside of a polygon, in [0, 1]."""
        found = self.zeros
        part, window = self.part(outline, blur)
        found[window] = part
        return found

    def part(self, outline: Points, blur: float = 0.0) -> tuple[Values, Window]:
        """The inside of a polygon, in [0, 1], in the window that holds it."""
        outline, sigma = self.pixels(outline), blur * self.scale
        rows, columns = window_around(outline, int(3 * sigma) + 3, self.side)
        part = np.zeros((rows.stop - rows.start, columns.stop - columns.start), np.uint8)
        corners = np.round((outline - (columns.start, rows.start)) * 16).astype(np.int32)
        cv2.fillPoly(part, [corners], 255, cv2.LINE_AA, 4)
        part = part.astype(np.float32) / 255
        if sigma > 0.3:
            part = cv2.GaussianBlur(part, (0, 0), sigma)
        return part, (rows, columns)

    def paint(
        self, image: Image, outline: Points, ink, opacity=1.0, blur=0.0, clip: Map | None = None
    ) -> None:
        """A polygon painted on an image, in a colour or with another image's pixels."""
        part, window = self.part(outline, blur)
        part *= opacity
        if clip is not None:
            part *= clip[window]
        ink = np.asarray(ink, np.float32)
        lay(image[window], part, ink[window] if ink.ndim == 3 else ink)

    def lines(self, curves: Iterable[Points], width: float, blur: float = 0.0) -> Map:
        """Thin curves, in [0, 1]; narrower than a pixel they become fainter."""
        drawn = np.zeros((self.side, self.side), np.uint8)
        pixels = width * self.scale
        strength = int(255 * min(1.0, pixels))
        paths = [np.round(self.pixels(c) * 16).astype(np.int32) for c in curves]
        cv2.polylines(drawn, paths, False, strength, max(1, round(pixels)), cv2.LINE_AA, 4)
        return self.blur(drawn.astype(np.float32) / 255, blur)

    def take(
        self, image: np.ndarray, x: Values, y: Values, border=cv2.BORDER_REPLICATE, window=WHOLE
    ) -> np.ndarray:
        """Values at face coordinates of an image, in a window; beyond it, as OpenCV's `border` says."""
        columns = ((x - self.left) * self.scale - window[1].start).astype(np.float32)
        rows = ((y - self.top) * self.scale - window[0].start).astype(np.float32)
        return cv2.remap(image, columns, rows, cv2.INTER_LINEAR, borderMode=border)


def window_around(where: Points, pad: int, side: int) -> Window:
    """The part of a square image, never empty, that holds points given in pixels, and a rim."""
    low = np.clip(np.floor(where.min(0)).astype(int) - pad, 0, side - 1)
    high = np.clip(np.ceil(where.max(0)).astype(int) + pad, low + 1, side)
    return slice(low[1], high[1]), slice(low[0], high[0])


def lay(image: np.ndarray, mask: np.ndarray, ink) -> None:
    """Paint over an image in place."""
    image += mask[..., None] * (ink - image)


def layer(image: Image, alpha: Map) -> Layer:
    """An image and its alpha, blurred as much as sampling every second pixel needs."""
    found = np.empty((*alpha.shape, 4), np.float32)
    found[..., :3] = np.clip(image, 0, 255) * alpha[..., None]
    found[..., 3] = alpha * 255
    return np.round(cv2.GaussianBlur(found, (0, 0), 0.55)).astype(np.uint8)


class Noise(NamedTuple):
    """White noise that looks the same at every size."""

    white: Float[np.ndarray, "512 512"]
    side: int  # of the canvas

    def smooth(self, across: float, down: float | None = None) -> Map:
        """Blurred by so many 512ths of the canvas, with deviation 1."""
        blurred = cv2.GaussianBlur(self.white, (0, 0), across, sigmaY=down or across)
        blurred /= blurred.std()
        return cv2.resize(blurred, (self.side, self.side), interpolation=cv2.INTER_LINEAR)

    def along(self, across: np.ndarray, down: np.ndarray, stretch: float) -> Map:
        """Noise stretched along `down`, at coordinates in cells."""
        strands = cv2.GaussianBlur(self.white, (0, 0), 0.6, sigmaY=stretch)
        strands /= strands.std()
        columns, rows = np.broadcast_arrays(np.mod(across, 511), np.mod(down, 511))
        columns, rows = columns.astype(np.float32), rows.astype(np.float32)
        return cv2.remap(strands, columns, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)


def light_on(head: Head, canvas: Canvas, height: Map, softness: float = 0.0) -> Image:
    """How a relief is lit, about 1 where it faces the camera, per colour channel."""
    height = canvas.blur(height.astype(np.float32), softness) * canvas.scale
    across = cv2.Sobel(height, cv2.CV_32F, 1, 0, ksize=3, scale=1 / 8)
    down = cv2.Sobel(height, cv2.CV_32F, 0, 1, ksize=3, scale=1 / 8)
    length = np.sqrt(1 + across**2 + down**2)
    light = np.array([0.75 * head.light_x, -0.35 - 0.45 * head.light_y, 1.0])
    light /= np.linalg.norm(light)
    lit = (light[2] - across * light[0] - down * light[1]) / length
    lit = np.clip((lit + 0.35) / 1.35, 0, None) / ((light[2] + 0.35) / 1.35)
    fill = np.clip((1 + across * 0.6 * np.sign(head.light_x)) / length, 0, 1)
    lit = 1 + head.contrast * 0.85 * (lit * 0.82 + fill * 0.18 - 1)
    lit = np.clip(np.where(lit < 0.62, 0.66 - 0.68 * (0.66 - lit), lit), 0.2, 1.6)
    # light that went through skin is redder: shade is warm
    return np.stack([lit, lit**1.10, lit**1.16], axis=-1) * (np.float32(head.light) / 255)
