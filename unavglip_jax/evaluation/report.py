"""What was measured, to read: `results.json`, `results.csv` and `report.html`, a file that needs no other.

Pictures are decoded for the few clips that are shown.
"""

import base64
import html
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float, Int

from unavglip_jax import __version__
from unavglip_jax.config import InputError
from unavglip_jax.evaluation import behaviour, figures, measure
from unavglip_jax.evaluation.figures import GROUPS, METRICS, Row
from unavglip_jax.evaluation.measure import Frame, Pair
from unavglip_jax.evaluation.tasks import EvaluateSettings, EvaluateTask
from unavglip_jax.faces.crop import runs

SHOWN = 3  # clips that are drawn, and best and worst moments
STRIP, STRIP_SECONDS = 7, 0.5  # pictures of a filmstrip, and what it spans
STRIP_SIDE, STILL_SIDE = 128, 256  # pixels
MARK = (230, 60, 40)  # colour of the frame around a moment
LISTED = 20  # clips named one by one in a warning
POINTS = 600  # of a plotted line
LABELS = {metric.key: metric.label for metric in METRICS}
# Of the table of clips.
COLUMNS = (
    "psnr", "ssim", "mouth_ssim", "lpips", "csim", "lse_c", "lse_d", "lse_offset", "stable_cosine",
    "gap_correlation", "gap_lag", "lmd_mouth", "leak_source", "steadiness", "passed_through",
)  # fmt: skip
# Of the plots over time: series and how they are called.
PANELS = {
    "PSNR, dB": {"psnr": "picture", "mouth_psnr": "mouth"},
    "SSIM": {"ssim": "picture", "mouth_ssim": "mouth"},
    "LPIPS": {"lpips": "picture"},
    "Gap between the lips, in eye distances": {
        "gap": "generated", "true_gap": "ground truth", "known_gap": "known truth",
        "source_gap": "undubbed",
    },
    "CSIM": {"csim": "face"},
    "Confidence of SyncNet v2": {"lse_series": "window"},
    "Cosine of sound and lips": {
        "stable_series": "StableSyncNet", "wav2lip_series": "Wav2Lip's expert",
    },
    "Landmark distance, percent of the eyes' distance": {
        "lmd_mouth": "mouth", "lmd_face": "face",
    },
}  # fmt: skip
NETWORKS = ("pack", "insightface", "inception", "i3d")  # the settings that give some
COLOURS = ("#c0392b", "#1f618d", "#1e8449", "#9a7d0a")


def write(
    tasks: Mapping[str, EvaluateTask],
    paths: Mapping[str, Path],
    settings: EvaluateSettings,
    left_out: Mapping[str, str],
    unpaired: Sequence[str],
) -> dict:
    """Writes the report of clips that are all measured, and returns what is in `results.json`.

    Args:
      tasks: what was compared, by name.
      paths: the figures of each clip, as `evaluate` wrote them.
      settings: of the run.
      left_out: a sentence for each network that was not there (`networks.left_out`).
      unpaired: clips that only one of two folders has.
    """
    rows, errors = {}, {}
    for name, path in paths.items():
        record = figures.read(path)
        if record["error"]:
            errors[name] = record["error"]
        else:
            rows[name] = figures.row_of(tasks[name], path, record)
    results = figures.results_of(rows, errors, settings, left_out, unpaired)
    with figures.output(settings.output / "results.json") as partial:
        partial.write_text(json.dumps(results, indent=1))
    with figures.output(settings.output / "results.csv") as partial:
        figures.write_csv(partial, paths, rows, errors)
    with figures.output(settings.output / "report.html") as partial:
        partial.write_text(page(results, rows))
    return results


# ---- the page ----------------------------------------------------------------------------------------

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #222; max-width: 62rem; margin: 2rem auto;
       padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; } h3 { font-size: 1rem; }
table { border-collapse: collapse; } td, th { padding: .2rem .7rem; text-align: right; }
th { border-bottom: 2px solid #888; } td { border-bottom: 1px solid #ddd; white-space: nowrap; }
td:first-child, th:first-child, td.text, th.text { text-align: left; } td.text { white-space: normal; }
.wide { overflow-x: auto; } img { max-width: 100%; display: block; } .warning li { color: #8a4b00; }
figure { margin: 1rem 0; } figcaption { color: #555; } svg { max-width: 100%; height: auto; }
""".strip()


def page(results: dict, rows: Mapping[str, Row]) -> str:
    """The report as HTML: no script, nothing to load."""
    count, frames = len(rows), sum(row.record["frames"] for row in rows.values())
    compared = f"{count} clip{'s' * (count != 1)} with {frames} frames were compared"
    if results["not_measured"]:
        compared += f", {len(results['not_measured'])} could not be"
    shown = shown_clips(rows)
    parts = [
        "<h1>Generated video against ground truth</h1>",
        f"<p>{compared}; unavglip_jax {__version__}. Aligned by time, at the generated video's frame "
        "rate; intervals are 95 % by Student's t over clips.</p>",
        what_was_compared(rows, results["settings"]),
        warnings(results),
        means_table(results),
    ]
    if shown:
        parts += [filmstrips(rows), stills(shown, rows)]
        parts.append("<h2>Over time</h2>\n<p>The dashed line is at the worst moment.</p>")
        for name, why in shown.items():
            parts.append(f"<h3>{html.escape(name)}, {why}</h3>\n{plots(rows[name])}")
    parts.append(clips_table(rows))
    body = "\n".join(parts)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>Evaluation</title>\n'
        f"<style>{STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def what_was_compared(rows: Mapping[str, Row], settings: Mapping[str, str | None]) -> str:
    """Paths of the first clips, and the networks."""
    lines = []
    for name, row in list(rows.items())[:SHOWN]:
        task = row.task
        cropped = ["ground truth"] * task.gt_cropped + ["generated"] * task.generated_cropped
        paths = task.gt_video_path, task.generated_video_path, task.audio or "own track"
        lines.append([name, *map(str, paths), " and ".join(cropped) or "neither"])
    more = f"<p>and {len(rows) - SHOWN} more.</p>" if len(rows) > SHOWN else ""
    given = [f"{what} {settings[what]}" for what in NETWORKS if settings[what]]
    networks = html.escape(", ".join(given) or "none")
    head = ["clip", "ground truth", "generated", "sound", "faces cropped of"]
    return f"{table(head, lines, text=range(5))}{more}<p>Networks from: {networks}.</p>"


def warnings(results: dict) -> str:
    """What the reader must know: clips that differ or failed, metrics that are not there."""
    lines = [f"{name} was not measured: {why}" for name, why in results["not_measured"].items()]
    lines = shortened(lines, "clips that were not measured")
    if unpaired := results["unpaired"]:
        lines += [f"{len(unpaired)} clips are in one folder only: {', '.join(unpaired[:LISTED])}"]
    lines += results["left_out"]
    notes = [f"{name}: {note}" for name, found in results["notes"].items() for note in found]
    lines += shortened(notes, "remarks on clips")
    if not lines:
        return ""
    items = "".join(f"<li>{html.escape(line)}.</li>" for line in lines)
    return f'<h2>Please note</h2>\n<ul class="warning">{items}</ul>'


def shortened(lines: list[str], what: str) -> list[str]:
    """The first of many lines."""
    more = len(lines) - LISTED
    return lines[:LISTED] + ([f"{more} more {what} are in results.json"] if more > 0 else [])


def means_table(results: dict) -> str:
    """Every metric with its mean and interval."""
    arrows = {"higher": "↑", "lower": "↓", "zero": "→ 0", None: ""}
    parts = ["<h2>Means over clips</h2>"]
    for group, metrics in GROUPS.items():
        rows = []
        for metric in metrics:
            if (found := results["metrics"].get(metric.key)) is None:
                continue
            low, high = found["low"], found["high"]
            reach = f"{shown_number(low)} to {shown_number(high)}" if low is not None else "–"
            rows.append(
                [metric.label, arrows[metric.better], shown_number(found["mean"]), reach,
                 str(found["count"]), metric.meaning]
            )  # fmt: skip
        if group == "Picture":
            for key, what in (("fid", "pictures"), ("fvd", "clips of 16 frames")):
                if key in results:
                    value, count = shown_number(results[key]["value"]), results[key]["count"]
                    rows.append([key.upper(), "↓", value, "–", "", f"over {count} {what} a side"])
        if rows:
            head = ["", "better", "mean", "95 % interval", "clips", "what it is"]
            parts += [f"<h3>{group}</h3>", table(head, rows, text=[0, 5])]
    return "\n".join(parts)


def clips_table(rows: Mapping[str, Row]) -> str:
    """The main figures of each clip."""
    keys = [
        key
        for key in COLUMNS
        if any(row.record["metrics"].get(key) is not None for row in rows.values())
    ]
    lines = [
        [
            name,
            str(row.record["frames"]),
            *(shown_number(row.record["metrics"].get(k)) for k in keys),
        ]
        for name, row in rows.items()
    ]
    head = ["clip", "frames", *(LABELS[key] for key in keys)]
    return f'<h2>Each clip</h2>\n<div class="wide">{table(head, lines, text=[0])}</div>'


def table(head: Sequence[str], rows: Iterable[Sequence[str]], text: Iterable[int] = ()) -> str:
    """An HTML table of plain text; columns of `text` are aligned to the left."""
    text = set(text)
    line = lambda cells, tag: "".join(
        f"<{tag}{' class=text' if i in text else ''}>{html.escape(cell)}</{tag}>"
        for i, cell in enumerate(cells)
    )
    body = "\n".join(f"<tr>{line(row, 'td')}</tr>" for row in rows)
    return f"<table>\n<tr>{line(head, 'th')}</tr>\n{body}\n</table>"


def shown_number(value: float | None) -> str:
    """Four digits."""
    if value is None:
        return "–"
    return f"{value:.4g}".replace("-", "−")


# ---- pictures ----------------------------------------------------------------------------------------


def shown_clips(rows: Mapping[str, Row]) -> dict[str, str]:
    """The worst, the middle and the best clip, and which it is."""
    ranked = [name for name, row in rows.items() if row.by]
    ranked.sort(key=lambda name: rows[name].score)
    if len(ranked) < 2:
        return dict.fromkeys(ranked, "the only clip")
    shown = {ranked[0]: "the worst clip"}
    if len(ranked) > 2:
        shown[ranked[len(ranked) // 2]] = "a clip in the middle"
    return shown | {ranked[-1]: "the best clip"}


def filmstrips(rows: Mapping[str, Row]) -> str:
    """Filmstrips of the worst and the best moments, of different clips."""
    known = [name for name, row in rows.items() if row.by]
    parts = [
        "<h2>Worst and best moments</h2>",
        "<p>With what is before and after. Ground truth above, generated below.</p>",
    ]
    for title, sign in (("worst", 1), ("best", -1)):
        ranked = sorted(known, key=lambda name: sign * getattr(rows[name], title)[1])
        for name in ranked[:SHOWN]:
            frame, score = getattr(rows[name], title)
            at = f"{rows[name].seconds(frame):.2f} s"
            caption = f"{title}: {name} at {at}, {LABELS[rows[name].by]}: {shown_number(score)}"
            parts.append(figure(filmstrip, caption, rows[name], frame))
    return "\n".join(parts)


def stills(shown: Mapping[str, str], rows: Mapping[str, Row]) -> str:
    """The worst moments of some clips side by side."""
    parts = [
        "<h2>Side by side</h2>",
        "<p>Ground truth, generated, and four times their difference.</p>",
    ]
    for name, why in shown.items():
        frame = rows[name].worst[0]
        caption = f"{name}, {why}, at its worst moment, {rows[name].seconds(frame):.2f} s"
        parts.append(figure(side_by_side, caption, rows[name], frame))
    return "\n".join(parts)


def figure(draw: Callable[..., Frame], caption: str, row: Row, frame: int) -> str:
    """A picture with its caption; a sentence where the videos are not to be read any more."""
    boxes = np.array(figures.read(row.path)["boxes"], np.int32)
    try:
        pair = measure.open_pair(row.task)._replace(count=len(boxes))
        image = draw(pair, boxes, row.task, frame)
    except InputError as error:
        return f"<p>{html.escape(f'{caption}: no picture, {error}')}.</p>"
    encoded = base64.b64encode(cv2.imencode(".png", image[..., ::-1])[1].tobytes()).decode()
    text, (height, width) = html.escape(caption), image.shape[:2]
    return (
        f'<figure><img alt="{text}" src="data:image/png;base64,{encoded}" width="{width}" '
        f'height="{height}"><figcaption>{text}</figcaption></figure>'
    )


def filmstrip(pair: Pair, boxes: Int[np.ndarray, "F 2 4"], task: EvaluateTask, frame: int) -> Frame:
    """Pairs of pictures around a frame, which is marked; grey where there is no face."""
    step = max(1, round(float(pair.made.fps) * STRIP_SECONDS / STRIP))
    after = (pair.count - 1 - frame) // step
    before = min(frame // step, max(STRIP // 2, STRIP - 1 - after))
    first = frame - before * step
    wanted = range(first, pair.count, step)[:STRIP]
    columns = []
    with closing(measure.pictures(pair, boxes, task, first, wanted[-1] + 1)) as pictures:
        for i, both in enumerate(pictures, first):
            if i in wanted:
                both = both or [np.full((STRIP_SIDE, STRIP_SIDE, 3), 128, np.uint8)] * 2
                column = np.concatenate([of_height(x, STRIP_SIDE) for x in both])
                if i == frame:
                    height, width = column.shape[:2]
                    cv2.rectangle(column, (1, 1), (width - 2, height - 2), MARK, 3)
                columns.append(column)
    return np.concatenate(columns, axis=1)


def side_by_side(
    pair: Pair, boxes: Int[np.ndarray, "F 2 4"], task: EvaluateTask, frame: int
) -> Frame:
    """Ground truth, generated and difference of a frame."""
    true, made = next(measure.pictures(pair, boxes, task, frame, frame + 1))
    apart = np.clip(4 * np.abs(true.astype(np.int16) - made), 0, 255).astype(np.uint8)
    return np.concatenate([of_height(x, STILL_SIDE) for x in (true, made, apart)], axis=1)


def of_height(image: Frame, height: int) -> Frame:
    """A picture scaled to a height."""
    width = max(1, round(image.shape[1] * height / image.shape[0]))
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)


def plots(row: Row) -> str:
    """The series of a clip over time, one panel below the other."""
    series, panels = figures.read(row.path)["series"], []
    for title, names in PANELS.items():
        lines = {
            label: np.array(series[key], np.float64)
            for key, label in names.items()
            if key in series and any(value is not None for value in series[key])
        }
        if lines:
            length, mark = row.seconds(row.record["frames"]), row.seconds(row.worst[0])
            panels.append(panel(title, lines, length, mark))
    return "\n".join(panels)


def panel(
    title: str, lines: Mapping[str, Float[np.ndarray, " F"]], seconds: float, mark: float
) -> str:
    """A plot as SVG: lines broken where nothing is known; a dashed line at the time `mark`."""
    width, height, left, top = 760, 110, 76, 22
    everything = np.concatenate(list(lines.values()))
    low, high = float(np.nanmin(everything)), float(np.nanmax(everything))
    room = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    x = lambda time: left + time / seconds * (width - left - 10)
    y = lambda value: top + (high + room - value) / (high - low + 2 * room) * height
    text = lambda at, down, words, more="": (
        f'<text x="{at:.1f}" y="{down:.1f}" font-size="12" {more}>{html.escape(words)}</text>'
    )
    right = 'text-anchor="end" fill="#555"'
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height + top + 20}" '
        f'width="{width}" height="{height + top + 20}" font-family="system-ui, sans-serif">',
        text(left, 14, title),
        f'<rect x="{left}" y="{top}" width="{width - left - 10}" height="{height}" fill="none" '
        'stroke="#bbb"/>',
        text(left, top + height + 14, "0 s", 'fill="#555"'),
        text(width - 10, top + height + 14, f"{seconds:.2f} s", right),
        f'<path d="M{x(mark):.1f} {top}v{height}" stroke="#999" stroke-dasharray="4 3"/>',
    ]
    out += [text(left - 5, y(end) + 4, shown_number(end), right) for end in {low, high}]
    for number, (label, values) in enumerate(lines.items()):
        colour = COLOURS[number]
        values, times = thinned(values, seconds)
        for run in runs(np.isfinite(values)):
            points = [
                f"{x(t):.1f},{y(v):.1f}" for t, v in zip(times[run], values[run], strict=True)
            ]
            points *= 1 + (len(points) == 1)  # a line of one point would not be seen
            out.append(
                f'<polyline points="{" ".join(points)}" fill="none" stroke="{colour}" '
                'stroke-width="1.5" stroke-linecap="round"/>'
            )
        out.append(text(width - 10 - 110 * number, 14, label, f'text-anchor="end" fill="{colour}"'))
    return "\n".join([*out, "</svg>"])


def thinned(
    values: Float[np.ndarray, " F"], seconds: float
) -> tuple[Float[np.ndarray, " P"], Float[np.ndarray, " P"]]:
    """At most `POINTS` values, means of neighbours, and their times."""
    parts = np.array_split(np.arange(len(values)), min(POINTS, len(values)))
    means = np.array([behaviour.mean(values[part]) for part in parts])
    return means, np.array([part.mean() for part in parts]) * seconds / len(values)
