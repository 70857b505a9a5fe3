"""The demonstration and its pack, and that README says what works."""

import functools
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import tyro

import tiny
from unavglip_jax import assets, cli, demo
from unavglip_jax.config import InputError
from unavglip_jax.data.speech import PAUSE, Phoneme, Speech
from unavglip_jax.dubbing import tasks
from unavglip_jax.media import video
from unavglip_jax.training import demo as train_demo
from unavglip_jax.training import settings as training_settings

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "pack"
    tiny.write_pack(folder, crop="musetalk_v15", mask="mouth_and_jaw")
    return folder


@pytest.fixture
def demo_pack(pack, monkeypatch):
    """The tiny pack, as if it were the one inside the package."""
    monkeypatch.setattr(assets, "DEMO", pack)


def run(*arguments, monkeypatch):
    """`unavglip` with these arguments; errors are not turned into exit codes."""
    monkeypatch.setattr("sys.argv", ["unavglip", *map(str, arguments)])
    cli.app.cli(prog="unavglip", config=cli.CLI)


# ---- the demonstration -------------------------------------------------------------------------------


def test_the_demonstration(demo_pack, monkeypatch, tmp_path, capsys):
    short = functools.partial(demo.make, seconds=1, size=160)
    monkeypatch.setattr(demo, "make", short)
    run("demo", "--output", tmp_path / "demo", "--quiet", monkeypatch=monkeypatch)
    said = capsys.readouterr().out
    assert re.search(r"correlation -?[\d.]+ at a lag of -?\d+ frames", said)
    assert re.search(r"25 frames in [\d.]+ s, [\d.]+ a second", said) and "encode" in said
    made = {path.name for path in (tmp_path / "demo").iterdir()}
    assert made == set(demo.FILES)
    dubbed = video.describe(tmp_path / "demo/dubbed.mp4")
    assert (dubbed.frames, dubbed.fps, dubbed.width) == (25, demo.FPS, 160)
    assert video.describe(tmp_path / "demo/dubbed_side_by_side.mp4").width == 320
    sound = video.read_audio(tmp_path / "demo/sentence.wav")
    assert len(sound) == 16000
    assert not np.allclose(
        sound, video.read_audio(tmp_path / "demo/astronaut.mp4")[:16000], atol=0.02
    )


def test_lips_of_the_source_are_measured_as_they_were_drawn(tmp_path):
    """The measure of the dubbed lips, on lips whose truth is known."""
    said = demo.lasting(demo.speak(demo.SAID, demo.VOICE, demo.WORDS_A_MINUTE), 2)
    demo.draw_astronaut(tmp_path / "a.mp4", said, 256, quiet=True)
    gaps = demo.lip_gaps(tmp_path / "a.mp4")
    found = demo.gap_correlation(gaps, demo.opening(said, len(gaps)))
    assert found.lag == 0 and found.best > 0.9


def test_a_speech_lasts_as_long_as_asked():
    speech = Speech(np.ones(1000, np.float32), 1000, (Phoneme(0, 0.4, "a"), Phoneme(0.4, 1, PAUSE)))
    longer, shorter = demo.lasting(speech, 1.5), demo.lasting(speech, 0.3)
    assert longer.samples.sum() == 1000 and len(longer.samples) == 1500
    assert longer.phonemes == (Phoneme(0, 0.4, "a"), Phoneme(0.4, 1.5, PAUSE))
    assert len(shorter.samples) == 300 and shorter.phonemes == (Phoneme(0, 0.3, "a"),)


@pytest.mark.parametrize("changes", [{"seconds": 0.5}, {"seconds": float("nan")}, {"size": 65}])
def test_what_cannot_be_shown(changes, tmp_path):
    with pytest.raises(InputError, match="give"):
        demo.make(tmp_path / "demo", **changes)
    assert not (tmp_path / "demo").exists()


# ---- its pack ----------------------------------------------------------------------------------------


def test_dub_without_a_pack_says_so_and_works(demo_pack, monkeypatch, tmp_path, capsys):
    tiny.talking_photo(tmp_path / "in.mp4", seconds=0.4)
    demo.write_wav(tmp_path / "a.wav", Speech(tiny.speech(0.4), 16000, ()))
    files = ("--video", tmp_path / "in.mp4", "--audio", tmp_path / "a.wav")
    output = ("--output", tmp_path / "out.mp4", "--quiet")
    run("dub", *files, *output, monkeypatch=monkeypatch)
    (line,) = [x for x in capsys.readouterr().err.splitlines() if "demonstration" in x]
    assert "drawn heads" in line and "`unavglip assets fetch" in line
    assert video.describe(tmp_path / "out.mp4").frames == 10


def test_a_task_file_needs_no_settings(demo_pack, monkeypatch, tmp_path, capsys):
    (tmp_path / "tasks.yaml").write_text("task_0: {video_path: a.mp4, audio_path: a.wav}")
    monkeypatch.setattr(cli.assets, "read_pack", lambda folder: pytest.fail("loaded"))
    loaded = []
    monkeypatch.setattr("unavglip_jax.dubbing.generator.load", lambda *a: loaded.append(a))
    monkeypatch.setattr("unavglip_jax.dubbing.dub.dub", lambda *a: {"frames": 1})
    cli.infer(tmp_path / "tasks.yaml")
    assert loaded == [(assets.DEMO, "float32")]
    assert capsys.readouterr().err == cli.DEMONSTRATION + "\n"


def test_a_pack_of_ones_own_is_not_called_a_demonstration(monkeypatch, tmp_path, capsys):
    (tmp_path / "tasks.yaml").write_text(
        "settings: {pack: packs/none}\ntask_0: {video_path: a.mp4, audio_path: a.wav}"
    )
    with pytest.raises(InputError, match="packs/none is not a pack"):
        cli.infer(tmp_path / "tasks.yaml")
    assert not capsys.readouterr().err


def test_a_shrunk_pack_holds_the_rounded_weights(pack, tmp_path):
    train_demo.shrink(pack, tmp_path / "half")
    found, half = assets.read_pack(pack), assets.read_pack(tmp_path / "half")
    assert half.components.keys() == found.components.keys()
    for name in found.components:
        size = lambda folder, name=name: (folder / f"{name}.safetensors").stat().st_size
        assert size(tmp_path / "half") < 0.8 * size(pack)
        _, weights = assets.load_component(pack, name)
        _, loaded = assets.load_component(tmp_path / "half", name)
        for path, leaf in loaded.items():
            assert leaf.dtype == np.float32
            rounded = np.asarray(weights[path]).astype(np.float16).astype(np.float32)
            np.testing.assert_array_equal(leaf, rounded)


@pytest.mark.full
def test_the_demo_pack_can_be_trained_from_nothing(tmp_path):
    options = train_demo.Options(
        tmp_path, identities=6, few=4, photographs=1, speakers=4, recordings=4, scale=0.001
    )
    train_demo.main(options)
    train_demo.main(options)  # nothing is done twice
    made = assets.read_pack(tmp_path / "packs/demo")
    assert made.system == "unavglip"
    dubs = {"whisper", "vae", "identity", "unet", "adapter", "perceiver"}
    assert made.components.keys() == dubs | {"stable_syncnet"}


# ---- README ------------------------------------------------------------------------------------------


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def command_lines() -> list[list[str]]:
    """The words of every command of README's shell blocks, without variables of the environment."""
    text = "".join(blocks("sh")).replace("\\\n", " ")
    text = re.sub(r"^([A-Z_]+=\S+ +)+", "", text, flags=re.MULTILINE)
    return [words for line in text.splitlines() if (words := shlex.split(line, comments=True))]


def parsed(function, arguments: list[str]) -> dict:
    """What the function would be called with."""
    stand_in = functools.wraps(function)(lambda **given: given)
    return tyro.cli(stand_in, args=arguments, config=cli.CLI)


def command(words: list[str]):
    """The function of a subcommand, and its arguments."""
    group = cli.app
    while isinstance(group, tyro.extras.SubcommandApp):
        group, words = group._subcommands[words[0]].target, words[1:]
    return group, words


OURS = [words for words in command_lines() if words[0] in ("unavglip", "python")]


@pytest.mark.parametrize("words", OURS, ids=" ".join)
def test_commands_in_readme_are_what_they_say(words):
    if words[0] == "unavglip":
        parsed(*command(words[1:]))
        return
    given = parsed({"train.py": cli.train, "infer.py": cli.infer}[words[1]], words[2:])
    if words[1] == "train.py":
        training_settings.read(ROOT / given["config"], given["changes"])
    else:
        tasks.read_tasks(ROOT / given["config"])


def test_every_target_in_readme_exists():
    makefile = (ROOT / "Makefile").read_text()
    targets = [words[1] for words in command_lines() if words[0] == "make"]
    assert "demo" in targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_python_in_readme(pack, monkeypatch, tmp_path, capsys):
    """The example that dubs runs as it stands, beside the files that it names."""
    (example,) = [block for block in blocks("python") if "dub.dub(" in block]
    monkeypatch.chdir(tmp_path)
    for name in re.findall(r'"(packs/\w+)"', example):
        Path("packs").mkdir()
        Path(name).symlink_to(pack)
    tiny.talking_photo(Path("person.mp4"), seconds=0.4)
    for name in ("hello", "goodbye"):
        demo.write_wav(Path(f"{name}.wav"), Speech(tiny.speech(0.4), 16000, ()))
    exec(compile(example, "README.md", "exec"), {})
    assert capsys.readouterr().out.count("10 frames") == 2
    assert sorted(path.name for path in Path("dubbed").glob("*.mp4")) == [
        "goodbye.mp4",
        "hello.mp4",
    ]
