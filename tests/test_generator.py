"""The whole step against PyTorch and diffusers on the same pack, and what it must not depend on."""

from fractions import Fraction

import jax
import numpy as np
import pytest
import torch

import tiny
from comparing import relative_error
from unavglip_jax.dubbing import generator as dub
from unavglip_jax.dubbing import hearing
from unavglip_jax.evaluation import torch_judge
from unavglip_jax.media import audio

FRAMES, GUIDE_SCALE = 5, 0.6


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The generator for one person, her tokens, and the pack."""
    folder = tmp_path_factory.mktemp("packs") / "tiny"
    tiny.write_pack(folder)
    general = dub.load(folder)
    embeddings = np.random.default_rng(0).standard_normal((3, tiny.EMBEDDING), np.float32)
    tokens = general.perceiver(embeddings[None])
    return dub.with_identity(general, embeddings), np.asarray(tokens), folder


@pytest.fixture(scope="module")
def task(made):
    """Crops, references, sound and windows of a few frames."""
    random = np.random.default_rng(1)
    crops, references = random.integers(0, 256, (2, FRAMES, tiny.SIZE, tiny.SIZE, 3)).astype("u1")
    features = hearing.encode(made[0].hearing, tiny.speech(1.0))
    indices = audio.window_indices(FRAMES, Fraction(25), len(features), "v10")
    return crops, references, features, indices


def frames(task):
    crops, references, _, indices = task
    hidden = dub.lower_half(tiny.SIZE)
    inputs = zip(crops, references, [hidden] * FRAMES, indices, strict=True)
    return [dub.Frame(parts, i) for i, parts in enumerate(inputs)]


def run(generator, task, batch_size, devices=None, guide_scale=GUIDE_SCALE):
    step = dub.make_step(generator, devices)
    out = dub.generate(step, frames(task), batch_size, task[2].__getitem__, guide_scale)
    crops, order = zip(*out, strict=True)
    assert list(order) == list(range(FRAMES))
    return np.stack(crops)


def test_whole_step_equals_torch_within_one_level(made, task):
    generator, tokens, folder = made
    inputs, tokens = frames(task), torch.tensor(tokens)
    expected = torch_judge.torch_outputs(folder, inputs, task[2], tokens, GUIDE_SCALE).crops
    ours = run(generator, task, FRAMES)
    assert np.abs(ours.astype(int) - expected.astype(int)).max() <= 1
    assert expected.std() > 20  # a picture, not a constant


def test_result_does_not_depend_on_the_batch_size_or_the_devices(made, task):
    whole = run(made[0], task, FRAMES)
    for batch_size, devices in ((1, None), (2, None), (4, None), (4, jax.devices()[:4])):
        other = run(made[0], task, batch_size, devices)
        assert np.abs(whole.astype(int) - other.astype(int)).max() <= 1


def test_guide_scale_acts(made, task):
    assert (run(made[0], task, FRAMES) != run(made[0], task, FRAMES, guide_scale=0.0)).any()


def test_bfloat16_stays_near(made, task):
    folder, embeddings = (
        made[2],
        np.random.default_rng(0).standard_normal((3, tiny.EMBEDDING), np.float32),
    )
    half = dub.with_identity(dub.load(folder, dtype="bfloat16"), embeddings)
    difference = np.abs(run(half, task, FRAMES).astype(int) - run(made[0], task, FRAMES))
    print(
        f"bfloat16 against float32: mean {difference.mean():.2f}, largest {difference.max()} of 255"
    )
    assert difference.mean() < 3


def test_hidden_pixels_are_not_seen(made, task):
    crops, *rest = task
    spoilt = crops.copy()
    spoilt[:, tiny.SIZE // 2 :] = 77
    np.testing.assert_array_equal(run(made[0], task, 4), run(made[0], (spoilt, *rest), 4))


def test_features_join_over_every_thirtieth_second(made):
    """Cross-faded segments are the published ones away from the joints, and smooth at them."""
    samples = tiny.speech(64.0)
    ours = hearing.encode(made[0].hearing, samples)
    published = hearing.encode(made[0].hearing, samples, overlap=False)
    assert len(ours) == len(published) == 3200
    assert relative_error(ours[:1200], published[:1200]) < 1e-5
    jump = lambda x, at: np.abs(np.diff(x[at - 20 : at + 20], axis=0)).max()
    assert jump(ours, 1500) < jump(published, 1500)
    fade = hearing.fade
    np.testing.assert_allclose(fade(9, True, False, 4)[:4] + fade(9, False, True, 4)[5:], 1)
    # The last segment, alone: no other one reaches behind the joint.
    late = audio.whisper_log_mel(samples)[2 * 2500 :]
    late = np.pad(late, [(0, 3000 - len(late)), (0, 0)])
    alone = np.asarray(made[0].hearing.whisper(late[None], "v10"))[0]
    np.testing.assert_allclose(ours[2750:], alone[250:700], atol=1e-5)


def test_rows_are_looked_up_in_a_stream():
    rows = np.arange(1, 26, dtype=np.float32).reshape(25, 1, 1)
    taken = []

    def blocks():
        for start in range(0, 25, 10):
            taken.append(start)
            yield rows[start : start + 10]

    find = hearing.look_up(blocks(), 25)
    for wanted, needed in (
        ([0, 3, 25], 1),
        ([3, 9], 1),
        ([8, 12], 2),
        ([19, 24, 25], 3),
        ([25], 3),
    ):
        expected = [0 if i == 25 else i + 1 for i in wanted]
        np.testing.assert_array_equal(find(np.array(wanted))[:, 0, 0], expected)
        assert len(taken) == needed
    skipping = hearing.look_up(blocks(), 25)
    np.testing.assert_array_equal(skipping(np.array([23]))[:, 0, 0], [24])


def test_frames_that_pass_through_keep_their_place(made, task):
    given = frames(task)
    mixed = [dub.Frame(None, "a")] * 9 + given[:3] + [dub.Frame(None, "b")] * 2 + given[3:]
    step = dub.make_step(made[0])
    out = list(dub.generate(step, mixed, 2, task[2].__getitem__, GUIDE_SCALE))
    assert [context for _, context in out] == ["a"] * 9 + [0, 1, 2] + ["b"] * 2 + [3, 4]
    crops = [crop for crop, _ in out]
    assert all((crop is None) == isinstance(context, str) for crop, context in out)
    np.testing.assert_array_equal(
        np.stack([crop for crop in crops if crop is not None]), run(made[0], task, 2)
    )
    assert list(dub.generate(step, [], 2, task[2].__getitem__, GUIDE_SCALE)) == []


def test_silence_rests_and_speech_does_not(made):
    samples = np.concatenate([tiny.speech(2.0), 1e-4 * tiny.speech(2.0), tiny.speech(1.0)])
    features = hearing.encode(made[0].hearing, samples)
    rested = np.concatenate(list(hearing.listen(made[0].hearing, samples, rest=True)[0]))
    np.testing.assert_array_equal(rested[:98], features[:98])
    np.testing.assert_array_equal(rested[202:], features[202:])
    assert np.ptp(rested[110:190], axis=0).max() < 1e-5 < np.ptp(features[110:190], axis=0).max()


def test_short_recordings_are_encoded_alike(made):
    samples = tiny.speech(3.0)
    ours = hearing.encode(made[0].hearing, samples)
    published = hearing.encode(made[0].hearing, samples, overlap=False)
    assert len(ours) == 150
    np.testing.assert_array_equal(ours, published)
