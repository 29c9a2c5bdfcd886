"""Near-duplicates: pictures that look the same, by their PDQ hashes of 256 bits.

They are found by an index over bands of bits, not by comparing every pair.
"""

import faiss
import numpy as np
import numpy.typing as npt
import pdqhash
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from tagger.core.errors import TaggerError
from tagger.data import groups
from tagger.data.groups import PostPairs
from tagger.images import decode

_BITS = 256
_BANDS = 16  # of 16 bits: two hashes within 31 bits have a band within one bit of each other
_MAX_DISTANCE = 2 * _BANDS - 1
_MIN_QUALITY = 50  # PDQ's own bound, below which a picture is too plain to be told from others
_BLOCK = 10_000  # hashes searched at a time
_SIDE = 512  # pixels, that PDQ looks at


def compute_hashes(pictures: pa.Table) -> pa.Table:
    """Return the PDQ hash of each picture as `looks`, null where it is too plain or unreadable."""
    return pa.table({"looks": pa.array(groups.hash_images(pictures, _pdq), pa.binary())})


def _pdq(data: bytes) -> bytes | None:
    picture = decode.open_rgb(data)
    picture.thumbnail((_SIDE, _SIDE), Image.Resampling.BILINEAR)
    bits, quality = pdqhash.compute(np.asarray(picture))
    return np.packbits(bits).tobytes() if quality >= _MIN_QUALITY else None


def pair_by_hash(looks: pa.ChunkedArray, distance: int) -> PostPairs:
    """Return pairs that connect all posts whose hashes differ in at most `distance` bits of 256.

    Of posts with the same hash only the first is compared with others: there may be very many.
    """
    if distance > _MAX_DISTANCE:
        raise TaggerError(f"prepare.groups.near is {distance}; up to {_MAX_DISTANCE} is possible.")
    known = np.flatnonzero(pc.is_valid(looks).to_numpy())
    if not len(known):
        return np.empty((0, 2), np.int64)
    encoded = pc.drop_null(looks).combine_chunks().dictionary_encode()
    first = known[np.unique(encoded.indices.to_numpy(), return_index=True)[1]]
    packed = np.frombuffer(b"".join(encoded.dictionary.to_pylist()), np.uint8)
    near = _near(packed.reshape(len(first), _BITS // 8), distance)
    return np.concatenate([groups.pair_by_content(looks), first[near]])


def _near(hashes: npt.NDArray[np.uint8], distance: int) -> PostPairs:
    """Return all pairs of hashes, (hashes, 32), that differ in at most `distance` bits."""
    index = faiss.IndexBinaryMultiHash(_BITS, _BANDS, _BITS // _BANDS)
    index.nflip = 1
    index.add(hashes)
    found = []
    for start in range(0, len(hashes), _BLOCK):
        # faiss finds what is nearer than the radius
        limits, _, near = index.range_search(hashes[start : start + _BLOCK], distance + 1)
        ours = start + np.repeat(np.arange(len(limits) - 1), np.diff(limits).astype(np.int64))
        once = ours < near
        found.append(np.stack([ours[once], near[once]], axis=1))
    return np.concatenate(found)
