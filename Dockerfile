# Image of the service with the bundles in models/, installed from the same hash-locked requirements as `make serve`.
# It does not contain TensorFlow.
#   docker build -t digitserve . && docker run --read-only --cap-drop ALL -p 50051:50051 -p 8080:8080 digitserve
# Target cuda (experimental, not yet run on a GPU): the same with onnxruntime-gpu, CUDA and cuDNN. The host provides the driver.
#   docker build --target cuda -t digitserve:cuda . && docker run --gpus all --read-only --cap-drop ALL ... digitserve:cuda
ARG BASE_IMAGE=docker.io/library/python:3.11-slim-bookworm

FROM ${BASE_IMAGE} AS tools
WORKDIR /src
RUN python3 -m venv /opt/digitserve

FROM tools AS build
COPY requirements/serve.txt requirements/
RUN /opt/digitserve/bin/pip install --no-cache-dir --disable-pip-version-check --require-hashes -r requirements/serve.txt
COPY pyproject.toml README.md ./
COPY service service
COPY training training
# A regular install, not an editable one. Byte-compiled, without the packages that are needed only to build and install.
RUN /opt/digitserve/bin/pip install --no-cache-dir --no-deps --no-build-isolation . \
    && /opt/digitserve/bin/pip uninstall --yes --quiet hatchling pathspec pluggy tomlkit trove-classifiers packaging pip setuptools \
    && /opt/digitserve/bin/python -m compileall -q /opt/digitserve/lib

FROM tools AS build-cuda
COPY requirements/cuda.txt requirements/
RUN /opt/digitserve/bin/pip install --no-cache-dir --disable-pip-version-check --require-hashes -r requirements/cuda.txt
COPY pyproject.toml README.md ./
COPY service service
COPY training training
RUN /opt/digitserve/bin/pip install --no-cache-dir --no-deps --no-build-isolation . \
    && /opt/digitserve/bin/pip uninstall --yes --quiet hatchling pathspec pluggy tomlkit trove-classifiers packaging pip setuptools \
    && /opt/digitserve/bin/python -m compileall -q /opt/digitserve/lib

FROM ${BASE_IMAGE} AS runtime
LABEL org.opencontainers.image.title="digitserve" \
      org.opencontainers.image.description="gRPC service that classifies images of handwritten digits" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY models /models
ENV PATH=/opt/digitserve/bin:${PATH} \
    PYTHONDONTWRITEBYTECODE=1 \
    DIGITSERVE_HOST=0.0.0.0 \
    DIGITSERVE_MODELS=/models
USER 65532:65532
EXPOSE 50051 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s CMD ["digitserve", "healthcheck"]
ENTRYPOINT ["digitserve"]
CMD ["serve"]

FROM runtime AS cuda
LABEL org.opencontainers.image.description="gRPC service that classifies images of handwritten digits; on NVIDIA GPUs (experimental)"
COPY --from=build-cuda /opt/digitserve /opt/digitserve
# For NVIDIA's container runtime: make the GPUs and the compute part of the driver available in the container.
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    DIGITSERVE_DEVICE=cuda

# The last stage is the default target.
FROM runtime
COPY --from=build /opt/digitserve /opt/digitserve
