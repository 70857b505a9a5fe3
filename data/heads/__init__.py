"""Procedural talking heads: people who do not exist, drawn from numbers, whose every lip position is known.

A head is relief: a height map in a plane facing the camera, lit once, with skin, hair and clothes painted
on it at twice the picture's resolution. A frame bends that picture (jaw, cheeks, turn of the head) and
draws what cannot be bent anew: lips, the inside of the mouth, and eyes.

Coordinates of a head are in face widths (cheekbone to cheekbone), x to the picture's right, y down, z
towards the camera, the origin between the eyes.

To be read in this order: `identity` (the numbers, and how they are drawn at random), `curves`, `canvas`
(painting), `shape` (where everything is and how it moves), `face` and `layers` (what is painted once for a
head), `mouth` and `eyes` (what is painted anew for every picture), `truth` (the landmarks) and `frame` (one
picture).
"""

from unavglip_jax.data.heads.frame import LEAST_SIZE, draw
from unavglip_jax.data.heads.identity import CUTS, Head, random_head
from unavglip_jax.data.heads.layers import prepare

__all__ = ["CUTS", "LEAST_SIZE", "Head", "draw", "prepare", "random_head"]
