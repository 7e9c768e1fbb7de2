# Image of the service with the bundles in models/, installed from the same hash-locked requirements as `make serve`.
# It does not contain TensorFlow.
#   docker build -t digitserve . && docker run --read-only --cap-drop ALL -p 50051:50051 -p 8080:8080 digitserve
# Target cuda (this image has not run on a GPU yet): the same with onnxruntime-gpu, CUDA and cuDNN. The host provides the driver.
#   docker build --target cuda -t digitserve:cuda . && docker run --gpus all --read-only --cap-drop ALL ... digitserve:cuda
# It is not reduced in size, because CUDA has gigabytes.
# Nothing is downloaded except the base image and the locked packages. `make image` adds labels with version and revision.
ARG BASE_IMAGE=docker.io/library/python:3.11-slim-bookworm

FROM ${BASE_IMAGE} AS tools
WORKDIR /src
# Packages of the lock that are needed only to build the project.
ENV BUILD_PACKAGES="hatchling pathspec pluggy tomlkit trove-classifiers" \
    PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore

FROM tools AS locked
COPY requirements/serve.txt requirements/
RUN python3 -m venv /opt/digitserve \
    && /opt/digitserve/bin/pip install --no-compile --require-hashes -r requirements/serve.txt

# The dependencies: a layer that changes only with the lock. `pip check` fails if one that is needed is missing. Then the parts
# of packages that the service never loads are removed; rm fails if a new version has other names:
# - libonnxruntime.so is for programs in C; the Python module contains its own copy of onnxruntime (30 MB each).
# - quantization, tools and transformers convert models; only training uses them.
# - Tests and type stubs of all packages.
# Unchecked hashes instead of times: two builds have the same bytes.
FROM locked AS packages
RUN /opt/digitserve/bin/pip uninstall --yes --quiet ${BUILD_PACKAGES} \
    && /opt/digitserve/bin/pip check \
    && /opt/digitserve/bin/pip uninstall --yes --quiet setuptools pip \
    && cd /opt/digitserve/lib/python3*/site-packages \
    && rm onnxruntime/capi/libonnxruntime.so.* \
    && rm -r onnxruntime/quantization onnxruntime/tools onnxruntime/transformers \
    && find . -depth \( -name tests -o -name '*.pyi' \) -exec rm -r {} + \
    && /opt/digitserve/bin/python -m compileall -q --invalidation-mode unchecked-hash "$PWD"

# The project, a regular install and not an editable one, and the models: a small layer. Every user may read its files, whatever
# the permissions are in the checkout.
FROM locked AS project
COPY pyproject.toml README.md LICENSE ./
COPY service service
COPY training training
COPY models /project/models
RUN /opt/digitserve/bin/pip install --no-compile --no-deps --no-build-isolation --root /project . \
    && /opt/digitserve/bin/python -m compileall -q --invalidation-mode unchecked-hash -s /project /project \
    && chmod -R u=rwX,go=rX /project

FROM tools AS packages-cuda
COPY requirements/cuda.txt requirements/
RUN python3 -m venv /opt/digitserve \
    && /opt/digitserve/bin/pip install --no-compile --require-hashes -r requirements/cuda.txt \
    && /opt/digitserve/bin/pip uninstall --yes --quiet ${BUILD_PACKAGES} setuptools pip \
    && /opt/digitserve/bin/python -m compileall -q --invalidation-mode unchecked-hash /opt/digitserve/lib

FROM ${BASE_IMAGE} AS runtime
LABEL org.opencontainers.image.title="digitserve" \
      org.opencontainers.image.description="gRPC service that classifies images of handwritten digits" \
      org.opencontainers.image.licenses="Apache-2.0"
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
LABEL org.opencontainers.image.description="gRPC service that classifies images of handwritten digits; on NVIDIA GPUs"
# For NVIDIA's container runtime: make the GPUs and the compute part of the driver available in the container.
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    DIGITSERVE_DEVICE=cuda
COPY --from=packages-cuda /opt/digitserve /opt/digitserve
COPY --from=project /project /

# The last stage is the default target.
FROM runtime
COPY --from=packages /opt/digitserve /opt/digitserve
COPY --from=project /project /
