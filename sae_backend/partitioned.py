"""The tables of contexts and latents, partitioned by dataset and run: store.py fills them and Django only reads."""

from __future__ import annotations

from django.db import models


class Document(models.Model):
    """Where a context's text came from; `index` counts from 0 within its dataset."""

    pk = models.CompositePrimaryKey("dataset_id", "index")
    dataset = models.ForeignKey("Dataset", models.DO_NOTHING, db_constraint=False, related_name="+")
    index = models.IntegerField()
    name = models.TextField()

    class Meta:
        managed = False
        db_table = "document"


class Context(models.Model):
    """A fixed window of tokens, shared by every latent of every run on its dataset. Partitioned by dataset."""

    pk = models.CompositePrimaryKey("dataset_id", "index")
    dataset = models.ForeignKey("Dataset", models.DO_NOTHING, db_constraint=False, related_name="+")
    index = models.IntegerField()
    document = models.IntegerField()  # Document.index of the first token that is not special
    position = models.IntegerField()  # of that token within its document, in tokens
    tokens = models.BinaryField()  # ctx_len ids, little-endian u2 (d_vocab ≤ 65,536) or u4
    text = models.TextField()  # for search

    class Meta:
        managed = False
        db_table = "context"


class Latent(models.Model):
    """One latent of a run: everything a table sorts or filters by. Partitioned by run; undefined is NULL."""

    pk = models.CompositePrimaryKey("run_id", "index")
    run = models.ForeignKey("Run", models.DO_NOTHING, db_constraint=False, related_name="+")
    index = models.IntegerField()
    status = models.SmallIntegerField()  # index into STATUS_NAMES
    firings = models.BigIntegerField()
    density = models.FloatField()
    max_act = models.FloatField(null=True)
    mean_act = models.FloatField(null=True)
    std_act = models.FloatField(null=True)
    skewness = models.FloatField(null=True)
    kurtosis = models.FloatField(null=True)
    kurtosis_all = models.FloatField(null=True)
    kurtosis_zero = models.FloatField(null=True)
    margin = models.FloatField(null=True)
    decoder_norm = models.FloatField()
    b_enc = models.FloatField(null=True)
    encoder_decoder_cos = models.FloatField(null=True)
    nearest_cos = models.FloatField(null=True)
    nearest_live = models.IntegerField(null=True)  # another latent's index
    nearest_live_cos = models.FloatField(null=True)
    opposing_cos = models.FloatField(null=True)
    dimensionality = models.FloatField(null=True)
    threshold = models.FloatField(null=True)
    since_fired = models.FloatField(null=True)  # steps of training, as the checkpoint has it
    logit_std = models.FloatField(null=True)
    logit_skewness = models.FloatField(null=True)
    logit_kurtosis = models.FloatField(null=True)
    # strongest: up to 3 distinct peak tokens of the top contexts; promoted: the most promoted token (integer[])
    # spark: 18 bytes, the shape of the activation histogram, 0 to 255

    class Meta:
        managed = False
        db_table = "latent"


class LatentPage(models.Model):
    """What one latent's page shows whole, packed by sae_backend.packing. Partitioned by run."""

    pk = models.CompositePrimaryKey("run_id", "index")
    run = models.ForeignKey("Run", models.DO_NOTHING, db_constraint=False, related_name="+")
    index = models.IntegerField()
    examples = models.BinaryField()
    histogram = models.BinaryField()
    logits = models.BinaryField()
    neighbours = models.BinaryField()
    misses = models.BinaryField(null=True)  # empty for a latent that fired
    cofiring = models.BinaryField(null=True)
    enrichment = models.BinaryField(null=True)  # of runs before there was any, and without an unembedding

    class Meta:
        managed = False
        db_table = "latent_page"
