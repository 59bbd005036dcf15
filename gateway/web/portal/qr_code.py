"""QR codes: a text as a picture a phone's camera reads.

Owns the SVG: paths and attributes alone, no style and no script, so that it stands in a page under the strict policy.
Black on white, whatever the page's colours are: cameras read nothing else surely. ISO/IEC 18004
"""

from __future__ import annotations

from typing import Final

import segno
from markupsafe import Markup

_QUIET_ZONE: Final = 4  # modules, which the standard asks for on every side


def picture(text: str) -> Markup | None:
    """An ``svg`` element without a size of its own; None for a text longer than a QR code holds."""
    try:
        made = segno.make_qr(text, error="m")
    except segno.DataOverflowError:
        return None
    # Composed of numbers by the library; nothing of ``text`` stands in it.
    return Markup(made.svg_inline(border=_QUIET_ZONE, omitsize=True, dark="#000", light="#fff",  # noqa: S704
                                  svgclass=None, lineclass=None))
