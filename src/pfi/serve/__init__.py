"""`pfi serve`: one's own models behind the OpenAI API, and the web console.

Importing this loads neither a model library nor a web framework.
"""

from pfi.serve.config import ServeConfig
from pfi.serve.service import Service

__all__ = ["ServeConfig", "Service"]
