"""PNG files that Pillow reads but does not write."""

import struct
import zlib

import numpy as np


def save_16_bit(segment_map, path):
    """Saves ids as a PNG with 16 bits per channel."""
    ids = np.stack([segment_map, segment_map >> 8, segment_map >> 16], -1) & 255
    height, width = segment_map.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in ids)

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )
