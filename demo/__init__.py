"""The demo: a small language model of Python source, sparse autoencoders of it, and their text."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parent
MODEL = ROOT / "model"
SAES = ROOT / "saes"
MAIN_SAE = SAES / "resid_post_2_topk32_4096"

# What latents of MAIN_SAE detect, read from their strongest examples; the key is the latent's index.
KNOWN_LATENTS = {
    2634: "the exception class in an except clause",
    1616: "the type in an annotation",
    2080: "a line break inside a block of imports",
    1614: "property after @",
    3618: "the end of Traceback (most recent call last) in doctests",
    1642: "bug tracker numbers, after Issue # or bugs.python.org/issue",
    1387: "the second number of a dotted version or section",
    3569: "a line break after a backslash continuation",
    612: "the word after a reStructuredText literal",
    1080: "the condition of an assert statement",
    3511: "a plural s",
    2220: "a backslash inside a string or regular expression",
    1255: "year or month in calendar code",
    2689: "names of HTML entities",
    3134: "rows of hyphens that underline a heading",
    290: "stack_before=[ in pickletools",
    2292: "assert_ in method names",
    170: "a file name's suffix, after the dot",
    1662: "padx and pady in tkinter layouts",
}
