"""The figures of clips: what each is, how they are kept, and what they come to for all clips together.

The figures of the clips are read one by one, so that memory holds a row a clip.
"""

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from unavglip_jax import __version__, assets
from unavglip_jax.config import InputError
from unavglip_jax.evaluation import measure, picture
from unavglip_jax.evaluation.statistics import interval
from unavglip_jax.evaluation.tasks import EvaluateSettings, EvaluateTask


class Metric(NamedTuple):
    """A figure of a clip.

    Attributes:
      key: its name in the files.
      label: its name in the report.
      better: which way is better; None where it is neither.
      meaning: what it is, with its unit.
    """

    key: str
    label: str
    better: Literal["higher", "lower", "zero"] | None
    meaning: str


GROUPS = {
    "Picture": [
        Metric("psnr", "PSNR", "higher", f"dB; at most {measure.HIGHEST_PSNR:g}, as of equal pictures"),
        Metric("ssim", "SSIM", "higher", "Gaussian 11x11, sigma 1.5, valid windows, mean over RGB"),
        Metric("ms_ssim", "MS-SSIM", "higher", "the same over five scales; from 161 pixels a side"),
        Metric("mouth_psnr", "PSNR, mouth", "higher", "dB, in the box around the true lips"),
        Metric("mouth_ssim", "SSIM, mouth", "higher", "in the box around the true lips"),
        Metric("lpips", "LPIPS", "lower", "version 0.1 on VGG16"),
    ],
    "Identity": [
        Metric("csim", "CSIM", "higher", "cosine of the face embeddings of each pair of frames"),
        Metric("identity_distance", "Identity distance", "lower", "Euclidean, of unit embeddings"),
        Metric("csim_person", "CSIM to given person", "higher", "cosine to the given embeddings"),
    ],
    "Lip sync": [
        Metric("lse_c", "LSE-C", "higher", "confidence of SyncNet v2"),
        Metric("lse_d", "LSE-D", "lower", "distance of SyncNet v2"),
        Metric("lse_offset", "Offset, SyncNet v2", "zero", "frames at 25 a second; positive: sound early"),
        Metric("stable_cosine", "StableSyncNet", "higher", "cosine in step"),
        Metric("stable_confidence", "Confidence, StableSyncNet", "higher", "best cosine less median"),
        Metric("stable_offset", "Offset, StableSyncNet", "zero", "frames at 25 a second"),
        Metric("wav2lip_cosine", "Wav2Lip expert", "higher", "cosine in step"),
        Metric("wav2lip_confidence", "Confidence, Wav2Lip expert", "higher", "best cosine less median"),
        Metric("wav2lip_offset", "Offset, Wav2Lip expert", "zero", "frames at 25 a second"),
        Metric("gap_correlation", "Lip-gap correlation", "higher", "with the ground truth, in step"),
        Metric("gap_best", "Lip-gap correlation, best lag", "higher", "at the lag that fits best"),
        Metric("gap_lag", "Lip-gap lag", "zero", "frames by which the generated mouth is late"),
        Metric("lmd_mouth", "LMD, mouth", "lower", "percent of the distance between the eyes"),
        Metric("lmd_face", "LMD, face", "lower", "percent of the distance between the eyes"),
        Metric("lmd_mouth_pixels", "LMD, mouth, pixels", "lower", "in the face's crop at 256x256"),
        Metric("lmd_face_pixels", "LMD, face, pixels", "lower", "in the face's crop at 256x256"),
        Metric("known_gap_correlation", "Lip-gap correlation, known truth", "higher",
               "with the lips that the synthetic clip was drawn with"),
        Metric("known_gap_best", "the same at the best lag", "higher", "at the lag that fits best"),
        Metric("known_gap_lag", "Lip-gap lag, known truth", "zero", "frames; positive: late"),
        Metric("known_lmd_mouth", "LMD, mouth, known truth", "lower", "percent of the eyes' distance"),
        Metric("known_lmd_face", "LMD, face, known truth", "lower", "percent of the eyes' distance"),
    ],
    "Behaviour": [
        Metric("silent_motion", "Mouth motion in silence", "lower", "eye distances a second"),
        Metric("silent_open", "Mouth open in silence", "lower", "share of the silent frames"),
        Metric("speaking_motion", "Mouth motion in speech", None, "eye distances a second"),
        Metric("leak_source", "Leak", "zero", "correlation with the undubbed mouth, given the right one"),
        Metric("leak_driving", "Follows the recording", "higher", "correlation, given the undubbed one"),
        Metric("steadiness", "Trembling of the face", "lower", "percent of the distance between the eyes"),
        Metric("true_steadiness", "the same of the ground truth", None, "percent of the eyes' distance"),
        Metric("flicker", "Flicker of the mouth", "lower", "levels of 255"),
        Metric("true_flicker", "the same of the ground truth", None, "levels of 255"),
        Metric("passed_through", "Frames passed through", "lower", "share that was not dubbed"),
        Metric("frames_with_a_face", "Frames with a face", None, "share of the generated frames"),
    ],
}  # fmt: skip
METRICS = [metric for group in GROUPS.values() for metric in group]


class Row(NamedTuple):
    """What is kept of a clip while the report is made.

    Attributes:
      task: what was compared.
      path: of its figures.
      record: its figures without series and boxes.
      by: the series that moments are chosen by, of the mouth if there is one; "" if there is none.
      score: its mean.
      worst: frame number and score of the worst moment.
      best: likewise.
    """

    task: EvaluateTask
    path: Path
    record: dict
    by: str
    score: float
    worst: tuple[int, float]
    best: tuple[int, float]

    def seconds(self, frame: int) -> float:
        """The time of a frame."""
        return float(frame / Fraction(self.record["fps"]))


# ---- of a clip ----------------------------------------------------------------------------------------


def read(path: Path) -> dict:
    """The figures of a clip.

    Raises:
      FileNotFoundError: there are none.
      InputError: they are damaged.
    """
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"{path} is damaged ({error}); remove it") from error


@contextmanager
def output(path: Path) -> Iterator[Path]:
    """A path that takes the name of `path` when the block ends well; a full disk is one sentence."""
    try:
        with assets.replacement(path) as partial:
            yield partial
    except OSError as error:
        raise InputError(
            f"{path} could not be written ({error.strerror}); free some space or choose another --output"
        ) from error


def number(value: float) -> float | None:
    """A number as JSON has it, with six digits."""
    return float(f"{value:.6g}") if np.isfinite(value) else None


def row_of(task: EvaluateTask, path: Path, record: dict) -> Row:
    """A clip's figures without its series, and its best and worst moments."""
    series = record["series"]
    record = {key: record[key] for key in record.keys() - {"series", "boxes"}}
    for name in ("mouth_ssim", "ssim", "psnr"):
        values = np.array(series[name], np.float64)
        if np.isfinite(values).any():
            worst, best = int(np.nanargmin(values)), int(np.nanargmax(values))
            moments = (worst, float(values[worst])), (best, float(values[best]))
            return Row(task, path, record, name, float(np.nanmean(values)), *moments)
    return Row(task, path, record, "", np.nan, (0, np.nan), (0, np.nan))


# ---- of all clips -------------------------------------------------------------------------------------


def results_of(
    rows: Mapping[str, Row],
    errors: Mapping[str, str],
    settings: EvaluateSettings,
    left_out: Mapping[str, str],
    unpaired: Sequence[str],
) -> dict:
    """All figures in plain data; the first three groups are called as UnAvgLip calls them."""
    means = {}
    for metric in METRICS:
        values = [row.record["metrics"].get(metric.key) for row in rows.values()]
        found = interval([np.nan if value is None else value for value in values])
        if found.count:
            ends = {"low": number(found.low), "high": number(found.high)}
            means[metric.key] = {"mean": number(found.mean), **ends, "count": found.count}
    mean = lambda key: means[key]["mean"] if key in means else None
    people = [row.record["published"]["identity_consistency"] for row in rows.values()]
    people = [one for one in people if one]
    who = people and {key: number(np.mean([one[key] for one in people])) for key in people[0]}
    if people:
        who["num_valid_pairs"] = sum(one["num_valid_pairs"] for one in people)
    lip_sync = {key: mean(key) for key in ("lse_c", "lse_d", "lse_offset")}
    return {
        "visual_quality": {"avg_ssim_score": mean("ssim"), "avg_psnr_score": mean("psnr")},
        "identity_consistency": who or None,
        "lip_sync": lip_sync if "lse_c" in means else None,
        "version": __version__,
        "settings": settings.model_dump(mode="json"),
        "clips": len(rows),
        "not_measured": dict(errors),
        "left_out": list(left_out.values()),
        "unpaired": list(unpaired),
        "notes": {name: row.record["notes"] for name, row in rows.items() if row.record["notes"]},
        "metrics": means,
        **crowd_distances([row.path for row in rows.values() if row.record["features"]]),
        "per_clip": {name: row.record["metrics"] for name, row in rows.items()},
    }


def crowd_distances(paths: Sequence[Path]) -> dict[str, dict]:
    """FID and FVD of all clips together, from the features beside their figures."""
    found = {}
    for kind, title in (("inception", "fid"), ("i3d", "fvd")):
        sides = {}
        for path in paths:
            with np.load(path.with_suffix(".npz"), allow_pickle=False) as features:
                for side in ("true", "made"):
                    if f"{kind}_{side}" in features.files:
                        some = picture.moments(features[f"{kind}_{side}"])
                        sides[side] = picture.merged(sides[side], some) if side in sides else some
        if sides and sides["true"].count > 1:
            true, made = sides["true"], sides["made"]
            covariances = picture.covariance(true), picture.covariance(made)
            value = picture.frechet(true.mean, covariances[0], made.mean, covariances[1])
            found[title] = {"value": value, "count": true.count}
    return found


def write_csv(
    path: Path, names: Iterable[str], rows: Mapping[str, Row], errors: Mapping[str, str]
) -> None:
    """A line a clip."""
    keys = [metric.key for metric in METRICS]
    with path.open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["clip", "error", "frames", "fps", *keys])
        for name in names:
            if name in errors:
                out.writerow([name, errors[name], "", "", *[""] * len(keys)])
                continue
            record = rows[name].record
            figures = [record["metrics"].get(key) for key in keys]
            figures = ["" if value is None else value for value in figures]
            out.writerow([name, "", record["frames"], record["fps"], *figures])
