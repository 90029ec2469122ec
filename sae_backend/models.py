"""The tables that workers fill; those of contexts and latents are in partitioned.py."""

from __future__ import annotations

import uuid

from django.conf import settings
from django.db import models

from sae_backend.compared import Comparison as Comparison
from sae_backend.partitioned import Context as Context
from sae_backend.partitioned import Document as Document
from sae_backend.partitioned import Latent as Latent
from sae_backend.partitioned import LatentPage as LatentPage

STATUS_NAMES = ("dead", "rare", "alive", "dense")


class LanguageModel(models.Model):
    """The subject transformer, known by the hash of its weights; `source` is a local folder or a hub name."""

    name = models.CharField(max_length=200, unique=True)
    source = models.CharField(max_length=1000)
    revision = models.CharField(max_length=200, blank=True)
    sha256 = models.CharField(max_length=64, unique=True)
    architecture = models.CharField(max_length=100)
    d_model = models.IntegerField()
    n_layers = models.IntegerField()
    n_ctx = models.IntegerField()
    d_vocab = models.IntegerField()
    # packing.pack_vocabulary: every token's own bytes, and which are special
    vocabulary = models.BinaryField()
    owner = models.ForeignKey(settings.AUTH_USER_MODEL, models.SET_NULL, null=True, related_name="lms")
    created_at = models.DateTimeField(auto_now_add=True)

    def __str__(self) -> str:
        return self.name


class Dataset(models.Model):
    """Named text, tokenized once for one language model's tokenizer into contexts of one length."""

    name = models.CharField(max_length=200)
    source = models.CharField(max_length=1000)
    lm = models.ForeignKey(LanguageModel, models.PROTECT, related_name="datasets")
    sha256 = models.CharField(max_length=64, blank=True)  # of the token ids, in order
    ctx_len = models.IntegerField()
    n_contexts = models.IntegerField(default=0)
    n_tokens = models.BigIntegerField(default=0)  # all positions, special ones included
    n_documents = models.IntegerField(default=0)
    ready = models.BooleanField(default=False)
    recipe = models.JSONField(default=dict)  # how it is made again for another language model: additions.recipe
    basis_by_layer = models.JSONField(default=dict)  # core.layers.basis_by_layer by dtype, once one was asked for
    owner = models.ForeignKey(settings.AUTH_USER_MODEL, models.SET_NULL, null=True, related_name="datasets")
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["name", "lm", "ctx_len"], name="dataset_identity")]

    def __str__(self) -> str:
        return self.name


class Sae(models.Model):
    """One trained autoencoder at one hook point. Its identity is the hash of its canonical weights."""

    sha256 = models.CharField(max_length=64, unique=True)
    slug = models.SlugField(max_length=200, unique=True)
    name = models.CharField(max_length=200)
    lm = models.ForeignKey(LanguageModel, models.PROTECT, related_name="saes")
    hook_name = models.CharField(max_length=200)
    hook_name_out = models.CharField(max_length=200, blank=True)
    architecture = models.CharField(max_length=40)
    format = models.CharField(max_length=40)
    d_in = models.IntegerField()
    d_out = models.IntegerField()
    d_sae = models.IntegerField()
    k = models.IntegerField(null=True)
    metadata = models.JSONField(default=dict)  # what the checkpoint says of itself
    about = models.JSONField(default=dict)  # what people say of it: abouts.FIELDS
    path = models.CharField(max_length=1000)  # of the checkpoint among the files that workers share
    series = models.CharField(max_length=200, blank=True, default="")  # of checkpoints in training: series.py
    step = models.BigIntegerField(null=True)  # of training, in its series
    series_at = models.DateTimeField(null=True)  # when anything that pages show of its series last changed
    current_run = models.ForeignKey("Run", models.SET_NULL, null=True, related_name="+")
    compared = models.IntegerField(default=0)  # times that what comparisons say of its latents has changed; 0 is never
    owner = models.ForeignKey(settings.AUTH_USER_MODEL, models.SET_NULL, null=True, related_name="saes")
    created_at = models.DateTimeField(auto_now_add=True)

    @property
    def public_id(self) -> str:
        """The 12 hexadecimal digits that addresses and citations use."""
        return self.sha256[:12]

    def __str__(self) -> str:
        return self.name


class SeriesCosine(models.Model):
    """How far the decoder directions of a checkpoint in a series are from the final one's."""

    sae = models.OneToOneField(Sae, models.CASCADE, related_name="series_cosine")
    final = models.ForeignKey(Sae, models.CASCADE, related_name="+")
    cos = models.BinaryField()  # d_sae little-endian float32, NaN where a row is zero


class FormerSlug(models.Model):
    """A name that an SAE had: its address leads to the SAE for ever, and no other SAE takes it."""

    slug = models.SlugField(max_length=200, unique=True)
    sae = models.ForeignKey(Sae, models.CASCADE, related_name="former_slugs")
    created_at = models.DateTimeField(auto_now_add=True)


class DeletedSae(models.Model):
    """What is left of an SAE that was deleted: enough to say so at its addresses, and to clean up after it."""

    sha256 = models.CharField(max_length=64, db_index=True)  # may be uploaded, and deleted, again
    name = models.CharField(max_length=200)
    slugs = models.JSONField(default=list)
    runs = models.JSONField(default=list)  # ids, which the addresses of jobs have
    last_number = models.IntegerField(default=0)  # of its runs: pinned addresses never come to mean another run
    deleted_at = models.DateTimeField(auto_now_add=True)
    cleaned_at = models.DateTimeField(null=True)  # its files, tables and activations are gone

    @property
    def public_id(self) -> str:
        return self.sha256[:12]


class Run(models.Model):
    """One pass of one SAE over one dataset with one configuration."""

    class State(models.TextChoices):
        QUEUED = "queued"
        COMPUTING = "computing"  # shards of contexts
        LOADING = "loading"  # shards of latents
        SEALED = "sealed"
        LIVE = "live"
        RETIRED = "retired"
        FAILED = "failed"
        CANCELLED = "cancelled"
        DROPPED = "dropped"

    sae = models.ForeignKey(Sae, models.PROTECT, related_name="runs")
    number = models.IntegerField()  # 1, 2, … within its SAE
    dataset = models.ForeignKey(Dataset, models.PROTECT, related_name="runs")
    config = models.JSONField(default=dict)  # core.config.RunConfig, with versions of what computed it
    state = models.CharField(max_length=12, choices=State.choices, default=State.QUEUED)
    error = models.TextField(blank=True)
    tokens_total = models.BigIntegerField(default=0)
    tokens_done = models.BigIntegerField(default=0)
    summary = models.JSONField(default=dict)  # figures of the SAE and run: store.SUMMARY says which
    pinned = models.BooleanField(default=False)
    shared_at = models.DateTimeField(null=True)  # a link pinned to it was first given out or followed
    aside = models.BooleanField(default=False)  # takes the place of no run that its SAE's pages show
    owner = models.ForeignKey(settings.AUTH_USER_MODEL, models.SET_NULL, null=True, related_name="runs")  # who asked
    created_at = models.DateTimeField(auto_now_add=True)
    started_at = models.DateTimeField(null=True)
    computed_at = models.DateTimeField(null=True)  # the last shard of contexts was done
    loaded_at = models.DateTimeField(null=True)  # the last shard of latents was done
    live_at = models.DateTimeField(null=True)
    retired_at = models.DateTimeField(null=True)
    stopped_at = models.DateTimeField(null=True)  # failed or cancelled
    heartbeat_at = models.DateTimeField(null=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["sae", "number"], name="run_number")]

    @property
    def n_contexts(self) -> int:
        """Contexts of its dataset that it reads, from the first on."""
        return self.tokens_total // self.dataset.ctx_len

    @property
    def address(self) -> str:
        """What stands after /s/ where its pages are, or will be."""
        return f"{self.sae.public_id}@r{self.number}" if self.aside else self.sae.public_id

    def __str__(self) -> str:
        return f"{self.sae.name} r{self.number}"


UNFINISHED = (Run.State.QUEUED, Run.State.COMPUTING, Run.State.LOADING, Run.State.SEALED)
RESUMABLE = (Run.State.FAILED, Run.State.CANCELLED)


class RunShard(models.Model):
    """A claimable piece of a run: contexts (or latents) lo ≤ i < hi."""

    class Kind(models.TextChoices):
        CONTEXTS = "contexts"
        LATENTS = "latents"

    class State(models.TextChoices):
        TODO = "todo"
        CLAIMED = "claimed"
        DONE = "done"

    run = models.ForeignKey(Run, models.CASCADE, related_name="shards")
    kind = models.CharField(max_length=8, choices=Kind.choices)
    index = models.IntegerField()
    lo = models.IntegerField()
    hi = models.IntegerField()
    state = models.CharField(max_length=8, choices=State.choices, default=State.TODO)
    worker = models.CharField(max_length=200, blank=True)
    backend_pid = models.IntegerField(null=True)  # of the COPY's connection: a hung loader is freed by terminating it
    attempts = models.IntegerField(default=0)  # claims so far; the latest is the only one that counts
    deaths = models.IntegerField(default=0)  # workers that ended or fell silent in it
    losses = models.IntegerField(default=0)  # times that its file in the spool was not what had been written
    checksum = models.BigIntegerField(null=True)  # core.digests.checksum of that file
    progress = models.BigIntegerField(default=0)  # tokens (or latents) done inside the claim
    claimed_at = models.DateTimeField(null=True)  # the present claim, or the one that did it
    heartbeat_at = models.DateTimeField(null=True)
    done_at = models.DateTimeField(null=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["run", "kind", "index"], name="run_shard_index")]


class Worker(models.Model):
    """A Celery node that is up, or was lately: only for people to see. What it holds, its claims say."""

    name = models.CharField(max_length=200, unique=True)
    queues = models.CharField(max_length=200)  # with commas
    task = models.CharField(max_length=100, blank=True)  # at hand: a function of tasks.py
    target = models.BigIntegerField(null=True)  # of it: the id of a run, an import or an addition
    since = models.DateTimeField(null=True)  # the task was taken up
    memory = models.BigIntegerField(null=True)  # bytes that the process has
    started_at = models.DateTimeField()
    seen_at = models.DateTimeField()


class SaeImport(models.Model):
    """A checkpoint on its way in: from files, a path or a hub id to an SAE with a run, or to a message that helps."""

    class State(models.TextChoices):
        RECEIVING = "receiving"  # files arrive
        CHECKING = "checking"  # a worker reads them, or will
        WAITING = "waiting"  # checked; the person decides
        QUEUED = "queued"  # to be imported
        RUNNING = "running"
        DONE = "done"
        FAILED = "failed"
        CANCELLED = "cancelled"

    key = models.UUIDField(default=uuid.uuid4, unique=True, editable=False)  # of its address
    owner = models.ForeignKey(settings.AUTH_USER_MODEL, models.SET_NULL, null=True, related_name="imports")
    name = models.CharField(max_length=200)
    source = models.CharField(max_length=1000, blank=True)  # a file or folder of who asked, or a hub id; "": uploads
    from_hub = models.BooleanField(default=False)
    lm = models.ForeignKey(LanguageModel, models.PROTECT, null=True)
    dataset = models.ForeignKey(Dataset, models.PROTECT, null=True)  # compute a run on it once imported
    max_tokens = models.BigIntegerField(null=True)  # of the dataset; null is all
    options = models.JSONField(default=dict)  # corrections of what the files say: core.detected.OPTIONS
    series = models.CharField(max_length=200, blank=True, default="")  # as given; "" takes what names tell
    step = models.BigIntegerField(null=True)
    go_on = models.BooleanField(default=False)  # import once a check finds nothing wrong, without asking
    report = models.JSONField(default=dict)  # what the check found: see intake/checking.py
    state = models.CharField(max_length=12, choices=State.choices, default=State.QUEUED)
    error = models.TextField(blank=True)
    attempts = models.IntegerField(default=0)  # times that it was asked for, or taken up by a worker; the latest counts
    tries = models.IntegerField(default=0)  # workers since it was asked for that have not left it alive
    heartbeat_at = models.DateTimeField(null=True)  # of that worker, or when it was last sent
    touched_at = models.DateTimeField(auto_now_add=True)  # by a person; files that nobody comes back for are deleted
    sae = models.ForeignKey(Sae, models.CASCADE, null=True, related_name="imports")
    run = models.ForeignKey(Run, models.SET_NULL, null=True, related_name="imports")
    created_at = models.DateTimeField(auto_now_add=True)
    done_at = models.DateTimeField(null=True)

    @property
    def source_name(self) -> str:
        """Where it comes from, for everybody: of what the shell was given the last part alone."""
        return self.source if self.from_hub else self.source.rstrip("/").rpartition("/")[2]

    @property
    def public_error(self) -> str:
        """The same of its error, which may name that file or folder."""
        return self.error.replace(self.source, self.source_name) if self.source else self.error


class UploadFile(models.Model):
    """One file of an import, kept under its key; `name` is only how people and the loader know it."""

    key = models.UUIDField(default=uuid.uuid4, unique=True, editable=False)  # of its tus address
    of = models.ForeignKey(SaeImport, models.CASCADE, related_name="files")
    name = models.CharField(max_length=400)  # relative, cleaned of all that a path could do
    size = models.BigIntegerField()  # as declared
    received = models.BigIntegerField(default=0)
    complete = models.BooleanField(default=False)  # and where workers find it
    kept = models.BooleanField(default=True)  # its bytes are still stored, here or as the SAE's checkpoint
    sha256 = models.CharField(max_length=64, blank=True)  # of what arrived, once a worker has read it
    expected_sha256 = models.CharField(max_length=64, blank=True)  # as who sent it says
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["of", "name"], name="upload_name")]


class Addition(models.Model):
    """A language model or a dataset on its way in: from the hub, a folder or an upload to a row, or to a sentence."""

    class Kind(models.TextChoices):
        MODEL = "model"
        DATASET = "dataset"

    class Origin(models.TextChoices):
        HUB = "hub"
        FOLDER = "folder"  # of the workers' host, below settings.SOURCE_ROOTS
        UPLOAD = "upload"

    class State(models.TextChoices):
        QUEUED = "queued"
        RUNNING = "running"
        DONE = "done"
        FAILED = "failed"
        CANCELLED = "cancelled"

    kind = models.CharField(max_length=8, choices=Kind.choices)
    origin = models.CharField(max_length=8, choices=Origin.choices)
    name = models.CharField(max_length=200)  # what pages will call it
    source = models.CharField(max_length=1000)  # name on the hub, folder, or name of the uploaded file
    revision = models.CharField(max_length=200, blank=True)  # on the hub: branch, tag or commit
    lm = models.ForeignKey(LanguageModel, models.CASCADE, null=True, related_name="+")  # which reads a dataset
    options = models.JSONField(default=dict)  # of a dataset: additions.OPTIONS
    text_sha256 = models.CharField(max_length=64, blank=True)  # of an uploaded file, under which it is stored
    text_bytes = models.BigIntegerField(default=0)
    owner = models.ForeignKey(settings.AUTH_USER_MODEL, models.SET_NULL, null=True, related_name="additions")
    state = models.CharField(max_length=12, choices=State.choices, default=State.QUEUED)
    error = models.TextField(blank=True)
    stage = models.CharField(max_length=100, blank=True)  # what a worker does now, in words
    unit = models.CharField(max_length=10, blank=True)  # of done and total: bytes or tokens
    done = models.BigIntegerField(default=0)
    total = models.BigIntegerField(null=True)
    attempts = models.IntegerField(default=0)  # times that it was asked for, or taken up by a worker; the latest counts
    tries = models.IntegerField(default=0)  # workers since it was asked for that have not left it alive
    heartbeat_at = models.DateTimeField(null=True)
    made_lm = models.ForeignKey(LanguageModel, models.CASCADE, null=True, related_name="additions")
    made_dataset = models.ForeignKey(Dataset, models.CASCADE, null=True, related_name="additions")
    created_at = models.DateTimeField(auto_now_add=True)
    started_at = models.DateTimeField(null=True)
    done_at = models.DateTimeField(null=True)

    def __str__(self) -> str:
        return self.name


class LogLine(models.Model):
    """One line of a run's log, for the job page."""

    run = models.ForeignKey(Run, models.CASCADE, related_name="log")
    at = models.DateTimeField(auto_now_add=True)
    level = models.CharField(max_length=8, default="info")
    text = models.TextField()
