"""TensorRT-LLM, which reads these variables when it is imported: they are set ahead of that.

Unless somebody said otherwise, it reports nothing home and tells errors only: what it prints goes to standard output.
"""

import os
from typing import Final

ENVIRONMENT: Final = {"TRTLLM_NO_USAGE_STATS": "1", "TLLM_LOG_LEVEL": "ERROR"}

for name, value in ENVIRONMENT.items():
    os.environ.setdefault(name, value)
