"""Colour profiles made by hand."""

import struct

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float64]  # (X Y Z, R G B), of linear light under D50

SRGB = np.array(
    [[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.7141]]
)
DISPLAY_P3 = np.array(
    [[0.51512, 0.29198, 0.1571], [0.2412, 0.69225, 0.06657], [-0.00105, 0.04189, 0.78407]]
)


def fixed(value: float) -> bytes:
    return struct.pack(">i", round(value * 65536))


def profile(matrix: Matrix, gamma: float, description: str) -> bytes:
    """Return a display profile, ICC version 2, of three primaries and a gamma."""
    text = description.encode("ascii") + b"\0"
    tags = {
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", len(text)) + text + bytes(78),
        b"cprt": b"text\0\0\0\0none\0",
        b"wtpt": b"XYZ \0\0\0\0" + b"".join(map(fixed, (0.9642, 1.0, 0.8249))),
    }
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256))
    for channel, letter in enumerate("rgb"):
        tags[f"{letter}XYZ".encode()] = b"XYZ \0\0\0\0" + b"".join(map(fixed, matrix[:, channel]))
        tags[f"{letter}TRC".encode()] = curve
    table, body, start = b"", b"", 128 + 4 + 12 * len(tags)
    for name, data in tags.items():
        table += name + struct.pack(">II", start + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    white = b"".join(map(fixed, (0.9642, 1.0, 0.8249)))
    header = struct.pack(
        ">I4sI4s4s4s12s4s4sIIIQI12s",
        *(start + len(body), b"none", 0x02100000, b"mntr", b"RGB ", b"XYZ ", bytes(12), b"acsp"),
        *(b"none", 0, 0, 0, 0, 0, white),
    )
    return header.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


P3 = profile(DISPLAY_P3, 2.2, "Display P3 by hand")
