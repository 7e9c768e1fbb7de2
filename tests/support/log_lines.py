"""What our modules log, as dicts, without the format of lines."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from digitserve.log import FIELDS


@contextmanager
def capture_logs() -> Iterator[list[dict[str, Any]]]:
    """Return a list of the events that our modules log, also on other threads: ``event``, ``log_level`` and the fields."""
    events: list[dict[str, Any]] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            event = {"event": record.getMessage(), "log_level": record.levelname.lower(), **getattr(record, FIELDS)}
            if record.exc_info:
                event["exc_info"] = record.exc_info[1]
            events.append(event)

    logger, handler = logging.getLogger("digitserve"), Handler()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    try:
        yield events
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)
