# The service with the bundles in models/, from the same hash-locked requirements as `make serve`. No TensorFlow inside.
#   docker build -t digitserve . && docker run --read-only --cap-drop ALL -p 50051:50051 -p 8080:8080 digitserve
# The target cuda is the same with onnxruntime-gpu, CUDA and cuDNN; the driver comes from the host.
#   docker build --target cuda -t digitserve:cuda . && docker run --gpus all --read-only --cap-drop ALL ... digitserve:cuda
ARG BASE_IMAGE=docker.io/library/python:3.11-slim-bookworm

FROM ${BASE_IMAGE} AS tools
WORKDIR /src
RUN python3 -m venv /opt/digitserve

FROM tools AS build
COPY requirements/serve.txt requirements/
RUN /opt/digitserve/bin/pip install --no-cache-dir --disable-pip-version-check --require-hashes -r requirements/serve.txt
COPY pyproject.toml README.md LICENSE ./
COPY service service
COPY training training
# Not editable: the image holds the installed package, compiled, and none of the tools that installed it.
RUN /opt/digitserve/bin/pip install --no-cache-dir --no-deps --no-build-isolation . \
    && /opt/digitserve/bin/pip uninstall --yes --quiet hatchling pathspec pluggy tomlkit trove-classifiers packaging pip setuptools \
    && /opt/digitserve/bin/python -m compileall -q /opt/digitserve/lib

FROM tools AS build-cuda
COPY requirements/cuda.txt requirements/
RUN /opt/digitserve/bin/pip install --no-cache-dir --disable-pip-version-check --require-hashes -r requirements/cuda.txt
COPY pyproject.toml README.md LICENSE ./
COPY service service
COPY training training
RUN /opt/digitserve/bin/pip install --no-cache-dir --no-deps --no-build-isolation . \
    && /opt/digitserve/bin/pip uninstall --yes --quiet hatchling pathspec pluggy tomlkit trove-classifiers packaging pip setuptools \
    && /opt/digitserve/bin/python -m compileall -q /opt/digitserve/lib

FROM ${BASE_IMAGE} AS runtime
LABEL org.opencontainers.image.title="digitserve" \
      org.opencontainers.image.description="Handwritten digit classification over gRPC"
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
COPY --from=build-cuda /opt/digitserve /opt/digitserve
# What NVIDIA's container runtime lends: the device and the part of the driver that computes.
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    DIGITSERVE_DEVICE=cuda

# Last, so that it is what a build without a target makes.
FROM runtime
COPY --from=build /opt/digitserve /opt/digitserve
