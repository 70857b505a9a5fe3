"""What the command line can say of preprocessing; apart, so that the command needs no package of training."""

from pathlib import Path
from typing import Literal, Self

import pydantic

from unavglip_jax.config import Config


class PreprocessSettings(Config):
    """Which parts of the videos become clips, and how they are stored.

    Attributes:
      min_seconds: shorter stretches of one face are dropped.
      max_seconds: longer ones are divided into clips of equal length; at least twice `min_seconds`.
      min_face: pixels across the crop box, in the middle of all frames' values; smaller faces are dropped.
      other_face: another face counts if it is at least so large in comparison with the one tracked.
      min_sharpness: variance of the Laplacian of the aligned face (112 pixels) over its contrast, in
        the middle of all frames' values. A sharp photograph has 0.1; blur over a hundredth of the
        face's width leaves 0.01.
      min_loudness: dB of full scale; a clip of which nine tenths are quieter is silent.
      max_offset: frames by which sound and mouth may be apart by the lip-sync expert, if the pack has
        Wav2Lip's; None for no such check.
      identities: how many frames of a clip have identity embeddings; 0 for none.
      insightface: folder of the insightface pack that makes them, if not the pack's own network.
      jpeg_quality: of the frames.
      people: what shows one person, who is never in both splits: each video, or each folder of videos.
    """

    min_seconds: float = pydantic.Field(3, ge=0.48)  # `clips.SHORTEST` frames
    max_seconds: float = 8
    min_face: int = pydantic.Field(100, ge=1)
    other_face: float = pydantic.Field(0.5, gt=0)
    min_sharpness: float = 0.01
    min_loudness: float = -50
    max_offset: int | None = pydantic.Field(2, ge=0)
    identities: int = pydantic.Field(8, ge=0)
    insightface: Path | None = None
    jpeg_quality: int = pydantic.Field(95, ge=1, le=100)
    people: Literal["video", "folder"] = "video"

    @pydantic.model_validator(mode="after")
    def lengths_fit(self) -> Self:
        """Equal parts of a stretch of any length are long enough."""
        if self.max_seconds < 2 * self.min_seconds:
            raise ValueError("max_seconds must be at least twice min_seconds")
        return self
