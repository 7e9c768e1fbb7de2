"""Calls a service of the echo network with tritonclient, and prints the results as JSON. Runs in an environment of tritonclient.

Usage: python client.py ADDRESS IMAGES.npy
"""

import asyncio
import contextlib
import json
import queue
import sys
from collections.abc import Callable

import numpy as np
import tritonclient.grpc as triton
from tritonclient.grpc import aio, service_pb2
from tritonclient.utils import InferenceServerException

OUTPUTS = ("probabilities", "ood_score", "label", "verdict")


def main() -> None:
    """Print the results."""
    address, path = sys.argv[1:]
    images = np.load(path)
    with triton.InferenceServerClient(address) as client:
        results = {
            "state": state(client),
            "metadata": metadata(client),
            "answers": arrays(client.infer("digits", [tensor(images)], request_id="an id")),
            "id": client.infer("digits", [tensor(images)], request_id="an id").get_response().id,
            "compressed": arrays(client.infer("digits", [tensor(images)], compression_algorithm="gzip")),
            "grey": arrays(client.infer("digits", [tensor(images[..., 0])], model_version="1")),
            "subset": subset(client, images),
            "classes": classes(client, images),
            "asynchronous": asynchronous(client, images),
            "aio": asyncio.run(over_aio(address, images)),
            "parameters": arrays(
                client.infer(
                    "digits",
                    [tensor(images)],
                    parameters={"ink": "light_on_dark", "framing": "as_is"},
                    priority=1,
                    timeout=1000,
                    sequence_id=7,
                    sequence_start=True,
                )
            ),
            "errors": errors(client, images),
            "stream": stream(client, images),
            "fields": fields(),
        }
    print(json.dumps(results))


def tensor(images: np.ndarray, datatype: str = "UINT8") -> triton.InferInput:
    """Return the input."""
    made = triton.InferInput("images", images.shape, datatype)
    made.set_data_from_numpy(images)
    return made


def arrays(result: triton.InferResult) -> dict[str, list]:
    """Return all outputs as lists, BYTES as texts."""
    found = {name: result.as_numpy(name) for name in OUTPUTS}
    return {name: texts(array) for name, array in found.items() if array is not None}


def texts(array: np.ndarray) -> list:
    """Return an array as lists, with text in place of bytes."""
    return np.vectorize(bytes.decode)(array).tolist() if array.dtype == object else array.tolist()


def state(client: triton.InferenceServerClient) -> list[bool]:
    """Return what the client says about the state of server and models."""
    return [
        client.is_server_live(), client.is_server_ready(), client.is_model_ready("digits"), client.is_model_ready("digits", "1"),
        client.is_model_ready("digits", "2"), client.is_model_ready("mnist"),
    ]  # fmt: skip


def metadata(client: triton.InferenceServerClient) -> dict[str, object]:
    """Return the metadata of server and model."""
    server = client.get_server_metadata()
    return {
        "server": server.name,
        "extensions": [*server.extensions],
        "model": client.get_model_metadata("digits", as_json=True),
    }


def subset(client: triton.InferenceServerClient, images: np.ndarray) -> list:
    """Return the names of the outputs of a request for two of them, and an output that it did not request."""
    outputs = [triton.InferRequestedOutput(name) for name in ("verdict", "label")]
    result = client.infer("digits", [tensor(images)], outputs=outputs)
    return [[output.name for output in result.get_response().outputs], result.as_numpy("ood_score")]


def classes(client: triton.InferenceServerClient, images: np.ndarray) -> list:
    """Return the classification of each image."""
    outputs = [triton.InferRequestedOutput("probabilities", class_count=3)]
    return texts(client.infer("digits", [tensor(images)], outputs=outputs).as_numpy("probabilities"))


def asynchronous(client: triton.InferenceServerClient, images: np.ndarray) -> list:
    """Return the scores of ten requests in flight at once, and the error of one that is invalid."""
    done: queue.Queue = queue.Queue()
    for number in range(11):
        client.async_infer(
            "digits" if number < 10 else "mnist", [tensor(images)], request_id=str(number), client_timeout=60,
            callback=lambda result, error: done.put((result, error)),
        )  # fmt: skip
    ended = [done.get(timeout=60) for _ in range(11)]
    found = {result.get_response().id: texts(result.as_numpy("ood_score")) for result, error in ended if error is None}
    return [found, [error.message() for _, error in ended if error]]


async def over_aio(address: str, images: np.ndarray) -> dict[str, list]:
    """Return the answers over the client for asyncio."""
    async with aio.InferenceServerClient(address) as client:
        return arrays(await client.infer("digits", [tensor(images)]))


def failure(call: Callable[[], object]) -> list[str]:
    """Return status and message of a call that fails."""
    try:
        return ["no error", str(call())]
    except InferenceServerException as error:
        return [error.status().removeprefix("StatusCode."), error.message()]


def errors(client: triton.InferenceServerClient, images: np.ndarray) -> dict[str, list[str]]:
    """Return status and message of calls that must fail."""
    shared, output = tensor(images), triton.InferRequestedOutput("label")
    shared.set_shared_memory("region", images.nbytes)
    output.set_shared_memory("region", 8)
    many = np.zeros((4000, 28, 28, 1), np.uint8)
    other = triton.InferInput("masks", images.shape, "UINT8")
    other.set_data_from_numpy(images)
    return {
        "model": failure(lambda: client.infer("mnist", [tensor(images)])),
        "version": failure(lambda: client.infer("digits", [tensor(images)], model_version="9")),
        "datatype": failure(lambda: client.infer("digits", [tensor(images.astype(np.float32), "FP32")])),
        "shape": failure(lambda: client.infer("digits", [tensor(images.reshape(-1, 784))])),
        "input": failure(lambda: client.infer("digits", [other])),
        "output": failure(
            lambda: client.infer("digits", [tensor(images)], outputs=[triton.InferRequestedOutput("logits")])
        ),
        "shared memory": failure(lambda: client.infer("digits", [shared])),
        "output in shared memory": failure(lambda: client.infer("digits", [tensor(images)], outputs=[output])),
        "timeout": failure(lambda: client.infer("digits", [tensor(many)], client_timeout=0.001)),
        "config": failure(lambda: client.get_model_config("digits")),
        "repository": failure(client.get_model_repository_index),
        "statistics": failure(lambda: client.get_inference_statistics("digits")),
        "load": failure(lambda: client.load_model("digits")),
        "metadata": failure(lambda: client.get_model_metadata("mnist")),
    }


def stream(client: triton.InferenceServerClient, images: np.ndarray) -> list[str]:
    """Return status and message of a request on a stream."""
    done: queue.Queue = queue.Queue()
    client.start_stream(callback=lambda result, error: done.put((result, error)))
    with contextlib.suppress(InferenceServerException):  # the stream may have ended before
        client.async_stream_infer("digits", [tensor(images)])
    _, error = done.get(timeout=60)
    client.stop_stream()
    return [error.status().removeprefix("StatusCode."), error.message()]


def fields() -> dict[str, dict[str, list]]:
    """Return name, number and type of the fields of tritonclient's messages."""
    found = {}
    waiting = [*service_pb2.DESCRIPTOR.message_types_by_name.values()]
    while waiting:
        message = waiting.pop()
        waiting += message.nested_types
        found[message.full_name] = {
            field.name: [field.number, field.type, field.message_type.full_name if field.message_type else ""]
            for field in message.fields
        }
    return found


if __name__ == "__main__":
    main()
