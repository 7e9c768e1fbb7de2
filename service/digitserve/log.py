"""Log lines on standard error: for people on a terminal, JSON for machines."""

import sys

import structlog

# Without the values of variables: they hold callers' images, and would take milliseconds to write.
_tracebacks = structlog.processors.ExceptionRenderer(structlog.tracebacks.ExceptionDictTransformer(show_locals=False))


def configure(log_format: str, **context: object) -> None:
    """Set the process's logging up.

    Args:
        log_format: ``text``, ``json``, or ``auto``, which writes text to a terminal and JSON elsewhere.
        context: what every line of this process carries.
    """
    as_text = log_format == "text" or (log_format == "auto" and sys.stderr.isatty())
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty()) if as_text else structlog.processors.JSONRenderer()
    )
    exceptions: list[structlog.typing.Processor] = [] if as_text else [_tracebacks]
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *exceptions,
            renderer,
        ],
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(**context)
