"""Places for the names of points in a plot, such that no name covers a point or another name.

Places are tried from near to far, first above a point and then around it, so that the same points
always get the same places. Nothing here knows how a plot is drawn.
"""

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

_RINGS = (1.0, 1.7, 2.6, 3.8, 5.2, 7.0)
_TURNS = 16

Box = tuple[float, float, float, float]
"""Left, bottom, right, top."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelPlace:
    """Where a name goes."""

    x: float
    """Of its middle, measured from its point."""
    y: float
    is_far: bool
    """Whether a line should lead to it."""


def label_places(
    points: Sequence[tuple[float, float]], names: Sequence[str], frame: Box, font_size: float
) -> list[LabelPlace | None]:
    """Return a place for the name of each point; None where there is no room.

    Args:
        points: Where they are, in points of type.
        names: Their names; where room is short, the first have it.
        frame: What names must stay inside of, in the same unit.
        font_size: Size of the letters, in the same unit.

    >>> label_places([(50, 50), (50, 50)], ["a", "b"], (0, 0, 100, 100), 8)[0]
    LabelPlace(x=0.0, y=13.6, is_far=False)
    """
    room = font_size * 0.75  # half of what a point takes
    taken: list[Box] = [(x - room, y - room, x + room, y + room) for x, y in points]
    places: list[LabelPlace | None] = []
    for (x, y), name in zip(points, names, strict=True):
        half = _width(name) * font_size / 2 + 2
        found = None
        for place in _tried(half, font_size):
            box = (
                x + place.x - half, y + place.y - font_size * 0.8,
                x + place.x + half, y + place.y + font_size * 0.8,
            )  # fmt: skip
            if _is_inside(box, frame) and not any(_overlap(box, other) for other in taken):
                found = place
                taken.append(box)
                break
        places.append(found)
    return places


def _tried(half: float, font_size: float) -> list[LabelPlace]:
    """The places around a point, the best first."""
    found = []
    for ring, distance in enumerate(each * font_size * 1.7 for each in _RINGS):
        for turn in range(_TURNS):
            # Alternately to the right and to the left of straight up.
            angle = (turn + 1) // 2 * (1 if turn % 2 else -1) * math.tau / _TURNS
            x = math.sin(angle) * (distance + half - font_size / 2)
            found.append(
                LabelPlace(x=round(x, 2), y=round(math.cos(angle) * distance, 2), is_far=ring > 0)
            )
    return found


def _width(name: str) -> float:
    """Width of a name in letters' heights, rather too wide than too narrow."""
    wide = sum(unicodedata.east_asian_width(each) in "WF" for each in name)
    return 0.62 * (len(name) - wide) + 1.05 * wide


def _is_inside(box: Box, frame: Box) -> bool:
    return box[0] >= frame[0] and box[1] >= frame[1] and box[2] <= frame[2] and box[3] <= frame[3]


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
