# kdcache for a machine with an NVIDIA GPU: docker build -t kdcache . && docker run --gpus all -v "$PWD:/work" kdcache info
# torch's wheels bring their own CUDA libraries, so the base needs only the driver interface. Every RUN line also
# works as it stands in a shell on Debian or Ubuntu, from the repository's root, as root.
FROM nvidia/cuda:13.0.0-base-ubuntu24.04

RUN apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends python3 python3-venv
RUN mkdir -p /opt/kdcache-src /work

COPY . /opt/kdcache-src
WORKDIR /opt/kdcache-src

RUN python3 -m venv /opt/kdcache
RUN /opt/kdcache/bin/pip install --no-cache-dir .

ENV PATH=/opt/kdcache/bin:$PATH
WORKDIR /work
ENTRYPOINT ["kdcache"]
CMD ["--help"]
