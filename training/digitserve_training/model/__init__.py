"""Networks as data: layers, presets, preset files, and their Keras and ONNX forms."""
