"""Where the landmarks of a drawn face are."""

import numpy as np
from jaxtyping import Float

from unavglip_jax.data.heads.curves import points
from unavglip_jax.data.heads.identity import Head
from unavglip_jax.data.heads.layers import Look
from unavglip_jax.data.heads.shape import Lips, brow, lids, lip_edges, right_edge


def landmarks(
    head: Head, look: Look, lips: Lips, blink: float, field: Float[np.ndarray, "G G 2"]
) -> Float[np.ndarray, "68 2"]:
    """iBUG's 68 points on the head's plane, with this mouth and these lids, before the head turns.

    `field` is how far the skin has moved, on the look's grid.
    """
    rest = at_rest(head)
    skin = rest
    for _ in range(8):  # the field is known where the skin is now
        x, y = skin.astype(np.float32).T
        skin = rest + look.grid.take(field, x[None], y[None])[0]
    eyes = []
    for side in (-1, 1):
        u = np.array([-1, -0.4, 0.4, 1.0]) * side
        x = side * (head.eye_x + u * head.eye_width)
        upper, lower = lids(head, blink, u)
        eyes += [points(x, upper), points(x, lower)[2:0:-1]]
    aside = np.array([-1, -0.62, -0.24, 0, 0.24, 0.62, 1])
    top, _, _, bottom = lip_edges(head, lips, aside)
    mouth = [points(aside, top), points(aside, bottom)[5:0:-1]]
    aside = np.array([-0.96, -0.36, 0, 0.36, 0.96])
    _, above, below, _ = lip_edges(head, lips, aside)
    mouth += [points(aside, above), points(aside, below)[3:0:-1]]
    return np.concatenate([skin, *eyes, np.concatenate(mouth) * (lips.half, 1)])


def at_rest(head: Head) -> Float[np.ndarray, "36 2"]:
    """The points that go with the skin, where nothing moves it: jaw, brows and nose."""
    edge = right_edge(head)
    edge = edge[edge[:, 1] > -0.15]
    length = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(edge, axis=0), axis=1))])
    along = np.linspace(np.interp(0.0, edge[:, 1], length), length[-1], 9)
    jaw = points(*(np.interp(along, length, values) for values in edge.T))
    brows = []
    for side in (-1, 1):
        upper, lower = brow(head, side)
        brows.append((upper + (lower - upper) * 0.3)[[0, 4, 7, 9, 11]][::side])
    bridge = points(0, -0.01 + (head.nose - 0.05) * np.arange(4) / 3)
    aside = np.array([-0.75, -0.38, 0, 0.38, 0.75])
    base = points(head.nose_width * aside, head.nose - 0.012 + 0.018 * (1 - np.abs(aside) * 1.2))
    return np.concatenate([jaw * (-1, 1), jaw[-2::-1], *brows, bridge, base])
