"""Language models and datasets that people add: from the hub, a folder of the server, or a file of theirs.

Free of torch but for what workers call. wishes.py takes what people ask for, texts.py their files; worker.py takes a
wish up, language_models.py and datasets.py carry it out, documents.py finds the text; removing.py ends what is here.
"""

from __future__ import annotations

from sae_backend.additions.errors import AdditionError
from sae_backend.additions.folders import allowed_folder
from sae_backend.additions.removing import remove_dataset, remove_lm, saes_on, used_by
from sae_backend.additions.texts import check_name, check_size, forget_text, keep_text
from sae_backend.additions.wishes import OPEN, OPTIONS, again, ask, cancel, for_other_lm, forget

__all__ = [
    "OPEN", "OPTIONS", "AdditionError", "again", "allowed_folder", "ask", "cancel", "check_name", "check_size",
    "for_other_lm", "forget", "forget_text", "keep_text", "remove_dataset", "remove_lm", "saes_on", "used_by",
]  # fmt: skip
