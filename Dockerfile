# The service with the bundles in models/, from the same hash-locked requirements as `make serve`. No TensorFlow inside.
#   docker build -t digitserve . && docker run --read-only --cap-drop ALL -p 50051:50051 -p 8080:8080 digitserve
ARG BASE_IMAGE=docker.io/library/python:3.11-slim-bookworm

FROM ${BASE_IMAGE} AS build
WORKDIR /src
RUN python3 -m venv /opt/digitserve
COPY requirements/serve.txt requirements/
RUN /opt/digitserve/bin/pip install --no-cache-dir --disable-pip-version-check --require-hashes -r requirements/serve.txt
COPY pyproject.toml README.md ./
COPY service service
COPY training training
# Not editable: the image holds the installed package, compiled, and none of the tools that installed it.
RUN /opt/digitserve/bin/pip install --no-cache-dir --no-deps --no-build-isolation . \
    && /opt/digitserve/bin/pip uninstall --yes --quiet hatchling pathspec pluggy tomlkit trove-classifiers packaging pip setuptools \
    && /opt/digitserve/bin/python -m compileall -q /opt/digitserve/lib

FROM ${BASE_IMAGE}
LABEL org.opencontainers.image.title="digitserve" \
      org.opencontainers.image.description="Handwritten digit classification over gRPC"
COPY --from=build /opt/digitserve /opt/digitserve
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
