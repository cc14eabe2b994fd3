"""Colours for classes."""

from __future__ import annotations

from edgeseg.manifest import ClassInfo, Rgb


def voc_palette(count: int) -> tuple[Rgb, ...]:
    """PASCAL VOC's colour map: class index bits spread over the three channels, most significant first."""
    colors = []
    for index in range(count):
        rgb = [0, 0, 0]
        for bit in range(8):
            for channel in range(3):
                rgb[channel] |= (index >> (3 * bit + channel) & 1) << (7 - bit)
        colors.append((rgb[0], rgb[1], rgb[2]))
    return tuple(colors)


CAMVID = tuple(
    ClassInfo(name, color)
    for name, color in (
        ("sky", (128, 128, 128)),
        ("building", (128, 0, 0)),
        ("pole", (192, 192, 128)),
        ("road", (128, 64, 128)),
        ("pavement", (60, 40, 222)),
        ("tree", (128, 128, 0)),
        ("sign", (192, 128, 128)),
        ("fence", (64, 64, 128)),
        ("car", (64, 0, 128)),
        ("pedestrian", (64, 64, 0)),
        ("bicyclist", (0, 128, 192)),
    )
)
"""CamVid's eleven classes (SegNet split) in its own colours; void is the ignore index."""
