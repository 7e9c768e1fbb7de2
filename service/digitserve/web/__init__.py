"""The HTTP API: images as files or raw pixels in, JSON out. Runs on the supervisor's event loop.

    POST /v1/classify ──▶ api ──▶ uploads: the body, within limits of size, time and memory
                           ├────▶ decoder_pool ──▶ decoder_process: a picture to a ClassifyRequest, in a child process
                           └────▶ worker_calls ──gRPC on a Unix socket──▶ worker

So a request takes the path of every gRPC call from decoding to the answer, with its limits, errors and metrics. Here it only
changes its form.
"""
