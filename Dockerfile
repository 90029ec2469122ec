# One image for the web server and the workers; docker-compose.yml says what each runs.
FROM python:3.11-slim

ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 VAR_DIR=/var/lib/latents
RUN useradd --uid 1000 --create-home latents \
    && install --directory --owner=latents --group=latents /var/lib/latents /home/latents/.cache/huggingface
WORKDIR /srv/latents

# PyPI's torch brings CUDA and runs on machines without a GPU too; for a smaller image build with
# --build-arg PIP_EXTRA_INDEX_URL=… and the index of PyTorch's CPU wheels.
ARG PIP_EXTRA_INDEX_URL=
COPY requirements.txt .
RUN pip install --no-cache-dir "$(grep '^torch==' requirements.txt)" \
    && pip install --no-cache-dir --requirement requirements.txt

COPY . .
USER 1000
EXPOSE 8000
CMD ["gunicorn", "browser.wsgi:application", "--bind", "0.0.0.0:8000", "--threads", "16", "--no-control-socket"]
