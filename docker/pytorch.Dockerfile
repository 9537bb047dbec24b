# The pytorch engine: on GPUs, or (with a TORCH_INDEX of CPU builds) on the processor. Built by docker/build.
ARG BASE=python:3.12-slim-bookworm
FROM ${BASE}

ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore

# torch.compile builds what it generates: C++ for the processor, launchers of kernels for a GPU.
RUN command -v g++ \
    || (apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*)

COPY requirements/torch.txt requirements/run.txt /build/requirements/
ARG TORCH_INDEX=
RUN python3 -m pip install ${TORCH_INDEX:+--extra-index-url ${TORCH_INDEX}} -r /build/requirements/torch.txt \
    && python3 -m pip install -r /build/requirements/run.txt

COPY pyproject.toml README.md LICENSE CHANGELOG.md /build/
COPY src /build/src
RUN python3 -m pip install --no-deps /build

ENTRYPOINT []
CMD ["llem", "config"]
