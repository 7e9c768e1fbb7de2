"""Classify image files with NVIDIA's client for Triton, which uses the Open Inference Protocol.

    pip install "tritonclient[grpc]" pillow
    python tritonclient_infer.py --address 127.0.0.1:50051 three.png

The service frames images of any size, so a file is sent as it is. The output is a line per file: the digit, its probability, the verdict,
and the three most probable digits.
"""

import argparse
import sys

import numpy as np
import tritonclient.grpc as triton
from PIL import Image
from tritonclient.utils import InferenceServerException


def infer(client: triton.InferenceServerClient, path: str, **options: object) -> triton.InferResult:
    """Send one image; the outputs are one label and one verdict, and all probabilities."""
    image = np.asarray(Image.open(path).convert("RGB"))[np.newaxis]
    images = triton.InferInput("images", image.shape, "UINT8")
    images.set_data_from_numpy(image)
    # A deadline: the service rejects a request that it cannot answer in time.
    return client.infer("digits", [images], client_timeout=5.0, **options)


def describe(client: triton.InferenceServerClient, path: str) -> str:
    """Return the text for one image."""
    answer = infer(client, path)
    (label,), (verdict,) = answer.as_numpy("label"), answer.as_numpy("verdict")
    if label < 0:
        return verdict.decode()  # a blank image has no label
    (probabilities,) = answer.as_numpy("probabilities")
    classes = infer(client, path, outputs=[triton.InferRequestedOutput("probabilities", class_count=3)])
    # Each class is "probability:index:label".
    top = [element.decode().split(":") for element in classes.as_numpy("probabilities")[0]]
    listed = ", ".join(f"{name} {float(value):.3f}" for value, _, name in top)
    return f"{label} ({probabilities[label]:.3f}, {verdict.decode()}); {listed}"


def main() -> None:
    """Print a line per file; exit with 1 and a message if the service does not answer."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--address", default="127.0.0.1:50051", help="host:port of the service")
    parser.add_argument("files", nargs="+", metavar="FILE")
    arguments = parser.parse_args()
    try:
        with triton.InferenceServerClient(arguments.address) as client:
            for path in arguments.files:
                print(f"{path}: {describe(client, path)}")
    except InferenceServerException as error:
        sys.exit(f"{arguments.address}: {error}")


if __name__ == "__main__":
    main()
