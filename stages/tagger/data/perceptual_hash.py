"""Perceptual hashes: images that look the same have PDQ hashes of 256 bits that differ in few.

An index over bands of bits finds similar hashes without comparing every pair.
"""

from collections.abc import Iterable

import faiss
import numpy as np
import numpy.typing as npt
import pdqhash
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from tagger.core.errors import TaggerError
from tagger.core.location import Location
from tagger.data.posts import hash_images
from tagger.images import decode

_BITS = 256
_BANDS = 16  # of 16 bits: two hashes within 31 bits have a band within one bit of each other
_MAX_DISTANCE = 2 * _BANDS - 1
_MIN_QUALITY = 50  # PDQ's own bound: below it, an image is too plain for a reliable hash
_SIDE = 512  # pixels; PDQ scales larger images down to this


def compute_hashes(locations: Iterable[Location]) -> pa.Table:
    """Return the PDQ hash of each image as `hash`, null if it is too plain or unreadable."""
    return pa.table({"hash": pa.array(hash_images(locations, _pdq), pa.binary())})


def _pdq(data: bytes) -> bytes | None:
    image = decode.open_rgb(data)
    image.thumbnail((_SIDE, _SIDE), Image.Resampling.BILINEAR)
    bits, quality = pdqhash.compute(np.asarray(image))
    return np.packbits(bits).tobytes() if quality >= _MIN_QUALITY else None


def pair_similar(
    hashes: pa.ChunkedArray, distance: int, block: int = 10_000
) -> npt.NDArray[np.int64]:
    """Return the pairs of rows, (pairs, 2), whose hashes differ in 1 to `distance` bits of 256.

    The first row of each distinct hash stands for all rows with it: there may be very many.

    block: hashes searched at a time
    """
    if distance > _MAX_DISTANCE:
        raise TaggerError(f"prepare.groups.near is {distance}. The maximum is {_MAX_DISTANCE}.")
    rows = np.flatnonzero(pc.is_valid(hashes).to_numpy())
    if not len(rows):
        return np.empty((0, 2), np.int64)
    encoded = pc.drop_null(hashes).combine_chunks().dictionary_encode()
    first = rows[np.unique(encoded.indices.to_numpy(), return_index=True)[1]]
    packed = np.frombuffer(b"".join(encoded.dictionary.to_pylist()), np.uint8)
    return first[_search(packed.reshape(len(first), _BITS // 8), distance, block)]


def _search(hashes: npt.NDArray[np.uint8], distance: int, block: int) -> npt.NDArray[np.int64]:
    """Return all pairs of hashes, (hashes, 32), that differ in at most `distance` bits."""
    index = faiss.IndexBinaryMultiHash(_BITS, _BANDS, _BITS // _BANDS)
    index.nflip = 1
    index.add(hashes)
    pairs = []
    for start in range(0, len(hashes), block):
        # faiss returns neighbours closer than the radius, without those at the radius
        ends, _, neighbours = index.range_search(hashes[start : start + block], distance + 1)
        queries = start + np.repeat(np.arange(len(ends) - 1), np.diff(ends).astype(np.int64))
        once = queries < neighbours
        pairs.append(np.stack([queries[once], neighbours[once]], axis=1))
    return np.concatenate(pairs)
