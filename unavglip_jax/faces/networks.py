"""What the face networks share: running a TFLite graph, and the square of the picture it looks at.

Points are (x, y) in pixels, x to the right and y down; (0, 0) is the middle of the first pixel.
"""

from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from unavglip_jax.config import InputError


class Region(NamedTuple):
    """A square of the picture, turned about its centre.

    Attributes:
      x: centre, in pixels.
      y: centre, in pixels.
      size: length of a side, in pixels.
      angle: in radians, positive when the right side is turned down.
    """

    x: float
    y: float
    size: float
    angle: float = 0.0

    def matrix(self, resolution: int) -> Float[np.ndarray, "2 3"]:
        """Maps points of the crop to points of the picture.

        Corner to corner: 0 and `resolution` fall on the square's sides. MediaPipe crops so on CPU; the
        half pixel that geometry asks for would move its landmarks by 0.5 pixel.
        """
        scale = self.size / resolution
        along = scale * np.array([np.cos(self.angle), np.sin(self.angle)])
        down = np.array([-along[1], along[0]])
        corner = [self.x, self.y] - resolution / 2 * (along + down)
        return np.stack([along, down, corner], axis=1)

    def crop(
        self, image: UInt8[np.ndarray, "H W 3"], resolution: int, antialias: bool = False
    ) -> UInt8[np.ndarray, "R R 3"]:
        """The square scaled to `resolution`; what lies outside the picture is black.

        Args:
          image: the picture.
          resolution: pixels a side of the crop.
          antialias: average over all pixels instead of interpolating between the nearest four. This is
            not MediaPipe's way, and only matters for squares of twice the resolution and more: there
            the landmarks of noisy frames trembled half as much.
        """
        matrix = self.matrix(resolution)
        factor = int(self.size // resolution) if antialias else 1
        if factor > 1:
            image, matrix = self.shrunk(image, matrix, factor)
        return cv2.warpAffine(
            image,
            matrix,
            (resolution, resolution),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_CONSTANT,
        )

    def shrunk(
        self, image: UInt8[np.ndarray, "H W 3"], matrix: Float[np.ndarray, "2 3"], factor: int
    ) -> tuple[UInt8[np.ndarray, "h w 3"], Float[np.ndarray, "2 3"]]:
        """The part of the picture around the square, shrunk, and what then maps the crop to it."""
        reach = self.size * 0.75 + factor  # half a diagonal and a pixel
        ends = np.array([[self.x - reach, self.y - reach], [self.x + reach, self.y + reach]])
        low, high = np.clip(ends, 0, image.shape[1::-1]).astype(int)
        across, down = map(int, (high - low) // factor)
        if not across or not down:
            return image, matrix
        part = image[low[1] :, low[0] :][: down * factor, : across * factor]
        # pixel 0 of the shrunk part is the average of `factor` ones, in their middle
        first = low[:, None] + (factor - 1) / 2
        matrix = np.hstack([matrix[:, :2], matrix[:, 2:] - first]) / factor
        return cv2.resize(part, (across, down), interpolation=cv2.INTER_AREA), matrix

    def to_picture(
        self, points: Float[np.ndarray, "N 2"], resolution: int
    ) -> Float[np.ndarray, "N 2"]:
        """Points of the crop as points of the picture."""
        matrix = self.matrix(resolution)
        return points @ matrix[:, :2].T + matrix[:, 2]


class Network:
    """A TFLite graph with one input, on the CPU. One thread at a time may call it."""

    def __init__(self, path: str | Path):
        try:
            from ai_edge_litert.interpreter import Interpreter
        except ImportError as error:
            raise InputError(
                "finding faces needs the package ai-edge-litert, which is not installed (or does not "
                f"load: {error}); `pip install ai-edge-litert` installs it"
            ) from error
        if not Path(path).is_file():
            raise InputError(f"{path}: no such file; `unavglip_jax.assets.fetch` gets it")
        try:
            # one thread: the graphs are too small to share out
            self.interpreter = Interpreter(str(path), num_threads=1)
            self.interpreter.allocate_tensors()
        except (RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise InputError(f"{path} is not a TFLite network: {reason}") from error
        (self.input,) = (found["index"] for found in self.interpreter.get_input_details())
        self.outputs = [found["index"] for found in self.interpreter.get_output_details()]

    def __call__(self, x: Float[np.ndarray, "1 R R 3"]) -> list[Float[np.ndarray, "..."]]:
        """What the graph makes of x: its outputs, the widest first."""
        self.interpreter.set_tensor(self.input, x)
        self.interpreter.invoke()
        found = [self.interpreter.get_tensor(index) for index in self.outputs]
        return sorted(found, key=lambda output: -output.shape[-1])


def sigmoid(x: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """The logistic function, in float64, without overflow."""
    return 1 / (1 + np.exp(-np.clip(np.asarray(x, np.float64), -80, 80)))
