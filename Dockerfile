# The current row (tools/README.md) in a container. torch's wheels bring CUDA's libraries themselves; a base without
# them serves as well: docker build --build-arg BASE=python:3.12-slim -t mg-llava .
#   docker build -t mg-llava . && docker run --gpus all --ipc=host -v $PWD/work_dirs:/opt/mg_llava/work_dirs \
#       mg-llava xtuner train configs/mg_llava_vicuna7b_pretrain.py
ARG BASE=nvidia/cuda:13.0.1-runtime-ubuntu24.04
FROM ${BASE}
ENV DEBIAN_FRONTEND=noninteractive PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1
# a compiler for Triton's and DeepSpeed's kernels, libraries of OpenCV
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ git libgl1 libglib2.0-0 make python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/mg_llava
# packages in a layer of their own, which other changes of the code leave as it is
COPY Makefile README.md setup.py ./
COPY .ci .ci
COPY mg_llava/__init__.py mg_llava/
RUN make .venv-current/.installed
COPY . .
# Make compares times, and these files are copied again; nothing is to be installed anew
RUN touch .venv-current/.installed
ENV PATH=/opt/mg_llava/.venv-current/bin:$PATH
CMD ["mg-llava", "--help"]
