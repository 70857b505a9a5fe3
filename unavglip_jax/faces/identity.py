"""Who a face is: aligning it for ArcFace, choosing the frames that show it best, comparing two.

An embedder is any function from aligned faces (n, 112, 112, 3), float32 RGB in [-1, 1], to vectors (n, 512).
Spaces of different embedders do not mix; the pack says which one its weights know. ArcFace is arXiv
1801.07698; the alignment is that of insightface.
"""

import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float, Int, UInt8

from unavglip_jax.config import InputError
from unavglip_jax.faces.crop import checked_frame

ALIGNED = 112  # pixels a side of an aligned face
WIDTH = 512  # numbers in an embedding

# Where the eyes, the nose's tip and the corners of the mouth lie in an aligned face, from the picture's left.
TEMPLATE = np.array(
    [
        [38.2946, 51.6963],
        [73.5318, 51.5014],
        [56.0252, 71.7366],
        [41.5493, 92.3655],
        [70.7299, 92.2041],
    ]
)
# The nose's place between eyes and mouth in the template.
FRONTAL_NOSE = (TEMPLATE[2, 1] - TEMPLATE[:2, 1].mean()) / (
    TEMPLATE[3:, 1].mean() - TEMPLATE[:2, 1].mean()
)
# The same five in the two sets of landmarks, as means of some of them.
FIVE = {
    68: ([36, 37, 38, 39, 40, 41], [42, 43, 44, 45, 46, 47], [30], [48], [54]),
    468: ([33, 133, 159, 145], [362, 263, 386, 374], [1], [61], [291]),
}
# Of both: the middles of the inner lips, upper and lower, and the face's outline at its left and right.
INNER_LIPS = {68: (62, 66), 468: (13, 14)}
SIDES = {68: (1, 15), 468: (234, 454)}

# How recognisers are called in the published packs: tried first, to load nothing else.
KNOWN = ("w600k", "glintr", "webface")

Embedder = Callable[[Float[np.ndarray, "n 112 112 3"]], Float[np.ndarray, "n 512"]]


class Look(NamedTuple):
    """How a face is seen in a frame (see `look`). A row of such numbers for each frame of a clip.

    Attributes:
      sharpness: of the aligned face; independent of its contrast.
      yaw: turned to the side; 0 is frontal, 1 the profile towards the picture's right, -1 to its left.
      pitch: turned up or down, as the nose's place between eyes and mouth; 0 is the template's.
      roll: of the line between the eyes, in radians.
      opening: of the mouth, in distances between the eyes.
      visible: fraction of the face's five points inside the frame.
      size: distance between the eyes, in pixels.
    """

    sharpness: float
    yaw: float
    pitch: float
    roll: float
    opening: float
    visible: float
    size: float


def five_points(landmarks: Float[np.ndarray, "N C"]) -> Float[np.ndarray, "5 2"]:
    """Eyes, nose and corners of the mouth, of iBUG's 68 points or of the mesh of 468, in pixels."""
    points = np.asarray(landmarks, np.float64)
    return np.stack([points[group, :2].mean(axis=0) for group in FIVE[kind_of(points)]])


def kind_of(points: np.ndarray) -> int:
    """68 or 468: which set of landmarks these are.

    Raises:
      InputError: neither, or they are not finite.
    """
    kind = (
        468 if len(points) > 468 else len(points)
    )  # the refined mesh has the irises behind the 468
    if points.ndim != 2 or kind not in FIVE or points.shape[1] < 2 or not np.isfinite(points).all():
        raise InputError(
            f"landmarks of the shape {points.shape} are not known; give iBUG's 68 points or the mesh "
            "of 468, all of them finite"
        )
    return kind


def similarity(
    source: Float[np.ndarray, "N 2"], target: Float[np.ndarray, "N 2"]
) -> Float[np.ndarray, "2 3"]:
    """The rotation, scaling and shift that bring points closest to others, in least squares.

    Umeyama, Least-Squares Estimation of Transformation Parameters Between Two Point Patterns (1991).

    Raises:
      InputError: the points are all the same.
    """
    source, target = np.asarray(source, np.float64), np.asarray(target, np.float64)
    from_, to = source.mean(axis=0), target.mean(axis=0)
    a, b = source - from_, target - to
    if not (a**2).sum() > 0:
        raise InputError("the five points of the face are all the same; it cannot be aligned")
    # In the plane the singular value decomposition comes down to one complex number.
    cosine, sine = (a * b).sum(), (a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]).sum()
    turn = np.array([[cosine, -sine], [sine, cosine]]) / (a**2).sum()
    return np.column_stack([turn, to - turn @ from_])


def align(
    frame: UInt8[np.ndarray, "H W 3"], landmarks: Float[np.ndarray, "N C"]
) -> UInt8[np.ndarray, "112 112 3"]:
    """The face as ArcFace sees it; black outside the frame.

    Args:
      frame: RGB.
      landmarks: in pixels, 68, 468, or the five points themselves.
    """
    checked_frame(frame)
    points = np.asarray(landmarks, np.float64)
    five = points[:, :2] if len(points) == 5 else five_points(points)
    return cv2.warpAffine(frame, similarity(five, TEMPLATE), (ALIGNED, ALIGNED))


def embedded(
    embed: Embedder, faces: UInt8[np.ndarray, "n 112 112 3"], normalise: bool = True
) -> Float[np.ndarray, "n 512"]:
    """Embeddings of aligned faces, RGB; of unit length if `normalise`.

    Raises:
      InputError: the embedder gave something else than a finite vector of 512 numbers for each.
    """
    faces = np.asarray(faces)
    found = np.asarray(embed((faces.astype(np.float32) - 127.5) / 127.5), np.float32)
    if found.shape != (len(faces), WIDTH) or not np.isfinite(found).all():
        raise InputError(
            f"the face embedder gave the shape {found.shape} for {len(faces)} faces; it must give "
            f"{WIDTH} finite numbers for each"
        )
    return unit(found) if normalise else found


def unit(embeddings: Float[np.ndarray, "n 512"]) -> Float[np.ndarray, "n 512"]:
    """The embeddings at length 1.

    Raises:
      InputError: one of them is zero.
    """
    length = np.linalg.norm(embeddings, axis=-1, keepdims=True)
    if not (length > 0).all():
        raise InputError("a face embedding is all zeros; it shows no face")
    return (embeddings / length).astype(np.float32)


def cosine(
    a: Float[np.ndarray, "n 512"], b: Float[np.ndarray, "m 512"]
) -> Float[np.ndarray, "n m"]:
    """How similar faces are, in [-1, 1]; strangers are near 0."""
    return unit(np.atleast_2d(a)) @ unit(np.atleast_2d(b)).T


class Likeness:
    """How much a face in a frame looks like a person; for choosing one of several faces.

    Args:
      embed: the embedder.
      reference: embeddings of pictures of the person; the most similar one counts.
    """

    def __init__(self, embed: Embedder, reference: Float[np.ndarray, "n 512"]):
        self.embed, self.reference = embed, as_embeddings(reference, "the reference face")

    def __call__(
        self, frame: UInt8[np.ndarray, "H W 3"], landmarks: Float[np.ndarray, "N C"]
    ) -> float:
        """The cosine, in [-1, 1]."""
        face = embedded(self.embed, align(frame, landmarks)[None])
        return float(cosine(face, self.reference).max())


def look(frame: UInt8[np.ndarray, "H W 3"], landmarks: Float[np.ndarray, "N C"]) -> Look:
    """How the face with these landmarks (68 or 468, in pixels) is seen in an RGB frame."""
    points = np.asarray(landmarks, np.float64)[:, :2]
    kind, five = kind_of(points), five_points(points)
    right, left, nose, *corners = five
    across, mouth = left - right, np.mean(corners, axis=0)
    apart = max(float(np.linalg.norm(across)), 1e-6)
    roll = float(np.arctan2(across[1], across[0]))

    # Turned to one side, the nose is nearer to the outline there.
    before, behind = (np.linalg.norm(nose - points[i]) for i in SIDES[kind])
    yaw = (before - behind) / max(before + behind, 1e-6)
    # Turned up or down, it is nearer to the eyes or to the mouth, measured along the upright face.
    down = np.array([-across[1], across[0]]) / apart
    eyes = (right + left) / 2
    height = max(abs((mouth - eyes) @ down), 1e-6)
    pitch = float((nose - eyes) @ down / height - FRONTAL_NOSE)
    upper, lower = (points[i] for i in INNER_LIPS[kind])
    opening = float(np.linalg.norm(lower - upper)) / apart

    (rows, columns), (x, y) = frame.shape[:2], five.T
    visible = float(((x >= 0) & (x < columns) & (y >= 0) & (y < rows)).mean())
    grey = cv2.cvtColor(align(frame, five), cv2.COLOR_RGB2GRAY).astype(np.float32)
    sharpness = float(cv2.Laplacian(grey, cv2.CV_32F)[2:-2, 2:-2].var() / (grey.var() + 1))
    return Look(sharpness, float(yaw), pitch, roll, opening, visible, apart)


def quality(looks: Float[np.ndarray, "F 7"]) -> Float[np.ndarray, " F"]:
    """How well each frame of a clip shows who the person is, in [0, 1]; 0 where there is no face.

    A product, so that nothing makes up for what spoils a frame: sharp and large in comparison with
    the clip's best, frontal, mouth nearly closed (an open one is what dubbing must not copy), inside
    the frame.

    Args:
      looks: a `Look` for each frame, NaN where there is no face.
    """
    looks = np.asarray(looks, np.float64).reshape(-1, len(Look._fields))
    found = np.isfinite(looks).all(axis=1)
    score = np.zeros(len(looks))
    if not found.any():
        return score
    sharpness, yaw, pitch, roll, opening, visible, size = looks[found].T
    best = lambda values: np.minimum(values / max(np.quantile(values, 0.9), 1e-9), 1)
    # Noses are of different lengths: what is level is seen from the clip, not from the template.
    pitch = pitch - np.median(pitch)
    frontal = np.exp(-((yaw / 0.35) ** 2) - (pitch / 0.25) ** 2 - (roll / 0.6) ** 2)
    # The aligned face has 112 pixels, 35 between the eyes; more do not show in it.
    enough = np.minimum(size / 35, 1) * np.sqrt(best(size))
    score[found] = (
        best(sharpness) * frontal * np.exp(-((opening / 0.35) ** 2)) * enough * visible**2
    )
    return score


def conditioning_frames(
    looks: Float[np.ndarray, "F 7"], count: int, seed: int = 0
) -> Int[np.ndarray, " count"]:
    """The frames of a clip whose embeddings say who the person is; numbers in no order.

    The best frame first, then each time the one that is good and unlike those chosen, in time and in
    pose: several pictures of one moment say no more than one. The seed changes which of nearly equal
    frames is taken. A clip with fewer faces than `count` gives some of them more than once.

    Args:
      looks: a `Look` for each frame, NaN where there is no face.
      count: how many, `n_cond`.
      seed: the same seed gives the same frames.

    Raises:
      InputError: no frame has a face, or `count` is not positive.
    """
    if count < 1:
        raise InputError(f"n_cond is {count}; give 1 or more")
    looks = np.asarray(looks, np.float64).reshape(-1, len(Look._fields))
    score = quality(looks)
    candidates = np.flatnonzero(np.isfinite(looks).all(axis=1))
    if not len(candidates):
        raise InputError("no frame shows a face, so that nothing says who the person is")
    rng = np.random.default_rng(seed)
    score = np.maximum(score[candidates], 1e-9) * rng.uniform(0.95, 1, len(candidates))
    # those at least half as good as the best; more only if they cannot be spread otherwise
    least = max(4 * count, int((score >= score.max() / 2).sum()))
    kept = np.sort(np.argsort(-score, kind="stable")[:least])
    candidates, score = candidates[kept], score[kept]

    looks = looks[candidates]
    time = (candidates - candidates[0]) / max(candidates[-1] - candidates[0], 1)
    # yaw and pitch of 0.2 count as much as half of the clip
    place = np.column_stack([time, 2.5 * looks[:, 1], 2.5 * looks[:, 2]])
    chosen = [int(np.argmax(score))]
    away = np.linalg.norm(place - place[chosen[0]], axis=1)
    while len(chosen) < min(count, len(candidates)):
        worth = score * away
        worth[chosen] = -1
        chosen.append(int(np.argmax(worth)))
        away = np.minimum(away, np.linalg.norm(place - place[chosen[-1]], axis=1))
    return candidates[np.resize(chosen, count)]


def as_embeddings(array: np.ndarray, where: str) -> Float[np.ndarray, "n 512"]:
    """Embeddings as UnAvgLip stores them, (n, 512) or (1, n, 512), as (n, 512) in float32.

    Raises:
      InputError: they have another shape, or are not finite. The message begins with `where`.
    """
    array = np.asarray(array)
    if array.ndim == 3 and len(array) == 1:
        array = array[0]
    if array.ndim != 2 or array.shape[1] != WIDTH or not len(array):
        raise InputError(
            f"{where}: face embeddings of the shape {array.shape}; they must be (n, {WIDTH}) or "
            f"(1, n, {WIDTH})"
        )
    if not np.issubdtype(array.dtype, np.number) or not np.isfinite(array).all():
        raise InputError(f"{where}: the face embeddings are not all finite numbers")
    return array.astype(np.float32)


def read_embeddings(path: str | Path) -> Float[np.ndarray, "n 512"]:
    """Face embeddings from a `.npy` file, or the only array of an `.npz` file.

    Raises:
      InputError: the file is missing or holds something else.
    """
    path = Path(path)
    if path.suffix not in (".npy", ".npz"):
        raise InputError(f"{path}: face embeddings are read from .npy and .npz files")
    if not path.is_file():
        raise InputError(f"{path}: no such file; give face embeddings of the shape (n, {WIDTH})")
    try:
        found = np.load(path, allow_pickle=False)
        if path.suffix == ".npz":
            with found as arrays:
                if len(arrays.files) != 1:
                    raise InputError(f"{path} holds {len(arrays.files)} arrays; it must hold one")
                found = arrays[arrays.files[0]]
    except InputError:
        raise
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} cannot be read as a numpy array ({error})") from error
    return as_embeddings(found, str(path))


class InsightFace:
    """The recogniser of an insightface pack, run by onnxruntime on the CPU. An `Embedder`.

    The packs that insightface publishes (buffalo_l, antelopev2) are for research that is not
    commercial.

    Args:
      folder: of the pack, with its `.onnx` files. Nothing is ever downloaded.

    Raises:
      InputError: the folder or the recogniser in it is missing, or onnxruntime is.
    """

    def __init__(self, folder: str | Path):
        self.file, self.session = recogniser(Path(folder))
        self.input = self.session.get_inputs()[0].name
        self.normalises = normalises_itself(self.file)

    def __call__(self, faces: Float[np.ndarray, "n 112 112 3"]) -> Float[np.ndarray, "n 512"]:
        """Embeddings as the network gives them, of any length."""
        faces = np.asarray(faces, np.float32).transpose(0, 3, 1, 2)
        if self.normalises:
            faces = faces * 127.5 + 127.5
        return np.asarray(self.session.run(None, {self.input: faces})[0], np.float32)


def recogniser(folder: Path):
    """The `.onnx` file in a pack that takes pictures of 112x112, and its session."""
    try:
        import onnxruntime
    except ImportError as error:
        raise InputError(
            f"{folder}: insightface packs need onnxruntime; install unavglip-jax[faces]"
        ) from error
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give that of an insightface pack (buffalo_l)")
    files = sorted(folder.glob("*.onnx"))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # the packs' graphs warn about their initializers
    for file in sorted(files, key=lambda file: not file.name.startswith(KNOWN)):
        try:
            session = onnxruntime.InferenceSession(
                str(file), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's errors have no common class
            raise InputError(f"{file} cannot be loaded ({' '.join(str(error).split())})") from error
        takes = [list(given.shape[1:]) for given in session.get_inputs()]
        if takes == [[3, ALIGNED, ALIGNED]] and len(session.get_outputs()) == 1:
            return file, session
    names = ", ".join(file.name for file in files) or "no .onnx file at all"
    raise InputError(
        f"{folder}: no face recogniser, an .onnx file that takes {ALIGNED}x{ALIGNED} pixels "
        f"(w600k_r50.onnx in buffalo_l, glintr100.onnx in antelopev2); it has {names}"
    )


def normalises_itself(file: Path) -> bool:
    """Whether a graph begins with its own (x - 127.5) / 127.5, as old exports from MXNet do.

    insightface looks for a subtraction and a multiplication among the first eight nodes.
    """
    operations = []
    with file.open("rb") as stream:
        for number, start, end in fields(stream, 0, file.stat().st_size):
            if number != 7:  # ModelProto.graph
                continue
            for inner, begin, stop in fields(stream, start, end):
                if inner != 1 or len(operations) == 8:  # GraphProto.node
                    break
                for item, first, last in fields(stream, begin, stop):
                    if item == 4:  # NodeProto.op_type
                        stream.seek(first)
                        operations.append(stream.read(last - first))
            break
    return b"Sub" in operations and b"Mul" in operations


def fields(stream, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """The fields of a protobuf message in a file: number, and where the content begins and ends."""

    def varint() -> int:
        value = shift = 0
        while True:
            byte = stream.read(1)
            if not byte:
                raise InputError("an .onnx file ends too early; fetch it again")
            value |= (byte[0] & 127) << shift
            shift += 7
            if byte[0] < 128:
                return value

    while start < end:
        stream.seek(start)
        key = varint()
        if key & 7 == 2:
            length = varint()
            start = stream.tell()
            yield key >> 3, start, start + length
            start += length
        elif key & 7 == 0:
            varint()
            start = stream.tell()
        else:
            start = stream.tell() + {1: 8, 5: 4}.get(key & 7, end)
