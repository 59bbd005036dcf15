"""What the gateway logs: one JSON object a line on standard error.

Owns the form of an event; refuses an exception's text, which may hold what a client sent: its class and places alone
are written. https://12factor.net/logs
"""

from __future__ import annotations

import logging
import sys

import orjson

from gateway.config import Settings


class JsonLines(logging.Formatter):
    """One JSON object per event: a constant message and fields; never bodies, tokens or ids."""

    _STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}

    def format(self, record: logging.LogRecord) -> str:
        """The event as one line."""
        event = {"time": round(record.created, 3), "level": record.levelname.lower(), "logger": record.name,
                 "event": record.getMessage(),
                 **{key: value for key, value in vars(record).items() if key not in self._STANDARD}}
        if record.exc_info and record.exc_info[0] is not None:
            trace = record.exc_info[2]
            places = []
            while trace is not None:
                places.append(f"{trace.tb_frame.f_code.co_filename.rsplit('/', 1)[-1]}:{trace.tb_lineno}")
                trace = trace.tb_next
            # The places and the class alone: an exception's text may hold what a client sent.
            event["exception"] = record.exc_info[0].__name__
            event["places"] = places
        return orjson.dumps(event, default=str).decode()


def set_up_logging(settings: Settings) -> None:
    """JSON lines on standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level.upper())
    for noisy in ("httpx", "httpcore", "urllib3", "web3", "uvicorn.access", "uvicorn.error"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
