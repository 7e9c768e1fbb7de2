"""Model bundles, and the onnxruntime sessions that run their graphs."""
