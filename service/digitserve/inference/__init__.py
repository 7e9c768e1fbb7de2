"""Model bundles and the onnxruntime sessions that run them."""
