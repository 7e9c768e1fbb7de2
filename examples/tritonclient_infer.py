"""Classify image files with NVIDIA's client for Triton, which speaks the Open Inference Protocol.

    pip install "tritonclient[grpc]" pillow
    python tritonclient_infer.py --address 127.0.0.1:50051 three.png

The service frames images of any size, so a file is sent as it is. A line per file: the digit, its probability, the verdict,
and the three most probable digits.
"""

import argparse

import numpy as np
import tritonclient.grpc as triton
from PIL import Image


def infer(client: triton.InferenceServerClient, path: str, **options: object) -> triton.InferResult:
    """Send one image; the outputs are one label and one verdict, and all probabilities."""
    image = np.asarray(Image.open(path).convert("RGB"))[np.newaxis]
    images = triton.InferInput("images", image.shape, "UINT8")
    images.set_data_from_numpy(image)
    # A deadline: the service rejects a request that it cannot answer in time.
    return client.infer("digits", [images], client_timeout=5.0, **options)


def main() -> None:
    """Print a line per file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--address", default="127.0.0.1:50051", help="host:port of the service")
    parser.add_argument("files", nargs="+", metavar="FILE")
    arguments = parser.parse_args()
    with triton.InferenceServerClient(arguments.address) as client:
        if not client.is_model_ready("digits"):
            parser.error(f"the service at {arguments.address} does not serve the model digits now")
        for path in arguments.files:
            answer = infer(client, path)
            (label,), (verdict,) = answer.as_numpy("label"), answer.as_numpy("verdict")
            (probabilities,) = answer.as_numpy("probabilities")
            classes = infer(client, path, outputs=[triton.InferRequestedOutput("probabilities", class_count=3)])
            # Each class is "probability:index:label".
            (top,) = classes.as_numpy("probabilities")
            listed = ", ".join(f"{name} {float(value):.3f}" for value, _, name in (c.decode().split(":") for c in top))
            # A blank image has the label -1.
            print(f"{path}: {label} ({probabilities[label]:.3f}, {verdict.decode()}); {listed}")


if __name__ == "__main__":
    main()
