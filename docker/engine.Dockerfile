# This package beside an engine in its makers' own image, of which no package is touched. Built by docker/build.
ARG BASE
FROM ${BASE}

# A base keeps its engine in the system's Python. Pip may go on there, held to what is installed and to no list of the base.
ENV PIP_BREAK_SYSTEM_PACKAGES=1 PIP_CONSTRAINT=
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore

COPY requirements/run.txt docker/held.py /build/
COPY pyproject.toml README.md LICENSE CHANGELOG.md /build/
COPY src /build/src
RUN python3 /build/held.py /build/run.txt > /build/held.txt \
    && python3 -m pip install --constraint /build/held.txt /build

ENTRYPOINT []
CMD ["llem", "config"]
