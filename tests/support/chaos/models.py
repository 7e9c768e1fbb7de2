"""The model folder of the chaos run: two versions that answer differently, and a damaged one."""

from dataclasses import replace
from pathlib import Path

from digitserve.inference.bundle import Bundle, read_bundle, write_bundle
from digitserve.inference.model_folder import find_bundle
from support.digits import MODELS

NAME = "digits"
DAMAGED = "6"
"""The version whose network does not have the sha256 that its manifest states."""

NETWORK = "model.onnx"


def write_models(folder: Path) -> list[Bundle]:
    """Write the float32 network as version 4 and the int8 network as version 5 of one model, and return both.

    Their scores differ by far more than the oracle's tolerance.
    """
    bundles = []
    for version, name in ((4, "digits"), (5, "digits-int8")):
        bundle = read_bundle(find_bundle(MODELS, name))
        manifest = replace(bundle.manifest, name=NAME, version=version)
        bundles.append(read_bundle(write_bundle(folder, manifest, bundle.graph, bundle.golden)))
    damaged = write_bundle(
        folder, replace(bundles[0].manifest, version=int(DAMAGED)), bundles[0].graph, bundles[0].golden
    )
    graph = bytearray(bundles[0].graph)
    graph[len(graph) // 2] ^= 1
    (damaged / NETWORK).write_bytes(graph)
    return bundles
