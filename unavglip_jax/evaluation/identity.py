"""Whether it is the same person: CSIM, the cosine of face embeddings, and their distance."""

from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

from unavglip_jax import assets
from unavglip_jax.config import InputError
from unavglip_jax.faces import identity

Face = UInt8[np.ndarray, "112 112 3"]


class Likeness(NamedTuple):
    """Of the faces of two videos, frame by frame; NaN where one of a pair has no face.

    Attributes:
      cosine: of the embeddings, in [-1, 1]; strangers are near 0. CSIM is its mean.
      distance: Euclidean, of the embeddings at length 1, in [0, 2].
    """

    cosine: Float[np.ndarray, " F"]
    distance: Float[np.ndarray, " F"]


def embedder(
    pack: str | Path | None = None, insightface: str | Path | None = None
) -> identity.Embedder:
    """The face embedder: the recogniser of an insightface folder if one is given, else the pack's network.

    UnAvgLip's evaluation takes buffalo_l. Numbers of different embedders do not compare.

    Raises:
      InputError: neither is given, or the pack has no `identity`.
    """
    if insightface is not None:
        return identity.InsightFace(Path(insightface).expanduser())
    if pack is None:
        raise InputError("faces are compared by an embedder; give an insightface folder or a pack")
    network = assets.load_network(pack, "identity")
    return lambda faces: np.asarray(network(jnp.asarray(faces)))


def likeness(
    embed: identity.Embedder, pairs: Iterable[tuple[Face | None, Face | None]], batch: int = 16
) -> Likeness:
    """How alike the faces of pairs of frames are; no more than a batch of them is held.

    Args:
      embed: see `embedder`.
      pairs: for each frame the generated and the true face, aligned (`faces.identity.align`), RGB; None
        where there is none. UnAvgLip aligns by the five points of insightface's detector, here they are
        means of the mesh's points; the same alignment otherwise.
      batch: pairs that are embedded at once.
    """
    pairs, found = iter(pairs), []
    while part := list(islice(pairs, batch)):
        row = np.full((len(part), 2), np.nan, np.float32)
        both = [i for i, pair in enumerate(part) if pair[0] is not None and pair[1] is not None]
        if both:
            # filled up, so that the network is compiled for one size only
            filled = [part[i] for i in np.resize(both, batch)]
            faces = identity.embedded(embed, np.stack([face for pair in filled for face in pair]))
            a, b = faces[: 2 * len(both) : 2], faces[1 : 2 * len(both) : 2]
            row[both] = np.stack([(a * b).sum(axis=1), np.linalg.norm(a - b, axis=1)], axis=1)
        found.append(row)
    cosine, distance = np.concatenate([np.empty((0, 2), np.float32), *found]).T
    return Likeness(cosine, distance)
