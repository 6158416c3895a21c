"""Numbers that several files must agree on. Imports nothing, so that every module may import it.

tests/ops/test_sizes.py compares the numbers that kernels repeat with the text of kernels/.
"""

PAGE = 64  # tokens per page of the KV cache; attention kernels work on tiles of one page
DECODE_ROWS = 16  # maximum rows of a decode kernel; larger batches are decoded in groups
PROMPTS = DECODE_ROWS  # maximum sequences in one prefill pass: the LM head runs on their last rows as a decode GEMM
MAX_BATCH = 256  # maximum sequences decoded together: the kernel advance has one block with a thread per sequence
MAIL = 4  # entries per row of the token ring buffer: the maximum number of steps in flight or unread
STOP_IDS = 32  # maximum stop tokens of a request, including the model's own
SPLITS = 64  # maximum number of splits of a row's tokens in decode attention
