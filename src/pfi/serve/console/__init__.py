"""The web console: a person's model, records, adapters and ledger in a browser.

Server-rendered pages with htmx and Pico, all of it served from here: see docs/console.md.
"""

from pfi.serve.console.router import router, sign_in_link

__all__ = ["router", "sign_in_link"]
