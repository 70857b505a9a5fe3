"""Speech whose phonemes are known to the millisecond: espeak-ng, and sentences for it to say.

espeak-ng is a formant synthesiser that reports when each phoneme begins in the samples it gives out. Its
library and data come in the wheel espeakng-loader.
"""

import _ctypes
import ctypes
import threading
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from unavglip_jax.config import InputError

ACCENTS = ("en-us", "en-us-nyc", "en-gb-x-rp", "en-gb-scotland")
# espeak-ng's variants of a voice that sound like a person in a quiet room: no echo, robot or whisper.
MEN = ("m1", "m3", "m4", "m5", "m6", "m7", "m8", "Alex", "Andy", "Gene", "paul", "quincy")
WOMEN = ("f1", "f2", "f3", "f5", "Andrea", "Annie", "anika", "belinda", "linda", "steph")
VOICES = tuple(f"{accent}+{variant}" for accent in ACCENTS for variant in MEN + WOMEN)
HELD_OUT = ("en-us+m2", "en-us+f4")  # voices for measuring; nothing is trained on them
SLOWEST, FASTEST = 80, 400  # words a minute

PAUSE = "_"  # symbol of silence
STRESS = "ˈ"  # the mark of main stress, in front of a vowel's symbol
CLOSED = "\u031a"  # IPA's "not released", behind a stop's symbol: its closure
VOICELESS = ("p", "t", "k", "tʃ")
STOPS = (*VOICELESS, "b", "d", "ɡ", "dʒ")
LEAD = 0.12  # seconds of silence put before the speech, in which the lips close for a first p

# A stop's closure is silent: weaker than this share of the loudest sound in the time it may last.
CLOSURE_LEVEL = 0.18
LONGEST_CLOSURE = 0.12  # seconds
SILENT_CLOSURE, VOICED_CLOSURE = 0.03, 0.06  # seconds, the least that a stop is closed, given room
LEVEL_STEP = 0.0025  # seconds between looks at the sound

# Of espeak-ng's speak_lib.h.
SYNCHRONOUS = 2
PHONEME_EVENTS, IN_IPA, DO_NOT_EXIT = 1, 2, 0x8000
PHONEME_EVENT, NO_MORE_EVENTS = 7, 0
RATE_PARAMETER, PITCH_PARAMETER = 1, 3
CHARACTERS, UTF8 = 1, 1


class Phoneme(NamedTuple):
    """One sound of a recording.

    Attributes:
      start: seconds.
      stop: seconds; where the next one starts.
      symbol: IPA as espeak-ng writes it, stress mark included, or `PAUSE`. A stop is two, as in the TIMIT
        corpus: its closure ("p" and `CLOSED`), then its release ("p").
    """

    start: float
    stop: float
    symbol: str


class Speech(NamedTuple):
    """A recording and what is said in it.

    Attributes:
      samples: (N,) float32, mono, in [-1, 1].
      rate: samples a second.
      phonemes: in order, without gaps, from 0 to the end.
    """

    samples: Float[np.ndarray, " N"]
    rate: int
    phonemes: tuple[Phoneme, ...]


class Name(ctypes.Union):
    """What an event is about; of a phoneme event, `text` without an end if all eight bytes are used."""

    _fields_ = [
        ("number", ctypes.c_int),
        ("name", ctypes.c_char_p),
        ("text", ctypes.c_char * 8),
    ]


class Event(ctypes.Structure):
    """`espeak_EVENT`."""

    _fields_ = [
        ("type", ctypes.c_int),
        ("message", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", Name),
    ]


Callback = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(Event)
)
ONE_AT_A_TIME = threading.Lock()  # the library has one global state


def speak(text: str, voice: str, words_a_minute: int = 170, pitch: int = 50) -> Speech:
    """Says an English text; the same arguments give the same samples, whatever was said before.

    Args:
      text: what to say.
      voice: one of `VOICES` or `HELD_OUT`.
      words_a_minute: 80 to 400.
      pitch: 0 to 99, around the voice's own at 50.

    Raises:
      InputError: an argument is out of range, there is nothing to say, or espeak-ng is not installed.
    """
    if voice not in VOICES + HELD_OUT:
        raise InputError(f"there is no voice {voice!r}; take one such as {', '.join(VOICES[:3])}")
    if not SLOWEST <= words_a_minute <= FASTEST:
        raise InputError(
            f"{words_a_minute} words a minute cannot be spoken; give {SLOWEST} to {FASTEST}"
        )
    if not 0 <= pitch <= 99:
        raise InputError(f"pitch {pitch} is out of range; give 0 to 99")
    samples, rate, events = synthesised(text, voice, words_a_minute, pitch)
    if not any(symbol for _, symbol in events):
        raise InputError(f"nothing in the text {text!r} can be spoken; give words")
    lead = round(LEAD * rate)
    samples = np.concatenate([np.zeros(lead, np.int16), samples]).astype(np.float32) / 32768
    events = [(0, "")] + [(lead + sample, symbol) for sample, symbol in events]
    return Speech(samples, rate, with_closures(samples, rate, segments(events, len(samples))))


def synthesised(
    text: str, voice: str, words_a_minute: int, pitch: int
) -> tuple[np.ndarray, int, list[tuple[int, str]]]:
    """Samples (int16), their rate, and (sample, symbol) of each phoneme event.

    The library is loaded for each text anew, which takes half a millisecond: it keeps the state of the
    voice's flutter from one text to the next, beyond its own initialisation, and what it says would depend
    on what it said before.
    """
    library_path, data_path = installed()
    blocks, events, failures = [], [], []

    def receive(samples, count, event) -> int:
        try:
            if samples and count > 0:
                blocks.append(np.ctypeslib.as_array(samples, (count,)).copy())
            i = 0
            while event[i].type != NO_MORE_EVENTS:
                if event[i].type == PHONEME_EVENT:
                    symbol = event[i].id.text.decode("utf-8", "ignore").strip()
                    events.append((event[i].sample, symbol))
                i += 1
        except Exception as error:  # C cannot pass it on
            failures.append(error)
        return int(bool(failures))

    callback = Callback(receive)  # must live as long as the library may call it
    with ONE_AT_A_TIME:
        library = ctypes.CDLL(library_path)
        try:
            options = PHONEME_EVENTS | IN_IPA | DO_NOT_EXIT
            rate = library.espeak_Initialize(SYNCHRONOUS, 0, data_path.encode(), options)
            if rate <= 0:
                raise InputError(
                    f"espeak-ng cannot use its data in {data_path}; install espeakng-loader again"
                )
            library.espeak_ng_SetRandSeed.argtypes = [ctypes.c_long]
            library.espeak_ng_SetRandSeed(1)  # it takes the time of day otherwise
            library.espeak_SetSynthCallback(callback)
            if library.espeak_SetVoiceByName(voice.encode()):
                raise InputError(f"espeak-ng has no voice {voice!r}; install espeakng-loader again")
            library.espeak_SetParameter(RATE_PARAMETER, words_a_minute, 0)
            library.espeak_SetParameter(PITCH_PARAMETER, pitch, 0)
            given = text.encode() + b"\0"
            library.espeak_Synth.argtypes = [
                ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint, ctypes.c_int,
                ctypes.c_uint, ctypes.c_uint, ctypes.c_void_p, ctypes.c_void_p,
            ]  # fmt: skip
            library.espeak_Synth(given, len(given), 0, CHARACTERS, 0, UTF8, None, None)
            library.espeak_Synchronize()
            library.espeak_Terminate()
        finally:
            _ctypes.dlclose(library._handle)
    if failures:
        raise failures[0]
    return np.concatenate(blocks or [np.zeros(0, np.int16)]), rate, events


def installed() -> tuple[str, str]:
    """Paths of espeak-ng's library and of its data."""
    try:
        import espeakng_loader
    except ImportError as error:
        raise InputError(
            "speech needs espeak-ng; install it with `pip install 'unavglip-jax[demo]'`"
        ) from error
    return str(espeakng_loader.get_library_path()), str(espeakng_loader.get_data_path())


def segments(events: list[tuple[int, str]], end: int) -> list[tuple[int, int, str]]:
    """(first sample, last sample + 1, symbol) of each phoneme, pauses in a row as one."""
    found: list[tuple[int, int, str]] = []
    for (start, symbol), (stop, _) in pairwise([*events, (end, "")]):
        if stop <= start:
            continue
        if found and not symbol and found[-1][2] == PAUSE:
            found[-1] = (found[-1][0], stop, PAUSE)
        else:
            found.append((start, stop, symbol or PAUSE))
    return found


def with_closures(
    samples: Float[np.ndarray, " N"], rate: int, found: list[tuple[int, int, str]]
) -> tuple[Phoneme, ...]:
    """Phonemes in seconds; the closure of each stop, which espeak-ng marks at its release, is cut from the
    end of the one before."""
    phonemes: list[Phoneme] = []
    for i, (start, stop, symbol) in enumerate(found):
        if symbol in STOPS and i:
            first, _, before = found[i - 1]
            silent = 0 if before == PAUSE else silence_before(samples, rate, first, start)
            # A voiced stop hums while it is closed, and what is closed in a pause is not heard.
            usual = SILENT_CLOSURE if symbol in VOICELESS and before != PAUSE else VOICED_CLOSURE
            closed = start - max(silent, min(round(usual * rate), (start - first) // 2))
            phonemes[-1] = phonemes[-1]._replace(stop=closed / rate)
            phonemes.append(Phoneme(closed / rate, start / rate, symbol + CLOSED))
        phonemes.append(Phoneme(start / rate, stop / rate, symbol))
    return tuple(phonemes)


def silence_before(samples: Float[np.ndarray, " N"], rate: int, first: int, release: int) -> int:
    """How many samples right before a release, in the segment that begins at `first`, are silent."""
    step = round(LEVEL_STEP * rate)
    count = min(round(LONGEST_CLOSURE * rate), round(0.8 * (release - first))) // step
    before = samples[release - count * step : release].reshape(count, step)
    level = np.sqrt((before**2).mean(axis=1))
    loud = np.flatnonzero(level > CLOSURE_LEVEL * level.max(initial=0.0))
    return (count - 1 - int(loud[-1])) * step if len(loud) else 0


# ---- Sentences -------------------------------------------------------------------------------------


def listed(text: str) -> tuple[str, ...]:
    """The entries of a list with bars between them, broken over lines."""
    return tuple(entry.strip() for entry in " ".join(text.split()).split("|"))


# Lips show p, b, m, f, v, w, o, u and ee best, so the lists are rich in them.
PEOPLE = listed("""
my brother|my mother|our boss|Emma|Bob|Phoebe|Victor|Louise|Pam|Thomas|Olivia|a few of us|our neighbours|
both women|five visitors|the whole family|the bus driver|the piano teacher|an old friend|the mayor|
the baker|the weather man|Uncle Joe|the new waiter|most people|some of the boys|the bishop|two policemen|
the vet|a famous poet|Walter|Sophie|Moby|the beekeeper|George|Yvonne|the juggler|the youngest child|
Beatrice|Matthew""")  # fmt: skip
DEEDS = listed("""
bought|moved|forgot|repaired|found|painted|brought|wrapped|photographed|borrowed|wanted|remembered|
showed us|swapped|opened|removed|fed|loved|believed in|talked about|laughed about|waited for|put away|
asked for|gave up|chewed|measured|watched|shared|dropped|hid|polished|weighed|washed|covered|followed|
saved|described|improved|bumped into""")  # fmt: skip
KINDS = listed("""
big|blue|purple|very old|cheap|beautiful|wooden|broken|heavy|famous|warm|smooth|empty|wet|yellow|fabulous|
huge|perfect|gloomy|soft|velvet|round|sweet|tiny|favourite|brown|new|pale|bumpy|foggy|valuable|shiny|
wobbly|thick|fresh|green|bitter|peaceful|unusual|sharp""")  # fmt: skip
THINGS = listed("""
map|boat|piano|umbrella|loaf of bread|movie|shoe|vase|pumpkin|photograph|leaf|beehive|violin|spoon|window|
mushroom|bicycle|whale|apple pie|wallet|balloon|hammer|poem|teapot|fish|flower pot|beach towel|microphone|
goose|puppy|cheese|pair of boots|bag of plums|watch|wagon|five pound note|vacuum cleaner|jar of honey|
thermometer|measuring tape""")  # fmt: skip
PLACES = listed("""
at the beach|in the woods|by the river|near the old mill|behind the museum|above the shop|in Boston|
on the roof|at the farm|under the bridge|in our village|outside the theatre|at the back of the bus|
in the kitchen|by the fireplace|over in Bermuda|in the meadow|at my house|between two windows|
on the way home|at the zoo|in the swimming pool|beside the harbour|far from the valley|
in the vegetable garden""")  # fmt: skip
TIMES = listed("""
before breakfast|on Wednesday|last November|every evening|a week ago|at half past four|in the afternoon|
this morning|all winter|twice a month|when it rained|after lunch|in February|just before noon|
on my birthday|by the way|for the first time|the whole weekend|at five to eleven|once upon a time|
during the summer|over and over|as usual|until the moon came up|in no time""")  # fmt: skip
OPENINGS = listed("""
well|of course|oh|maybe|believe me|to be fair|as far as I know|between you and me|wow|honestly|you see|
by and by|maybe so, but|apparently|please note|people say|from what I have heard|frankly|in my view|
hopefully""")  # fmt: skip
OPINIONS = listed("""
it was a mistake|nobody was sure why|everybody was pleased|we would have paid more|it never moved again|
that made me laugh|I hope it works|they will be back|the rest is history|you should have been there|
it smelled of soap|we both have to move|few would believe it|the music was wonderful|
my feet were freezing|the bees were busy|it put me in a good mood|the judge refused|the choir was awful|
it could have been worse""")  # fmt: skip
SHORT = listed("""
Who would have thought of that?|Maybe we should move.|Above all, be brave.|Give me the map.|
Whoa, what a view!|Papa may be home.|We both love music.|Few people do.|You must be Bob.|Push it, please.|
Five, four, three, two, one.|Move over.|Both of them?|Ooh, how smooth.|We see you.|Beam me up.|Why not?|
Foam, fur and feathers.|My, oh my!|Keep the peace.|I wish you were here.|Watch the vase!|Boo!|
Go away, fly.|Cheers, and enjoy the show.""")  # fmt: skip
UNITS = ("people", "boxes of fruit", "miles", "pounds", "bees", "photographs", "cups of coffee",
         "words", "movies", "sheep", "volumes", "bottles of perfume", "pupils", "weeks")  # fmt: skip


def sentence(rng: np.random.Generator) -> str:
    """One sentence, which means little and has every sound of English over a few dozen.

    Statements, questions, requests and numbers, of 1 to about 30 words; there are billions of them.
    """
    a = lambda words: words[rng.integers(len(words))]
    first = lambda text: text[0].upper() + text[1:]
    thing = lambda: f"the {a(KINDS)} {a(THINGS)}"
    number = lambda: str(
        a((rng.integers(2, 21), rng.integers(21, 1000), rng.integers(1000, 10000)))
    )
    statement = lambda: f"{a(PEOPLE)} {a(DEEDS)} {thing()}"
    kind = rng.choice(9, p=(0.2, 0.16, 0.12, 0.1, 0.1, 0.1, 0.08, 0.08, 0.06))
    if kind == 0:
        return first(f"{statement()} {a(PLACES)} {a(TIMES)}.")
    if kind == 1:
        return first(f"{a(OPENINGS)}, {statement()}, and {a(OPINIONS)}.")
    if kind == 2:
        asked = a(
            ("Do you know why", "Who told you that", "Have you heard when", "Was it true that")
        )
        return f"{asked} {statement()} {a(PLACES)}?"
    if kind == 3:
        return first(f"{a(PEOPLE)} {a(DEEDS)} {number()} {a(UNITS)} {a(TIMES)}.")
    if kind == 4:
        asked = a(
            ("Could you move", "Would you please put", "May we have", "Please bring", "Never wash")
        )
        mark = "?" if asked.startswith(("Could", "Would", "May")) else "!"
        return f"{asked} {thing()} and {thing()} {a(PLACES)}{mark}"
    if kind == 5:
        return first(
            f"{a(TIMES)}, {statement()}; {a(OPINIONS)}, because {statement()} {a(PLACES)}."
        )
    if kind == 6:
        asked = a(("How much is", "Where did you see", "What happened to", "Whose is", "Why move"))
        return f"{asked} {thing()}?"
    if kind == 7:
        return f"{first(number())} {a(UNITS)}, {number()} {a(UNITS)}: {a(OPINIONS)}."
    return a(SHORT)
