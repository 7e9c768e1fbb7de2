"""The HTTP API (images as files or raw pixels in, JSON out), and the web page. Runs on the supervisor's event loop.

    POST /v1/classify ──▶ api ──▶ uploads: the body, within limits of size, time and memory
                           ├────▶ decoder_pool ──▶ decoder_process: a picture to a ClassifyRequest, in a child process
                           └────▶ worker_calls ──gRPC on a Unix socket──▶ worker

Workers handle these calls like any other gRPC call, with the same limits, errors and metrics. This package only converts between
HTTP and gRPC. ``page_files`` serves the page, whose files are in ``page/``.
"""
