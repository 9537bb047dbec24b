"""vLLM, which reads these variables when it is imported: they are set ahead of that.

Unless somebody said otherwise, it reports nothing home and leaves this process's logging alone: what it logs by itself
goes to standard output.
"""

import os
from typing import Final

ENVIRONMENT: Final = {"VLLM_NO_USAGE_STATS": "1", "VLLM_CONFIGURE_LOGGING": "0"}

for name, value in ENVIRONMENT.items():
    os.environ.setdefault(name, value)
