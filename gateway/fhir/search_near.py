"""``Location.near``: positions as cells of a grid, hashed like any token, and the true distance afterwards.

Owns the grid, the cells that cover a circle, and the great-circle distance; refuses to leave coordinates where they can
be read: a home is a Location too. https://hl7.org/fhir/R4/location.html#positional
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from gateway.errors import BadSearch

_SIZES = (0.01, 0.1, 1.0, 10.0)
"""Degrees a cell is wide and high, finest first."""
_CELLS_MAX = 400
_EARTH_KM = 6371.0088
_KM_PER_DEGREE = math.pi * _EARTH_KM / 180
_DEFAULT_KM = 25.0
"""R4 leaves the distance to the server where none is given."""
_UNITS = {"km": 1.0, "": 1.0, "m": 1e-3, "cm": 1e-5, "[mi_i]": 1.609344, "[mi_us]": 1.609347219, "mi": 1.609344,
          "[ft_i]": 3.048e-4, "[nmi_i]": 1.852}
_NUMBER = re.compile(r"[+-]?\d{1,15}(?:\.\d{1,30})?\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class Circle:
    """``latitude`` and ``longitude`` in degrees (WGS84), ``km`` around it."""

    latitude: float
    longitude: float
    km: float

    def holds(self, position: Any) -> bool:
        """Whether a Location.position lies within."""
        place = _place(position)
        return place is not None and self._km_to(*place) <= self.km

    def _km_to(self, latitude: float, longitude: float) -> float:
        """Haversine."""
        here, there = math.radians(self.latitude), math.radians(latitude)
        half = math.sin((there - here) / 2) ** 2 + math.cos(here) * math.cos(there) * math.sin(
            math.radians(longitude - self.longitude) / 2) ** 2
        return 2 * _EARTH_KM * math.asin(math.sqrt(min(1.0, half)))

    def cells(self) -> list[str]:
        """The cells that cover it, of the finest size of which few enough do."""
        high = self.km / _KM_PER_DEGREE
        top = min(90.0, max(abs(self.latitude - high), abs(self.latitude + high)))
        shrink = math.cos(math.radians(top))
        wide = 180.0 if shrink * 180.0 <= high else high / shrink
        found: list[str] = []
        for size in _SIZES:
            rows = range(_row(self.latitude - high, size), _row(self.latitude + high, size) + 1)
            around = round(360 / size)
            first = math.floor((self.longitude - wide + 180) / size)
            columns = range(first, first + min(around, math.floor((self.longitude + wide + 180) / size) - first + 1))
            if len(rows) * len(columns) <= _CELLS_MAX or size == _SIZES[-1]:
                found = [f"{size}:{row}:{column % around}" for row in rows for column in columns]
                break
        return found


def _row(latitude: float, size: float) -> int:
    return math.floor((min(90.0, max(-90.0, latitude)) + 90) / size)


def _place(position: Any) -> tuple[float, float] | None:
    if type(position) is not dict:
        return None
    values = [float(one) for one in (position.get("latitude"), position.get("longitude"))
              if one is not None and type(one) not in (str, bool, dict, list)]
    if len(values) != 2:
        return None
    latitude, longitude = values
    return (latitude, longitude) if -90 <= latitude <= 90 and -180 <= longitude <= 180 else None


def position_cells(position: Any) -> list[str]:
    """The cell of each size that a Location.position lies in."""
    place = _place(position)
    if place is None:
        return []
    latitude, longitude = place
    return [f"{size}:{_row(latitude, size)}:{math.floor((longitude + 180) / size) % round(360 / size)}"
            for size in _SIZES]


def circle(value: str, name: str) -> Circle:
    """``latitude|longitude[|distance[|unit]]``. Raises BadSearch."""
    parts = value.split("|")
    if not 2 <= len(parts) <= 4 or any(_NUMBER.match(one) is None for one in parts[:2]) or (
            len(parts) > 2 and parts[2] and _NUMBER.match(parts[2]) is None):
        raise BadSearch(f"{name}: latitude|longitude|distance|unit is expected", code="value",
                        expression=f"http.{name}")
    unit = parts[3] if len(parts) == 4 else ""
    if unit not in _UNITS:
        raise BadSearch(f"{name}: the unit is none of {', '.join(sorted(one for one in _UNITS if one))}", code="value",
                        expression=f"http.{name}")
    latitude, longitude = float(parts[0]), float(parts[1])
    km = float(parts[2]) * _UNITS[unit] if len(parts) > 2 and parts[2] else _DEFAULT_KM
    if not -90 <= latitude <= 90 or not -180 <= longitude <= 180 or not 0 <= km <= 20_100:
        raise BadSearch(f"{name}: no such place or distance on Earth", code="value", expression=f"http.{name}")
    return Circle(latitude=latitude, longitude=longitude, km=km)
