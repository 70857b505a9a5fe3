"""Reading records that are stored as they are, without the copies that ArrayRecord and TFDS make.

They copy a record of some megabytes several times before a clip can be used, which takes longer than
decoding the few frames that a sample shows. Here a record is read once, and its values are parts of that
memory. Checksums are not compared: TFDS's data source, which reads the same files, does.

The file is one of Riegeli's: chunks, cut into blocks. A record is a `tf.train.Example` of nothing but bytes.
"""

import itertools
import os
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

BLOCK, HEAD = 1 << 16, 24  # every block of the file begins with a head that says where chunks begin
BODY = BLOCK - HEAD
# Hash, size, and hash of what follows; kind and number of records; size of those; the way of compression.
CHUNK = struct.Struct("<8xQ8xQQB")
RECORDS, AS_IT_IS = ord("r"), 0
BUFFERS = 1024  # that a system call fills at most


class Records(Sequence):
    """The records of some files, in order: names and values of each; workers get a copy by pickling."""

    def __init__(self, paths: Sequence[Path], counts: Sequence[int]):
        found = zip(paths, counts, strict=True)
        self.places = [
            (path, *place)
            for path, count in found
            for place in itertools.islice(places(path), count)
        ]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> dict[str, list[memoryview]]:
        ((_, features),) = parts(read(*self.places[index]))
        values = {}
        for _, entry in parts(features):
            (_, name), (_, feature) = parts(entry)
            ((_, listed),) = parts(feature)
            values[str(name, "utf-8")] = [value for _, value in parts(listed)]
        return values

    def __repr__(self) -> str:
        return f"Records({len(self)} of {sorted({str(path) for path, *_ in self.places})})"


def places(path: Path) -> Iterator[tuple[int, int]]:
    """Begin and size of each record of a file, counted in what its blocks hold.

    Raises:
      ValueError: records are compressed, or in groups.
    """
    begin = 0
    while True:
        size, kind, length, compression = CHUNK.unpack(read(path, begin, CHUNK.size))
        end = begin + CHUNK.size - 1 + size
        if kind & 0xFF == RECORDS:
            if kind >> 8 != 1 or compression != AS_IT_IS:
                raise ValueError(f"{path} has records that are compressed, or in groups")
            yield end - length, length
        begin = end


def read(path: Path, begin: int, size: int) -> memoryview:
    """A part of what the blocks of a file hold.

    Raises:
      OSError: the file ends before.
    """
    content = memoryview(np.empty(size, np.uint8))  # a bytearray would be cleared first
    block, skipped = divmod(begin, BODY)
    cuts = [0, *range(BODY - skipped, size, BODY), size]
    head = bytearray(HEAD)  # of no interest
    buffers = [x for a, b in itertools.pairwise(cuts) for x in (content[a:b], head)][:-1]
    at = begin + (block + 1) * HEAD
    end = at + size + (len(cuts) - 2) * HEAD
    # Python's lock is released once, and not for every block.
    with open(path, "rb", buffering=0) as file:
        for i in range(0, len(buffers), BUFFERS):
            at += os.preadv(file.fileno(), buffers[i : i + BUFFERS], at)
    if at != end:
        raise OSError(f"{path} ends at byte {at}, and a record at {end}")
    return content


def parts(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Numbers and values of a protocol buffer's fields, each of which has a length and a number below 16."""
    at = 0
    while at < len(message):
        tag, size, shift = message[at], 0, 0
        while True:
            at += 1
            size |= (message[at] & 0x7F) << shift
            shift += 7
            if message[at] < 0x80:
                break
        at += 1
        yield tag >> 3, message[at : at + size]
        at += size
