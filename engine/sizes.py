"""Numbers that more than one file has to agree on. Imports nothing, so that every module may import it.

Those that kernels spell as well are held to the text of kernels/ by tests/ops/test_sizes.py.
"""

PAGE = 64  # tokens in a page of the key/value cache: the tile every attention kernel works in
DECODE_ROWS = 16  # rows that a decode kernel takes at most; larger batches are decoded in groups of so many
PROMPTS = DECODE_ROWS  # sequences in one prefill step: their last rows make one decode-sized product with the head
MAX_BATCH = 256  # sequences decoded at once: the one block of the kernel advance has a thread for each
MAIL = 4  # steps whose tokens the host can still read: as many may be under way or unread at a time
STOP_IDS = 32  # stop tokens a request may name, the model's own included
SPLITS = 64  # parts of a row's tokens, at most, that decode attention computes side by side
